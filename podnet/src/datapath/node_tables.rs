//! The tables of the node's network: `nodes`, `peers` and `interfaces`.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf,
    maps::{HashMap, IterableMap as _, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use podnet_cni::datapath::Plain;
use podnet_common::{
    addr::{Addr, IfIndex, Mac},
    layout::{Interface, Network, Peer, Prefix},
    tables::{INTERFACES, NODES, PEERS},
};

use super::{
    batch,
    error::Error,
    maps::take,
    table_error::{errno, failed, gone_is_fine, refused},
};
use crate::mirror::{Entries, TableError};

/// Value of a key in `peers`.
const IS_PEER: u32 = 1;

/// The tables of the node's network.
pub struct NodeTables {
    networks: LpmTrie<MapData, Plain<Addr>, Plain<Network>>,
    peers: HashMap<MapData, Plain<Peer>, u32>,
    interfaces: HashMap<MapData, Plain<IfIndex>, Plain<Interface>>,
}

impl NodeTables {
    /// Takes them out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self { networks: take(ebpf, NODES)?, peers: take(ebpf, PEERS)?, interfaces: take(ebpf, INTERFACES)? })
    }
}

/// Remedy if `nodes` is full.
pub const NODES_ADVICE: &str = "its size is fixed: use fewer nodes or fewer load balancer addresses";

/// The error for an entry that exceeds a table's capacity.
fn full(table: &'static str, advice: &'static str) -> impl Fn(MapError) -> TableError {
    move |error| match errno(&error) {
        Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => TableError::Full { table, advice },
        _ => failed(table, "write to")(error),
    }
}

impl Entries<Prefix, Network> for NodeTables {
    fn list(&self) -> Result<Vec<(Prefix, Network)>, TableError> {
        let mut entries = Vec::new();
        let visit = |prefix: &Prefix, network: &Network| entries.push((*prefix, *network));
        batch::for_each(self.networks.map().fd().as_fd(), visit).map_err(refused("nodes", "list"))?;
        Ok(entries)
    }

    fn put(&mut self, prefix: &Prefix, network: &Network) -> Result<(), TableError> {
        let key = Key::new(prefix.len, Plain(prefix.addr));
        self.networks.insert(&key, Plain(*network), 0).map_err(full("nodes", NODES_ADVICE))
    }

    fn delete(&mut self, prefix: &Prefix) -> Result<(), TableError> {
        gone_is_fine(self.networks.remove(&Key::new(prefix.len, Plain(prefix.addr))))
            .map_err(failed("nodes", "delete from"))
    }
}

fn peer(mac: &Mac) -> Plain<Peer> {
    Plain(Peer { mac: *mac, ..Peer::default() })
}

impl Entries<Mac, ()> for NodeTables {
    fn list(&self) -> Result<Vec<(Mac, ())>, TableError> {
        let macs = self.peers.keys().map(|key| key.map(|peer| (peer.0.mac, ())));
        macs.collect::<Result<_, _>>().map_err(failed("peers", "list"))
    }

    fn put(&mut self, mac: &Mac, (): &()) -> Result<(), TableError> {
        self.peers.insert(peer(mac), IS_PEER, 0).map_err(full("peers", "its size is fixed: use fewer nodes"))
    }

    fn delete(&mut self, mac: &Mac) -> Result<(), TableError> {
        gone_is_fine(self.peers.remove(&peer(mac))).map_err(failed("peers", "delete from"))
    }
}

impl Entries<IfIndex, Interface> for NodeTables {
    fn list(&self) -> Result<Vec<(IfIndex, Interface)>, TableError> {
        let entries = self.interfaces.iter().map(|entry| entry.map(|(key, value)| (key.0, value.0)));
        entries.collect::<Result<_, _>>().map_err(failed("interfaces", "list"))
    }

    fn put(&mut self, ifindex: &IfIndex, interface: &Interface) -> Result<(), TableError> {
        self.interfaces
            .insert(Plain(*ifindex), Plain(*interface), 0)
            .map_err(full("interfaces", "list the right interfaces as `uplinks` in the configuration"))
    }

    fn delete(&mut self, ifindex: &IfIndex) -> Result<(), TableError> {
        gone_is_fine(self.interfaces.remove(&Plain(*ifindex))).map_err(failed("interfaces", "delete from"))
    }
}
