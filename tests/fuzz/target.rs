//! The fuzzer's target: a scenario for every input.

#![no_main]

mod choices;
mod frame;
mod oracle;
mod scenario;
mod sockets;
mod view;
mod world;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    scenario::play(bytes, |_| {});
    sockets::play(bytes, |_| {});
});
