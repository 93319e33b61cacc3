//! Forwarding packets that belong to no flow, as they are.

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

/// What became of a packet. It has no payload, since the verifier refuses to copy what has no value in some variant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// It leaves by the [`Departure`] that is noted.
    Sent,
    /// The stack fragments it, or tells its sender what is wrong.
    ToStack,
    /// It is too big; what would fit is noted.
    TooBig,
    /// The kernel refuses to change it.
    Failed,
}

// The functions are out of line, so that their variables don't add up on the stack: 512 bytes are all that a program and what
// it calls have, and the compiler gives every variable of what is inlined a place of its own.

/// Straight into a pod of this node, past the stack.
#[inline(never)]
pub(super) fn into_pod<P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Forwarded {
    let Endpoint { ifindex, mtu, mac, host_mac, flags, .. } = h.classify.endpoint;
    h.departure = Departure::by(Egress { out: next_hop::into_pod(flags), ifindex, hop: Addr::NONE });
    send(p, t, h, mtu, &macs(mac, host_mac), true)
}

/// Through the tunnel, to another node or a pod there.
#[inline(never)]
pub(super) fn into_tunnel<P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Forwarded {
    let Some(config) = t.config() else { return Forwarded::Failed };
    let network = &h.classify.network;
    let macs = macs(network.mac, config.tunnel_mac);
    h.departure = Departure::by(Egress { out: Out::Tunnel, ifindex: config.tunnel, hop: Addr::NONE });
    // The stack would send past the tunnel what is for the node itself.
    let stays = network.kind != NetworkKind::RemotePods as u32;
    // A node's address may be a service's too, by port.
    h.classify.direct &= !stays as u32;
    let sent = send(p, t, h, config.tunnel_mtu, &macs, true);
    if sent == Forwarded::ToStack && stays && h.packet.ttl() > 1 {
        h.error = ToError::too_big(config.tunnel_mtu);
        return Forwarded::TooBig;
    }
    sent
}

/// Out of an uplink towards another node's pod. One packet in each tick asks the neighbour table, so that the kernel sees
/// that the neighbour is in use and keeps its MAC right.
#[inline(never)]
pub(super) fn to_node<P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Forwarded {
    let Tuple { src, dst, .. } = &h.packet.tuple;
    let answer = next_hop::ask(t, t.advance(), p.ifindex(), src, dst);
    let sent = answer.route(t, |route| {
        let out = if answer.known { Out::Link } else { Out::Uplink };
        h.departure = Departure::by(Egress { out, ifindex: route.ifindex, hop: route.hop });
        send(p, t, h, route.mtu, &route.macs, answer.known)
    });
    sent.unwrap_or(Forwarded::ToStack)
}

/// Takes one off the TTL or hop limit, if the packet fits, and replaces the MACs unless the neighbour table does that. Others
/// between the same addresses may follow with these.
#[inline(always)]
fn send<P: Packet, T: Tables>(p: &mut P, t: &T, h: &Handover, mtu: u32, macs: &[u32; 3], replaces: bool) -> Forwarded {
    let changed = if h.packet.v6() {
        next_ttl::<V6, P>(p, &h.packet.parsed(), mtu)
    } else {
        next_ttl::<V4, P>(p, &h.packet.parsed(), mtu)
    };
    if changed == Forwarded::ToStack {
        t.count(Counter::ToStack);
    }
    if changed != Forwarded::Sent {
        return changed;
    }
    // At an address that a service has, ports matter.
    if h.classify.direct != 0
        && *macs != [0; 3]
        && frontend::of_address(t, &h.packet.tuple.dst).is_none()
        && let Some(Ethernet { src, .. }) = p.load(0)
    {
        direct::note(t, p.ifindex(), src, &h.packet, &h.departure, mtu, macs);
    }
    if replaces && p.store(0, macs).is_none() { Forwarded::Failed } else { changed }
}

#[inline(always)]
fn next_ttl<F: Family, P: Packet>(p: &mut P, v: &Parsed<F>, mtu: u32) -> Forwarded {
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
