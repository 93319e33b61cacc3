//! Errors of loading the datapath.

use std::path::PathBuf;

use aya::maps::MapError;
use podnet_cni::text::refusal;
use thiserror::Error;

use super::kernel;

/// Why the datapath can't be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// This binary was built without the eBPF object.
    #[error("this podnet was built without its eBPF object: build it with `cargo xtask build --release`")]
    NoObject,
    /// The pin directory can't be created.
    #[error("cannot create {path}: {source}; mount a BPF file system there: `podnet mount-bpffs`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The kernel rejects the object or one of its maps.
    #[error("cannot load the eBPF object: {0}. {needs}", needs = kernel::needs())]
    Object(String),
    /// The kernel rejects a program.
    #[error("the kernel rejected the program {name}: {reason}. {needs}", needs = kernel::needs())]
    Program {
        /// The program.
        name: String,
        /// The cause in a line: see `kernel::refusal`.
        reason: String,
    },
    /// The object lacks a program.
    #[error("the eBPF object has no {0}: it belongs to another version of podnet; build both together")]
    Missing(String),
    /// Pinning or opening a program failed.
    #[error("cannot pin or open {path}: {}", refusal(.source.as_ref()))]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map operation failed.
    #[error("cannot read or write the table {name}: {}", refusal(.source))]
    Map {
        /// The map.
        name: &'static str,
        /// The cause.
        source: MapError,
    },
}
