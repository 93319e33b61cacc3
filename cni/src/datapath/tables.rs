//! The pinned tables that the plugin writes: `endpoints`, by which packets are delivered to a pod, `sandboxes`, by
//! which the socket hooks identify it, and `subjects`, by which network policy applies to it. Their layout is frozen.

use std::fmt::Display;
use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData, MapError};
use podnet_common::addr::Addr;
use podnet_common::{
    layout::{Endpoint, Sandbox, Subject},
    tables::{ENDPOINTS, SANDBOXES, SUBJECTS, TableOf},
};

use super::error::{DatapathError, open_error};
use super::pins::PinDir;
use super::plain::Plain;

/// A pinned hash table.
#[derive(Debug)]
struct Table<K, V> {
    name: &'static str,
    map: HashMap<MapData, Plain<K>, Plain<V>>,
}

impl<K: bytemuck::Pod, V: bytemuck::Pod> Table<K, V> {
    fn open(pins: &PinDir, table: TableOf<K, V>) -> Result<Self, DatapathError> {
        let (path, name) = (pins.table(table), table.name());
        let failed = |source| DatapathError::Table { what: format!("open {}", path.display()), table: name, source };
        let data = MapData::from_pin(&path).map_err(|e| match e {
            MapError::SyscallError(e) => open_error(&path, e.io_error),
            other => failed(other),
        })?;
        Ok(Self { name, map: HashMap::try_from(Map::HashMap(data)).map_err(failed)? })
    }

    /// The error of an operation on an entry; `shown` is the entry's key in the message.
    fn failed(&self, what: &str, shown: impl Display) -> impl FnOnce(MapError) -> DatapathError {
        let (what, table) = (format!("{what} {shown}"), self.name);
        move |source| DatapathError::Table { what, table, source }
    }

    /// Writes an entry, replacing an existing one.
    fn insert(&mut self, key: K, value: V, shown: impl Display) -> Result<(), DatapathError> {
        self.map.insert(Plain(key), Plain(value), 0).map_err(self.failed("write the entry", shown))
    }

    /// Removes an entry; it need not exist.
    fn remove(&mut self, key: K, shown: impl Display) -> Result<(), DatapathError> {
        match self.map.remove(&Plain(key)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(source) => Err(self.failed("remove the entry", shown)(source)),
        }
    }

    /// An entry, if it exists.
    fn get(&self, key: K, shown: impl Display) -> Result<Option<V>, DatapathError> {
        match self.map.get(&Plain(key), 0) {
            Ok(value) => Ok(Some(value.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(self.failed("read the entry", shown)(source)),
        }
    }

    /// All entries.
    fn entries(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let entries = self.map.iter().map(|entry| entry.map(|(key, value)| (key.0, value.0)));
        entries.collect::<Result<_, _>>().map_err(self.failed("list", "the entries"))
    }
}

/// The table `endpoints` of the node's pods: address → [`Endpoint`].
#[derive(Debug)]
pub struct Endpoints(Table<Addr, Endpoint>);

impl Endpoints {
    /// Opens the pinned table.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Table::open(pins, ENDPOINTS).map(Self)
    }

    /// Writes an entry, replacing an existing one.
    pub fn insert(&mut self, ip: IpAddr, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.0.insert(ip.into(), *endpoint, ip)
    }

    /// Removes an entry; it need not exist.
    pub fn remove(&mut self, ip: IpAddr) -> Result<(), DatapathError> {
        self.0.remove(ip.into(), ip)
    }

    /// An entry, if it exists.
    pub fn get(&self, ip: IpAddr) -> Result<Option<Endpoint>, DatapathError> {
        self.0.get(ip.into(), ip)
    }

    /// All entries.
    pub fn entries(&self) -> Result<Vec<(IpAddr, Endpoint)>, DatapathError> {
        Ok(self.0.entries()?.into_iter().map(|(ip, endpoint)| (ip.into(), endpoint)).collect())
    }
}

/// The table `sandboxes` of the network namespaces of the node's pods: cookie → [`Sandbox`].
#[derive(Debug)]
pub struct Sandboxes(Table<u64, Sandbox>);

impl Sandboxes {
    /// Opens the pinned table.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Table::open(pins, SANDBOXES).map(Self)
    }

    /// Writes an entry, replacing an existing one.
    pub fn insert(&mut self, cookie: u64, sandbox: &Sandbox) -> Result<(), DatapathError> {
        self.0.insert(cookie, *sandbox, cookie)
    }

    /// Removes an entry if it has this value; it need not exist. With several attachments in a namespace, the entry is
    /// the latest one's.
    pub fn remove(&mut self, cookie: u64, sandbox: &Sandbox) -> Result<(), DatapathError> {
        if self.get(cookie)?.is_some_and(|there| there == *sandbox) { self.0.remove(cookie, cookie) } else { Ok(()) }
    }

    /// An entry, if it exists.
    pub fn get(&self, cookie: u64) -> Result<Option<Sandbox>, DatapathError> {
        self.0.get(cookie, cookie)
    }

    /// All entries.
    pub fn entries(&self) -> Result<Vec<(u64, Sandbox)>, DatapathError> {
        self.0.entries()
    }
}

/// The table `subjects` of the node's pods that network policy isolates: address → [`Subject`].
#[derive(Debug)]
pub struct Subjects(Table<Addr, Subject>);

impl Subjects {
    /// Opens the pinned table.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Table::open(pins, SUBJECTS).map(Self)
    }

    /// Closes a pod until the daemon has put its policies into effect. An existing entry is that of an earlier pod with
    /// this address.
    pub fn close(&mut self, ip: IpAddr) -> Result<(), DatapathError> {
        self.0.insert(ip.into(), Subject::PENDING, ip)
    }

    /// Whether the pod's policies are still unknown.
    pub fn is_pending(&self, ip: IpAddr) -> Result<bool, DatapathError> {
        Ok(self.0.get(ip.into(), ip)? == Some(Subject::PENDING))
    }

    /// Removes an entry; it need not exist.
    pub fn remove(&mut self, ip: IpAddr) -> Result<(), DatapathError> {
        self.0.remove(ip.into(), ip)
    }
}
