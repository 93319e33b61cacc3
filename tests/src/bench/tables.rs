//! A node's tables, read through its own BPF file system.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use podnet::datapath::{batch, view};
use podnet_cni::datapath::{PinDir, Plain};
use podnet_common::{
    addr::{Addr, Port, Proto},
    layout::{Backend, Frontend, FrontendKey, Network, NetworkKind, Subject},
    tables::{self, Table},
    verdict::Counter,
};

use crate::lab::Node;

/// The tables of services.
pub struct Tables {
    // A second handle, because aya's typed one does not expose its descriptor.
    all_frontends: MapData,
    frontends: HashMap<MapData, Plain<FrontendKey>, Plain<Frontend>>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Plain<Backend>>,
    networks: LpmTrie<MapData, Plain<Addr>, Plain<Network>>,
}

impl Tables {
    /// Opens them; fails if the node's daemon has not created them yet.
    pub fn open(node: &Node) -> Result<Self> {
        let pins = pins(node);
        let data = |table: Table| {
            let opened = MapData::from_pin(pins.table(table));
            opened.with_context(|| format!("{} has no table {}", node.name(), table.name()))
        };
        Ok(Self {
            all_frontends: data(tables::FRONTENDS.into())?,
            frontends: Map::HashMap(data(tables::FRONTENDS.into())?).try_into()?,
            slots: Map::Array(data(tables::SLOTS.into())?).try_into()?,
            backends: Map::Array(data(tables::BACKENDS.into())?).try_into()?,
            networks: Map::LpmTrie(data(tables::NODES.into())?).try_into()?,
        })
    }

    /// Number of service ports with at least this many backends for clients in the cluster.
    pub fn served(&self, backends: u32) -> Result<usize> {
        let mut count = 0;
        batch::for_each(self.all_frontends.fd().as_fd(), |key: &FrontendKey, frontend: &Frontend| {
            let cluster_ip = key.port.get() != 0 && frontend.flags & Frontend::EXTERNAL == 0;
            count += usize::from(cluster_ip && frontend.slot_count >= backends);
        })?;
        Ok(count)
    }

    /// Entry of a TCP frontend, if any.
    pub fn frontend(&self, frontend: SocketAddr) -> Result<Option<Frontend>> {
        let key = FrontendKey {
            addr: Addr::from(frontend.ip()),
            port: Port::new(frontend.port()),
            proto: Proto::TCP,
            scope: FrontendKey::ANY,
        };
        Ok(found(self.frontends.get(&Plain(key), 0))?.map(|frontend| frontend.0))
    }

    /// Backends of a TCP frontend; empty if there is no such frontend.
    pub fn backends(&self, frontend: SocketAddr) -> Result<BTreeSet<IpAddr>> {
        let Frontend { slot_base, slot_count, .. } = self.frontend(frontend)?.unwrap_or_default();
        (slot_base..slot_base + slot_count)
            .map(|slot| Ok(self.backends.get(&self.slots.get(&slot, 0)?, 0)?.0.addr.into()))
            .collect()
    }

    /// Whether an address is in the pod CIDR of another node.
    pub fn is_remote_pod(&self, addr: IpAddr) -> Result<bool> {
        let network = found(self.networks.get(&Key::new(128, Plain(Addr::from(addr))), 0))?;
        Ok(network.is_some_and(|network| network.0.kind == NetworkKind::RemotePods as u32))
    }
}

/// The tables of network policy that show whether a change has taken effect.
pub struct PolicyTables {
    subjects: HashMap<MapData, Plain<Addr>, Plain<Subject>>,
    peers: HashMap<MapData, Plain<Addr>, u32>,
}

impl PolicyTables {
    /// Opens them; fails if the node's daemon has not created them yet.
    pub fn open(node: &Node) -> Result<Self> {
        let pins = pins(node);
        Ok(Self {
            subjects: Map::HashMap(MapData::from_pin(pins.table(tables::SUBJECTS))?).try_into()?,
            peers: Map::HashMap(MapData::from_pin(pins.table(tables::POLICY_PEERS))?).try_into()?,
        })
    }

    /// Rule sets of an isolated pod.
    pub fn subject(&self, pod: IpAddr) -> Result<Option<Subject>> {
        Ok(found(self.subjects.get(&Plain(pod.into()), 0))?.map(|subject| subject.0))
    }

    /// Class of a pod's address.
    pub fn peer(&self, pod: IpAddr) -> Result<Option<u32>> {
        found(self.peers.get(&Plain(pod.into()), 0))
    }
}

/// The value of an entry that may not exist.
fn found<V>(value: Result<V, MapError>) -> Result<Option<V>> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Number of connections that the socket hooks of the node have translated.
pub fn socket_connects(node: &Node) -> Result<u64> {
    let counters = view::open(&node.bpffs())?.counters()?;
    Ok(counters[Counter::SocketConnects as usize])
}

/// Kernel memory of all tables pinned on a node, in bytes.
pub fn memory(node: &Node) -> Result<u64> {
    let pins = pins(node);
    let mut total = 0;
    for directory in [pins.frozen()].into_iter().chain(pins.tables()) {
        for path in files(&directory)? {
            // Programs are pinned there as well.
            if let Ok(map) = MapData::from_pin(&path) {
                total += locked(&map)?;
            }
        }
    }
    Ok(total)
}

fn locked(map: &MapData) -> Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("the kernel tells no map memory")?;
    Ok(line.trim().parse()?)
}

fn pins(node: &Node) -> PinDir {
    PinDir::new(&node.bpffs())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    Ok(entries.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|entry| entry.path()).collect())
}
