//! Fuzz target: each input is a scenario.

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
