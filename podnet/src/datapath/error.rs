//! Errors of the datapath.

use std::io;

use aya::maps::MapError;
use podnet_cni::{
    datapath::DatapathError,
    text::{chain, refusal},
};
use thiserror::Error;

use super::{load_error::LoadError, sockets::SocketError};

/// An error of the datapath.
#[derive(Debug, Error)]
pub enum Error {
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The object lacks a map, or the map has another type.
    #[error(
        "the table {name} does not match this version of podnet: {}; build daemon and eBPF object together",
        chain(.source)
    )]
    Shape {
        /// The map.
        name: &'static str,
        /// The cause.
        source: MapError,
    },
    /// The object lacks a map.
    #[error("the eBPF object has no table {0}; build daemon and eBPF object together")]
    Missing(&'static str),
    /// An operation on a table failed.
    #[error("cannot {operation} in the table {name}: {}", refusal(.source))]
    Table {
        /// The operation.
        operation: &'static str,
        /// The table.
        name: &'static str,
        /// The cause.
        source: MapError,
    },
    /// An operation on many entries of a table failed.
    #[error("cannot {operation} the table {name}: {}", refusal(.source))]
    Batch {
        /// The operation.
        operation: &'static str,
        /// The table.
        name: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// Collection.
    #[error("cannot sweep expired entries: {}", refusal(.0))]
    Collect(io::Error),
    /// The programs' log.
    #[error("cannot read the programs' log: {}", refusal(.0))]
    Log(aya_log::Error),
    /// Attaching to an interface.
    #[error("{}", refusal(.0))]
    Attach(#[from] DatapathError),
    /// Socket hooks.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Detaching socket hooks.
    #[error("cannot detach the socket hooks: {}", refusal(.0))]
    SocketDetach(io::Error),
}
