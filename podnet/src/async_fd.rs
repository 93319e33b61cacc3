//! Descriptors that the runtime watches.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;

/// Has the runtime tell when a descriptor is readable.
pub fn watch<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: what the daemon watches keeps one descriptor open for as long as it lives, and always names that one.
    unsafe { AsyncFd::register(inner) }.map_err(Into::into)
}
