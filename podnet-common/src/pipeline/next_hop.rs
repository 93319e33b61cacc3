//! Next hops: by which interface a flow's packets leave, and to which neighbour.

use crate::{
    addr::{Addr, IfIndex, Mac},
    hash::hash_pair,
    layout::{CtEntry, Endpoint, Network, NetworkKind, Out, macs},
};

use super::{CachedRoute, Route, Tables, handover::ToSend};

/// Location of a lookup result.
#[derive(Clone, Copy)]
pub(super) struct RouteLookup {
    /// Index in `next_hops`; [`CachedRoute::SLOTS`] if there is no route.
    slot: u32,
    /// The result was cached in this tick on this CPU, so a packet has passed the neighbour table since.
    pub cached: bool,
}

impl RouteLookup {
    /// Calls `f` with the route. `None` if there is none.
    #[inline(always)]
    pub fn route<R, T: Tables>(self, t: &T, f: impl FnOnce(&Route) -> R) -> Option<R> {
        t.cached_route(self.slot, |cached| f(&cached.route))
    }
}

/// Looks up the route of a packet received on `from`, in the cache or in the kernel.
#[inline(always)]
pub(super) fn lookup<T: Tables>(t: &T, now: u32, from: IfIndex, src: &Addr, dst: &Addr) -> RouteLookup {
    let found = lookup_slot(t, now, from, src, dst);
    RouteLookup { slot: found & !CACHED, cached: found & CACHED != 0 }
}

/// Flag in addition to an index: [`RouteLookup::cached`].
const CACHED: u32 = 1 << 31;

// Out of line: called from several places, and stack is scarce.
#[inline(never)]
fn lookup_slot<T: Tables>(t: &T, now: u32, from: IfIndex, src: &Addr, dst: &Addr) -> u32 {
    let slot = hash_pair(src, dst) % CachedRoute::SLOTS;
    t.cached_route(slot, |cached| {
        if cached.tick == now && cached.from.0 == from.0 && cached.src.same(src) && cached.dst.same(dst) {
            return slot | CACHED;
        }
        cached.tick = now.wrapping_sub(1);
        (cached.from, cached.src, cached.dst) = (from, *src, *dst);
        if !t.route(from, src, dst, &mut cached.route) {
            return CachedRoute::SLOTS;
        }
        if cached.route.macs != [0; 3] {
            cached.tick = now;
        }
        slot
    })
    .unwrap_or(CachedRoute::SLOTS)
}

/// Findings of [`find`] besides the egress.
pub(super) struct NextHop {
    /// Source address that the host would use, or none if unknown.
    pub src: Addr,
    /// The destination is in a range of the cluster.
    pub in_cluster: bool,
    /// What [`is_vacant`](super::policy::is_vacant) says of the destination.
    pub vacant: bool,
}

/// Finds the next hop to the destination of the entry handed over to [`send`](super::send()), and stores it there.
/// `client` is the source of the packet.
// Out of line: called from several places, and stack is scarce.
#[inline(never)]
pub(super) fn find<T: Tables>(t: &T, from: IfIndex, client: &Addr, s: &mut ToSend) -> NextHop {
    let entry = &mut s.entry;
    // The stack has no route for packets forwarded to another node.
    let forwarded = entry.flags & CtEntry::ONE_WAY != 0;
    set_stack(entry);
    if forwarded {
        entry.out = Out::Via as u8;
    }
    s.resolved = 0;
    let local = NextHop { src: Addr::NONE, in_cluster: true, vacant: false };
    if let Some(Endpoint { ifindex, mtu, mac, host_mac, flags, .. }) = t.endpoint(&entry.dst) {
        set_egress(entry, pod_egress(*flags), *ifindex, *mtu, macs(*mac, *host_mac));
        return local;
    }
    let network = t.network(&entry.dst);
    if network.is_some_and(|n| n.kind == NetworkKind::LocalNode as u32) {
        // Packets from a service or hairpin address must be received on podnet0, to which the host's routes to these
        // addresses point. If only the client's port changes, the packet goes up the stack where it arrived; except at
        // podnet1, which accepts no packets: processes of the host reach the ports of their own node through it.
        if let Some(c) = t.config()
            && (!entry.src.same(client) || from.0 == c.podnet1.0)
        {
            set_egress(entry, Out::Host, c.podnet0, u16::MAX as u32, macs(c.podnet0_mac, c.podnet1_mac));
        }
        return local;
    }
    if let (Some(n), Some(c)) = (network, t.config())
        && n.flags & Network::TUNNEL != 0
        // Traffic of the nodes themselves uses the network between them.
        && (n.kind == NetworkKind::RemotePods as u32 || forwarded || keeps_pod_source::<T>(t, client, entry))
    {
        set_egress(entry, Out::Tunnel, c.tunnel, c.tunnel_mtu, macs(n.mac, c.tunnel_mac));
        return local;
    }
    let lookup = lookup(t, t.now(), from, client, &entry.dst);
    let src = lookup.route(t, |route| {
        let out = if route.macs != macs(Mac::default(), Mac::default()) {
            Out::Link
        } else if forwarded {
            Out::Via
        } else {
            Out::Uplink
        };
        set_egress(entry, out, route.ifindex, route.mtu, route.macs);
        s.hop = if forwarded { entry.dst } else { route.hop };
        s.resolved = lookup.cached as u32;
        route.src
    });
    NextHop {
        src: src.unwrap_or(Addr::NONE),
        in_cluster: network.is_some(),
        vacant: network.is_some_and(|n| n.kind == NetworkKind::LocalPods as u32),
    }
}

/// Kind of egress to a pod whose entry in `endpoints` has these flags.
#[inline(always)]
pub(super) fn pod_egress(flags: u32) -> Out {
    if flags & Endpoint::NO_PEER == 0 { Out::Pod } else { Out::Queue }
}

/// Whether the packets of an entry keep the source address of a pod on this node.
#[inline(always)]
fn keeps_pod_source<T: Tables>(t: &T, client: &Addr, entry: &CtEntry) -> bool {
    entry.src.same(client) && t.endpoint(client).is_some()
}

/// Leaves the packets of an entry to the stack.
#[inline(always)]
pub(super) fn set_stack(entry: &mut CtEntry) {
    entry.out = Out::Stack as u8;
    entry.out_ifindex = IfIndex(0);
    entry.out_mtu = u16::MAX;
}

/// Stores an egress in an entry.
#[inline(always)]
pub(super) fn set_egress(entry: &mut CtEntry, out: Out, ifindex: IfIndex, mtu: u32, macs: [u32; 3]) {
    entry.out = out as u8;
    entry.out_ifindex = ifindex;
    entry.out_mtu = if mtu > u16::MAX as u32 { u16::MAX } else { mtu as u16 };
    entry.macs = macs;
}
