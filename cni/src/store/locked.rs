//! Changes to the store: its lock, claims of records, and the reservation of addresses.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Content, Store, StoreError, exhausted, failed, used_of};
use crate::alloc::{self, Event, History, Pool};
use crate::files;
use crate::id::AttachmentId;
use crate::record::{PortMapping, Record, RecordName, short_boot};

/// How long DEL waits for an ADD of the same attachment to finish.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// The store, locked.
#[derive(Debug)]
pub struct Locked<'a> {
    store: &'a Store,
    _lock: Flock,
}

/// The exclusive right to work on a record, until dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: Option<Flock>,
}

/// A locked file. It is unlocked explicitly, since a child that the daemon is just forking shares the descriptor.
#[derive(Debug)]
struct Flock(File);

impl Drop for Flock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!("cannot release the lock on a file in stateDir: {error}");
        }
    }
}

/// The result of an attempt to claim a record.
#[derive(Debug)]
pub enum Claimed {
    /// It is claimed.
    Yes(Claim),
    /// Another process has claimed it.
    Busy,
    /// It has been removed or renamed.
    Gone,
}

/// The record of a new attachment, in the state `allocating`, and with it the attachment's addresses.
#[derive(Debug)]
pub struct Reservation {
    /// The record as written.
    pub record: Record,
    // Its flock marks the ADD as in progress.
    file: File,
}

impl Store {
    /// Takes the lock, waiting for it. Creates missing directories.
    pub fn lock(&self) -> Result<Locked<'_>, StoreError> {
        let path = self.state_dir.join("lock");
        let open = || files::open(&path, OpenOptions::new().write(true).create(true).truncate(false).mode(0o600));
        let lock = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_dir(&self.state_dir)?;
                open()
            }
            other => other,
        };
        let lock = lock.map_err(failed("open", &path))?;
        lock.lock().map_err(failed("lock", &path))?;
        Ok(Locked { store: self, _lock: Flock(lock) })
    }

    /// Claims a record, to remove it or to inspect it undisturbed. This takes the store's lock for a moment, so that no
    /// record is claimed between its creation by ADD and ADD's flock on it.
    pub fn try_claim(&self, name: &RecordName) -> Result<Claimed, StoreError> {
        let _lock = self.lock()?;
        let path = self.path(name);
        let file = match files::open(&path, OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Claimed::Gone),
            // Not created by an ADD, so none is in progress.
            Err(e) if files::is_no_file(&e) => return Ok(Claimed::Yes(Claim { _lock: None })),
            Err(e) => return Err(failed("open", &path)(e)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Claimed::Busy),
            Err(TryLockError::Error(e)) => return Err(failed("lock", &path)(e)),
        }
        // It may have been renamed or removed between open and lock.
        let lock = Flock(file);
        let ours = lock.0.metadata().map_err(failed("examine", &path))?.ino();
        match fs::metadata(&path) {
            Ok(there) if there.ino() == ours => Ok(Claimed::Yes(Claim { _lock: Some(lock) })),
            Ok(_) => Ok(Claimed::Gone),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Claimed::Gone),
            Err(e) => Err(failed("examine", &path)(e)),
        }
    }

    /// Claims a record, waiting up to ten seconds for other processes; `None` if it has been removed.
    pub fn claim(&self, name: &RecordName) -> Result<Option<Claim>, StoreError> {
        let deadline = Instant::now() + CLAIM_TIMEOUT;
        loop {
            match self.try_claim(name)? {
                Claimed::Yes(claim) => return Ok(Some(claim)),
                Claimed::Gone => return Ok(None),
                Claimed::Busy if Instant::now() > deadline => {
                    return Err(StoreError::Busy(Box::new(name.id.clone())));
                }
                Claimed::Busy => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Locked<'_> {
    /// Allocates an address from each pool, or the requested one, and writes the record that `record` makes of them.
    /// `host_ports` are those of that record. Also removes records of earlier boots.
    pub fn reserve(
        &self,
        id: &AttachmentId,
        pools: &[Pool],
        requested: &[IpAddr],
        host_ports: &[PortMapping],
        record: impl FnOnce(Vec<IpAddr>) -> Record,
    ) -> Result<Reservation, StoreError> {
        let boot = short_boot(&self.store.boot_id);
        let (names, stale): (Vec<_>, Vec<_>) = self.store.list()?.into_iter().partition(|n| n.boot == boot);
        for name in &stale {
            remove_file(&self.store.path(name))?;
        }
        if let Some(name) = names.iter().find(|n| n.id == *id) {
            return Err(StoreError::Exists { name: Box::new(name.clone()) });
        }
        let mut used = used_of(&names, boot);
        let log = self.store.log.read();
        let mut requested = requested.to_vec();
        let mut events = Vec::new();
        for pool in pools {
            let wanted = requested.iter().position(|ip| pool.contains(*ip)).map(|i| requested.swap_remove(i));
            let event = match wanted {
                Some(ip) if used.contains(&ip) => return Err(StoreError::Unavailable { ip, why: "is in use" }),
                Some(ip) => Event::Requested(ip),
                None => {
                    let history = History::replay(pool.family(), &log);
                    Event::Given(alloc::choose(pool, &used, &history).ok_or_else(|| exhausted(pool, &used))?)
                }
            };
            used.insert(event.ip());
            events.push(event);
        }
        if let Some(ip) = requested.first() {
            return Err(StoreError::Unavailable { ip: *ip, why: "is reserved, or outside the pod CIDRs" });
        }
        self.check_host_ports(host_ports, &names)?;
        // The record last: a crash before it only advances the cursor.
        self.store.log.append(&events).map_err(failed("write", self.store.log.path()))?;
        let record = record(events.iter().map(|e| e.ip()).collect());
        let file = self.create(&record)?;
        Ok(Reservation { record, file })
    }

    /// Fails if another attachment has one of the host ports. An unreadable record counts as having none.
    fn check_host_ports(&self, wanted: &[PortMapping], names: &[RecordName]) -> Result<(), StoreError> {
        // Most pods request none; then no file is read.
        for name in names.iter().filter(|_| !wanted.is_empty()) {
            let Some(Content::Valid(record)) = self.store.read(name)? else { continue };
            let taken = |port: &&PortMapping| record.port_mappings.iter().any(|other| port.overlaps(other));
            if let Some(port) = wanted.iter().find(taken) {
                return Err(StoreError::HostPort { port: Box::new(port.clone()), holder: record });
            }
        }
        Ok(())
    }

    /// Makes an attachment ready: completes its record and renames it.
    pub fn finish(&self, reservation: &mut Reservation, record: &Record) -> Result<(), StoreError> {
        let from = self.store.path(&reservation.record.name());
        let to = self.store.path(&record.name());
        let written = reservation.write(record).and_then(|()| fs::rename(&from, &to));
        written.map_err(failed("write", &to))
    }

    /// Writes the record of a ready attachment in place of a damaged or lost one.
    pub fn restore(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.store.path(&record.name());
        make_dir(&self.store.attachments)?;
        let written = (|| {
            let mut file = tempfile::NamedTempFile::new_in(&self.store.attachments)?;
            file.write_all(&encode(record)?)?;
            file.persist(&path).map_err(|e| e.error).map(drop)
        })();
        written.map_err(failed("write", &path))
    }

    /// Removes a record and quarantines its addresses. It need not exist.
    pub fn remove(&self, name: &RecordName) -> Result<(), StoreError> {
        let path = self.store.path(name);
        if path.symlink_metadata().is_ok() && name.boot == short_boot(&self.store.boot_id) {
            let events: Vec<Event> = name.ips.iter().map(|ip| Event::Released(*ip)).collect();
            // A full disk must not keep a pod from being removed; without the event its address is only reused earlier.
            if let Err(error) = self.store.log.append(&events) {
                let path = self.store.log.path().display();
                tracing::warn!("cannot write {path}: {error}; the released addresses may be reused early");
            }
        }
        remove_file(&path)
    }

    /// Creates a record in the state `allocating` and takes its flock.
    fn create(&self, record: &Record) -> Result<File, StoreError> {
        let path = self.store.path(&record.name());
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = match create() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_dir(&self.store.attachments)?;
                create()
            }
            other => other,
        };
        let file = file.map_err(failed("create", &path))?;
        let written = file.lock().and_then(|()| file.write_all_at(&encode(record)?, 0));
        if let Err(e) = written {
            // A full disk must not leak addresses as well.
            let _ = fs::remove_file(&path);
            return Err(failed("write", &path)(e));
        }
        Ok(file)
    }
}

impl Reservation {
    /// Replaces the content in one write, which no signal interrupts as long as it is shorter than a page. Spaces
    /// overwrite the rest of longer old content.
    fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut bytes = encode(record)?;
        let before = encode(&self.record)?.len();
        bytes.resize(bytes.len().max(before), b' ');
        self.file.write_all_at(&bytes, 0)
    }
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(Into::into)
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create directory", path))
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::address_log::AddressLog;
    use crate::files::tests::{at_once, pipe};
    use crate::record::{PodRef, State};
    use crate::store::tests::{BOOT, id, record};

    fn reserve(store: &Store, container: &str, cidr: &str) -> Result<Reservation, StoreError> {
        let pools = Pool::from_cidrs(&[cidr.parse().unwrap()]).unwrap();
        let id = id(container);
        store.lock()?.reserve(&id, &pools, &[], &[], |ips| record(&id, ips))
    }

    #[test]
    fn a_record_from_reservation_to_removal() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::with_boot_id(&dir.path().join("state"), BOOT);
        assert_eq!(store.list().unwrap(), []);
        let mut reservation = reserve(&store, "c1", "10.0.0.0/24").unwrap();
        let allocating = reservation.record.name();
        assert_eq!(store.list().unwrap(), std::slice::from_ref(&allocating));
        assert!(matches!(store.try_claim(&allocating).unwrap(), Claimed::Busy), "ADD is at work");
        assert!(matches!(reserve(&store, "c1", "10.0.0.0/24"), Err(StoreError::Exists { .. })));

        let pod = Some(PodRef { uid: "a \"uid\"".into(), ..PodRef::default() });
        let ready = Record { state: State::Ready, host_ifindex: 7, pod, ..reservation.record.clone() };
        store.lock().unwrap().finish(&mut reservation, &ready).unwrap();
        assert!(matches!(store.try_claim(&allocating).unwrap(), Claimed::Gone));
        assert!(matches!(store.try_claim(&ready.name()).unwrap(), Claimed::Busy), "until the process ends");
        drop(reservation);
        assert!(matches!(store.try_claim(&ready.name()).unwrap(), Claimed::Yes(_)));
        assert_eq!(store.read(&ready.name()).unwrap(), Some(Content::Valid(Box::new(ready.clone()))));
        assert_eq!(store.read_with_uid(&ready.name(), "a \"uid\"").unwrap(), store.read(&ready.name()).unwrap());
        assert_eq!(store.read_with_uid(&ready.name(), "other").unwrap(), None);
        assert_eq!(store.find(&id("c1")).unwrap(), [ready.name()]);
        assert_eq!(store.find(&id("c")).unwrap(), []);

        let next_boot = Store::with_boot_id(&dir.path().join("state"), "fedc0000-0000-0000-0000-000000000000");
        assert_eq!(next_boot.read(&ready.name()).unwrap(), Some(Content::Leftover));

        store.lock().unwrap().remove(&ready.name()).unwrap();
        store.lock().unwrap().remove(&ready.name()).unwrap();
        assert_eq!(store.read(&ready.name()).unwrap(), None);
        assert_eq!(fs::read_to_string(store.log.path()).unwrap(), "+10.0.0.2\n-10.0.0.2\n", "released once");
    }

    #[test]
    fn what_takes_the_place_of_a_file_is_named_and_never_waited_for() {
        for name in ["lock", "allocator"] {
            let dir = tempfile::tempdir().unwrap();
            pipe(&dir.path().join(name));
            let store = Store::with_boot_id(dir.path(), BOOT);
            let error = at_once(name, move || reserve(&store, "c1", "10.0.0.0/24")).unwrap_err();
            let StoreError::Io { path, source, .. } = error else { panic!("{error}") };
            assert!(path.ends_with(name) && source.to_string().contains("a named pipe"), "{source}");
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::with_boot_id(dir.path(), BOOT);
        for make in [pipe, (|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())) as fn(&Path)] {
            let name = reserve(&store, "c1", "10.0.0.0/24").unwrap().record.name();
            let path = store.path(&name);
            fs::remove_file(&path).unwrap();
            make(&path);
            let (there, its) = (store.clone(), name.clone());
            let (claimed, read) =
                at_once("a record", move || (there.try_claim(&its).unwrap(), there.read(&its).unwrap()));
            assert!(matches!(claimed, Claimed::Yes(_)) && read == Some(Content::NoFile), "{read:?}");
            // Its address stays in use until it is removed.
            let other = reserve(&store, "c2", "10.0.0.0/24").unwrap();
            assert_ne!(other.record.ips, name.ips);
            for name in store.list().unwrap() {
                store.lock().unwrap().remove(&name).unwrap();
            }
            assert_eq!(store.list().unwrap(), []);
        }
        // Nor does a leftover of a compaction that was killed matter, whatever it is.
        pipe(&dir.path().join("allocator.new"));
        fs::write(dir.path().join("allocator"), "+10.0.0.2\n".repeat(4000)).unwrap();
        at_once("the log", move || reserve(&store, "c3", "10.0.0.0/24").map(drop)).unwrap();
    }

    #[test]
    fn the_log_stays_short_and_means_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::with_boot_id(dir.path(), BOOT);
        let mut given = Vec::new();
        for _ in 0..2000 {
            let name = reserve(&store, "c1", "10.0.0.0/25").unwrap().record.name();
            store.lock().unwrap().remove(&name).unwrap();
            given.push(name.ips[0]);
            assert!(fs::metadata(store.log.path()).unwrap().len() < AddressLog::LIMIT + 64);
        }
        let round = 125;
        assert!(given[..round].iter().collect::<BTreeSet<_>>().len() == round, "every address once a round");
        assert!(given.windows(round + 1).all(|w| w[0] == w[round]), "and always in the same order");
    }
}
