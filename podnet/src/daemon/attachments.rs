//! The plugin's records, watched: that a pod came or went is all that the daemon has to be told.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// The directory of attachments. Its descriptor becomes readable when a record comes or goes.
pub(super) struct Attachments(Inotify);

impl Attachments {
    /// Watches the directory, which is made if it isn't there.
    pub(super) fn watch(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}: set `stateDir` to a writable directory", directory.display()))?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("cannot use inotify")?;
        let changes = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
        inotify.add_watch(directory, changes).with_context(|| format!("cannot watch {}", directory.display()))?;
        Ok(Self(inotify))
    }

    /// Takes what has been told.
    pub(super) fn drain(&self) {
        while self.0.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

impl AsFd for Attachments {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Attachments {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
