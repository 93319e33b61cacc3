//! The eBPF object that is built into this program.

include!(concat!(env!("OUT_DIR"), "/object.rs"));
