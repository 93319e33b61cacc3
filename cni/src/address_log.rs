//! What happened to addresses, as a log on disk: one line an event, added under the store's lock.
//!
//! It is a memory, not a register: which addresses are in use is said by the records. Losing the log costs nothing but
//! the rest of released addresses.

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
    /// Size in bytes from which it is written anew, shorter: about 1,500 events.
    pub(crate) const LIMIT: u64 = 1 << 15;

    /// The log in a file, which need not exist.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The events, oldest first. Lines that are no events are passed over.
    pub(crate) fn read(&self) -> Vec<Event> {
        let text = files::read(&self.path, files::OWN_MAX).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter_map(Event::parse).collect()
    }

    /// Adds events, or writes the log anew when it has grown long.
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
        // The lock is ours: a file of that name is a dead process's.
        let temporary = self.path.with_extension("new");
        let _ = fs::remove_file(&temporary);
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        new.write_all(lines(&short).as_bytes())?;
        fs::rename(&temporary, &self.path)
    }
}
