//! What the eBPF object and user space share: the tables' layouts, packet views, checksums, and the packet pipeline.
//!
//! No allocation, no aya, no unsafe code: the same source runs in the kernel, in host unit tests and in the simulator.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod checksum;
pub mod layout;
pub mod packet;
pub mod pipeline;
pub mod time;
pub mod verdict;
