//! Everything the eBPF object and user space share: table layouts, packet headers, checksums and the packet pipeline.
//!
//! The same source runs in the kernel, in unit tests and in the simulator, so it contains no allocation, no aya and no
//! unsafe code. The only exception is the `simulator` (feature `std`), which uses the standard library.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
extern crate std;

pub mod addr;
pub mod checksum;
pub mod fib;
mod hash;
pub mod layout;
pub mod packet;
pub mod pipeline;
pub mod removal;
#[cfg(feature = "std")]
pub mod simulator;
pub mod tables;
pub mod time;
pub mod verdict;

/// Oldest supported Linux version, verified by `cargo xtask test --kernel`; messages and documentation quote it.
/// Features of later kernels are used where available: an errno chosen by socket programs (6.1), TCX (6.6), the source
/// address of a route (6.7).
pub const OLDEST_KERNEL: &str = "5.15";
