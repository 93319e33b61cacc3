//! Beginning flows: balance, source, next hop, and the first try to insert what comes of it.

use crate::{
    addr::IfIndex,
    layout::{Config, CtEntry, Frontend, NetworkKind, Tuple},
    packet::Packet,
    verdict::Reason,
};

use super::{
    Place, Tables, Verdict,
    admit::{is_uplink, tunnelled},
    balance,
    handover::{Handover, Purpose, ToInsert},
    headers::Headers,
    insert, next_hop, shares,
    source::{self, Source},
    staged,
    track::touched,
};

/// Makes the flow of an admitted packet. Follows [`enter`](super::enter()) or [`classify`](super::classify()) at the same
/// hook.
#[inline(always)]
pub fn begin<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    staged::<At, T>(t, |h| make::<At, T>(t, h, p.ifindex()))
}

#[inline(always)]
fn make<At: Place, T: Tables>(t: &T, h: &mut Handover, from: IfIndex) -> Verdict {
    let Some(config) = t.config() else { return Verdict::drop(Reason::Internal) };
    let now = t.advance();
    let Tuple { src, dst, sport, dport, proto, .. } = h.packet.tuple;
    h.send.entry = CtEntry { last_seen: now, in_ifindex: At::side(from), sport, dport, src, dst, ..CtEntry::default() };
    h.insert.hash = balance::hash(&h.packet.tuple);
    h.insert.tries = 0;
    h.insert.from_range = 0;
    let made = if At::EGRESS {
        // Of a process of the host, so that what answers it is known; the stack has found its way.
        h.send.entry.out_mtu = u16::MAX;
        Ok(())
    } else if h.begin.purpose == Purpose::Service as u8 {
        to_service::<At, T>(t, h, config, from)
    } else if h.begin.purpose == Purpose::Masquerade as u8 {
        to_outside::<T>(t, h, config, from)
    } else {
        next_hop::find::<T>(t, from, &h.packet.tuple.src, &mut h.send);
        Ok(())
    };
    if let Err(verdict) = made {
        return verdict;
    }
    if !shares::admit::<At, T>(t, &h.packet.tuple, from, &mut h.insert) {
        return if At::EGRESS { Verdict::PASS } else { Verdict::drop(Reason::ConntrackShare) };
    }
    if h.send.entry.flags & CtEntry::ONE_WAY == 0 {
        h.send.entry.flags |= CtEntry::OPENING;
        if !At::EGRESS {
            h.send.entry.last_seen = touched(proto, true, now);
        }
    }
    insert::first::<At, T>(t, h)
}

/// Fills the entry of a flow to a service. `Err` is what becomes of the packet if it can't have one.
#[inline(always)]
fn to_service<At: Place, T: Tables>(t: &T, h: &mut Handover, config: &Config, from: IfIndex) -> Result<(), Verdict> {
    let Handover { packet: Headers { tuple, .. }, begin, send: s, insert: ToInsert { hash, from_range, .. }, .. } = h;
    let (client, frontend) = (&tuple.src, &begin.frontend);
    s.entry.service = frontend.service;
    // The node that has sent it on has chosen by the hash itself, so that all that comes has similar ones.
    let hash = if begin.sent_on != 0 { balance::mix(!*hash) } else { *hash };
    if !balance::choose(t, &mut s.entry, client, frontend, hash) {
        return Err(Verdict::drop(Reason::StaleTable));
    }
    if At::FROM_UPLINK
        && frontend.flags & Frontend::DIRECT_RETURN != 0
        // What a node that doesn't know this one yet has sent back would go to and fro.
        && begin.from_peer == 0
        && let Some(node) = balance::other_node(t, &s.entry.dst)
        && t.network(client).is_none_or(|n| n.kind == NetworkKind::NonMasquerade as u32)
    {
        s.entry.flags = CtEntry::ONE_WAY;
        s.entry.dst = *node;
        s.entry.dport = tuple.dport;
        next_hop::find::<T>(t, from, client, s);
        return Ok(());
    }
    s.entry.flags = CtEntry::REWRITE_DST;
    let source = source::choose::<At, T>(t, config, frontend, client, &s.entry.dst);
    if source != Source::Own {
        s.entry.flags |= CtEntry::REWRITE_SRC;
    }
    let v4 = client.is_v4();
    if let Source::Hairpin { shared } = source {
        s.entry.src = if v4 { config.hairpin_v4 } else { config.hairpin_v6 };
        *from_range = shared as u32;
    }
    if source == Source::Node {
        // The way depends on whether it is the client's own; which of the node's it is comes with the way.
        s.entry.src = *config.node(!v4);
    }
    let way = next_hop::find::<T>(t, from, client, s);
    // A backend outside of the cluster answers the node, as it does without a service.
    let masquerades = At::FROM_POD
        && source == Source::Own
        && !way.in_cluster
        && config.flags & Config::MASQUERADE != 0
        && is_uplink(t, s.entry.out_ifindex);
    if source == Source::Node || masquerades {
        s.entry.flags |= CtEntry::REWRITE_SRC;
        s.entry.src = source::node(config, &way.src, v4);
        *from_range = 1;
    }
    if s.entry.src.is_none() { Err(Verdict::drop(Reason::NoRoute)) } else { Ok(()) }
}

/// Fills the entry of a pod's flow to what is outside of the cluster. `Err` is what becomes of the packet if it gets none.
#[inline(always)]
fn to_outside<T: Tables>(t: &T, h: &mut Handover, config: &Config, from: IfIndex) -> Result<(), Verdict> {
    let client = h.packet.tuple.src;
    h.send.entry.flags = CtEntry::REWRITE_SRC;
    let way = next_hop::find::<T>(t, from, &client, &mut h.send);
    // On another way no answer would be translated back, so the stack has it. It may be a broadcast, which the host gets.
    if !is_uplink(t, h.send.entry.out_ifindex) {
        let tunnelled = tunnelled::<T>(t, &h.packet.tuple);
        return Err(if tunnelled { Verdict::drop(Reason::TunnelFromOutside) } else { Verdict::PASS });
    }
    h.send.entry.src = source::node(config, &way.src, client.is_v4());
    h.insert.from_range = 1;
    if h.send.entry.src.is_none() { Err(Verdict::drop(Reason::NoRoute)) } else { Ok(()) }
}
