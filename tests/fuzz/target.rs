//! The fuzzer's target: a scenario for every input.

#![no_main]

mod choices;
mod frame;
mod oracle;
mod scenario;
#[path = "../../podnet/src/simulator.rs"]
#[allow(dead_code, reason = "it is the whole of podnet::simulator, without the crates that podnet needs")]
mod simulator;
mod view;
mod world;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| scenario::play(bytes, |_| {}));
