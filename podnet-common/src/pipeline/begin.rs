//! Beginning flows: backend, source address, next hop, and the first attempt to insert both entries.

use crate::{
    addr::IfIndex,
    hash::mix,
    layout::{Config, CtEntry, Frontend, NetworkKind, Out, Tuple},
    packet::Packet,
    verdict::Reason,
};

use super::{
    HookPoint, Tables, Verdict,
    admit::{is_tunnel_packet, is_uplink},
    balance,
    handover::{Handover, Purpose, ToInsert},
    headers::Headers,
    insert, next_hop, policy,
    run::run_stage,
    scope, shares,
    source::{self, Source},
    track::last_seen_now,
};

/// Builds the flow of an admitted packet. Follows [`enter`](super::enter()) or [`classify`](super::classify()) at the
/// same hook.
#[inline(always)]
pub fn begin<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    run_stage::<At, T>(t, |h| make::<At, T>(t, h, p.ifindex()))
}

#[inline(always)]
fn make<At: HookPoint, T: Tables>(t: &T, h: &mut Handover, from: IfIndex) -> Verdict {
    let Some(config) = t.config() else { return Verdict::drop(Reason::Internal) };
    let now = t.advance();
    let Tuple { src, dst, sport, dport, proto, .. } = h.packet.tuple;
    h.send.entry = CtEntry { last_seen: now, in_ifindex: At::side(from), sport, dport, src, dst, ..CtEntry::default() };
    h.insert.hash = balance::hash(&h.packet.tuple);
    h.insert.attempts = 0;
    h.insert.needs_snat_port = 0;
    let made = if At::EGRESS {
        // Tracked so that its replies are recognised; the stack has routed it.
        h.send.entry.out_mtu = u16::MAX;
        Ok(false)
    } else if h.begin.purpose == Purpose::Service as u8 {
        to_service::<At, T>(t, h, config, from)
    } else if h.begin.purpose == Purpose::Masquerade as u8 {
        to_outside::<T>(t, h, config, from).map(|()| false)
    } else {
        let hop = next_hop::find::<T>(t, from, &h.packet.tuple.src, &mut h.send);
        if At::FROM_POD && policy::applies::<At, T>(t) {
            leave_to_stack_beside_uplinks(t, &mut h.send.entry);
        }
        Ok(hop.vacant)
    };
    let vacant = match made {
        Ok(vacant) => vacant,
        Err(verdict) => return verdict,
    };
    // Link-local addresses at podnet0 are the node's.
    let own = At::FROM_HOST && (scope::link_local(&h.packet.tuple.src) || scope::link_local_v4(&h.packet.tuple.src));
    if policy::evaluates_flows::<At, T>(t) && !own && h.send.entry.flags & CtEntry::ONE_WAY == 0 {
        let (denied, answer) = policy::flow::<At, T>(t, config, h);
        if !denied.is_nothing() {
            return Verdict::drop(denied.count(t));
        }
        if vacant && !At::FROM_HOST {
            return Verdict::reject(Reason::NoRoute);
        }
        if answer {
            h.send.entry.flags |= CtEntry::REPLY;
        }
    }
    // Left to the stack. Only policies need the flow, to recognise the replies.
    if h.begin.purpose == Purpose::Masquerade as u8
        && h.send.entry.flags & CtEntry::REWRITE_SRC == 0
        && !(policy::applies::<At, T>(t) && policy::concerns::<At, T>(t, &h.packet.tuple, from, IfIndex(0)))
    {
        return Verdict::PASS;
    }
    if !shares::may_begin::<At, T>(t, &h.packet.tuple, from, &mut h.insert) {
        return if At::EGRESS { Verdict::PASS } else { Verdict::drop(Reason::ConntrackShare) };
    }
    if h.send.entry.flags & CtEntry::ONE_WAY == 0 {
        h.send.entry.flags |= CtEntry::OPENING;
        if !At::EGRESS {
            h.send.entry.last_seen = last_seen_now(proto, true, now);
        }
    }
    insert::first_attempt::<At, T>(t, h)
}

/// Fills in the entry of a flow to a service. Returns whether the backend's address is [vacant](next_hop::NextHop).
/// `Err` is the verdict if there can be no flow.
#[inline(always)]
fn to_service<At: HookPoint, T: Tables>(
    t: &T,
    h: &mut Handover,
    config: &Config,
    from: IfIndex,
) -> Result<bool, Verdict> {
    let Handover {
        packet: Headers { tuple, .. }, begin, send: s, insert: ToInsert { hash, needs_snat_port, .. }, ..
    } = h;
    let (client, frontend) = (&tuple.src, &begin.frontend);
    s.entry.service = frontend.service;
    // The node that forwarded the packet chose by the same hash, so the hashes of forwarded packets are similar.
    let hash = if begin.forwarded != 0 { mix(!*hash) } else { *hash };
    if !balance::choose(t, &mut s.entry, client, frontend, hash) {
        return Err(Verdict::drop(Reason::StaleTable));
    }
    if At::FROM_UPLINK
        && frontend.flags & Frontend::DIRECT_RETURN != 0
        // Don't forward packets from a peer: with a node that doesn't know this one as a peer yet, they would loop.
        && begin.from_peer == 0
        && let Some(node) = balance::other_node(t, &s.entry.dst)
        && t.network(client).is_none_or(|n| n.kind == NetworkKind::NonMasquerade as u32)
    {
        s.entry.flags = CtEntry::ONE_WAY;
        s.entry.dst = *node;
        s.entry.dport = tuple.dport;
        next_hop::find::<T>(t, from, client, s);
        return Ok(false);
    }
    s.entry.flags = CtEntry::REWRITE_DST;
    let source = source::choose::<At, T>(t, config, frontend, client, &s.entry.dst);
    if source != Source::Own {
        s.entry.flags |= CtEntry::REWRITE_SRC;
    }
    let v4 = client.is_v4();
    if let Source::Hairpin { shared } = source {
        s.entry.src = if v4 { config.hairpin_v4 } else { config.hairpin_v6 };
        *needs_snat_port = shared as u32;
    }
    if source == Source::Node {
        // A node address for now: the next hop depends on whether the source is still the client's. The route then
        // determines which node address.
        s.entry.src = *config.node(!v4);
    }
    let hop = next_hop::find::<T>(t, from, client, s);
    // A backend outside the cluster must reply to the node, as it does without a service.
    let masquerades = At::FROM_POD
        && source == Source::Own
        && !hop.in_cluster
        && config.flags & Config::MASQUERADE != 0
        && is_uplink(t, s.entry.out_ifindex);
    if source == Source::Node || masquerades {
        s.entry.flags |= CtEntry::REWRITE_SRC;
        s.entry.src = source::node(config, &hop.src, v4);
        *needs_snat_port = 1;
    }
    if s.entry.src.is_none() { Err(Verdict::drop(Reason::NoRoute)) } else { Ok(hop.vacant) }
}

/// Leaves a flow without translation to the stack if the route doesn't lead to an uplink, as its packets would be
/// without a flow: replies come from the stack, and a firewall there must see both directions.
#[inline(always)]
fn leave_to_stack_beside_uplinks<T: Tables>(t: &T, entry: &mut CtEntry) {
    let routed = entry.out == Out::Link as u8 || entry.out == Out::Uplink as u8;
    if routed && !is_uplink(t, entry.out_ifindex) {
        next_hop::set_stack(entry);
    }
}

/// Fills in the entry of a pod's flow to a destination outside the cluster. `Err` is the verdict if there can be no
/// flow.
#[inline(always)]
fn to_outside<T: Tables>(t: &T, h: &mut Handover, config: &Config, from: IfIndex) -> Result<(), Verdict> {
    let client = h.packet.tuple.src;
    h.send.entry.flags = CtEntry::REWRITE_SRC;
    let hop = next_hop::find::<T>(t, from, &client, &mut h.send);
    // Replies by another interface would not be translated back, so the packet is left to the stack. It may be a
    // broadcast, which the host receives.
    if !is_uplink(t, h.send.entry.out_ifindex) {
        h.send.entry.flags = 0;
        next_hop::set_stack(&mut h.send.entry);
        let tunnelled = is_tunnel_packet::<T>(t, &h.packet.tuple);
        return if tunnelled { Err(Verdict::drop(Reason::TunnelFromOutside)) } else { Ok(()) };
    }
    h.send.entry.src = source::node(config, &hop.src, client.is_v4());
    h.insert.needs_snat_port = 1;
    if h.send.entry.src.is_none() { Err(Verdict::drop(Reason::NoRoute)) } else { Ok(()) }
}
