//! podnet's eBPF object: entry points of the hooks, packet contexts and maps. The logic is podnet-common's pipeline.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod context;
mod events;
#[macro_use]
mod jump;
mod maps;
mod policy;
mod removal;
mod sock;
mod tables;
mod tc;
mod xdp;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// Required by helpers that are restricted to GPL-compatible programs; the object may be used under GPL-2.0.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
