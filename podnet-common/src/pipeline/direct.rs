//! Packets that belong to no service: pod to pod, and what the stack is to handle.

use crate::{
    layout::{Config, CtEntry, Endpoint, Frontend, Hook, Network, NetworkKind, Out, Tuple},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Packet, Tcp},
    verdict::{Counter, Reason},
};

use super::{
    Place, Stage, Tables, Verdict, checks,
    family::{Family, Parsed, Piece, V4, V6, parse},
    flow, frontend,
    hot::{HEADERS, fits},
};

/// Handles a packet that belongs to no flow and begins none, after [`super::begin`] at the same hook.
#[inline(always)]
pub fn alone<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::Drop(Reason::Malformed) };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => family::<At, V4, P, T>(p, t, &ethernet),
        ETHERTYPE_IPV6 => family::<At, V6, P, T>(p, t, &ethernet),
        _ => Verdict::Drop(Reason::Malformed),
    }
}

// On its own, so that the two families' variables don't add up on the stack.
#[inline(never)]
fn family<At: Place, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet) -> Verdict {
    let Some(v) = parse::<F, P>(p) else { return Verdict::Drop(Reason::Malformed) };
    match direct::<At, F, P, T>(p, t, ethernet, &v) {
        Verdict::Tail(Stage::Direct) => external::<At, F, P, T>(p, t, &v),
        verdict => verdict,
    }
}

/// Handles what came in by an uplink or from a process of the host for an external address of a service, and isn't for the
/// service. The address may be a machine's, which has it.
#[inline(always)]
fn external<At: Place, F: Family, P: Packet, T: Tables>(p: &P, t: &T, v: &Parsed<F>) -> Verdict {
    let Some(config) = t.config() else { return Verdict::Drop(Reason::NoProgram) };
    let route = t.route(p.ifindex(), &v.tuple.src, &v.tuple.dst);
    if At::HOOK as u32 == Hook::FromUplink as u32 {
        // If it left by an uplink again, a router that sends it here would send it here once more.
        // Without a route it doesn't leave at all: the address is the host's in some way, or the stack says that there is none.
        let again = route.is_some_and(|route| checks::is_uplink(t, route.ifindex));
        return if again { no_frontend::<F, T>(t, v) } else { Verdict::Pass };
    }
    // The host has sent it to podnet0 for the service's sake. It goes on by the main table's way as if it had gone there at
    // once, so its lifetime isn't shortened.
    match route {
        Some(route) if route.ifindex.0 == config.podnet0.0 => Verdict::Drop(Reason::NoRoute),
        Some(route) if p.segment_len(v.headers) > route.mtu => {
            let mtu = route.mtu;
            match t.scratch(|s| s.mtu = mtu) {
                Some(()) => Verdict::Reject(Reason::TooBig),
                None => Verdict::Drop(Reason::NoProgram),
            }
        }
        Some(route) => Verdict::Forward(Out::Uplink, route.ifindex),
        None if v.ports && frontend::carried(&v.tuple) => Verdict::Reject(Reason::NoRoute),
        None => Verdict::Drop(Reason::NoRoute),
    }
}

/// Forwards a packet by its own destination.
// On its own, so that its variables don't take stack from the others'.
#[inline(never)]
pub(super) fn direct<At: Place, F: Family, P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    ethernet: &Ethernet,
    v: &Parsed<F>,
) -> Verdict {
    if F::V6 && checks::link_scope(&v.tuple.src, &v.tuple.dst, v.tuple.proto) && !checks::tunnelled::<T>(t, &v.tuple) {
        let of_pod = At::HOOK as u32 == Hook::FromPod as u32;
        let harmless = !of_pod || checks::detects_duplicates::<P>(p, &v.tuple, v.l4);
        return if harmless { Verdict::Pass } else { Verdict::Drop(Reason::LinkScope) };
    }
    if let Err(reason) = checks::source::<At, F, P, T>(p, t, ethernet, &v.tuple) {
        return Verdict::Drop(reason);
    }
    if let Some(endpoint) = t.endpoint(&v.tuple.dst) {
        if v.ports && answers_need_flow::<At, T>(t, &v.tuple) {
            return Verdict::Tail(Stage::Begin);
        }
        return match into_pod::<F, P, T>(p, t, v, endpoint) {
            Some(verdict) => verdict,
            None => Verdict::Drop(Reason::StoreFailed),
        };
    }
    match t.network(&v.tuple.dst) {
        Some(n) if n.kind == NetworkKind::Services as u32 => {
            if checks::may_use_cluster_ip::<At, T>(t) {
                no_frontend::<F, T>(t, v)
            } else {
                Verdict::Drop(Reason::ClusterIpFromOutside)
            }
        }
        // The hairpin address, for which there are answers only: the host's routes would lead here again.
        Some(n) if n.kind == NetworkKind::LocalPods as u32 && At::HOOK as u32 == Hook::FromHost as u32 => {
            Verdict::Drop(Reason::NoRoute)
        }
        Some(n)
            if frontend::carried(&v.tuple)
                && frontend::node_port::<At, T>(t, ethernet, &v.tuple, v.tcp_flags, n).is_some() =>
        {
            Verdict::Tail(Stage::Begin)
        }
        Some(n) if n.flags & Network::TUNNEL != 0 && At::HOOK as u32 == Hook::FromPod as u32 => {
            match into_tunnel::<F, P, T>(p, t, v, n) {
                Some(verdict) => verdict,
                None => Verdict::Drop(Reason::StoreFailed),
            }
        }
        Some(n) if n.kind == NetworkKind::RemotePods as u32 && At::HOOK as u32 == Hook::FromPod as u32 => {
            match to_node::<F, P, T>(p, t, v) {
                Some(verdict) => verdict,
                None => Verdict::Drop(Reason::StoreFailed),
            }
        }
        None if t.config().is_some_and(|config| checks::leaves_in_nodes_name::<At, T>(t, config, &v.tuple)) => {
            if v.ports && frontend::begins(&v.tuple) {
                Verdict::Tail(Stage::Begin)
            } else if v.piece == Piece::Later {
                Verdict::Drop(Reason::LostFragment)
            } else if F::V6 && checks::link_local(&v.tuple.dst) {
                Verdict::Pass
            } else {
                // With its own address it would be answered to nobody, or to another who has that address there.
                Verdict::Drop(Reason::NotMasqueraded)
            }
        }
        // For an external address of a service, but not for the service.
        _ if At::EXTERNAL && t.is_service_address(&v.tuple.dst) => Verdict::Tail(Stage::Direct),
        // The host would take what it carries for another node's.
        _ if At::HOOK as u32 == Hook::FromPod as u32 && checks::tunnelled::<T>(t, &v.tuple) => {
            Verdict::Drop(Reason::TunnelFromOutside)
        }
        _ => Verdict::Pass,
    }
}

/// Whether a packet begins a connection whose answers look like those of a flow that is translated: its client uses one
/// source port towards a service and to the very backend that it was given. If that flow is over it is forgotten; else a
/// pod's connection gets another port.
#[inline(always)]
pub(super) fn answers_collide<At: Place, T: Tables>(t: &T, tuple: &Tuple, tcp_flags: u8) -> bool {
    if tcp_flags & (Tcp::SYN | Tcp::ACK) != Tcp::SYN {
        return false;
    }
    match answered_by::<T>(t, tuple) {
        Answered::Over => {
            forget_answered::<T>(t, tuple);
            false
        }
        Answered::Translated => At::HOOK as u32 == Hook::FromPod as u32,
        Answered::Otherwise => false,
    }
}

/// Whether a packet is for a pod, from where its answers would get the node's address if they were not known as such.
#[inline(always)]
pub(super) fn answers_need_flow<At: Place, T: Tables>(t: &T, tuple: &Tuple) -> bool {
    At::HOOK as u32 == Hook::FromUplink as u32
        && frontend::begins(tuple)
        && t.endpoint(&tuple.dst).is_some()
        && t.network(&tuple.src).is_none()
        && t.config().is_some_and(|config| config.flags & Config::MASQUERADE != 0)
}

/// What answers to a packet would be taken for.
#[derive(Clone, Copy)]
enum Answered {
    /// Those of a translated flow.
    Translated,
    /// Those of a translated flow that is over.
    Over,
    /// What they are, or those of a flow that isn't translated.
    Otherwise,
}

// The two functions below stand on their own, one beside the other, since each key on the stack keeps its place there.

/// What answers to a packet with this tuple would be taken for.
#[inline(never)]
fn answered_by<T: Tables>(t: &T, tuple: &Tuple) -> Answered {
    let flow = t.flow(&tuple.reversed(), |entry| (entry.flags & CtEntry::REPLY != 0, entry.closed()));
    match flow {
        Some((true, true)) => Answered::Over,
        Some((true, false)) => Answered::Translated,
        Some((false, _)) | None => Answered::Otherwise,
    }
}

/// Removes both halves of the flow that has answers to a packet with this tuple.
#[inline(never)]
fn forget_answered<T: Tables>(t: &T, tuple: &Tuple) {
    let answer = tuple.reversed();
    let mut flow = answer;
    if t.flow(&answer, |entry| entry.write_reply_key(&mut flow)).is_some() {
        t.remove_flow(&flow);
        t.remove_flow(&answer);
    }
}

/// Straight into a pod of this node, past the stack.
#[inline(always)]
fn into_pod<F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, v: &Parsed<F>, endpoint: &Endpoint) -> Option<Verdict> {
    if !fits::<F, P>(p, v, endpoint.mtu) {
        t.count(Counter::ToStack);
        return Some(Verdict::Pass);
    }
    let mut header = v.header;
    F::decrement_ttl(&mut header);
    F::write(p, &header, false, false)?;
    p.store(0, &[endpoint.mac, endpoint.host_mac])?;
    Some(Verdict::Forward(flow::into_pod(endpoint.flags), endpoint.ifindex))
}

/// Through the tunnel, to another node or a pod there.
#[inline(always)]
fn into_tunnel<F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, v: &Parsed<F>, network: &Network) -> Option<Verdict> {
    let config = t.config()?;
    if !fits::<F, P>(p, v, config.tunnel_mtu) {
        if network.kind == NetworkKind::RemotePods as u32 || F::ttl(&v.header) <= 1 {
            t.count(Counter::ToStack);
            return Some(Verdict::Pass);
        }
        // The stack would send it past the tunnel.
        t.scratch(|s| s.mtu = config.tunnel_mtu)?;
        return Some(Verdict::Reject(Reason::TooBig));
    }
    let mut header = v.header;
    F::decrement_ttl(&mut header);
    F::write(p, &header, false, false)?;
    p.store(0, &[network.mac, config.tunnel_mac])?;
    Some(Verdict::Forward(Out::Tunnel, config.tunnel))
}

/// Out of an uplink towards another node's pod.
#[inline(always)]
fn to_node<F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, v: &Parsed<F>) -> Option<Verdict> {
    let route = match t.route(p.ifindex(), &v.tuple.src, &v.tuple.dst) {
        Some(route) if fits::<F, P>(p, v, route.mtu) => route,
        _ => {
            t.count(Counter::ToStack);
            return Some(Verdict::Pass);
        }
    };
    let mut header = v.header;
    F::decrement_ttl(&mut header);
    F::write(p, &header, false, false)?;
    Some(Verdict::Forward(Out::Uplink, route.ifindex))
}

/// A service address without the frontend that the packet wants.
#[inline(always)]
fn no_frontend<F: Family, T: Tables>(t: &T, v: &Parsed<F>) -> Verdict {
    let Some(address) = frontend::of_address(t, &v.tuple.dst) else {
        return Verdict::Drop(Reason::UnallocatedService);
    };
    if v.echo_request && v.piece == Piece::Whole && address.flags & Frontend::ANSWERS_ECHO != 0 {
        return Verdict::Tail(Stage::Reject);
    }
    if v.ports && frontend::carried(&v.tuple) {
        Verdict::Reject(Reason::UndefinedPort)
    } else if v.piece == Piece::Later {
        Verdict::Drop(Reason::LostFragment)
    } else {
        Verdict::Drop(Reason::NotTranslatable)
    }
}
