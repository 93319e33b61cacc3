//! Watches the plugin's records: the daemon needs to know only that a pod was added or removed.
//!
//! If the directory is replaced, removed or mounted over, its watch doesn't report that, so the directory is also
//! polled every second. Where the limits of inotify are exhausted, polling alone must do.

use std::fs;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::async_fd::watch;

/// The directory of attachments.
pub(super) struct Attachments {
    directory: PathBuf,
    watch: Option<Watch>,
    /// Device and inode of the directory, and its modification time: when an entry was last added or removed.
    seen: Option<((u64, u64), SystemTime)>,
    /// Why there is no watch.
    problem: Option<String>,
    /// Opens a watch.
    open: fn(&Path) -> io::Result<Watch>,
}

struct Watch {
    inotify: AsyncFd<Notices>,
    descriptor: WatchDescriptor,
}

struct Notices(Inotify);

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    fn on(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let changes = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
        let descriptor = inotify.add_watch(directory, changes)?;
        Ok(Self { inotify: watch(Notices(inotify))?, descriptor })
    }
}

impl Attachments {
    /// Watches the directory; creates it if it is missing.
    pub(super) fn watch(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| {
            format!("cannot create {}: set `stateDir` to a writable directory", directory.display())
        })?;
        let mut attachments =
            Self { directory: directory.to_owned(), watch: None, seen: None, problem: None, open: Watch::on };
        attachments.look();
        Ok(attachments)
    }

    /// Waits until the kernel reports that a record was added or removed. Cancel safe.
    pub(super) async fn changed(&mut self) {
        let Some(Watch { inotify, descriptor }) = &self.watch else { return pending().await };
        let over = match inotify.readable().await {
            Ok(mut ready) => {
                let mut over = false;
                while let Ok(events) = inotify.get_ref().0.read_events() {
                    // The directory is gone; another one may already have its inode.
                    over |= events.iter().any(|e| e.wd == *descriptor && e.mask.contains(AddWatchFlags::IN_IGNORED));
                }
                ready.clear_ready();
                over
            }
            Err(error) => {
                warn!("the watch on the pod records has failed and will be reopened: {error}");
                true
            }
        };
        if over {
            self.watch = None;
        }
    }

    /// Polls the directory. Returns whether records may have been added or removed without a report. Call it every
    /// second.
    pub(super) fn look(&mut self) -> bool {
        let there = |directory: &Path| {
            let metadata = fs::metadata(directory)?;
            Ok::<_, io::Error>(((metadata.dev(), metadata.ino()), metadata.modified()?))
        };
        let now = match there(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.directory).and_then(|()| there(&self.directory))
            }
            other => other,
        };
        let now = match now {
            Ok(now) => now,
            Err(error) => {
                self.tell(format!("cannot read the pod records in {}: {error}", self.directory.display()));
                return false;
            }
        };
        let before = self.seen.replace(now);
        let same = before.is_some_and(|(id, _)| id == now.0);
        if same && self.watch.is_some() {
            self.problem = None;
            return false;
        }
        if let Some(Watch { inotify, descriptor }) = self.watch.take() {
            // It may be gone together with its directory.
            let _ = inotify.get_ref().0.rm_watch(descriptor);
        }
        match (self.open)(&self.directory) {
            Ok(watch) => {
                self.watch = Some(watch);
                self.problem = None;
            }
            Err(error) => self.tell(format!(
                "cannot watch the pod records in {} ({error}), polling every second instead: {}",
                self.directory.display(),
                hint(&error)
            )),
        }
        before != Some(now) || self.watch.is_some()
    }

    fn tell(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            warn!("{problem}");
            self.problem = Some(problem);
        }
    }

    /// Why changes are not noticed immediately.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone()
    }
}

/// What to do if inotify refuses (inotify_init(2), inotify_add_watch(2)).
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => "raise the host's sysctl fs.inotify.max_user_instances",
        Some(Errno::ENOSPC) => "raise the host's sysctl fs.inotify.max_user_watches",
        _ => "check the permissions of the directory",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn noticed(attachments: &mut Attachments) -> bool {
        tokio::time::timeout(Duration::from_secs(20), attachments.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn the_watch_is_renewed_when_the_directory_is_another() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("attachments");
        let mut attachments = Attachments::watch(&directory).unwrap();
        let touch = |name: &str| {
            let aside = parent.path().join(name);
            fs::write(&aside, "").unwrap();
            fs::rename(&aside, directory.join(name)).unwrap();
        };
        touch("a");
        assert!(noticed(&mut attachments).await);
        assert!(!attachments.look(), "it is watched");
        fs::rename(&directory, parent.path().join("aside")).unwrap();
        assert!(attachments.look() && directory.exists(), "made again");
        touch("b");
        assert!(noticed(&mut attachments).await);
        fs::remove_dir_all(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        // Possibly with the same inode.
        assert!(noticed(&mut attachments).await && attachments.look());
        touch("c");
        assert!(noticed(&mut attachments).await);
        assert_eq!(attachments.problem(), None);
    }

    #[tokio::test]
    async fn without_inotify_it_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let mut attachments = Attachments::watch(directory.path()).unwrap();
        // All instances that the limit allows are in use.
        attachments.open = |_| Err(Errno::EMFILE.into());
        attachments.watch = None;
        assert!(!attachments.look(), "nothing has changed");
        let problem = attachments.problem().unwrap();
        assert!(problem.contains("fs.inotify.max_user_instances"), "{problem}");
        fs::write(directory.path().join("a"), "").unwrap();
        assert!(attachments.look());
        assert!(!attachments.look());
        attachments.open = Watch::on;
        attachments.look();
        assert_eq!(attachments.problem(), None, "there is one again");
    }
}
