//! Why the datapath can't be loaded.

use std::path::PathBuf;

use aya::maps::MapError;
use podnet_cni::text::chain;
use thiserror::Error;

use super::kernel;

/// What can go wrong.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Built without the object.
    #[error("this podnet was built without its eBPF object: build it with `cargo xtask build --release`")]
    NoObject,
    /// No directory for pins.
    #[error("cannot create {path}: {source}. Is a BPF file system mounted there (mount -t bpf bpf /sys/fs/bpf)?")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refuses the object or one of its maps.
    #[error("cannot load the eBPF object: {0}. {needs}", needs = kernel::needs())]
    Object(String),
    /// The kernel refuses a program.
    #[error("the kernel rejected the program {name}: {reason}. {needs}", needs = kernel::needs())]
    Program {
        /// Which.
        name: String,
        /// Why, in a line: see `kernel::refusal`.
        reason: String,
    },
    /// A program that the object should hold.
    #[error("the eBPF object has no {0}: it belongs to another version of podnet; build both together")]
    Missing(String),
    /// A program's pin.
    #[error("cannot pin or open {path}: {}", chain(.source.as_ref()))]
    Pin {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map operation.
    #[error("cannot read or write the table {name}: {}", chain(.source))]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        source: MapError,
    },
}
