//! The attachments on disk: `<stateDir>/attachments/`, one record each.
//!
//! Changes are made under the lock (`<stateDir>/lock`, flock). ADD creates its record exclusively, in the state
//! `allocating`, and holds a flock on it until the process ends, which distinguishes an ADD in progress from one that
//! was killed. When it has finished, ADD completes the content and renames the file, so a ready record is always
//! complete. `<stateDir>/allocator` is a log of allocated and released addresses, from which the cursor and the
//! quarantine follow; losing it only ends the quarantine.
//!
//! There is no fsync: a reboot ends every pod, so an unreadable record and one of an earlier boot are leftovers.

mod locked;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use thiserror::Error;

use crate::address_log::AddressLog;
use crate::alloc::{self, Family, History, Pool};
use crate::files;
use crate::id::AttachmentId;
use crate::record::{PortMapping, Record, RecordName, short_boot};

pub use locked::{Claim, Claimed, Locked, Reservation};

/// Maximum size of a record in bytes, unless it has many host ports.
const RECORD_SIZE: usize = 4096;

/// Why an operation on the store failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file could not be read, written or locked.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// All addresses are in use.
    #[error("no free {family} address: all {used} addresses of the pool are in use")]
    Exhausted {
        /// The family that ran out.
        family: Family,
        /// How many are in use.
        used: usize,
    },
    /// A requested address is not available.
    #[error("requested address {ip} {why}")]
    Unavailable {
        /// The address.
        ip: IpAddr,
        /// The reason.
        why: &'static str,
    },
    /// A host port is mapped to another pod.
    #[error("host port {port} is already in use by {}", shown(holder))]
    HostPort {
        /// The requested port.
        port: Box<PortMapping>,
        /// The record of the other pod.
        holder: Box<Record>,
    },
    /// The attachment already has a record.
    #[error("an attachment for {} already exists", name.id)]
    Exists {
        /// Its record.
        name: Box<RecordName>,
    },
    /// Another command on the attachment is in progress.
    #[error("another podnet-cni process is working on {0}")]
    Busy(Box<AttachmentId>),
}

/// The content of a record's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A valid record of this boot.
    Valid(Box<Record>),
    /// A record of an earlier boot.
    Leftover,
    /// Of this boot by its name, but invalid, or the content of another record.
    Damaged,
    /// Not a regular file.
    NoFile,
}

/// The store. Opening it changes nothing on disk.
#[derive(Clone, Debug)]
pub struct Store {
    state_dir: PathBuf,
    attachments: PathBuf,
    log: AddressLog,
    boot_id: String,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

impl Store {
    /// The store in a state directory, for the running kernel's boot.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(path).map_err(failed("read", path))?;
        Ok(Self::with_boot_id(state_dir, boot_id.trim()))
    }

    /// The store in a state directory, for a given boot id.
    pub fn with_boot_id(state_dir: &Path, boot_id: &str) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            attachments: state_dir.join("attachments"),
            log: AddressLog::new(state_dir.join("allocator")),
            boot_id: boot_id.to_owned(),
        }
    }

    /// The directory of the records, which the daemon watches.
    pub fn attachments_dir(&self) -> &Path {
        &self.attachments
    }

    /// The running kernel's boot id.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The names of all records, including those of earlier boots, sorted.
    pub fn list(&self) -> Result<Vec<RecordName>, StoreError> {
        let mut names = Vec::new();
        self.scan(|file| names.extend(RecordName::parse(file)))?;
        names.sort();
        Ok(names)
    }

    /// The records of an attachment: at most one of this boot, and leftovers of earlier ones.
    pub fn find(&self, id: &AttachmentId) -> Result<Vec<RecordName>, StoreError> {
        let prefix = format!("{}:{}:", id.container.as_str(), id.ifname.as_str());
        let mut found = Vec::new();
        self.scan(|file| {
            if file.starts_with(&prefix) {
                found.extend(RecordName::parse(file));
            }
        })?;
        Ok(found)
    }

    /// A record's content; `None` if it has been removed meanwhile. In the state `allocating` it is the initial
    /// content.
    pub fn read(&self, name: &RecordName) -> Result<Option<Content>, StoreError> {
        self.read_if(name, |_| true)
    }

    /// As [`Self::read`], but `None` also for a record that does not contain this uid: so most records need no parsing.
    pub fn read_with_uid(&self, name: &RecordName, uid: &str) -> Result<Option<Content>, StoreError> {
        let encoded = serde_json::to_vec(uid).unwrap_or_default();
        self.read_if(name, |bytes| bytes.windows(encoded.len()).any(|part| part == encoded))
    }

    fn read_if(&self, name: &RecordName, wanted: impl FnOnce(&[u8]) -> bool) -> Result<Option<Content>, StoreError> {
        let path = self.path(name);
        let bytes = match files::read(&path, files::OWN_MAX) {
            Ok(bytes) if wanted(&bytes) => bytes,
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if files::is_no_file(&e) => return Ok(Some(Content::NoFile)),
            Err(e) => return Err(failed("read", &path)(e)),
        };
        let parsed = serde_json::from_slice::<Record>(&bytes).ok();
        // A record under another's name would release what it does not hold.
        let parsed = parsed.filter(|r| RecordName { state: name.state, ..r.name() } == *name);
        Ok(Some(match parsed {
            Some(record) if record.boot_id == self.boot_id => Content::Valid(Box::new(record)),
            None if name.boot == short_boot(&self.boot_id) => Content::Damaged,
            _ => Content::Leftover,
        }))
    }

    /// When a record was written; `None` if it has been removed meanwhile.
    pub fn written(&self, name: &RecordName) -> Result<Option<SystemTime>, StoreError> {
        let path = self.path(name);
        match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
            Ok(when) => Ok(Some(when)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("examine", &path)(e)),
        }
    }

    /// Checks that each pool has a free address.
    pub fn has_room(&self, pools: &[Pool]) -> Result<(), StoreError> {
        let used = used_of(&self.list()?, short_boot(&self.boot_id));
        let log = self.log.read();
        for pool in pools {
            let history = History::replay(pool.family(), &log);
            alloc::choose(pool, &used, &history).ok_or_else(|| exhausted(pool, &used))?;
        }
        Ok(())
    }

    /// Checks that a record could be written, with a temporary file in the same place.
    pub fn is_writable(&self) -> Result<(), StoreError> {
        let there = self.state_dir.ancestors().find(|path| path.exists()).unwrap_or(&self.state_dir);
        let tried = tempfile::NamedTempFile::new_in(there).and_then(|mut file| file.write_all(&[b' '; RECORD_SIZE]));
        tried.map_err(failed("write a file into", there))
    }

    fn path(&self, name: &RecordName) -> PathBuf {
        self.attachments.join(name.to_string())
    }

    fn scan(&self, mut each: impl FnMut(&str)) -> Result<(), StoreError> {
        let entries = match fs::read_dir(&self.attachments) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed("read", &self.attachments)(e)),
        };
        for entry in entries {
            let name = entry.map_err(failed("read", &self.attachments))?.file_name();
            if let Some(name) = name.to_str() {
                each(name);
            }
        }
        Ok(())
    }
}

fn shown(holder: &Record) -> String {
    match &holder.pod {
        Some(pod) => format!("pod {}/{} ({})", pod.namespace, pod.name, holder.id),
        None => holder.id.to_string(),
    }
}

fn used_of(names: &[RecordName], boot: &str) -> BTreeSet<IpAddr> {
    names.iter().filter(|n| n.boot == boot).flat_map(|n| n.ips.iter().copied()).collect()
}

fn exhausted(pool: &Pool, used: &BTreeSet<IpAddr>) -> StoreError {
    StoreError::Exhausted { family: pool.family(), used: used.iter().filter(|ip| pool.contains(**ip)).count() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::State;

    pub(crate) const BOOT: &str = "0123abcd-0000-0000-0000-000000000000";

    pub(crate) fn id(container: &str) -> AttachmentId {
        AttachmentId {
            container: container.to_owned().try_into().unwrap(),
            ifname: "eth0".to_owned().try_into().unwrap(),
        }
    }

    pub(crate) fn record(id: &AttachmentId, ips: Vec<IpAddr>) -> Record {
        Record {
            id: id.clone(),
            state: State::Allocating,
            network: "podnet".into(),
            netns: "/run/netns/x".into(),
            netns_cookie: None,
            ips,
            mac: Default::default(),
            host_ifname: id.host_ifname(),
            host_ifindex: 0,
            host_mac: Default::default(),
            host_netns: 1,
            mtu: 1500,
            gateways: Vec::new(),
            bpffs: None,
            boot_id: BOOT.into(),
            pod: None,
            port_mappings: Vec::new(),
            bandwidth: Default::default(),
        }
    }
}
