//! Following flows: what happens to the packets that change a flow's state, to one packet of it in every tick, and to
//! fragments. A flow's first packet goes on to [`begin`](super::begin).
//!
//! A flow has two entries in `conntrack`, one for each direction. One that is sent on to another node for direct server
//! return has only the client's.

use crate::{
    addr::{Addr, IfIndex, Mac, Proto},
    layout::{CtEntry, Endpoint, FragmentKey, FragmentPorts, Hook, Network, NetworkKind, Out, Scratch, Tuple, macs},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Packet, Tcp},
    verdict::{Counter, Reason},
};

use super::{
    Place, Stage, Tables, Verdict, checks,
    family::{Family, Piece, V4, V6, parse},
    hot::HEADERS,
};

/// Handles a packet that is new in some way. Follows [`super::enter`] at the same hook.
#[inline(always)]
pub fn track<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::Drop(Reason::Malformed) };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => family::<At, V4, P, T>(p, t, &ethernet),
        ETHERTYPE_IPV6 => family::<At, V6, P, T>(p, t, &ethernet),
        _ => Verdict::Drop(Reason::Malformed),
    }
}

#[inline(always)]
fn family<At: Place, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet) -> Verdict {
    t.scratch(|s| {
        let seen = match examine::<At, F, P, T>(p, t, ethernet, &mut s.tuple) {
            Ok(seen) => seen,
            Err(reason) => return Verdict::Drop(reason),
        };
        let known = seen.ports && t.flow(&s.tuple, |entry| s.entry = *entry).is_some();
        if known && !begins_anew(&s.entry, seen) && !sent_twice::<At, T>(t, &s.entry, ethernet) {
            follow::<At, T>(t, s, p.ifindex(), seen);
            return Verdict::Tail(Stage::Send);
        }
        if At::EGRESS { Verdict::Pass } else { Verdict::Tail(Stage::Begin) }
    })
    .unwrap_or(Verdict::Drop(Reason::NoProgram))
}

/// What there is to know of a packet besides its tuple.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// Whether the tuple has ports.
    pub ports: bool,
    /// TCP's flags, else zero.
    pub tcp_flags: u8,
}

/// Finds a packet's tuple, its fragments' too, and checks its source.
// On its own, like others below: 512 bytes of stack are all that a program and what it calls have, and the compiler gives
// every variable of what is inlined a place of its own.
#[inline(never)]
pub(super) fn examine<At: Place, F: Family, P: Packet, T: Tables>(
    p: &P,
    t: &T,
    ethernet: &Ethernet,
    tuple: &mut Tuple,
) -> Result<Seen, Reason> {
    let Some(v) = parse::<F, P>(p) else { return Err(Reason::Malformed) };
    *tuple = v.tuple;
    checks::source::<At, F, P, T>(p, t, ethernet, tuple)?;
    let joined = v.piece != Piece::Whole && join(t, tuple, v.id, v.piece == Piece::Later, v.ports);
    Ok(Seen { ports: v.ports || joined, tcp_flags: v.tcp_flags })
}

/// Notes the ports of a packet's first fragment for the others, or gives them to one of these.
#[inline(always)]
fn join<T: Tables>(t: &T, tuple: &mut Tuple, id: u32, later: bool, ports: bool) -> bool {
    let key = FragmentKey { src: tuple.src, dst: tuple.dst, id, proto: tuple.proto, _pad: [0; 3] };
    if later {
        let Some(ports) = t.fragment(&key) else { return false };
        (tuple.sport, tuple.dport) = (ports.sport, ports.dport);
        return true;
    }
    if ports {
        t.set_fragment(&key, &FragmentPorts { sport: tuple.sport, dport: tuple.dport });
    }
    ports
}

/// Whether a packet with a flow's tuple begins another one: a closed connection's tuple may (RFC 6191). Whether one that
/// was sent on is closed isn't known here.
#[inline(always)]
fn begins_anew(entry: &CtEntry, seen: Seen) -> bool {
    let opens = seen.tcp_flags & (Tcp::SYN | Tcp::ACK | Tcp::FIN | Tcp::RST) == Tcp::SYN;
    let over = entry.closed() || entry.flags & CtEntry::ONE_WAY != 0;
    opens && over && entry.flags & CtEntry::REPLY == 0
}

/// Whether another node has sent on to this one what this one would send on, as both may when they have chosen at
/// different times. It could go to and fro.
#[inline(always)]
pub(super) fn sent_twice<At: Place, T: Tables>(t: &T, entry: &CtEntry, ethernet: &Ethernet) -> bool {
    At::HOOK as u32 == Hook::FromUplink as u32 && entry.flags & CtEntry::ONE_WAY != 0 && t.is_peer(&ethernet.src)
}

/// A packet of a known flow: brings both entries up to date.
#[inline(always)]
fn follow<At: Place, T: Tables>(t: &T, s: &mut Scratch, from: IfIndex, seen: Seen) {
    let reply = s.entry.flags & CtEntry::REPLY != 0;
    let mut state = if reply { CtEntry::REPLIED } else { 0 };
    if seen.tcp_flags & Tcp::RST != 0 {
        state |= CtEntry::RST;
    }
    if seen.tcp_flags & Tcp::FIN != 0 {
        state |= if reply { CtEntry::FIN_BACKEND } else { CtEntry::FIN_CLIENT };
    }
    let now = t.advance();
    s.entry.flags |= state;
    s.entry.last_seen = now;
    s.entry.in_ifindex = At::side(from);
    if !At::EGRESS {
        find_way::<T>(t, from, &s.tuple.src, &mut s.entry);
    }
    t.flow(&s.tuple, |own| *own = s.entry);
    if s.entry.flags & CtEntry::ONE_WAY == 0 {
        touch_other(t, s, state, now);
    }
}

/// Brings the other half of a flow up to date, or makes it anew.
#[inline(always)]
fn touch_other<T: Tables>(t: &T, s: &mut Scratch, state: u8, now: u32) {
    s.key = s.entry.reply_key(s.tuple.proto);
    let touched = t.flow(&s.key, |other| {
        // What an earlier flow has left behind says nothing of the one that has its tuple now.
        if !other.reply_key(s.tuple.proto).same(&s.tuple) {
            return;
        }
        // It is as young, but its next packet is still to look for its way, which it alone needs.
        if other.last_seen != now {
            other.last_seen = now.wrapping_sub(1);
        }
        other.flags |= state;
    });
    if touched.is_none() && !begins_by_itself(&s.entry, s.tuple.proto) {
        counterpart(&mut s.reply, &s.entry, &s.tuple);
        if t.insert_flow(&s.key, &s.reply).is_ok() {
            t.count(Counter::HalvesRebuilt);
        }
    }
}

/// Whether the other half is left to the client's next packet: of a service's UDP flow, which the daemon removes when its
/// backend goes. An answer that is still on its way must not lead the client there again.
#[inline(always)]
fn begins_by_itself(entry: &CtEntry, proto: Proto) -> bool {
    proto == Proto::UDP && entry.flags & CtEntry::REPLY != 0 && entry.service != 0
}

/// Makes the other half of a flow from the half that belongs to packets with `tuple`. Where its packets come in is
/// learned from the first, which is examined in full.
#[inline(always)]
pub(super) fn counterpart(other: &mut CtEntry, entry: &CtEntry, tuple: &Tuple) {
    let mut flags = entry.flags & !(CtEntry::REWRITE_SRC | CtEntry::REWRITE_DST) ^ CtEntry::REPLY;
    if entry.flags & CtEntry::REWRITE_SRC != 0 {
        flags |= CtEntry::REWRITE_DST;
    }
    if entry.flags & CtEntry::REWRITE_DST != 0 {
        flags |= CtEntry::REWRITE_SRC;
    }
    *other = CtEntry {
        last_seen: entry.last_seen,
        flags,
        service: entry.service,
        src: tuple.dst,
        dst: tuple.src,
        sport: tuple.dport,
        dport: tuple.sport,
        ..CtEntry::default()
    };
}

/// Finds the way to an entry's destination and notes it there. `client` is who sends. Returns the source address that
/// the host would use on that way, or none.
// On its own, since there are several who call it, and the stack is small.
#[inline(never)]
pub(super) fn find_way<T: Tables>(t: &T, from: IfIndex, client: &Addr, entry: &mut CtEntry) -> Addr {
    // The stack knows no way for what is sent on.
    let sent_on = entry.flags & CtEntry::ONE_WAY != 0;
    entry.out = if sent_on { Out::Via as u8 } else { Out::Stack as u8 };
    entry.out_ifindex = IfIndex(0);
    entry.out_mtu = u16::MAX;
    if let Some(Endpoint { ifindex, mtu, mac, host_mac, flags, .. }) = t.endpoint(&entry.dst) {
        if flags & Endpoint::NO_PEER == 0 {
            go(entry, Out::Pod, *ifindex, *mtu, macs(*mac, *host_mac));
        }
        return Addr::NONE;
    }
    let network = t.network(&entry.dst);
    if network.is_some_and(|n| n.kind == NetworkKind::LocalNode as u32) {
        // What comes from a service, or from the hairpin address, comes from where the host's routes to these lead. A
        // client that only has another port comes from where it came from; but not from podnet1, which lets nothing in:
        // through it the host's processes reach the ports of their own node.
        if let Some(c) = t.config()
            && (!entry.src.same(client) || from.0 == c.podnet1.0)
        {
            go(entry, Out::Host, c.podnet0, u16::MAX as u32, macs(c.podnet0_mac, c.podnet1_mac));
        }
        return Addr::NONE;
    }
    if let (Some(n), Some(c)) = (network, t.config())
        && n.flags & Network::TUNNEL != 0
        // The network between the nodes carries what these exchange themselves.
        && (n.kind == NetworkKind::RemotePods as u32 || sent_on || pods_own::<T>(t, client, entry))
    {
        go(entry, Out::Tunnel, c.tunnel, c.tunnel_mtu, macs(n.mac, c.tunnel_mac));
        return Addr::NONE;
    }
    let Some(route) = t.route(from, client, &entry.dst) else { return Addr::NONE };
    let unknown = macs(Mac::default(), Mac::default());
    let out = if route.macs != unknown {
        Out::Link
    } else if sent_on {
        Out::Via
    } else {
        Out::Uplink
    };
    go(entry, out, route.ifindex, route.mtu, route.macs);
    route.src
}

/// Whether an entry's packets leave with the address of a pod of this node, which sends them.
#[inline(always)]
fn pods_own<T: Tables>(t: &T, client: &Addr, entry: &CtEntry) -> bool {
    entry.src.same(client) && t.endpoint(client).is_some()
}

#[inline(always)]
pub(super) fn go(entry: &mut CtEntry, out: Out, ifindex: IfIndex, mtu: u32, macs: [u32; 3]) {
    entry.out = out as u8;
    entry.out_ifindex = ifindex;
    entry.out_mtu = if mtu > u16::MAX as u32 { u16::MAX } else { mtu as u16 };
    entry.macs = macs;
}
