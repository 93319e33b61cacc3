//! Node configuration, written by the daemon for the programs.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, IfIndex, Mac};

/// Value of `config` (array with one entry).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// IPv4 address of this node, mapped, or none.
    #[cfg(not(feature = "later-layouts"))]
    pub node_v4: Addr,
    /// IPv6 address of this node, or none.
    pub node_v6: Addr,
    /// Hairpin source for IPv4: the source address that a pod sees when it reaches itself through a service. The
    /// address after the network address of the pod CIDR.
    pub hairpin_v4: Addr,
    /// Hairpin source for IPv6.
    pub hairpin_v6: Addr,
    /// IPv4 address of this node, mapped, or none.
    #[cfg(feature = "later-layouts")]
    pub node_v4: Addr,
    /// podnet0, the host's end of the pair.
    pub podnet0: IfIndex,
    /// podnet1, the far end, at which the hook `from_host` is attached.
    pub podnet1: IfIndex,
    /// MAC of podnet0.
    pub podnet0_mac: Mac,
    /// MAC of podnet1.
    pub podnet1_mac: Mac,
    /// Number of valid entries in `snat_ports`.
    pub snat_count: u32,
    /// Flag bits: [`Config::EXTERNAL_CLUSTER_IP`] and the other constants.
    pub flags: u32,
    /// The configured `mtu`, else the smallest MTU of the main uplinks, in bytes; used while the MTU of a path is
    /// unknown.
    pub mtu: u32,
    /// Cookie of the host's network namespace, by which socket hooks distinguish processes of the host from pods.
    pub netns_cookie: u64,
    /// Main uplinks: those with an address listed in the Node object or with a default route. XDP programs redirect to
    /// these only. `interfaces` contains all uplinks. Unused elements are zero.
    pub uplinks: [IfIndex; UPLINKS],
    /// Tunnel interface; zero if there is none.
    pub tunnel: IfIndex,
    /// MTU of the tunnel in bytes, without the inner Ethernet header.
    pub tunnel_mtu: u32,
    /// MAC of the tunnel interface.
    pub tunnel_mac: Mac,
    /// Smallest MTU set on any route, in bytes. Zero if no route has one; path MTUs are then those of the interfaces.
    pub route_mtu: u16,
}

/// Maximum number of main uplinks.
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

    /// Address of the node for a family, or none.
    #[inline(always)]
    pub const fn node(&self, v6: bool) -> &Addr {
        if v6 { &self.node_v6 } else { &self.node_v4 }
    }

    /// ClusterIPs may be used from outside the cluster.
    pub const EXTERNAL_CLUSTER_IP: u32 = 1;
    /// Traffic from pods to destinations outside the cluster gets the node's source address.
    pub const MASQUERADE: u32 = 2;
    /// Route lookups return the source address (`BPF_FIB_LOOKUP_SRC`, Linux 6.7).
    pub const ROUTE_SOURCE: u32 = 4;
    /// Sockets of pods are translated as well as sockets of the host.
    pub const SOCKET_PODS: u32 = 8;
    /// Pods of this node may be subjects of network policies: `subjects` has to be looked up.
    pub const POLICY: u32 = 16;
    /// Pods have become subjects lately. Their flows from before have no entries, so an answer looks like a request.
    pub const NEW_SUBJECTS: u32 = 32;
    /// Bits of a number that changes with each change of the policies, so that cached direct paths are not used after
    /// it.
    pub const POLICY_CHANGES: u32 = 0xff00_0000;
}

const _: () = assert!(size_of::<Config>() == 152);
