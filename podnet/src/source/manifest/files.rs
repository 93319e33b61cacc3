//! Files and the objects that they define.

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::{info, warn};

use super::super::parse::parallel_map;
use super::super::status::what_holds;
use super::load::{Load, load};
use super::report::FileError;
use super::{File, ManifestSource};
use crate::model::{Change, Object, ObjectKey};

/// Maximum number of errors logged per read.
const LOGGED: usize = 20;
/// Minimum number of files per thread.
const FILES_A_THREAD: usize = 8;

impl ManifestSource {
    pub(super) fn read(&mut self, files: &BTreeSet<Arc<str>>, changes: &mut Vec<Change>) {
        let files: Vec<_> = files.iter().cloned().collect();
        let directory = &self.directory;
        let results =
            parallel_map(&files, FILES_A_THREAD, |file| load(&directory.join(&**file), file.ends_with(".json")));
        let mut told = 0;
        for (file, result) in files.into_iter().zip(results) {
            self.absent.remove(&file);
            let known = self.files.get(&file);
            let has_objects = known.is_some_and(|known| !known.objects.is_empty());
            let result = match result {
                // Before everything has been read once, the file's content under an earlier daemon is unknown.
                Load::Empty if has_objects || known.is_none_or(|known| !known.loaded) && !self.was_synced => {
                    Load::error("it is empty; remove it if that is intended")
                }
                Load::Empty => Load::Objects(Vec::new()),
                Load::NoFile(error) if has_objects => Load::error(&error.to_string()),
                Load::NoFile(_) if known.is_some() => Load::Objects(Vec::new()),
                other => other,
            };
            match result {
                Load::Objects(objects) => {
                    self.leaving.remove(&file);
                    let known = self.files.entry(file.clone()).or_default();
                    known.errors.clear();
                    if self.broken.remove(&file) {
                        info!(file = &*file, "the manifest is valid again");
                    }
                    known.loaded = true;
                    self.replace(&file, objects, changes);
                }
                Load::Errors(errors) => {
                    self.leaving.remove(&file);
                    let holds = what_holds(known.is_some_and(|known| known.loaded));
                    for FileError { line, reason } in errors.iter().take(usize::saturating_sub(LOGGED, told)) {
                        warn!(file = &*file, line, "invalid manifest: {reason} ({holds})");
                    }
                    told += errors.len();
                    self.broken.insert(file.clone());
                    self.files.entry(file).or_default().errors = errors;
                }
                // A removal causes an event of its own, and anything that was never a file is ignored.
                Load::Gone | Load::NoFile(_) | Load::Empty => {}
            }
        }
        if told > LOGGED {
            warn!("{} more errors in manifests are not logged; `podnet status` lists the first files", told - LOGGED);
        }
    }

    /// A renamed file keeps its objects, whether it can be read again or not.
    pub(super) fn inherit(&mut self, from: &Arc<str>, to: &Arc<str>, changes: &mut Vec<Change>) {
        let Some(before) = self.files.get(from).filter(|_| !self.files.contains_key(to)) else { return };
        let (objects, loaded) = (before.objects.clone(), before.loaded);
        self.files.insert(to.clone(), File { loaded, ..File::default() });
        self.replace(to, objects, changes);
    }

    pub(super) fn remove(&mut self, file: &Arc<str>, changes: &mut Vec<Change>) {
        self.leaving.remove(file);
        self.absent.remove(file);
        if self.files.contains_key(file) {
            self.replace(file, Vec::new(), changes);
            self.files.remove(file);
            self.broken.remove(file);
        }
    }

    /// Replaces the objects of a file.
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

    /// The definition of an object that counts.
    fn current(&self, key: &ObjectKey) -> Option<Object> {
        self.object(self.holders.get(key)?.first()?, key)
    }

    fn object(&self, file: &Arc<str>, key: &ObjectKey) -> Option<Object> {
        let objects = &self.files.get(file)?.objects;
        objects.binary_search_by(|(other, _)| other.cmp(key)).ok().map(|i| objects[i].1.clone())
    }
}
