//! Packets to an external address of a service, but to no port of it.
//!
//! Such an address may be that of a machine, to which these packets are forwarded.

use crate::{
    layout::{Out, Tuple},
    packet::Packet,
    verdict::Reason,
};

use super::{
    Egress, HookPoint, Stage, Tables, Verdict, admit,
    class::Class,
    classify::no_frontend,
    family::{Family, V4, V6},
    frontend,
    handover::{Handover, ToError},
    headers::Headers,
    next_hop,
    run::run_stage,
};

/// Handles a packet that arrived by an uplink or from a process of the host, to an external address of a service but
/// not for the service. Follows [`enter`](super::enter()) or [`classify`](super::classify()) at the same hook.
#[inline(always)]
pub fn external<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    run_stage::<At, T>(
        t,
        |h| if h.packet.v6() { family::<At, V6, P, T>(p, t, h) } else { family::<At, V4, P, T>(p, t, h) },
    )
}

#[inline(always)]
fn family<At: HookPoint, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Verdict {
    let v = h.packet.parsed::<F>();
    let Tuple { src, dst, .. } = &h.packet.tuple;
    let lookup = next_hop::lookup(t, t.advance(), p.ifindex(), src, dst);
    let route = lookup.route(t, |route| (route.ifindex, route.mtu, route.hop));
    if At::FROM_UPLINK {
        // Out of an uplink, the packet would loop: the router that sent it here would do so again. Without a route, the
        // packet doesn't leave the node: the address is local to the host, or the stack reports that there is no route.
        let again = route.is_some_and(|(ifindex, ..)| admit::is_uplink(t, ifindex));
        return if again { refuse(t, &h.packet) } else { Verdict::PASS };
    }
    let Some(config) = t.config() else { return Verdict::drop(Reason::Internal) };
    // The host has routed the packet to podnet0 only because a service has the address. It continues along the route of
    // the main table as if it had been sent there directly, so its TTL is not decremented.
    match route {
        Some((ifindex, ..)) if ifindex.0 == config.podnet0.0 => Verdict::drop(Reason::NoRoute),
        Some((_, mtu, _)) if p.segment_len(v.headers) > mtu => {
            h.error = ToError::too_big(mtu);
            Verdict::reject(Reason::TooBig)
        }
        Some((ifindex, _, hop)) => Verdict::forward(Egress { out: Out::Uplink, ifindex, hop }),
        None if v.ports && frontend::is_service_protocol(&v.tuple) => Verdict::reject(Reason::NoRoute),
        None => Verdict::drop(Reason::NoRoute),
    }
}

/// Same as at a ClusterIP.
#[inline(always)]
fn refuse<T: Tables>(t: &T, packet: &Headers) -> Verdict {
    let classified = no_frontend(t, packet);
    match classified.class {
        Class::Echo => Verdict::tail(Stage::Reject),
        Class::Reject => Verdict::reject(classified.reason),
        _ => Verdict::drop(classified.reason),
    }
}
