//! Next hops: by which way a flow's packets leave, and to which neighbour.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, IfIndex, Mac},
    layout::{CtEntry, Endpoint, Network, NetworkKind, Out, macs},
};

use super::{Route, Tables, balance::hash_pair, handover::ToSend};

/// `next_hops` (per-CPU array of [`CachedRoute::SLOTS`]): an answer of the routing and neighbour tables, which counts within the
/// tick in which it was had: asking them takes longer than all else that a packet needs. A place may be taken by any
/// other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CachedRoute {
    /// When it was had, in [ticks](crate::time), if the neighbour's MAC was known.
    tick: u32,
    /// The interface by which the packet came in.
    from: IfIndex,
    /// Its source.
    src: Addr,
    /// Its destination.
    dst: Addr,
    /// The answer.
    route: Route,
}

impl CachedRoute {
    /// How many a processor has.
    pub const SLOTS: u32 = 256;
}

/// Where the answer to a question for a route is.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    /// A slot of `next_hops`; [`CachedRoute::SLOTS`]: there is no route.
    slot: u32,
    /// Whether it was had before in this tick on this processor, so that a packet has been sent through the neighbour table
    /// since.
    pub known: bool,
}

impl Answer {
    /// Calls `f` with the route. `None`: there is none.
    #[inline(always)]
    pub fn route<R, T: Tables>(self, t: &T, f: impl FnOnce(&Route) -> R) -> Option<R> {
        t.cached_route(self.slot, |cached| f(&cached.route))
    }
}

/// Asks for the route of a packet that came in at `from`.
#[inline(always)]
pub(super) fn ask<T: Tables>(t: &T, now: u32, from: IfIndex, src: &Addr, dst: &Addr) -> Answer {
    let answer = ask_for(t, now, from, src, dst);
    Answer { slot: answer & !KNOWN, known: answer & KNOWN != 0 }
}

/// Beside a slot: [`Answer::known`].
const KNOWN: u32 = 1 << 31;

// Out of line, since several call it, and stack is scarce.
#[inline(never)]
fn ask_for<T: Tables>(t: &T, now: u32, from: IfIndex, src: &Addr, dst: &Addr) -> u32 {
    let slot = hash_pair(src, dst) % CachedRoute::SLOTS;
    t.cached_route(slot, |cached| {
        if cached.tick == now && cached.from.0 == from.0 && cached.src.same(src) && cached.dst.same(dst) {
            return slot | KNOWN;
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

/// What finding a way has shown besides.
pub(super) struct Way {
    /// The source address that the host itself would use, or none.
    pub src: Addr,
    /// The destination is something of the cluster's.
    pub in_cluster: bool,
}

/// Finds the way to the destination of the entry that is handed over to [`send`](super::send()), and notes it there. `client`
/// is the packet's source.
// Out of line, since several call it, and stack is scarce.
#[inline(never)]
pub(super) fn find<T: Tables>(t: &T, from: IfIndex, client: &Addr, s: &mut ToSend) -> Way {
    let entry = &mut s.entry;
    // The stack knows no way for what is sent on.
    let sent_on = entry.flags & CtEntry::ONE_WAY != 0;
    entry.out = if sent_on { Out::Via as u8 } else { Out::Stack as u8 };
    entry.out_ifindex = IfIndex(0);
    entry.out_mtu = u16::MAX;
    s.resolved = 0;
    let here = Way { src: Addr::NONE, in_cluster: true };
    if let Some(Endpoint { ifindex, mtu, mac, host_mac, flags, .. }) = t.endpoint(&entry.dst) {
        note(entry, into_pod(*flags), *ifindex, *mtu, macs(*mac, *host_mac));
        return here;
    }
    let network = t.network(&entry.dst);
    if network.is_some_and(|n| n.kind == NetworkKind::LocalNode as u32) {
        // What comes from a service, or from the hairpin address, comes from where the host's routes to these lead. A
        // client that only has another port comes from where it came from; but not from podnet1, which lets nothing in:
        // through it the host's processes reach the ports of their own node.
        if let Some(c) = t.config()
            && (!entry.src.same(client) || from.0 == c.podnet1.0)
        {
            note(entry, Out::Host, c.podnet0, u16::MAX as u32, macs(c.podnet0_mac, c.podnet1_mac));
        }
        return here;
    }
    if let (Some(n), Some(c)) = (network, t.config())
        && n.flags & Network::TUNNEL != 0
        // The network between the nodes carries what these exchange themselves.
        && (n.kind == NetworkKind::RemotePods as u32 || sent_on || pods_own::<T>(t, client, entry))
    {
        note(entry, Out::Tunnel, c.tunnel, c.tunnel_mtu, macs(n.mac, c.tunnel_mac));
        return here;
    }
    let answer = ask(t, t.now(), from, client, &entry.dst);
    let src = answer.route(t, |route| {
        let out = if route.macs != macs(Mac::default(), Mac::default()) {
            Out::Link
        } else if sent_on {
            Out::Via
        } else {
            Out::Uplink
        };
        note(entry, out, route.ifindex, route.mtu, route.macs);
        s.hop = if sent_on { entry.dst } else { route.hop };
        s.resolved = answer.known as u32;
        route.src
    });
    Way { src: src.unwrap_or(Addr::NONE), in_cluster: network.is_some() }
}

/// The way into a pod whose entry in `endpoints` has these flags.
#[inline(always)]
pub(super) fn into_pod(flags: u32) -> Out {
    if flags & Endpoint::NO_PEER == 0 { Out::Pod } else { Out::Queue }
}

/// Whether an entry's packets leave with the address of a pod of this node, which sends them.
#[inline(always)]
fn pods_own<T: Tables>(t: &T, client: &Addr, entry: &CtEntry) -> bool {
    entry.src.same(client) && t.endpoint(client).is_some()
}

/// Notes a way in an entry.
#[inline(always)]
pub(super) fn note(entry: &mut CtEntry, out: Out, ifindex: IfIndex, mtu: u32, macs: [u32; 3]) {
    entry.out = out as u8;
    entry.out_ifindex = ifindex;
    entry.out_mtu = if mtu > u16::MAX as u32 { u16::MAX } else { mtu as u16 };
    entry.macs = macs;
}
