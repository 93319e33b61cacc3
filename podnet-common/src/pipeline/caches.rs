//! Routes and direct paths, each cached within one tick on one CPU.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, IfIndex, Mac};

/// Result of a routing table lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Route {
    /// Egress interface.
    pub ifindex: IfIndex,
    /// MTU of the path in bytes, without the Ethernet header.
    pub mtu: u32,
    /// MACs of the next hop and of the egress interface, as in [`CtEntry::macs`](crate::layout::CtEntry::macs).
    /// Zeros while the neighbour is unresolved; non-zero placeholders on interfaces without MACs.
    pub macs: [u32; 3],
    /// Source address that the host would use, or none if unknown.
    pub src: Addr,
    /// Next hop: the gateway, or the destination itself if it is on the link.
    pub hop: Addr,
}

/// Value of `next_hops` (per-CPU array of [`CachedRoute::SLOTS`] entries): a cached result of the routing and neighbour
/// lookup, valid within one tick. The lookup takes longer than everything else that a packet needs. A colliding query
/// replaces the entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CachedRoute {
    /// Time of the lookup in [ticks](crate::time), if the neighbour was resolved.
    pub(super) tick: u32,
    /// Ingress interface of the packet.
    pub(super) from: IfIndex,
    /// Source address of the packet.
    pub(super) src: Addr,
    /// Destination address of the packet.
    pub(super) dst: Addr,
    /// Cached result.
    pub(super) route: Route,
}

impl CachedRoute {
    /// Number of entries per CPU.
    pub const SLOTS: u32 = 256;
}

/// Value of `direct_paths` (per-CPU array of [`DirectPath::SLOTS`] entries): how packets between two addresses leave. A
/// colliding pair replaces the entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DirectPath {
    /// Time of the entry, in [ticks](crate::time).
    pub(super) tick: u32,
    /// Ingress interface of the packets.
    pub(super) from: IfIndex,
    /// Source address of the packets.
    pub(super) src: Addr,
    /// Destination address of the packets.
    pub(super) dst: Addr,
    /// Source MAC of the packets.
    pub(super) mac: Mac,
    /// Zero.
    pub(super) _pad: u16,
    /// Kind of egress: an [`Out`](crate::layout::Out) as a number; `Out::Stack` for packets of the tunnel.
    pub(super) out: u32,
    /// Egress interface.
    pub(super) ifindex: IfIndex,
    /// MTU of the path in bytes, without the Ethernet header.
    pub(super) mtu: u32,
    /// Settings under which the packet was admitted: [`Config::flags`](crate::layout::Config::flags).
    pub(super) settings: u32,
    /// New MACs, as in [`CtEntry::macs`](crate::layout::CtEntry::macs).
    pub(super) macs: [u32; 3],
}

impl DirectPath {
    /// Number of entries per CPU.
    pub const SLOTS: u32 = 256;
}
