//! Packets to an external address of a service, but to no port of it. The address may be a machine's, to which they go.

use crate::{
    layout::{Out, Tuple},
    packet::Packet,
    verdict::Reason,
};

use super::{
    Egress, Place, Stage, Tables, Verdict, admit,
    classify::{Class, no_frontend},
    family::{Family, V4, V6},
    frontend,
    handover::{Handover, ToError},
    headers::Headers,
    next_hop, staged,
};

/// Handles what came in by an uplink or from a process of the host for an external address of a service, and isn't for the
/// service. Follows [`enter`](super::enter()) or [`classify`](super::classify()) at the same hook.
#[inline(always)]
pub fn external<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    staged::<At, T>(
        t,
        |h| if h.packet.v6() { family::<At, V6, P, T>(p, t, h) } else { family::<At, V4, P, T>(p, t, h) },
    )
}

#[inline(always)]
fn family<At: Place, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Verdict {
    let v = h.packet.parsed::<F>();
    let Tuple { src, dst, .. } = &h.packet.tuple;
    let answer = next_hop::ask(t, t.advance(), p.ifindex(), src, dst);
    let route = answer.route(t, |route| (route.ifindex, route.mtu, route.hop));
    if At::FROM_UPLINK {
        // If it left by an uplink again, a router that sends it here would send it here once more.
        // Without a route it doesn't leave at all: the address is the host's in some way, or the stack says that there is none.
        let again = route.is_some_and(|(ifindex, ..)| admit::is_uplink(t, ifindex));
        return if again { refuse(t, &h.packet) } else { Verdict::PASS };
    }
    let Some(config) = t.config() else { return Verdict::drop(Reason::Internal) };
    // The host has sent it to podnet0 for the service's sake. It goes on by the main table's way as if it had gone there at
    // once, so its lifetime isn't shortened.
    match route {
        Some((ifindex, ..)) if ifindex.0 == config.podnet0.0 => Verdict::drop(Reason::NoRoute),
        Some((_, mtu, _)) if p.segment_len(v.headers) > mtu => {
            h.error = ToError::too_big(mtu);
            Verdict::reject(Reason::TooBig)
        }
        Some((ifindex, _, hop)) => Verdict::forward(Egress { out: Out::Uplink, ifindex, hop }),
        None if v.ports && frontend::carried(&v.tuple) => Verdict::reject(Reason::NoRoute),
        None => Verdict::drop(Reason::NoRoute),
    }
}

/// As at a service's address.
#[inline(always)]
fn refuse<T: Tables>(t: &T, packet: &Headers) -> Verdict {
    let classified = no_frontend(t, packet);
    match classified.class {
        Class::Echo => Verdict::tail(Stage::Reject),
        Class::Reject => Verdict::reject(classified.reason),
        _ => Verdict::drop(classified.reason),
    }
}
