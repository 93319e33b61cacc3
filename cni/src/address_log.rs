//! The log of allocated and released addresses: a file with one line per event, appended under the store's lock.
//!
//! It is a history, not a register: the records determine which addresses are in use. Losing the log only ends the
//! quarantine of released addresses.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::alloc::{Event, Family, History};
use crate::files;

/// The log.
#[derive(Clone, Debug)]
pub(crate) struct AddressLog {
    path: PathBuf,
}

impl AddressLog {
    /// Size in bytes above which the log is compacted: about 1,500 events.
    pub(crate) const LIMIT: u64 = 1 << 15;

    /// The log in a file, which need not exist yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The events, oldest first. Lines that cannot be parsed are skipped.
    pub(crate) fn read(&self) -> Vec<Event> {
        let text = files::read(&self.path, files::OWN_MAX).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter_map(Event::parse).collect()
    }

    /// Appends events, or compacts the log if it exceeds [`Self::LIMIT`].
    pub(crate) fn append(&self, events: &[Event]) -> io::Result<()> {
        let lines = |events: &[Event]| events.iter().map(|e| e.to_line()).collect::<String>();
        let mut log = files::open(&self.path, OpenOptions::new().append(true).create(true).mode(0o600))?;
        if log.metadata()?.len() < Self::LIMIT {
            return log.write_all(lines(events).as_bytes());
        }
        let all = [self.read().as_slice(), events].concat();
        let short: Vec<Event> = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| History::replay(family, &all).events().collect::<Vec<_>>())
            .collect();
        // We hold the store's lock, so an existing file of this name belongs to a process that died.
        let temporary = self.path.with_extension("new");
        let _ = fs::remove_file(&temporary);
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        new.write_all(lines(&short).as_bytes())?;
        fs::rename(&temporary, &self.path)
    }
}
