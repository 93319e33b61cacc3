//! A directory of manifests: Kubernetes YAML or JSON, several documents a file, watched with inotify, or looked through
//! every second where the host has none left.
//!
//! A file is read when it is complete, that is when its writer closes it or it is renamed into place. What a file says
//! holds until a later version of it can be read without error; a file that goes takes its objects with it, a moment
//! later, since editors replace files by removing and writing them. If two files define the same object, the one
//! whose name comes first counts.
//!
//! Accidents take nothing away: a directory that goes as a whole, is unmounted or can't be read; a file that becomes empty,
//! as on a full disk, or something else than a file. After a directory has gone, another in its place counts for what is
//! in it at once, and for what isn't in it when it has been filled (`RETURN_DELAY`). Whether it is another is looked at
//! every second, since not all that can happen to a path is an event of the directory.
//!
//! Files below `..data`, as kubelet mounts them from a ConfigMap, are followed. Other symbolic links are read, but a
//! change behind them isn't noticed. Subdirectories and hidden files are ignored.

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

/// How long a file has to be gone before its objects are. While others go as well, the directory may be about to.
const REMOVAL_DELAY: Duration = Duration::from_millis(200);
/// How long it is waited for others to go.
const REMOVAL_MOST: Duration = Duration::from_secs(5);
/// How often a directory that is gone is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often it is looked at whether it is still the same.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long nothing has to come into a directory that is in the place of another, until what it lacks is gone.
const RETURN_DELAY: Duration = Duration::from_secs(10);

/// Why there is no source.
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
        /// What the kernel said.
        source: io::Error,
    },
}

/// The source. [`Self::poll`] it at once, whenever its descriptor is readable, and at [`Self::next_poll`].
#[derive(Debug)]
pub struct ManifestSource {
    directory: PathBuf,
    notices: Notices,
    /// None while the directory is gone.
    watch: Option<Watch>,
    /// When to look at it again, or for it.
    next_look: Option<Instant>,
    /// Why it can't be watched or listed.
    error: Option<String>,
    /// Whether there has ever been a file in it.
    found: bool,
    /// Whether all has been read once.
    was_synced: bool,
    /// Files of the directory before this one that this one doesn't have.
    absent: BTreeSet<Arc<str>>,
    /// When these are gone, if nothing else comes.
    settled: Instant,
    /// When the last file has gone.
    last_gone: Instant,
    misnamed: BTreeSet<String>,
    files: BTreeMap<Arc<str>, File>,
    /// Those of them that have errors.
    broken: BTreeSet<Arc<str>>,
    /// Which files define an object, in the order of their names; the first counts.
    holders: BTreeMap<ObjectKey, Vec<Arc<str>>>,
    /// Objects that several files define.
    duplicates: BTreeSet<ObjectKey>,
    /// Files that are gone, and since when.
    leaving: BTreeMap<Arc<str>, Instant>,
    /// Everything is to be read again.
    rescan: bool,
}

#[derive(Debug, Default)]
struct File {
    /// By their keys.
    objects: Vec<(ObjectKey, Object)>,
    errors: Vec<FileError>,
    /// Whether it has ever been read without error.
    loaded: bool,
}

/// A directory that is watched.
#[derive(Debug)]
struct Watch {
    /// None where it is looked at only.
    descriptor: Option<WatchDescriptor>,
    /// Device and inode.
    id: (u64, u64),
}

/// What the events since the last poll amount to.
#[derive(Debug, Default)]
struct News {
    /// Files that are complete.
    read: BTreeSet<Arc<str>>,
    /// Files that are gone.
    gone: BTreeSet<Arc<str>>,
    /// Files that have another name now, under which they are read.
    renamed: BTreeMap<Arc<str>, Arc<str>>,
}

impl ManifestSource {
    /// Watches a directory; nothing is read yet.
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

    /// Reads what has changed since the last call; the first call reads everything.
    pub fn poll(&mut self, now: Instant) -> Batch {
        let mut news = self.drain();
        // Nothing goes before it is certain that the directory hasn't.
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
        Batch { changes, synced }
    }

    /// When to poll even if nothing is readable.
    pub fn next_poll(&self) -> Option<Instant> {
        let leaving = self.leaving.values().map(|since| self.due(*since));
        let settled = self.has_returned().then_some(self.settled);
        leaving.chain(settled).chain(self.next_look).min()
    }

    /// When a file is gone for good that isn't there since some time.
    fn due(&self, since: Instant) -> Instant {
        self.last_gone.min(since + REMOVAL_MOST) + REMOVAL_DELAY
    }

    /// Whether another directory with manifests is in the place of one that has had more.
    fn has_returned(&self) -> bool {
        !self.absent.is_empty() && self.absent.len() < self.files.len()
    }

    /// Lets go of the objects of files that are gone for long enough.
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
                // It is being written: closing it will be news. Nobody closes what is no file.
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

    /// What is wrong with the directory as a whole.
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
                "replaced by a directory that lacks {missing} of the files: keeping their objects for a moment"
            ));
        }
        if !self.found && !self.rescan {
            return Some("no manifests yet, not even that of this node".into());
        }
        self.notices.problem().map(str::to_owned)
    }

    /// What has been read.
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
            misnamed: self.misnamed.iter().take(REPORTED).cloned().collect(),
        }
    }

    fn synced(&self) -> bool {
        self.found && !self.rescan && self.broken.iter().all(|file| self.files.get(file).is_none_or(|f| f.loaded))
    }

    /// Takes the events that are there, all of them, so that a file that changed several times is read once.
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
            // After a deletion the kernel has removed the watch already.
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

    /// Whether a name has been given to a file that was complete before: nobody will close it.
    fn is_link(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.directory.join(name)).is_ok_and(|data| data.is_symlink() || data.nlink() > 1)
    }

    /// Ends watching, of what may be gone already.
    fn unwatch(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.notices.unwatch(watch.descriptor);
        }
        self.next_look = None;
    }

    /// Looks whether the directory is there, and says whether it is still the same: what was news of another is none.
    fn look(&mut self, now: Instant) -> bool {
        let there = identity(&self.directory);
        let same = matches!((&there, &self.watch), (Ok(id), Some(watch)) if *id == watch.id);
        if !same {
            self.unwatch();
            // What has gone lately has gone with it.
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
        // If it has been replaced in between, the next look finds that out.
        Ok(Watch { descriptor, id: identity(&self.directory)? })
    }

    /// Another directory is in the place of the one before, or the same again. It may still be being filled.
    fn begin_anew(&mut self, watch: Watch, now: Instant) {
        info!(directory = %self.directory.display(), "the manifest directory is back");
        (self.watch, self.error, self.rescan) = (Some(watch), None, true);
        self.absent = self.files.keys().cloned().collect();
        self.settled = now + RETURN_DELAY;
    }

    /// Adds all files in the directory to those to be read, and those that aren't there to those that are gone.
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

/// Tells one directory from another.
fn identity(directory: &Path) -> io::Result<(u64, u64)> {
    let data = std::fs::metadata(directory)?;
    Ok((data.dev(), data.ino()))
}

/// Whether a file of this name is read: editors' own files are hidden or have other endings.
fn is_manifest(name: &str) -> bool {
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests;
