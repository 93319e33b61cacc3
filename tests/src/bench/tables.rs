//! A node's tables, seen through its own BPF file system.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use podnet::datapath::{batch, view};
use podnet_cni::datapath::{PinDir, Plain};
use podnet_common::{
    addr::{Addr, Port, Proto},
    layout::{Backend, Frontend, FrontendKey},
    verdict::Counter,
};

use crate::lab::Node;

/// The tables of services.
pub struct Tables {
    // A second handle: aya's typed one doesn't give its descriptor.
    all_frontends: MapData,
    frontends: HashMap<MapData, Plain<FrontendKey>, Plain<Frontend>>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Plain<Backend>>,
}

impl Tables {
    /// Opens them. An error if the node's daemon has not made them yet.
    pub fn open(node: &Node) -> Result<Self> {
        let pins = pins(node);
        let data = |name: &str| {
            MapData::from_pin(pins.map(name)).with_context(|| format!("{} has no table {name}", node.name()))
        };
        Ok(Self {
            all_frontends: data("frontends")?,
            frontends: Map::HashMap(data("frontends")?).try_into()?,
            slots: Map::Array(data("slots")?).try_into()?,
            backends: Map::Array(data("backends")?).try_into()?,
        })
    }

    /// How many service ports have at least so many backends for clients in the cluster.
    pub fn served(&self, backends: u32) -> Result<usize> {
        let mut count = 0;
        batch::for_each(self.all_frontends.fd().as_fd(), |key: &FrontendKey, frontend: &Frontend| {
            let cluster_ip = key.port.get() != 0 && frontend.flags & Frontend::EXTERNAL == 0;
            count += usize::from(cluster_ip && frontend.slot_count >= backends);
        })?;
        Ok(count)
    }

    /// The backends of a TCP frontend; nothing if there is no such frontend.
    pub fn backends(&self, frontend: SocketAddr) -> Result<BTreeSet<IpAddr>> {
        let key = FrontendKey {
            addr: Addr::from(frontend.ip()),
            port: Port::new(frontend.port()),
            proto: Proto::TCP,
            scope: FrontendKey::ANY,
        };
        let Frontend { slot_base, slot_count, .. } = match self.frontends.get(&Plain(key), 0) {
            Ok(Plain(frontend)) => frontend,
            Err(MapError::KeyNotFound) => return Ok(BTreeSet::new()),
            Err(error) => return Err(error.into()),
        };
        (slot_base..slot_base + slot_count)
            .map(|slot| Ok(self.backends.get(&self.slots.get(&slot, 0)?, 0)?.0.addr.into()))
            .collect()
    }
}

/// How many connections the node has translated at the socket.
pub fn socket_connects(node: &Node) -> Result<u64> {
    let counters = view::open(&bpffs(node))?.counters()?;
    Ok(counters[Counter::SocketConnects as usize])
}

/// Kernel memory of all the tables that a node has pinned, in bytes.
pub fn memory(node: &Node) -> Result<u64> {
    let pins = pins(node);
    let mut total = 0;
    for directory in [pins.frozen(), pins.maps()] {
        for path in files(&directory)? {
            // Programs are pinned there too.
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

/// The node's BPF file system, from here: it is in a mount namespace of its own.
fn bpffs(node: &Node) -> PathBuf {
    format!("/proc/{}/root/sys/fs/bpf", node.place.agent_id()).into()
}

fn pins(node: &Node) -> PinDir {
    PinDir::new(&bpffs(node))
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("can't list {}", directory.display()))?;
    Ok(entries.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|entry| entry.path()).collect())
}
