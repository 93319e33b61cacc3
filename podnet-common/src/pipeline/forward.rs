//! Forwarding packets that need no flow, unchanged except for TTL and MACs.

use crate::{
    addr::Addr,
    layout::{Endpoint, NetworkKind, Out, Tuple, macs},
    packet::{Ethernet, Packet},
    verdict::Counter,
};

use super::{
    Egress, Tables, direct,
    family::{Family, Parsed, V4, V6},
    frontend,
    handover::{Departure, Handover, ToError},
    next_hop,
    rewrite::fits,
};

/// Outcome of forwarding. No payload: the verifier rejects copies of uninitialised memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// The packet leaves by the stored [`Departure`].
    Sent,
    /// The stack fragments the packet or reports an error to its sender.
    ToStack,
    /// The packet exceeds the MTU, which is stored in [`Handover::error`].
    TooBig,
    /// The kernel failed to modify the packet.
    Failed,
}

// Out of line, so that their variables don't add up on the stack: a program and everything it calls have 512 bytes, and
// the compiler reserves separate space for every inlined variable.

/// To a pod on this node, past the stack.
#[inline(never)]
pub(super) fn into_pod<P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Forwarded {
    let Endpoint { ifindex, mtu, mac, host_mac, flags, .. } = h.classify.endpoint;
    h.departure = Departure::by(Egress { out: next_hop::pod_egress(flags), ifindex, hop: Addr::NONE });
    send(p, t, h, mtu, &macs(mac, host_mac), true)
}

/// Through the tunnel, to another node or a pod there.
#[inline(never)]
pub(super) fn into_tunnel<P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Forwarded {
    let Some(config) = t.config() else { return Forwarded::Failed };
    let network = &h.classify.network;
    let macs = macs(network.mac, config.tunnel_mac);
    h.departure = Departure::by(Egress { out: Out::Tunnel, ifindex: config.tunnel, hop: Addr::NONE });
    // The stack would bypass the tunnel for packets to the node itself.
    let to_node_itself = network.kind != NetworkKind::RemotePods as u32;
    // The address of a node may be a service's at some ports, so there is no direct path to it.
    h.classify.direct &= !to_node_itself as u32;
    let sent = send(p, t, h, config.tunnel_mtu, &macs, true);
    if sent == Forwarded::ToStack && to_node_itself && h.packet.ttl() > 1 {
        h.error = ToError::too_big(config.tunnel_mtu);
        return Forwarded::TooBig;
    }
    sent
}

/// Out of an uplink to a pod on another node. One packet per tick passes the neighbour table, so that the kernel knows
/// the neighbour is in use and keeps its MAC up to date.
#[inline(never)]
pub(super) fn to_node<P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Forwarded {
    let Tuple { src, dst, .. } = &h.packet.tuple;
    let lookup = next_hop::lookup(t, t.advance(), p.ifindex(), src, dst);
    let sent = lookup.route(t, |route| {
        let out = if lookup.cached { Out::Link } else { Out::Uplink };
        h.departure = Departure::by(Egress { out, ifindex: route.ifindex, hop: route.hop });
        send(p, t, h, route.mtu, &route.macs, lookup.cached)
    });
    sent.unwrap_or(Forwarded::ToStack)
}

/// Decrements the TTL or hop limit if the packet fits, and replaces the MACs unless the neighbour table does so. Stores
/// a direct path for other packets between the same addresses.
#[inline(always)]
fn send<P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    h: &Handover,
    mtu: u32,
    macs: &[u32; 3],
    replace_macs: bool,
) -> Forwarded {
    let changed = if h.packet.v6() {
        decrement_ttl::<V6, P>(p, &h.packet.parsed(), mtu)
    } else {
        decrement_ttl::<V4, P>(p, &h.packet.parsed(), mtu)
    };
    if changed == Forwarded::ToStack {
        t.count(Counter::ToStack);
    }
    if changed != Forwarded::Sent {
        return changed;
    }
    // At a service address, the path depends on the port.
    if h.classify.direct != 0
        && *macs != [0; 3]
        && frontend::of_address(t, &h.packet.tuple.dst).is_none()
        && let Some(Ethernet { src, .. }) = p.load(0)
    {
        direct::store(t, p.ifindex(), src, &h.packet, &h.departure, mtu, macs);
    }
    if replace_macs && p.store(0, macs).is_none() { Forwarded::Failed } else { changed }
}

#[inline(always)]
fn decrement_ttl<F: Family, P: Packet>(p: &mut P, v: &Parsed<F>, mtu: u32) -> Forwarded {
    if !fits::<F, P>(p, v, mtu) {
        return Forwarded::ToStack;
    }
    let mut header = v.header;
    F::decrement_ttl(&mut header);
    match F::write(p, &header, false, false) {
        Some(()) => Forwarded::Sent,
        None => Forwarded::Failed,
    }
}
