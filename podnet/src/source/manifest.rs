//! A directory of manifests: Kubernetes YAML or JSON, several documents a file, watched with inotify.
//!
//! A file is read when it is complete, that is when its writer closes it or it is renamed into place. What a file says
//! holds until a later version of it can be read without error; a file that goes takes its objects with it, a moment
//! later, since editors replace files by removing and writing them. If two files define the same object, the one
//! whose name comes first counts. A directory that goes as a whole is an accident: its objects stay until it is back.
//!
//! Files below `..data`, as kubelet mounts them from a ConfigMap, are followed. Other symbolic links are read, but a
//! change behind them isn't noticed. Subdirectories and hidden files are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use thiserror::Error;
use tracing::{info, warn};

use super::parse::{parallel_map, parse};
use super::{Batch, Change, Mistake};
use crate::model::{Object, ObjectKey};

/// How long a file has to be gone before its objects are.
const REMOVAL_DELAY: Duration = Duration::from_millis(200);
/// How often a directory that is gone is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 256 << 20;
/// Files that are worth a thread of their own.
const FILES_A_THREAD: usize = 8;

/// Why there is no source.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The directory can't be watched.
    #[error(
        "watching the manifest directory {directory}: {source}; create it or set `manifests` to another",
        directory = directory.display()
    )]
    Watch {
        /// The directory.
        directory: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What the source has read, for `podnet status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// The directory.
    pub directory: PathBuf,
    /// What is wrong with the directory itself.
    pub error: Option<String>,
    /// Whether every file has been read without error at least once.
    pub synced: bool,
    /// How many files there are.
    pub files: usize,
    /// Those that can't be used as they are now.
    pub broken: Vec<BrokenFile>,
    /// Objects that several files define.
    pub duplicates: Vec<Duplicate>,
}

/// A file whose present content can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenFile {
    /// Its name in the directory.
    pub name: String,
    /// How many objects of its earlier content hold.
    pub objects: usize,
    /// What is wrong with it.
    pub errors: Vec<FileError>,
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// Counted from 1; none if the file can't be read at all.
    pub line: Option<u64>,
    /// What is wrong.
    pub reason: String,
}

/// An object that several files define.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Kind and name.
    pub object: String,
    /// The file whose definition counts.
    pub used: String,
    /// The others.
    pub ignored: Vec<String>,
}

impl From<SourceStatus> for super::Status {
    fn from(status: SourceStatus) -> Self {
        let mistakes = status.broken.into_iter().flat_map(|file| {
            let place = status.directory.join(&file.name).display().to_string();
            let mistake = move |FileError { line, reason }| Mistake { place: place.clone(), line, reason };
            file.errors.into_iter().map(mistake)
        });
        let remark = |d: Duplicate| {
            format!("{} is defined in {} and in {}; the first counts", d.object, d.used, d.ignored.join(", "))
        };
        Self {
            name: status.directory.display().to_string(),
            error: status.error,
            synced: status.synced,
            mistakes: mistakes.collect(),
            remarks: status.duplicates.into_iter().map(remark).collect(),
        }
    }
}

/// The source. [`Self::poll`] it at once, whenever its descriptor is readable, and at [`Self::next_poll`].
#[derive(Debug)]
pub struct ManifestSource {
    directory: PathBuf,
    inotify: Inotify,
    /// None while the directory is gone.
    watch: Option<WatchDescriptor>,
    /// When to look for it again.
    next_look: Option<Instant>,
    error: Option<String>,
    files: BTreeMap<Arc<str>, File>,
    /// Those of them that have errors.
    broken: BTreeSet<Arc<str>>,
    /// Which files define an object, in the order of their names; the first counts.
    holders: BTreeMap<ObjectKey, Vec<Arc<str>>>,
    /// Objects that several files define.
    duplicates: BTreeSet<ObjectKey>,
    /// Files that are gone, and when their objects will be.
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

/// What the events since the last poll amount to.
#[derive(Debug, Default)]
struct News {
    /// Files that are complete.
    read: BTreeSet<Arc<str>>,
    /// Files that are gone.
    gone: BTreeSet<Arc<str>>,
    /// Files that have another name now, under which they are read.
    renamed: BTreeSet<Arc<str>>,
}

impl ManifestSource {
    /// Watches a directory; nothing is read yet.
    ///
    /// # Errors
    /// [`ManifestError::Watch`] if it doesn't exist or can't be watched.
    pub fn open(directory: &Path) -> Result<Self, ManifestError> {
        let error = |source: Errno| ManifestError::Watch { directory: directory.into(), source: source.into() };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(error)?;
        let watch = watch(&inotify, directory).map_err(error)?;
        Ok(Self {
            directory: directory.into(),
            inotify,
            watch: Some(watch),
            next_look: None,
            error: None,
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
        if self.watch.is_none() && self.next_look.is_none_or(|at| at <= now) {
            self.look(now);
        }
        if std::mem::take(&mut self.rescan) {
            self.list(&mut news);
        }
        let mut changes = Vec::new();
        self.read(&news.read, &mut changes);
        for file in &news.gone {
            if news.renamed.contains(file) {
                self.remove(file, &mut changes);
            } else if self.files.contains_key(file) {
                self.leaving.entry(file.clone()).or_insert(now + REMOVAL_DELAY);
            }
        }
        let due: Vec<_> = self.leaving.iter().filter(|(_, at)| **at <= now).map(|(file, _)| file.clone()).collect();
        for file in due {
            self.leaving.remove(&file);
            // One that is there again is being written: closing it will be news.
            if std::fs::symlink_metadata(self.directory.join(&*file)).is_err() {
                self.remove(&file, &mut changes);
            }
        }
        if self.watch.is_none() {
            self.next_look.get_or_insert(now + LOOK_INTERVAL);
        }
        Batch { changes, synced: self.synced() }
    }

    /// When to poll even if nothing is readable.
    pub fn next_poll(&self) -> Option<Instant> {
        self.leaving.values().copied().chain(self.next_look).min()
    }

    /// What has been read.
    pub fn status(&self) -> SourceStatus {
        let name = |file: &Arc<str>| file.as_ref().to_owned();
        SourceStatus {
            directory: self.directory.clone(),
            error: self.error.clone(),
            synced: self.synced(),
            files: self.files.len(),
            broken: self
                .broken
                .iter()
                .filter_map(|file| self.files.get_key_value(file))
                .map(|(file, f)| BrokenFile { name: name(file), objects: f.objects.len(), errors: f.errors.clone() })
                .collect(),
            duplicates: self
                .duplicates
                .iter()
                .filter_map(|key| self.holders.get_key_value(key))
                .map(|(key, files)| Duplicate {
                    object: key.to_string(),
                    used: name(&files[0]),
                    ignored: files[1..].iter().map(name).collect(),
                })
                .collect(),
        }
    }

    fn synced(&self) -> bool {
        !self.rescan && self.broken.iter().all(|file| self.files.get(file).is_none_or(|f| f.loaded))
    }

    /// Takes the events that are there, all of them, so that a file that changed several times is read once.
    fn drain(&mut self) -> News {
        let mut news = News::default();
        let mut moved_from = BTreeMap::new();
        loop {
            match self.inotify.read_events() {
                Ok(events) => events.into_iter().for_each(|event| self.interpret(event, &mut news, &mut moved_from)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return news,
                Err(error) => {
                    warn!(%error, "reading inotify events failed: reading the whole directory again");
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
        if Some(event.wd) != self.watch {
            return;
        }
        if event.mask.intersects(Flags::IN_DELETE_SELF | Flags::IN_MOVE_SELF | Flags::IN_UNMOUNT | Flags::IN_IGNORED) {
            // After a deletion the kernel has removed the watch already.
            let _ = self.inotify.rm_watch(event.wd);
            self.watch = None;
            return;
        }
        let Some(name) = event.name.as_ref().and_then(|name| name.to_str()) else { return };
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
            if event.mask.contains(Flags::IN_MOVED_TO) {
                news.renamed.extend(moved_from.remove(&event.cookie));
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

    /// Looks whether a directory that was gone is back.
    fn look(&mut self, now: Instant) {
        match watch(&self.inotify, &self.directory) {
            Ok(watch) => {
                info!(directory = %self.directory.display(), "the manifest directory is back");
                (self.watch, self.next_look, self.error, self.rescan) = (Some(watch), None, None, true);
            }
            Err(error) => {
                let reason = format!("{error}; what was read from it stays until it is back");
                if self.error.as_ref() != Some(&reason) {
                    warn!(directory = %self.directory.display(), "the manifest directory is gone: {reason}");
                }
                (self.error, self.next_look) = (Some(reason), Some(now + LOOK_INTERVAL));
            }
        }
    }

    /// Adds all files in the directory to those to be read, and those that aren't there to those that are gone.
    fn list(&mut self, news: &mut News) {
        let names = std::fs::read_dir(&self.directory).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()
        });
        match names {
            Ok(names) => {
                let names = names.iter().filter_map(|name| name.to_str()).filter(|name| is_manifest(name));
                news.read = names.map(Arc::from).collect();
                news.gone = self.files.keys().filter(|file| !news.read.contains(*file)).cloned().collect();
                self.error = None;
            }
            Err(error) => {
                warn!(directory = %self.directory.display(), %error, "listing the manifest directory failed");
                self.error = Some(error.to_string());
                // Whatever the reason, watching anew will tell when it is over.
                if let Some(watch) = self.watch.take() {
                    let _ = self.inotify.rm_watch(watch);
                }
                self.rescan = true;
            }
        }
    }

    fn read(&mut self, files: &BTreeSet<Arc<str>>, changes: &mut Vec<Change>) {
        let files: Vec<_> = files.iter().cloned().collect();
        let directory = &self.directory;
        let results =
            parallel_map(&files, FILES_A_THREAD, |file| load(&directory.join(&**file), file.ends_with(".json")));
        for (file, result) in files.into_iter().zip(results) {
            match result {
                Load::Objects(objects) => {
                    self.leaving.remove(&file);
                    let known = self.files.entry(file.clone()).or_default();
                    known.errors.clear();
                    if self.broken.remove(&file) {
                        info!(file = &*file, "the manifest is good again");
                    }
                    known.loaded = true;
                    self.replace(&file, objects, changes);
                }
                Load::Errors(errors) => {
                    self.leaving.remove(&file);
                    for FileError { line, reason } in &errors {
                        warn!(file = &*file, line, "a manifest can't be used, what it said before stays: {reason}");
                    }
                    self.broken.insert(file.clone());
                    self.files.entry(file).or_default().errors = errors;
                }
                // Its going is news by itself.
                Load::Gone => {}
            }
        }
    }

    fn remove(&mut self, file: &Arc<str>, changes: &mut Vec<Change>) {
        if self.files.contains_key(file) {
            self.replace(file, Vec::new(), changes);
            self.files.remove(file);
            self.broken.remove(file);
        }
    }

    /// Puts a file's objects in the place of those it had.
    fn replace(&mut self, file: &Arc<str>, objects: Vec<(ObjectKey, Object)>, changes: &mut Vec<Change>) {
        let Some(known) = self.files.get_mut(file) else { return };
        let old = std::mem::take(&mut known.objects);
        let new_keys: Vec<_> = objects.iter().map(|(key, _)| key.clone()).collect();
        known.objects = objects;
        for (key, object) in old {
            let stays = new_keys.binary_search(&key).is_ok();
            let Some(holders) = self.holders.get_mut(&key) else { continue };
            let counted = holders[0] == *file;
            if !stays {
                holders.retain(|holder| holder != file);
                if holders.len() == 1 {
                    self.duplicates.remove(&key);
                } else if holders.is_empty() {
                    self.holders.remove(&key);
                }
            }
            if counted {
                let now = self.current(&key);
                if now.as_ref() != Some(&object) {
                    changes.push(Change::new(key, now));
                }
            }
        }
        for key in new_keys {
            let holders = self.holders.entry(key.clone()).or_default();
            let Err(place) = holders.binary_search(file) else { continue };
            holders.reserve_exact(1);
            holders.insert(place, file.clone());
            if let [used, ignored, ..] = &holders[..] {
                warn!(object = %key, used = &**used, ignored = &**ignored, "several files define an object");
                self.duplicates.insert(key.clone());
            }
            let previous = (place == 0).then(|| holders.get(1).cloned()).flatten();
            if place == 0 {
                let now = self.current(&key);
                if previous.and_then(|file| self.object(&file, &key)) != now {
                    changes.push(Change::new(key, now));
                }
            }
        }
    }

    /// What an object is by the file that counts.
    fn current(&self, key: &ObjectKey) -> Option<Object> {
        self.object(self.holders.get(key)?.first()?, key)
    }

    fn object(&self, file: &Arc<str>, key: &ObjectKey) -> Option<Object> {
        let objects = &self.files.get(file)?.objects;
        objects.binary_search_by(|(other, _)| other.cmp(key)).ok().map(|i| objects[i].1.clone())
    }
}

impl AsFd for ManifestSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl AsRawFd for ManifestSource {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_fd().as_raw_fd()
    }
}

fn watch(inotify: &Inotify, directory: &Path) -> Result<WatchDescriptor, Errno> {
    type Flags = AddWatchFlags;
    inotify.add_watch(
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
    )
}

/// Whether a file of this name is read: editors' own files are hidden or have other endings.
fn is_manifest(name: &str) -> bool {
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending))
}

enum Load {
    Objects(Vec<(ObjectKey, Object)>),
    Errors(Vec<FileError>),
    Gone,
}

fn load(path: &Path, json: bool) -> Load {
    let text = match read_text(path) {
        Ok(Some(text)) => text,
        Ok(None) => return Load::Objects(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Load::Gone,
        Err(error) => return Load::Errors(vec![FileError { line: None, reason: format!("reading it: {error}") }]),
    };
    match parse(&text, json) {
        Ok(objects) => Load::Objects(objects),
        Err(errors) => Load::Errors(
            errors.into_iter().map(|error| FileError { line: Some(error.line), reason: error.reason }).collect(),
        ),
    }
}

/// A file's text; none if the name isn't a file's.
fn read_text(path: &Path) -> io::Result<Option<String>> {
    // Opening must not wait for the other end of a pipe.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let data = file.metadata()?;
    if !data.is_file() {
        return Ok(None);
    }
    if data.len() > FILE_MAX {
        return Err(io::Error::other(format!("it is larger than {} MiB: divide it", FILE_MAX >> 20)));
    }
    let mut text = String::with_capacity(data.len() as usize + 1);
    file.read_to_string(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests;
