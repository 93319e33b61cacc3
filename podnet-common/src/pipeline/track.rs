//! Following flows: what happens to the packets that change a flow's state, to one packet of it in every tick, and to
//! fragments.
//!
//! A flow has two entries in `conntrack`, one for each direction. One that is sent on to another node for direct server
//! return has only the client's.

use crate::{
    addr::{IfIndex, Proto},
    layout::{CtEntry, FragmentKey, FragmentPorts, Tuple},
    packet::{Ethernet, Packet, Sctp, Tcp},
    verdict::{Counter, Reason},
};

use super::{
    Place, Stage, Tables, Verdict, admit, family::Piece, handover::Handover, headers::Headers, next_hop, staged,
};

/// Handles a packet that is new in some way. Follows [`enter`](super::enter()) at the same hook.
#[inline(always)]
pub fn track<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    staged::<At, T>(t, |h| {
        let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::drop(Reason::Malformed) };
        match examine::<At, P, T>(p, t, &ethernet, &mut h.packet) {
            Ok(ports) => known_or_not::<At, T>(t, h, p.ifindex(), &ethernet, ports),
            Err(reason) => Verdict::drop(reason),
        }
    })
}

#[inline(always)]
fn known_or_not<At: Place, T: Tables>(
    t: &T,
    h: &mut Handover,
    from: IfIndex,
    ethernet: &Ethernet,
    ports: bool,
) -> Verdict {
    let seen = Seen { tcp_flags: h.packet.tcp_flags };
    let known = ports && t.flow(&h.packet.tuple, |entry| h.send.entry = *entry).is_some();
    let entry = &h.send.entry;
    if known && !begins_another::<At>(entry, seen, t.now()) && !sent_twice::<At, T>(t, entry, ethernet) {
        follow::<At, T>(t, h, from, seen);
        return Verdict::tail(Stage::Send);
    }
    if At::EGRESS {
        return Verdict::PASS;
    }
    h.classify.left = known as u32;
    Verdict::tail(Stage::Classify)
}

/// What a packet says of its connection.
#[derive(Clone, Copy)]
struct Seen {
    /// TCP's flags, or those that say the same of an SCTP association, else zero.
    tcp_flags: u8,
}

impl Seen {
    /// Whether it asks for a connection.
    #[inline(always)]
    fn opens(self) -> bool {
        self.tcp_flags & (Tcp::SYN | Tcp::ACK | Tcp::FIN | Tcp::RST) == Tcp::SYN
    }
}

/// Checks a packet's source, and completes what its headers say: fragments' ports, SCTP's chunks. Whether its tuple has ports.
#[inline(always)]
fn examine<At: Place, P: Packet, T: Tables>(
    p: &P,
    t: &T,
    ethernet: &Ethernet,
    packet: &mut Headers,
) -> Result<bool, Reason> {
    admit::source::<At, P, T>(p, t, ethernet, &packet.tuple, packet.v6())?;
    let (piece, ports) = (packet.piece(), packet.ports());
    // An error is short, and what it quotes must be seen.
    if packet.icmp_error() && piece == Piece::First && !At::EGRESS {
        return Err(Reason::UnrelatedIcmpError);
    }
    if ports && packet.tuple.proto == Proto::SCTP {
        packet.tcp_flags = chunk_flags(p, packet.l4());
    }
    Ok(if piece == Piece::Whole { ports } else { join(t, packet) })
}

/// What an SCTP packet's first chunk says of the association, as TCP says it (RFC 9260, section 3.2).
#[inline(always)]
fn chunk_flags<P: Packet>(p: &P, l4: usize) -> u8 {
    // Type and flags: the verifier doesn't understand the check for a single byte.
    let Some([kind, _]) = p.load::<[u8; 2]>(l4 + size_of::<Sctp>()) else { return 0 };
    match kind {
        // INIT, INIT ACK, ABORT, SHUTDOWN COMPLETE.
        1 => Tcp::SYN,
        2 => Tcp::SYN | Tcp::ACK,
        6 | 14 => Tcp::RST,
        _ => 0,
    }
}

/// Notes the ports of a packet's first fragment for the others, or gives them to one of these. Whether they are known.
// Out of line, since its key takes stack.
#[inline(never)]
fn join<T: Tables>(t: &T, packet: &mut Headers) -> bool {
    let Tuple { src, dst, sport, dport, proto, .. } = packet.tuple;
    let key = FragmentKey { src, dst, id: packet.id(), proto, _pad: [0; 3] };
    if packet.piece() == Piece::Later {
        let Some(ports) = t.fragment(&key) else { return false };
        packet.join(ports);
    } else if packet.ports() {
        t.set_fragment(&key, &FragmentPorts { sport, dport });
    }
    packet.ports()
}

/// Whether a packet with a flow's tuple begins another one: a closed connection's tuple may (RFC 6191), and so may that of
/// any connection whose client says that it has none, for its backend may be gone. An outside client's word may be another's,
/// so there the backend is asked first: if it still has the connection it answers (RFC 5961, section 4.2), and if there
/// is no answer the client asks again. Whether a flow that was sent on is over isn't known here.
#[inline(always)]
fn begins_another<At: Place>(entry: &CtEntry, seen: Seen, now: u32) -> bool {
    let known_sender = (At::FROM_POD || At::FROM_HOST) && !entry.opening();
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
    At::FROM_UPLINK && entry.flags & CtEntry::ONE_WAY != 0 && t.is_peer(&ethernet.src)
}

/// A packet of a known flow: brings both entries up to date.
#[inline(always)]
fn follow<At: Place, T: Tables>(t: &T, h: &mut Handover, from: IfIndex, seen: Seen) {
    let now = t.advance();
    let proto = h.packet.tuple.proto;
    let before = h.send.entry.flags;
    h.send.entry.flags = state::<At>(&h.send.entry, proto, seen, now);
    let opening = h.send.entry.opening();
    // Retransmitted SYNs don't refresh an opening flow, so that it times out without a handshake.
    if !(opening && before & CtEntry::OPENING != 0 && seen.tcp_flags & Tcp::SYN != 0) {
        h.send.entry.last_seen = touched(proto, opening, now);
    }
    h.send.entry.in_ifindex = At::side(from);
    if !At::EGRESS {
        next_hop::find::<T>(t, from, &h.packet.tuple.src, &mut h.send);
    }
    t.flow(&h.packet.tuple, |own| *own = h.send.entry);
    if h.send.entry.flags & CtEntry::ONE_WAY == 0 {
        touch_other(t, h);
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
        let outside = At::FROM_UPLINK;
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

/// Brings the other half of a flow up to date, or rebuilds it.
#[inline(always)]
fn touch_other<T: Tables>(t: &T, h: &mut Handover) {
    const STATE: u8 = CtEntry::REPLIED | CtEntry::CLOSED | CtEntry::OPENING;
    let Handover { packet: Headers { tuple, .. }, send: s, insert: n, .. } = h;
    let now = s.entry.last_seen;
    n.key = s.entry.reply_key(tuple.proto);
    let state = s.entry.flags & STATE;
    let touched = t.flow(&n.key, |other| {
        // What an earlier flow has left behind says nothing of the one that has its tuple now.
        if !other.reply_key(tuple.proto).same(tuple) {
            return;
        }
        // It is as young, but its next packet is still to look for its way, which it alone needs.
        if other.last_seen != now {
            other.last_seen = now.wrapping_sub(1);
        }
        other.flags = other.flags & !STATE | state;
    });
    if touched.is_none() && !begins_by_itself(&s.entry, tuple.proto) {
        n.reply = s.entry.reverse(tuple);
        if t.insert_flow(&n.key, &n.reply).is_ok() {
            t.count(Counter::FlowEntriesRebuilt);
        }
    }
}

/// Whether the other half is left to the client's next packet: of a service's UDP flow, which the daemon removes when its
/// backend goes. An answer that is still on its way must not lead the client there again.
#[inline(always)]
fn begins_by_itself(entry: &CtEntry, proto: Proto) -> bool {
    proto == Proto::UDP && entry.flags & CtEntry::REPLY != 0 && entry.service != 0
}
