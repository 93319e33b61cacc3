//! What the daemon tells the programs of the node.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, IfIndex, Mac};

/// `config` (array of one): what the daemon tells the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// This node's IPv4 address, mapped, or none.
    #[cfg(not(feature = "later-layouts"))]
    pub node_v4: Addr,
    /// This node's IPv6 address, or none.
    pub node_v6: Addr,
    /// Source that a pod sees when it reaches itself through a service: the first address of the pod CIDR.
    pub hairpin_v4: Addr,
    /// The same for IPv6.
    pub hairpin_v6: Addr,
    /// This node's IPv4 address, mapped, or none.
    #[cfg(feature = "later-layouts")]
    pub node_v4: Addr,
    /// podnet0, the host's side of the pair.
    pub podnet0: IfIndex,
    /// podnet1, the far side, which carries the from_host program.
    pub podnet1: IfIndex,
    /// MAC of podnet0.
    pub podnet0_mac: Mac,
    /// MAC of podnet1.
    pub podnet1_mac: Mac,
    /// How many of `snat_ports` hold a port.
    pub snat_count: u32,
    /// [`Config::EXTERNAL_CLUSTER_IP`] and others.
    pub flags: u32,
    /// The main uplinks' smallest MTU in bytes, for ways whose own isn't known yet.
    pub mtu: u32,
    /// Cookie of the host's network namespace: tells host processes from pods in the socket hooks.
    pub netns_cookie: u64,
    /// The main uplinks: those with an address that the Node object has, or with a default route. XDP programs send to these
    /// only. All uplinks are in `interfaces`. Unused places are zero.
    pub uplinks: [IfIndex; UPLINKS],
    /// The tunnel to other nodes; zero: there is none.
    pub tunnel: IfIndex,
    /// What it takes, in bytes without the inner Ethernet header.
    pub tunnel_mtu: u32,
    /// This node's MAC there.
    pub tunnel_mac: Mac,
    /// The smallest MTU that some route is held to, in bytes; 0: none is, so that ways take what their interfaces take.
    pub route_mtu: u16,
}

/// How many main uplinks a node may have.
pub const UPLINKS: usize = 8;

impl Config {
    /// Whether an interface is one of [`Config::uplinks`].
    #[inline(always)]
    pub const fn is_uplink(&self, ifindex: IfIndex) -> bool {
        let mut uplink = false;
        let mut i = 0;
        while i < self.uplinks.len() {
            uplink |= self.uplinks[i].0 == ifindex.0;
            i += 1;
        }
        uplink && ifindex.0 != 0
    }

    /// The node's address of a family, or none.
    #[inline(always)]
    pub const fn node(&self, v6: bool) -> &Addr {
        if v6 { &self.node_v6 } else { &self.node_v4 }
    }

    /// ClusterIPs may be used from outside the cluster.
    pub const EXTERNAL_CLUSTER_IP: u32 = 1;
    /// Pods reach what is outside of the cluster with the node's address.
    pub const MASQUERADE: u32 = 2;
    /// The kernel's look-up of a route tells the source address (`BPF_FIB_LOOKUP_SRC`, Linux 6.7).
    pub const ROUTE_SOURCE: u32 = 4;
    /// Sockets of pods are translated too, not only those of the host.
    pub const SOCKET_PODS: u32 = 8;
}

const _: () = assert!(size_of::<Config>() == 152);
