//! Following flows: what happens to the packets that change a flow's state, to one packet of it in every tick, and to
//! fragments. A flow's first packet goes on to [`begin`](super::begin).
//!
//! A flow has two entries in `conntrack`, one for each direction. One that is sent on to another node for direct server
//! return has only the client's.

use crate::{
    addr::{Addr, IfIndex, Mac, Proto},
    layout::{CtEntry, Endpoint, FragmentKey, FragmentPorts, Hook, Network, NetworkKind, Out, Scratch, Tuple, macs},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Packet, Sctp, Tcp},
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
        if known && !begins_anew::<At>(&s.entry, seen, t.now()) && !sent_twice::<At, T>(t, &s.entry, ethernet) {
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
    /// Whether it is an ICMP error.
    pub error: bool,
    /// TCP's flags, or those that say the same of an SCTP association, else zero.
    pub tcp_flags: u8,
}

impl Seen {
    /// Whether it asks for a connection.
    #[inline(always)]
    fn opens(self) -> bool {
        self.tcp_flags & (Tcp::SYN | Tcp::ACK | Tcp::FIN | Tcp::RST) == Tcp::SYN
    }
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
    // An error is short, and what it quotes must be seen.
    if v.icmp_error && v.piece == Piece::First && !At::EGRESS {
        return Err(Reason::UnrelatedError);
    }
    let joined = v.piece != Piece::Whole && join(t, tuple, v.id, v.piece == Piece::Later, v.ports);
    let tcp_flags = if v.ports && v.tuple.proto == Proto::SCTP { chunk_flags(p, v.l4) } else { v.tcp_flags };
    Ok(Seen { ports: v.ports || joined, error: v.icmp_error, tcp_flags })
}

/// What an SCTP packet's first chunk says of the association, as TCP says it (RFC 9260, section 3.2).
#[inline(always)]
fn chunk_flags<P: Packet>(p: &P, l4: usize) -> u8 {
    match p.load::<u8>(l4 + size_of::<Sctp>()) {
        // INIT, INIT ACK, ABORT, SHUTDOWN COMPLETE.
        Some(1) => Tcp::SYN,
        Some(2) => Tcp::SYN | Tcp::ACK,
        Some(6 | 14) => Tcp::RST,
        _ => 0,
    }
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

/// Whether a packet with a flow's tuple begins another one: a closed connection's tuple may (RFC 6191), and so may that of
/// any connection whose client says that it has none, for its backend may be gone. An outside client's word may be another's,
/// so there the backend is asked first: if it still has the connection it answers (RFC 5961, section 4.2), and if there
/// is no answer the client asks again. Whether a flow that was sent on is over isn't known here.
#[inline(always)]
fn begins_anew<At: Place>(entry: &CtEntry, seen: Seen, now: u32) -> bool {
    let known_sender = matches!(At::HOOK, Hook::FromPod | Hook::FromHost) && !entry.opening();
    let unanswered = entry.opening() && now.wrapping_sub(entry.last_seen) >= ANSWER;
    let over = (entry.closed() && !entry.doubtful()) || entry.flags & CtEntry::ONE_WAY != 0;
    seen.opens() && (over || known_sender || unanswered) && entry.flags & CtEntry::REPLY == 0
}

/// How long a backend has to answer an outside client's SYN, in ticks: a whole one, since an entry may be one older than its
/// last packet. In half a second Linux answers one such packet for each connection (`tcp_invalid_ratelimit`).
const ANSWER: u32 = 3;

/// Whether another node has sent on to this one what this one would send on, as both may when they have chosen at
/// different times. It could go to and fro.
#[inline(always)]
pub(super) fn sent_twice<At: Place, T: Tables>(t: &T, entry: &CtEntry, ethernet: &Ethernet) -> bool {
    At::HOOK as u32 == Hook::FromUplink as u32 && entry.flags & CtEntry::ONE_WAY != 0 && t.is_peer(&ethernet.src)
}

/// A packet of a known flow: brings both entries up to date.
#[inline(always)]
fn follow<At: Place, T: Tables>(t: &T, s: &mut Scratch, from: IfIndex, seen: Seen) {
    let now = t.advance();
    let before = s.entry.flags;
    s.entry.flags = state::<At>(&s.entry, s.tuple.proto, seen, now);
    let opening = s.entry.opening();
    // What repeats the first step leaves the flow as old as it is, so that it ends if there is no other.
    if !(opening && before & CtEntry::OPENING != 0 && seen.tcp_flags & Tcp::SYN != 0) {
        s.entry.last_seen = touched(s.tuple.proto, opening, now);
    }
    s.entry.in_ifindex = At::side(from);
    if !At::EGRESS {
        find_way::<T>(t, from, &s.tuple.src, &mut s.entry);
    }
    t.flow(&s.tuple, |own| *own = s.entry);
    if s.entry.flags & CtEntry::ONE_WAY == 0 {
        touch_other(t, s, s.entry.last_seen);
    }
}

/// When an entry is noted to have been touched, if that is now: of a TCP flow that is opening a tick ago, so that its next
/// packet is examined too.
#[inline(always)]
pub(super) fn touched(proto: Proto, opening: bool, now: u32) -> u32 {
    now.wrapping_sub((opening && proto == Proto::TCP) as u32)
}

/// The flags of a flow's entry after a packet.
#[inline(always)]
fn state<At: Place>(entry: &CtEntry, proto: Proto, seen: Seen, now: u32) -> u8 {
    let reply = entry.flags & CtEntry::REPLY != 0;
    let mut flags = entry.flags;
    if reply {
        flags |= CtEntry::REPLIED;
    }
    if seen.tcp_flags & Tcp::RST != 0 {
        // From outside it may be anybody's guess, in which the other side doesn't believe (RFC 5961, section 3.2): it will
        // be seen whether they go on. Nothing is lost while they haven't begun.
        let outside = At::HOOK as u32 == Hook::FromUplink as u32;
        let doubtful = outside && (entry.closed() || !entry.opening());
        return flags & !CtEntry::OPENING | if doubtful { CtEntry::DOUBTFUL } else { CtEntry::CLOSED };
    }
    if entry.doubtful() {
        flags &= !CtEntry::DOUBTFUL;
    }
    if seen.tcp_flags & Tcp::FIN != 0 {
        flags |= if reply { CtEntry::FIN_BACKEND } else { CtEntry::FIN_CLIENT };
    }
    let acknowledges = if proto == Proto::TCP {
        // Either side acknowledges only what it has got: the client the backend's SYN, or the backend what followed.
        seen.tcp_flags & (Tcp::SYN | Tcp::ACK) == Tcp::ACK
    } else {
        !reply && seen.tcp_flags & Tcp::SYN == 0
    };
    if acknowledges && flags & CtEntry::REPLIED != 0 {
        flags &= !CtEntry::OPENING;
    }
    let silent = entry.doubtful() || now.wrapping_sub(entry.last_seen) >= ANSWER;
    if seen.opens() && silent && !reply && flags & CtEntry::ONE_WAY == 0 {
        flags |= CtEntry::OPENING;
    }
    flags
}

/// Brings the other half of a flow up to date, or makes it anew.
#[inline(always)]
fn touch_other<T: Tables>(t: &T, s: &mut Scratch, now: u32) {
    const STATE: u8 = CtEntry::REPLIED | CtEntry::CLOSED | CtEntry::OPENING;
    s.key = s.entry.reply_key(s.tuple.proto);
    let state = s.entry.flags & STATE;
    let touched = t.flow(&s.key, |other| {
        // What an earlier flow has left behind says nothing of the one that has its tuple now.
        if !other.reply_key(s.tuple.proto).same(&s.tuple) {
            return;
        }
        // It is as young, but its next packet is still to look for its way, which it alone needs.
        if other.last_seen != now {
            other.last_seen = now.wrapping_sub(1);
        }
        other.flags = other.flags & !STATE | state;
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
    *other = entry.reverse(tuple);
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
        go(entry, into_pod(*flags), *ifindex, *mtu, macs(*mac, *host_mac));
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

#[inline(always)]
pub(super) fn go(entry: &mut CtEntry, out: Out, ifindex: IfIndex, mtu: u32, macs: [u32; 3]) {
    entry.out = out as u8;
    entry.out_ifindex = ifindex;
    entry.out_mtu = if mtu > u16::MAX as u32 { u16::MAX } else { mtu as u16 };
    entry.macs = macs;
}
