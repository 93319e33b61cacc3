//! Change notifications for the directory: inotify, or polling every second if the host's inotify limits are exhausted.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

/// Notifies of changes in directories.
#[derive(Debug)]
pub(super) enum Notices {
    /// By inotify.
    Inotify(Inotify),
    /// By polling.
    Looks(Looks),
}

impl Notices {
    /// Starts with a directory. Also returns its watch.
    ///
    /// # Errors
    /// The directory doesn't exist, or can't be watched for another reason than exhausted inotify limits.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Option<WatchDescriptor>)> {
        let opened = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(io::Error::from);
        let notices = match opened {
            Ok(inotify) => Self::Inotify(inotify),
            Err(error) => Self::looking(error)?,
        };
        match notices.watch(directory) {
            Ok(descriptor) => Ok((notices, descriptor)),
            Err(error) => {
                let notices = Self::looking(error)?;
                let descriptor = notices.watch(directory)?;
                Ok((notices, descriptor))
            }
        }
    }

    /// Falls back to polling, if the error is that of exhausted inotify limits.
    pub(super) fn looking(error: io::Error) -> io::Result<Self> {
        let setting = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE) => "fs.inotify.max_user_instances",
            Some(Errno::ENOSPC) => "fs.inotify.max_user_watches",
            _ => return Err(error),
        };
        let problem = format!(
            "the host's inotify limit is reached ({error}): polling the directory every second instead; raise the \
             sysctl {setting} and restart the daemon"
        );
        let (reader, writer) = io::pipe()?;
        Ok(Self::Looks(Looks { never: (reader, writer), problem, seen: None, read: None }))
    }

    /// Watches a directory.
    pub(super) fn watch(&self, directory: &Path) -> io::Result<Option<WatchDescriptor>> {
        type Flags = AddWatchFlags;
        let Self::Inotify(inotify) = self else { return directory.read_dir().map(|_| None) };
        let descriptor = inotify.add_watch(
            directory,
            Flags::IN_ONLYDIR
                | Flags::IN_CREATE
                | Flags::IN_CLOSE_WRITE
                | Flags::IN_MOVED_FROM
                | Flags::IN_MOVED_TO
                | Flags::IN_DELETE
                | Flags::IN_ATTRIB
                | Flags::IN_DELETE_SELF
                | Flags::IN_MOVE_SELF,
        )?;
        Ok(Some(descriptor))
    }

    /// Removes a watch, which may be gone already.
    pub(super) fn unwatch(&self, descriptor: Option<WatchDescriptor>) {
        if let (Self::Inotify(inotify), Some(descriptor)) = (self, descriptor) {
            // After a deletion the kernel has already removed the watch.
            let _ = inotify.rm_watch(descriptor);
        }
    }

    /// Pending events.
    pub(super) fn events(&self) -> Result<Vec<InotifyEvent>, Errno> {
        match self {
            Self::Inotify(inotify) => inotify.read_events(),
            Self::Looks(_) => Err(Errno::EAGAIN),
        }
    }

    /// Whether polling shows that the directory has to be reread.
    pub(super) fn look(&mut self, directory: &Path) -> bool {
        match self {
            Self::Inotify(_) => false,
            Self::Looks(looks) => looks.look(directory),
        }
    }

    /// Why changes are noticed only after a delay; `None` if they aren't.
    pub(super) fn problem(&self) -> Option<&str> {
        match self {
            Self::Inotify(_) => None,
            Self::Looks(looks) => Some(&looks.problem),
        }
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Inotify(inotify) => inotify.as_fd(),
            Self::Looks(looks) => looks.never.0.as_fd(),
        }
    }
}

/// Device, inode, size and modification time of each file.
type Listing = BTreeMap<OsString, (u64, u64, u64, i64, i64)>;

/// Polls a directory.
#[derive(Debug)]
pub(super) struct Looks {
    /// A pipe that is never written to, as a descriptor that is never readable.
    never: (PipeReader, PipeWriter),
    problem: String,
    /// Result of the last poll.
    seen: Option<Listing>,
    /// Result of the poll at the last read.
    read: Option<Listing>,
}

impl Looks {
    /// Whether the directory has changed since it was read, but not since the last poll: then no file is being written.
    fn look(&mut self, directory: &Path) -> bool {
        // Other code reports that it can't be read.
        let now = list(directory).ok();
        let settled = now == self.seen && now != self.read;
        if settled {
            self.read.clone_from(&now);
        }
        self.seen = now;
        settled
    }
}

fn list(directory: &Path) -> io::Result<Listing> {
    let mut listing = Listing::new();
    for entry in directory.read_dir()? {
        let entry = entry?;
        // Follows links. Files that disappeared meanwhile count as missing.
        if let Ok(data) = entry.path().metadata() {
            listing.insert(entry.file_name(), (data.dev(), data.ino(), data.size(), data.mtime(), data.mtime_nsec()));
        }
    }
    Ok(listing)
}
