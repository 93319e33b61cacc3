//! Descriptors watched by the runtime.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;

/// Has the runtime report when a descriptor becomes readable.
pub fn watch<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the watched values keep one descriptor open for their whole life, and always return that one.
    unsafe { AsyncFd::register(inner) }.map_err(Into::into)
}
