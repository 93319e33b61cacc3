//! Ids of service ports, and the file that maps ids to names while the daemon is down.
//!
//! The file is in the run directory: like the pinned tables whose ids it explains, it lasts until the next reboot. An
//! id is never reused, since flows that outlive their service still carry it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foldhash::HashMap;
use podnet_cni::files;
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

use crate::frontend::ServicePortName;
use crate::model::ObjectName;

/// Version of the file's layout.
const SCHEMA: u32 = 1;

/// Identifies a service port on this node: [`podnet_common::layout::Frontend::service`]. 0 is none.
///
/// The upper bits distinguish the affinities of a service port; see [`Self::with_affinity`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceId(pub u32);

impl ServiceId {
    /// Number of bits of the id itself. Two more are the group; in `ServiceClient` the highest bit distinguishes
    /// families.
    const BITS: u32 = 29;

    /// The id as in the table, for one of four groups of clients. A client's affinity applies within its group, since
    /// another group may have different backends: with a local traffic policy, those of this node only.
    pub fn with_affinity(self, group: u8) -> Self {
        Self(self.port().0 | u32::from(group) << Self::BITS)
    }

    /// The group of clients.
    pub fn affinity_group(self) -> u8 {
        (self.0 >> Self::BITS) as u8
    }

    /// The id itself, which has the name of the service port.
    pub fn port(self) -> Self {
        Self(self.0 & ((1 << Self::BITS) - 1))
    }
}

/// Why the file can't be read or written.
#[derive(Debug, Error)]
pub enum NamesError {
    /// Reading failed.
    #[error("cannot read the service names {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The content is invalid.
    #[error("invalid service names in {path}: {reason}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Writing failed.
    #[error("cannot write the service names {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
}

/// Names of service ids.
#[derive(Clone, Debug)]
pub struct ServiceNames {
    next: u32,
    by_id: BTreeMap<ServiceId, State>,
    by_name: HashMap<Arc<ServicePortName>, ServiceId>,
    /// Whether the file is out of date.
    changed: bool,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// `None` for an id found in the tables but not in the file.
    name: Option<Arc<ServicePortName>>,
    /// Number of frontends with the id.
    uses: u32,
}

/// Its services are read into a map of [`FileName`], and written from [`Named`].
#[derive(Serialize, Deserialize)]
struct File<S> {
    schema: u32,
    next: u32,
    services: S,
}

#[derive(Serialize, Deserialize)]
struct FileName<'a> {
    namespace: Cow<'a, str>,
    name: Cow<'a, str>,
    port: Cow<'a, str>,
}

/// The ids that have a name, as in the file.
struct Named<'a>(&'a BTreeMap<ServiceId, State>);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter_map(|(id, state)| {
            let ServicePortName { service: ObjectName { namespace, name }, port } = &**state.name.as_ref()?;
            Some((id, FileName { namespace: namespace.into(), name: name.into(), port: port.into() }))
        }))
    }
}

impl Default for ServiceNames {
    fn default() -> Self {
        Self { next: 1, by_id: BTreeMap::new(), by_name: HashMap::default(), changed: true }
    }
}

impl ServiceNames {
    /// Path of the file.
    pub fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("services.json")
    }

    /// Reads the file; without names if it doesn't exist.
    ///
    /// # Errors
    /// [`NamesError`] if it can't be read or is invalid.
    pub fn read(run_dir: &Path) -> Result<Self, NamesError> {
        let path = Self::path(run_dir);
        let bytes = match files::read(&path, files::OWN_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(NamesError::Read { path, source }),
        };
        let file: File<BTreeMap<ServiceId, FileName<'_>>> = match serde_json::from_slice(&bytes) {
            Ok(file) => file,
            Err(error) => return Err(NamesError::Content { path, reason: error.to_string() }),
        };
        if file.schema != SCHEMA {
            return Err(NamesError::Content { path, reason: format!("schema {} instead of {SCHEMA}", file.schema) });
        }
        let mut names = Self { next: file.next.max(1), changed: false, ..Self::default() };
        for (id, FileName { namespace, name, port }) in file.services {
            let service = ObjectName { namespace: namespace.into_owned(), name: name.into_owned() };
            names.insert(id, ServicePortName { service, port: port.into_owned() }.into());
        }
        Ok(names)
    }

    /// Replaces the file if anything has changed since it was read or written; returns whether it had.
    ///
    /// # Errors
    /// [`NamesError::Write`]; the next call retries.
    pub fn write(&mut self, run_dir: &Path) -> Result<bool, NamesError> {
        if !self.changed {
            return Ok(false);
        }
        let file = File { schema: SCHEMA, next: self.next, services: Named(&self.by_id) };
        let path = Self::path(run_dir);
        let written = (|| {
            fs::create_dir_all(run_dir)?;
            let mut temporary = tempfile::NamedTempFile::new_in(run_dir)?;
            serde_json::to_writer(io::BufWriter::new(&mut temporary), &file)?;
            temporary.write_all(b"\n")?;
            temporary.persist(&path)?;
            Ok(())
        })();
        written.map_err(|source| NamesError::Write { path, source })?;
        self.changed = false;
        Ok(true)
    }

    /// The name of an id.
    pub fn name(&self, id: ServiceId) -> Option<&ServicePortName> {
        self.by_id.get(&id.port())?.name.as_deref()
    }

    /// Adopts a use found in the tables.
    pub(crate) fn adopt(&mut self, id: ServiceId) {
        let id = id.port();
        if id != ServiceId::default() {
            self.avoid(id);
            self.by_id.entry(id).or_default().uses += 1;
        }
    }

    /// Prevents the allocation of this id, which was found in the tables, to another service port.
    pub(crate) fn avoid(&mut self, id: ServiceId) {
        self.next = self.next.max(id.port().0.saturating_add(1));
    }

    /// Forgets names without an adopted use.
    pub(crate) fn forget_unused(&mut self) {
        let unused: Vec<_> = self.by_id.iter().filter(|(_, state)| state.uses == 0).map(|(&id, _)| id).collect();
        unused.into_iter().for_each(|id| self.remove(id));
    }

    /// The id of a name, with one more use. A new name gets `present`, the id of its frontend in the table, if that id
    /// has no name because the daemon was killed before it could write the file.
    pub(crate) fn acquire(&mut self, name: &Arc<ServicePortName>, present: Option<ServiceId>) -> ServiceId {
        let present = present.map(ServiceId::port);
        let nameless = |id: &ServiceId| self.by_id.get(id).is_some_and(|state| state.name.is_none());
        let id = match self.by_name.get(name) {
            Some(&id) => id,
            None => {
                let id = present.filter(nameless).unwrap_or(ServiceId(self.next));
                self.insert(id, name.clone());
                self.changed = true;
                id
            }
        };
        self.by_id.entry(id).or_default().uses += 1;
        id
    }

    /// Ends a use.
    pub(crate) fn release(&mut self, id: ServiceId) {
        let id = id.port();
        if let Some(state) = self.by_id.get_mut(&id) {
            state.uses = state.uses.saturating_sub(1);
            if state.uses == 0 {
                self.remove(id);
            }
        }
    }

    fn insert(&mut self, id: ServiceId, name: Arc<ServicePortName>) {
        self.avoid(id);
        self.by_name.insert(name.clone(), id);
        self.by_id.entry(id).or_default().name = Some(name);
    }

    fn remove(&mut self, id: ServiceId) {
        if let Some(name) = self.by_id.remove(&id).and_then(|state| state.name) {
            self.by_name.remove(&name);
            self.changed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(service: &str) -> Arc<ServicePortName> {
        Arc::new(ServicePortName {
            service: ObjectName { namespace: "default".into(), name: service.into() },
            port: "http".into(),
        })
    }

    #[test]
    fn ids_are_never_reused_even_after_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let mut names = ServiceNames::read(directory.path()).unwrap();
        let (a, b) = (names.acquire(&name("a"), None), names.acquire(&name("b"), None));
        assert_eq!((a, b), (ServiceId(1), ServiceId(2)));
        names.release(b);
        assert!(names.write(directory.path()).unwrap());
        assert!(!names.write(directory.path()).unwrap(), "nothing has changed");

        let mut names = ServiceNames::read(directory.path()).unwrap();
        assert!(!names.write(directory.path()).unwrap(), "it was only read");
        assert_eq!(names.name(a), Some(&*name("a")));
        assert_eq!(names.name(b), None);
        names.adopt(a);
        names.forget_unused();
        assert_eq!(names.acquire(&name("c"), None), ServiceId(3));
        assert_eq!(names.acquire(&name("a"), None), a);
        names.release(a);
        assert_eq!(names.name(a), Some(&*name("a")), "one use remains");
        names.release(a);
        assert_eq!(names.name(a), None);
    }

    #[test]
    fn ids_survive_the_loss_of_the_file() {
        let mut names = ServiceNames::default();
        names.adopt(ServiceId(7));
        assert_eq!(names.acquire(&name("a"), Some(ServiceId(7))), ServiceId(7));
        names.release(ServiceId(7));
        assert_eq!(names.name(ServiceId(7)), Some(&*name("a")), "the use that was found remains");
        assert_eq!(names.acquire(&name("b"), Some(ServiceId(7))), ServiceId(8), "taken by a");
    }

    #[test]
    fn affinity_groups_share_a_name() {
        let mut names = ServiceNames::default();
        let id = names.acquire(&name("a"), None);
        let outside = id.with_affinity(2);
        assert!(outside != id && outside.port() == id && outside.with_affinity(0) == id);
        assert_eq!((id.affinity_group(), outside.affinity_group()), (0, 2));
        assert_eq!(names.name(outside), Some(&*name("a")));
        names.adopt(ServiceId(6).with_affinity(3));
        assert_eq!(names.acquire(&name("b"), Some(ServiceId(6).with_affinity(1))), ServiceId(6));
        names.release(outside);
        assert_eq!(names.name(id), None);
        names.avoid(ServiceId(9).with_affinity(1));
        assert_eq!(names.acquire(&name("c"), None), ServiceId(10));
    }

    #[test]
    fn error_names_the_broken_file() {
        let directory = tempfile::tempdir().unwrap();
        for content in ["{", "{\"schema\":9,\"next\":1,\"services\":{}}"] {
            fs::write(ServiceNames::path(directory.path()), content).unwrap();
            let error = ServiceNames::read(directory.path()).unwrap_err().to_string();
            assert!(error.contains("services.json"), "{error}");
        }
        // Reading a pipe would wait for a writer.
        fs::remove_file(ServiceNames::path(directory.path())).unwrap();
        nix::unistd::mkfifo(&ServiceNames::path(directory.path()), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = ServiceNames::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("services.json") && error.contains("named pipe"), "{error}");
        ServiceNames::default().write(directory.path()).unwrap();
        assert!(ServiceNames::read(directory.path()).is_ok(), "a new file takes its place");
    }
}
