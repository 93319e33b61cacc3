//! A directory of manifests: Kubernetes YAML or JSON, several documents per file, watched with inotify, or polled every
//! second if the host's inotify limits are exhausted.
//!
//! A file is read when it is complete, that is when its writer closes it or it is renamed into place. The content of a
//! file stays in effect until a later version of it is valid. A removed file takes its objects with it after a short
//! delay, since editors replace files by removing and writing them. If two files define the same object, the file whose
//! name sorts first counts.
//!
//! Accidents remove no objects: the directory disappears as a whole, is unmounted or can't be read; a file becomes
//! empty, as on a full disk, or is replaced by something other than a regular file. If a directory has disappeared and
//! another one takes its place, the files in the new one count at once, and the absence of others counts when it has
//! been filled (`RETURN_DELAY`). Whether the directory is another one is checked every second, since some changes of
//! its path cause no event of the directory.
//!
//! Files below `..data`, as the kubelet mounts them from a ConfigMap, are followed. Other symbolic links are read, but
//! changes of their targets aren't noticed. Subdirectories and hidden files are ignored.

mod files;
mod load;
mod notices;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor};
use thiserror::Error;
use tracing::{info, warn};

use crate::model::{Batch, Change, Object, ObjectKey};
use notices::Notices;
use report::REPORTED;
pub use report::{BrokenFile, Duplicate, FileError, SourceStatus};

/// Delay between the removal of a file and that of its objects. While more files are removed, the whole directory may
/// be about to disappear.
const REMOVAL_DELAY: Duration = Duration::from_millis(200);
/// Maximum delay while other files are removed.
const REMOVAL_MOST: Duration = Duration::from_secs(5);
/// Interval for checking whether a missing directory is back.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Interval for checking whether the directory is still the same one.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time without changes in a new directory after which the files that it lacks count as removed.
const RETURN_DELAY: Duration = Duration::from_secs(10);

/// Errors of opening the source.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The directory can't be watched.
    #[error(
        "cannot watch the manifest directory {directory}: {source}; create it, or set `manifests` to another one",
        directory = directory.display()
    )]
    Watch {
        /// The directory.
        directory: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The source. Call [`Self::poll`] at once, whenever its descriptor is readable, and at [`Self::next_poll`].
#[derive(Debug)]
pub struct ManifestSource {
    directory: PathBuf,
    notices: Notices,
    /// `None` while the directory is missing.
    watch: Option<Watch>,
    /// Time of the next check of the directory.
    next_look: Option<Instant>,
    /// Why the directory can't be watched or listed.
    error: Option<String>,
    /// Whether it has ever contained a manifest.
    found: bool,
    /// Whether everything has been read once.
    was_synced: bool,
    /// Files of a previous directory that the current one lacks.
    absent: BTreeSet<Arc<str>>,
    /// When these count as removed, unless there are further changes.
    settled: Instant,
    /// When the last file was removed.
    last_gone: Instant,
    misnamed: BTreeSet<String>,
    files: BTreeMap<Arc<str>, File>,
    /// Files with errors.
    broken: BTreeSet<Arc<str>>,
    /// Files that define an object, sorted by name; the first counts.
    holders: BTreeMap<ObjectKey, Vec<Arc<str>>>,
    /// Objects defined by several files.
    duplicates: BTreeSet<ObjectKey>,
    /// Removed files, and since when.
    leaving: BTreeMap<Arc<str>, Instant>,
    /// Whether the whole directory has to be reread.
    rescan: bool,
}

#[derive(Debug, Default)]
struct File {
    /// Sorted by key.
    objects: Vec<(ObjectKey, Object)>,
    errors: Vec<FileError>,
    /// Whether any version has been valid.
    loaded: bool,
}

/// A watched directory.
#[derive(Debug)]
struct Watch {
    /// `None` with polling.
    descriptor: Option<WatchDescriptor>,
    /// Device and inode.
    id: (u64, u64),
}

/// Summary of the events since the last poll.
#[derive(Debug, Default)]
struct News {
    /// Complete files.
    read: BTreeSet<Arc<str>>,
    /// Removed files.
    gone: BTreeSet<Arc<str>>,
    /// Renamed files, old name to new name. They are read under the new name.
    renamed: BTreeMap<Arc<str>, Arc<str>>,
}

impl ManifestSource {
    /// Watches a directory, without reading it yet.
    ///
    /// # Errors
    /// [`ManifestError::Watch`] if it doesn't exist or can't be watched.
    pub fn open(directory: &Path) -> Result<Self, ManifestError> {
        let error = |source: io::Error| ManifestError::Watch { directory: directory.into(), source };
        let (notices, descriptor) = Notices::open(directory).map_err(error)?;
        if let Some(problem) = notices.problem() {
            warn!(directory = %directory.display(), "{problem}");
        }
        let watch = Watch { descriptor, id: identity(directory).map_err(error)? };
        let now = Instant::now();
        Ok(Self {
            directory: directory.into(),
            notices,
            watch: Some(watch),
            next_look: None,
            error: None,
            found: false,
            was_synced: false,
            absent: BTreeSet::new(),
            settled: now,
            last_gone: now,
            misnamed: BTreeSet::new(),
            files: BTreeMap::new(),
            broken: BTreeSet::new(),
            holders: BTreeMap::new(),
            duplicates: BTreeSet::new(),
            leaving: BTreeMap::new(),
            rescan: true,
        })
    }

    /// Reads all changes since the last call; the first call reads everything.
    pub fn poll(&mut self, now: Instant) -> Batch {
        let mut news = self.drain();
        // Before a file counts as removed, check that the directory still exists.
        let look = self.next_look.is_none_or(|at| at <= now) || !self.leaving.is_empty() || !news.gone.is_empty();
        if look && !self.look(now) {
            news = News::default();
        }
        if self.watch.is_some() && std::mem::take(&mut self.rescan) {
            self.list(&mut news, now);
        }
        let mut changes = Vec::new();
        for (from, to) in &news.renamed {
            self.inherit(from, to, &mut changes);
        }
        if !news.read.is_empty() {
            self.settled = now + RETURN_DELAY;
            self.read(&news.read, &mut changes);
        }
        for from in news.renamed.keys() {
            self.remove(from, &mut changes);
        }
        if self.watch.is_some() {
            self.release(&news.gone, now, &mut changes);
        }
        self.found |= !self.files.is_empty();
        let synced = self.synced();
        self.was_synced |= synced;
        Batch { changes, synced, policies_synced: self.was_synced }
    }

    /// Time of the next poll, even if the descriptor isn't readable.
    pub fn next_poll(&self) -> Option<Instant> {
        let leaving = self.leaving.values().map(|since| self.due(*since));
        let settled = self.has_returned().then_some(self.settled);
        leaving.chain(settled).chain(self.next_look).min()
    }

    /// When a file missing since `since` counts as removed.
    fn due(&self, since: Instant) -> Instant {
        self.last_gone.min(since + REMOVAL_MOST) + REMOVAL_DELAY
    }

    /// Whether the directory was replaced by one with manifests that lacks some of the files.
    fn has_returned(&self) -> bool {
        !self.absent.is_empty() && self.absent.len() < self.files.len()
    }

    /// Removes the objects of files that have been missing for long enough.
    fn release(&mut self, gone: &BTreeSet<Arc<str>>, now: Instant, changes: &mut Vec<Change>) {
        for file in gone.iter().filter(|file| self.files.contains_key(*file)) {
            self.leaving.entry(file.clone()).or_insert(now);
            self.last_gone = now;
        }
        let due: Vec<_> =
            self.leaving.iter().filter(|(_, since)| self.due(**since) <= now).map(|(file, _)| file.clone()).collect();
        for file in due {
            self.leaving.remove(&file);
            match std::fs::symlink_metadata(self.directory.join(&*file)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.remove(&file, changes),
                // It is being written, and closing it causes an event. Anything but a regular file causes none.
                Ok(data) if data.is_file() => {}
                _ => self.read(&[file].into(), changes),
            }
        }
        if self.has_returned() && self.settled <= now {
            for file in std::mem::take(&mut self.absent) {
                self.remove(&file, changes);
            }
        }
    }

    /// The problem with the directory as a whole, if any.
    pub fn error(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(error.clone());
        }
        let missing = self.absent.len();
        if missing > 0 && missing == self.files.len() {
            return Some(
                "replaced by a directory without manifests: keeping the objects read before until it has some".into(),
            );
        }
        if missing > 0 {
            return Some(format!(
                "replaced by a directory that lacks {missing} of the files: keeping their objects until it has not \
                 changed for {} s",
                RETURN_DELAY.as_secs()
            ));
        }
        if !self.found && !self.rescan {
            return Some("no manifests yet, not even that of this node".into());
        }
        self.notices.problem().map(str::to_owned)
    }

    /// Status of the source.
    pub fn status(&self) -> SourceStatus {
        let name = |file: &Arc<str>| file.as_ref().to_owned();
        SourceStatus {
            directory: self.directory.clone(),
            error: self.error(),
            synced: self.synced(),
            files: self.files.len(),
            broken: self
                .broken
                .iter()
                .take(REPORTED)
                .filter_map(|file| self.files.get_key_value(file))
                .map(|(file, f)| BrokenFile {
                    name: name(file),
                    kept: f.loaded,
                    objects: f.objects.len(),
                    errors: f.errors.clone(),
                })
                .collect(),
            duplicates: self
                .duplicates
                .iter()
                .take(REPORTED)
                .filter_map(|key| self.holders.get_key_value(key))
                .map(|(key, files)| Duplicate {
                    object: key.to_string(),
                    used: name(&files[0]),
                    ignored: files[1..].iter().map(name).collect(),
                })
                .collect(),
            more: self.broken.len().saturating_sub(REPORTED) + self.duplicates.len().saturating_sub(REPORTED),
            misnamed: self.misnamed.len(),
            first_misnamed: self.misnamed.first().cloned(),
        }
    }

    fn synced(&self) -> bool {
        self.found && !self.rescan && self.broken.iter().all(|file| self.files.get(file).is_none_or(|f| f.loaded))
    }

    /// Reads all pending events, so that a file that changed several times is read once.
    fn drain(&mut self) -> News {
        let mut news = News::default();
        let mut moved_from = BTreeMap::new();
        loop {
            match self.notices.events() {
                Ok(events) => events.into_iter().for_each(|event| self.interpret(event, &mut news, &mut moved_from)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return news,
                Err(error) => {
                    warn!(%error, "cannot read inotify events, rereading the whole directory");
                    self.rescan = true;
                    return news;
                }
            }
        }
    }

    fn interpret(&mut self, event: InotifyEvent, news: &mut News, moved_from: &mut BTreeMap<u32, Arc<str>>) {
        type Flags = AddWatchFlags;
        if event.mask.contains(Flags::IN_Q_OVERFLOW) {
            self.rescan = true;
            return;
        }
        if self.watch.as_ref().is_none_or(|watch| watch.descriptor != Some(event.wd)) {
            return;
        }
        if event.mask.intersects(Flags::IN_DELETE_SELF | Flags::IN_MOVE_SELF | Flags::IN_UNMOUNT | Flags::IN_IGNORED) {
            // After a deletion the kernel has already removed the watch.
            self.unwatch();
            return;
        }
        let Some(name) = &event.name else { return };
        let Some(name) = name.to_str() else {
            let name = name.to_string_lossy().into_owned();
            if event.mask.intersects(Flags::IN_MOVED_FROM | Flags::IN_DELETE) {
                self.misnamed.remove(&name);
            } else if is_manifest(&name) {
                self.misnamed.insert(name);
            }
            return;
        };
        if name == "..data" {
            self.rescan = true;
        }
        if !is_manifest(name) {
            return;
        }
        let file: Arc<str> = name.into();
        if event.mask.intersects(Flags::IN_MOVED_FROM | Flags::IN_DELETE) {
            news.read.remove(&file);
            news.gone.insert(file.clone());
            if event.mask.contains(Flags::IN_MOVED_FROM) {
                moved_from.insert(event.cookie, file);
            }
            return;
        }
        let complete = event.mask.intersects(Flags::IN_CLOSE_WRITE | Flags::IN_MOVED_TO)
            || event.mask.contains(Flags::IN_CREATE) && self.is_link(name)
            || event.mask.contains(Flags::IN_ATTRIB) && self.broken.contains(name);
        if complete {
            if event.mask.contains(Flags::IN_MOVED_TO)
                && let Some(from) = moved_from.remove(&event.cookie)
            {
                news.gone.remove(&from);
                news.renamed.insert(from, file.clone());
            }
            news.gone.remove(&file);
            news.renamed.remove(&file);
            news.read.insert(file);
        }
    }

    /// Whether a name is a link to a complete file, for which no close event follows.
    fn is_link(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.directory.join(name)).is_ok_and(|data| data.is_symlink() || data.nlink() > 1)
    }

    /// Removes the watch, which may be gone already.
    fn unwatch(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.notices.unwatch(watch.descriptor);
        }
        self.next_look = None;
    }

    /// Checks the directory, and returns whether it is still the same one: events of another one don't count.
    fn look(&mut self, now: Instant) -> bool {
        let there = identity(&self.directory);
        let same = matches!((&there, &self.watch), (Ok(id), Some(watch)) if *id == watch.id);
        if !same {
            self.unwatch();
            // Files that were removed just before disappeared with the directory.
            self.leaving.clear();
            match there.and_then(|_| self.begin_watch()) {
                Ok(watch) => self.begin_anew(watch, now),
                Err(error) => {
                    let reason = format!("{error}; keeping the objects read before until it is back");
                    if self.error.as_ref() != Some(&reason) {
                        warn!(directory = %self.directory.display(), "the manifest directory is gone: {reason}");
                    }
                    self.error = Some(reason);
                }
            }
        }
        self.next_look = Some(now + if self.watch.is_some() { CHECK_INTERVAL } else { LOOK_INTERVAL });
        self.rescan |= self.notices.look(&self.directory);
        same
    }

    fn begin_watch(&self) -> io::Result<Watch> {
        let descriptor = self.notices.watch(&self.directory)?;
        // If the directory is replaced in between, the next check notices.
        Ok(Watch { descriptor, id: identity(&self.directory)? })
    }

    /// Starts with a new directory in place of the previous one, or with the same one again. It may still be
    /// incomplete.
    fn begin_anew(&mut self, watch: Watch, now: Instant) {
        info!(directory = %self.directory.display(), "the manifest directory is back");
        (self.watch, self.error, self.rescan) = (Some(watch), None, true);
        self.absent = self.files.keys().cloned().collect();
        self.settled = now + RETURN_DELAY;
    }

    /// Adds all files in the directory to those to be read, and missing ones to those removed.
    fn list(&mut self, news: &mut News, now: Instant) {
        let names = std::fs::read_dir(&self.directory).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()
        });
        match names {
            Ok(names) => {
                let lossy = names.iter().filter(|name| name.to_str().is_none()).map(|name| name.to_string_lossy());
                self.misnamed = lossy.filter(|name| is_manifest(name)).map(String::from).collect();
                let names = names.iter().filter_map(|name| name.to_str()).filter(|name| is_manifest(name));
                news.read = names.map(Arc::from).collect();
                self.absent.retain(|file| !news.read.contains(file));
                let is_gone = |file: &&Arc<str>| !news.read.contains(*file) && !self.absent.contains(*file);
                news.gone = self.files.keys().filter(is_gone).cloned().collect();
                self.error = None;
            }
            Err(error) => {
                let reason = format!("cannot list it: {error}; keeping the objects read before");
                if self.error.as_ref() != Some(&reason) {
                    warn!(directory = %self.directory.display(), "cannot read the manifest directory: {reason}");
                }
                (self.error, self.rescan) = (Some(reason), true);
                self.next_look = Some(now + LOOK_INTERVAL);
            }
        }
    }
}

impl AsFd for ManifestSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notices.as_fd()
    }
}

impl AsRawFd for ManifestSource {
    fn as_raw_fd(&self) -> RawFd {
        self.notices.as_fd().as_raw_fd()
    }
}

/// Identity of a directory: device and inode.
fn identity(directory: &Path) -> io::Result<(u64, u64)> {
    let data = std::fs::metadata(directory)?;
    Ok((data.dev(), data.ino()))
}

/// Whether a file with this name is read: editors' temporary files are hidden or have other extensions.
fn is_manifest(name: &str) -> bool {
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests;
