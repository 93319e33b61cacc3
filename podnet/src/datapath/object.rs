//! The eBPF object built into this binary.

include!(concat!(env!("OUT_DIR"), "/object.rs"));
