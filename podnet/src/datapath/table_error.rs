//! Conversion of map errors into errors of tables.

use std::io;

use aya::maps::MapError;

use crate::mirror::TableError;

/// Error number of a failed system call.
pub(super) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

/// Removing a missing entry counts as success.
pub(super) fn gone_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// For operations on one entry by aya.
pub(super) fn failed(table: &'static str, operation: &'static str) -> impl Fn(MapError) -> TableError {
    move |error| {
        let source = errno(&error).map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error);
        TableError::Io { table, operation, source }
    }
}

/// For batch operations.
pub(super) fn refused(table: &'static str, operation: &'static str) -> impl Fn(io::Error) -> TableError {
    move |source| TableError::Io { table, operation, source }
}
