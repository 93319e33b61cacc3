//! Errors of operations on the datapath.

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use podnet_common::addr::IfIndex;
use thiserror::Error;

use super::direction::Direction;

/// Why an operation on the datapath failed.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// Nothing is pinned there.
    #[error("{} is not pinned", path.display())]
    NotPinned {
        /// The pin.
        path: PathBuf,
    },
    /// A pin could not be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A program could not be attached or detached.
    #[error("cannot {what} {} {} link {}: {source}", program.display(), direction.preposition(), ifindex.0)]
    Attach {
        /// Attach or detach.
        what: &'static str,
        /// The program's pin.
        program: PathBuf,
        /// The link.
        ifindex: IfIndex,
        /// Where on the link.
        direction: Direction,
        /// The cause.
        source: io::Error,
    },
    /// The kernel does not report the cookie of a namespace.
    #[error("cannot read the cookie of the pod's network namespace (requires Linux 5.14 or later): {0}")]
    Cookie(#[source] io::Error),
    /// An operation on a table failed.
    #[error("cannot {what} (table {table}): {source}")]
    Table {
        /// The operation.
        what: String,
        /// Which table.
        table: &'static str,
        /// The cause.
        source: MapError,
    },
}

/// Why a pin could not be opened.
pub(super) fn open_error(path: &Path, source: io::Error) -> DatapathError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => DatapathError::NotPinned { path },
        _ => DatapathError::Open { path, source },
    }
}

/// A program could not be attached or detached.
pub(super) fn attach_error(
    what: &'static str,
    program: &Path,
    ifindex: IfIndex,
    direction: Direction,
    source: io::Error,
) -> DatapathError {
    DatapathError::Attach { what, program: program.to_owned(), ifindex, direction, source }
}
