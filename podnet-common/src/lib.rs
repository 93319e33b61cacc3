//! What the eBPF object and user space share: the tables' layouts, packet views, checksums, and the packet pipeline.
//!
//! No allocation, no aya, no unsafe code: the same source runs in the kernel, in host unit tests and in the simulator. Only
//! the [`simulator`] itself, which the feature `std` adds, has the standard library.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
extern crate std;

pub mod addr;
pub mod checksum;
pub mod fib;
pub mod layout;
pub mod packet;
pub mod pipeline;
pub mod removal;
#[cfg(feature = "std")]
pub mod simulator;
pub mod time;
pub mod verdict;

/// The oldest Linux on which the programs load, proven by `cargo xtask test --kernel`. Messages and documents name it;
/// what later kernels add (socket programs' own errno in 6.1, TCX in 6.6, a route's source address in 6.7) is used where
/// it is there.
pub const OLDEST_KERNEL: &str = "5.15";
