//! Flow state: packets that change it, one packet per flow and tick, and fragments.
//!
//! A flow has two entries in `conntrack`, one per direction. A flow forwarded to another node for direct server return
//! has only the client's. Timeouts are left to the daemon's sweeps.

use crate::{
    addr::{IfIndex, Proto},
    layout::{CtEntry, FragmentKey, FragmentPorts, Out, Tuple},
    packet::{Ethernet, Packet, Sctp, Tcp},
    verdict::{Counter, Reason},
};

use super::{
    HookPoint, Stage, Tables, Verdict, admit,
    family::FragmentKind,
    handover::{Handover, ToInsert},
    headers::Headers,
    next_hop, policy,
    run::run_stage,
};

/// Handles a packet that may change the state of its flow. Follows [`enter`](super::enter()) at the same hook.
#[inline(always)]
pub fn track<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    run_stage::<At, T>(t, |h| {
        let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::drop(Reason::Malformed) };
        match examine::<At, P, T>(p, t, &ethernet, &mut h.packet) {
            Ok(ports) => follow_or_classify::<At, T>(t, h, p.ifindex(), &ethernet, ports),
            Err(reason) => Verdict::drop(reason),
        }
    })
}

#[inline(always)]
fn follow_or_classify<At: HookPoint, T: Tables>(
    t: &T,
    h: &mut Handover,
    from: IfIndex,
    ethernet: &Ethernet,
    ports: bool,
) -> Verdict {
    let (proto, seen, now) = (h.packet.tuple.proto, Seen { tcp_flags: h.packet.tcp_flags }, t.advance());
    let mut current = false;
    let known = ports
        && t.flow(&h.packet.tuple, |own| {
            current = record_in_tick::<At>(own, proto, seen, from, now);
            h.send.entry = *own;
        })
        .is_some();
    if current {
        h.send.resolved = 1;
        update_other_half(t, &h.packet.tuple, &h.send.entry, &mut h.insert, now);
        return Verdict::tail(Stage::Send);
    }
    let entry = &h.send.entry;
    if known
        && !begins_new_flow::<At>(entry, seen, now)
        && !forwarded_twice::<At, T>(t, entry, ethernet)
        && !has_another_pod::<At, T>(t, entry, from)
    {
        if entry.out == Out::Denied as u8
            && let Some(reason) = still_denied(t, h)
        {
            return Verdict::drop(reason);
        }
        follow::<At, T>(t, h, from, seen, now);
        return Verdict::tail(Stage::Send);
    }
    if At::EGRESS {
        return policy::leaving::<At, T>(t, &h.packet, known, &mut h.insert.key);
    }
    h.classify.stale_flow = known as u32;
    Verdict::tail(Stage::Classify)
}

/// Whether the source's or the destination's address now belongs to another pod of this node than when network policy
/// evaluated the flow, or the destination's belonged to none then: it must be evaluated again.
#[inline(always)]
fn has_another_pod<At: HookPoint, T: Tables>(t: &T, entry: &CtEntry, from: IfIndex) -> bool {
    if !policy::applies::<At, T>(t) {
        return false;
    }
    // No other interface may send with a pod's address. A half that has had no packet yet has no interface.
    if At::FROM_POD && entry.out_mtu != 0 && !entry.leaves_stack() && entry.in_ifindex != from {
        return true;
    }
    // Packets that leave the stack have the pod's host end in the place of an ingress interface.
    let pod = if entry.leaves_stack() { !entry.in_ifindex.0 } else { entry.out_ifindex.0 };
    if At::TO_POD {
        return entry.leaves_stack() && pod != from.0;
    }
    // A half that has had no packet yet has no egress.
    entry.out_mtu != 0 && t.endpoint(&entry.dst).is_some_and(|endpoint| endpoint.ifindex.0 != pod)
}

/// Why a packet of a flow that was denied is still dropped. The flow stays denied for as long as packets come: without
/// its entries, the next packet of either end would begin a flow in its own direction. If it is allowed again, its
/// entry gets the egress by which the packet continues; only whether that is the stack counts.
// Out of line: rarely called.
#[inline(never)]
fn still_denied<T: Tables>(t: &T, h: &mut Handover) -> Option<Reason> {
    let entry = &mut h.send.entry;
    let denied = policy::of_flow(t, &h.packet.tuple, entry);
    if denied.is_nothing() {
        entry.out = if entry.out_ifindex.0 == 0 { Out::Stack as u8 } else { Out::Link as u8 };
        return None;
    }
    let now = t.now();
    t.flow(&h.packet.tuple, |own| own.last_seen = now);
    Some(denied.count(t))
}

/// What a packet says about its connection.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// TCP flags, or the equivalent flags of an SCTP packet, else zero.
    pub tcp_flags: u8,
}

impl Seen {
    /// Whether the packet opens a connection.
    #[inline(always)]
    fn opens(self) -> bool {
        self.tcp_flags & (Tcp::SYN | Tcp::ACK | Tcp::FIN | Tcp::RST) == Tcp::SYN
    }
}

/// Checks the source of a packet and completes its headers: ports of fragments, flags of SCTP. Returns whether the
/// tuple has ports.
#[inline(always)]
fn examine<At: HookPoint, P: Packet, T: Tables>(
    p: &P,
    t: &T,
    ethernet: &Ethernet,
    packet: &mut Headers,
) -> Result<bool, Reason> {
    admit::check_source::<At, P, T>(p, t, ethernet, &packet.tuple, packet.v6())?;
    let (fragment, ports) = (packet.fragment(), packet.ports());
    // An ICMP error is short, and what it quotes must be checked.
    if packet.icmp_error() && fragment == FragmentKind::First && !At::EGRESS {
        return Err(Reason::UnrelatedIcmpError);
    }
    if ports && packet.tuple.proto == Proto::SCTP {
        packet.tcp_flags = chunk_flags(p, packet.l4());
    }
    Ok(if fragment == FragmentKind::Unfragmented { ports } else { fragment_ports(t, packet) })
}

/// First chunk of an SCTP packet as the equivalent TCP flags (RFC 9260, section 3.2).
#[inline(always)]
fn chunk_flags<P: Packet>(p: &P, l4: usize) -> u8 {
    // Type and flags: the verifier can't follow the bounds check of a single byte.
    let Some([kind, _]) = p.load::<[u8; 2]>(l4 + size_of::<Sctp>()) else { return 0 };
    match kind {
        // INIT, INIT ACK, ABORT, SHUTDOWN COMPLETE.
        1 => Tcp::SYN,
        2 => Tcp::SYN | Tcp::ACK,
        6 | 14 => Tcp::RST,
        _ => 0,
    }
}

/// Stores the ports of a first fragment, or looks them up for a later one. Returns whether the ports are known.
// Out of line: its key takes stack.
#[inline(never)]
fn fragment_ports<T: Tables>(t: &T, packet: &mut Headers) -> bool {
    let Tuple { src, dst, sport, dport, proto, .. } = packet.tuple;
    let key = FragmentKey { src, dst, id: packet.id(), proto, _pad: [0; 3] };
    if packet.fragment() == FragmentKind::Later {
        let Some(ports) = t.fragment(&key) else { return false };
        packet.set_ports(ports);
    } else if packet.ports() {
        t.set_fragment(&key, &FragmentPorts { sport, dport });
    }
    packet.ports()
}

/// Whether a packet with the tuple of an existing flow begins a new one, in the same or in the opposite direction. The
/// tuple of a closed connection may be reused (RFC 6191). So may that of an open one if its client sends a new SYN,
/// because the backend may be gone. A SYN from outside may be spoofed, so it is passed to the backend first: if the
/// backend still has the connection, it answers (RFC 5961, section 4.2); if it doesn't answer, the client retransmits.
/// Whether a forwarded flow is closed is unknown on this node.
#[inline(always)]
pub(super) fn begins_new_flow<At: HookPoint>(entry: &CtEntry, seen: Seen, now: u32) -> bool {
    let known_sender = (At::FROM_POD || At::FROM_HOST) && !entry.opening();
    let unanswered = entry.opening() && now.wrapping_sub(entry.last_seen) >= ANSWER;
    let over = (entry.closed() && !entry.doubtful()) || entry.flags & CtEntry::ONE_WAY != 0;
    // Without translation, the server's address and port are its own, and may be those of a client as well.
    let opposite = entry.flags & (CtEntry::REPLY | CtEntry::REWRITE_SRC | CtEntry::REWRITE_DST) == CtEntry::REPLY;
    let again = (over || known_sender || unanswered) && entry.flags & CtEntry::REPLY == 0;
    seen.opens() && (again || opposite)
}

/// Time for a backend to answer a SYN from outside, in ticks. At least one whole tick, since `last_seen` may be one
/// tick older than the last packet. Linux answers one such packet per connection within half a second
/// (`tcp_invalid_ratelimit`).
const ANSWER: u32 = 3;

/// Whether another node has forwarded a packet that this node would forward as well. Nodes may disagree on a backend if
/// they chose at different times, and the packet could loop.
#[inline(always)]
pub(super) fn forwarded_twice<At: HookPoint, T: Tables>(t: &T, entry: &CtEntry, ethernet: &Ethernet) -> bool {
    At::FROM_UPLINK && entry.flags & CtEntry::ONE_WAY != 0 && t.is_peer(&ethernet.src)
}

/// Updates both entries of a known flow for a packet, and finds its egress.
#[inline(always)]
fn follow<At: HookPoint, T: Tables>(t: &T, h: &mut Handover, from: IfIndex, seen: Seen, now: u32) {
    record::<At>(&mut h.send.entry, h.packet.tuple.proto, seen, from, now);
    if !At::EGRESS {
        if stays_with_stack::<At, T>(t, h) {
            next_hop::set_stack(&mut h.send.entry);
        } else {
            next_hop::find::<T>(t, from, &h.packet.tuple.src, &mut h.send);
        }
    }
    t.flow(&h.packet.tuple, |own| *own = h.send.entry);
    if h.send.entry.flags & CtEntry::ONE_WAY == 0 {
        update_other_half(t, &h.packet.tuple, &h.send.entry, &mut h.insert, now);
    }
}

/// Records a packet in its own half.
#[inline(always)]
fn record<At: HookPoint>(own: &mut CtEntry, proto: Proto, seen: Seen, from: IfIndex, now: u32) {
    let before = own.flags;
    own.flags = state::<At>(own, proto, seen, now);
    let opening = own.opening();
    // A retransmitted SYN doesn't extend the lifetime of an opening flow: without a handshake, the flow must time out.
    if !(opening && before & CtEntry::OPENING != 0 && seen.tcp_flags & Tcp::SYN != 0) {
        own.last_seen = last_seen_now(proto, opening, now);
    }
    own.in_ifindex = At::side(from);
}

/// Records a packet in its own half if it needs no lookup besides. Returns whether that is so; then
/// [`update_other_half`] must follow.
#[inline(always)]
pub(super) fn record_in_tick<At: HookPoint>(
    own: &mut CtEntry,
    proto: Proto,
    seen: Seen,
    from: IfIndex,
    now: u32,
) -> bool {
    let current = keeps_egress::<At>(own, proto, from, now) && !begins_new_flow::<At>(own, seen, now);
    if current {
        record::<At>(own, proto, seen, from, now);
    }
    current
}

/// Whether a packet needs no lookup besides its half: another from the same interface was tracked in this tick, with
/// all lookups.
#[inline(always)]
fn keeps_egress<At: HookPoint>(own: &CtEntry, proto: Proto, from: IfIndex, now: u32) -> bool {
    found_in_tick(own, proto, now)
        && own.in_ifindex == At::side(from)
        && !own.needs_lookup()
        && own.flags & CtEntry::ONE_WAY == 0
}

/// Whether a half's egress was found in this tick.
#[inline(always)]
fn found_in_tick(half: &CtEntry, proto: Proto, now: u32) -> bool {
    // A half that has had no packet yet has no egress.
    half.out_mtu != 0 && half.last_seen == last_seen_now(proto, half.opening(), now)
}

/// Whether packets of an untranslated flow are left to the stack because those before were, or because their flow came
/// from there: it may translate them.
#[inline(always)]
fn stays_with_stack<At: HookPoint, T: Tables>(t: &T, h: &mut Handover) -> bool {
    const TRANSLATED: u8 = CtEntry::REWRITE_SRC | CtEntry::REWRITE_DST | CtEntry::ONE_WAY;
    let entry = &h.send.entry;
    if !At::FROM_POD || !policy::applies::<At, T>(t) || entry.flags & TRANSLATED != 0 {
        return false;
    }
    // A half that has had no packet yet has no egress.
    let stays = if entry.out_mtu != 0 {
        entry.out == Out::Stack as u8
    } else {
        entry.flags & CtEntry::REPLY != 0 && client_leaves_stack(t, &h.packet.tuple, &mut h.insert.key)
    };
    // Pods of this node reach each other directly, whatever their address was when the flow began.
    stays && t.endpoint(&entry.dst).is_none()
}

/// Whether the client's half of an untranslated flow leaves the stack. `key` is memory for a key.
// Out of line: rarely called.
#[inline(never)]
fn client_leaves_stack<T: Tables>(t: &T, answer: &Tuple, key: &mut Tuple) -> bool {
    *key = answer.reversed();
    t.flow(key, |client| client.leaves_stack()) == Some(true)
}

/// Value of [`CtEntry::last_seen`] for a packet seen now: one tick earlier if the flow is an opening TCP connection, so
/// that its next packet is tracked as well.
#[inline(always)]
pub(super) fn last_seen_now(proto: Proto, opening: bool, now: u32) -> u32 {
    now.wrapping_sub((opening && proto == Proto::TCP) as u32)
}

/// Flags of a flow's entry after a packet.
#[inline(always)]
fn state<At: HookPoint>(entry: &CtEntry, proto: Proto, seen: Seen, now: u32) -> u8 {
    let reply = entry.flags & CtEntry::REPLY != 0;
    let mut flags = entry.flags;
    if reply {
        flags |= CtEntry::REPLIED;
    }
    if seen.tcp_flags & Tcp::RST != 0 {
        // From outside, an RST may be spoofed, and its receiver may ignore it (RFC 5961, section 3.2): the connection
        // is closed unless packets follow. Closing an opening connection loses nothing.
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
        // Each side acknowledges only what it has received: the client the backend's SYN, the backend what followed.
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

/// Updates the other half of a flow, or rebuilds it. `own` is a copy of the half of packets with `tuple`.
#[inline(always)]
pub(super) fn update_other_half<T: Tables>(t: &T, tuple: &Tuple, own: &CtEntry, n: &mut ToInsert, now: u32) {
    const STATE: u8 = CtEntry::REPLIED | CtEntry::CLOSED | CtEntry::OPENING;
    let last_seen = own.last_seen;
    n.key.proto = tuple.proto;
    own.write_reply_key(&mut n.key);
    let state = own.flags & STATE;
    let touched = t.flow(&n.key, |other| {
        // Left behind by an earlier flow, so unrelated to the current flow with this tuple.
        if !other.reply_key(tuple.proto).same(tuple) {
            return;
        }
        let found = found_in_tick(other, tuple.proto, now);
        other.flags = other.flags & !STATE | state;
        other.last_seen = last_seen;
        // Just as recent, but its next packet must still be tracked, to find the egress for its own direction.
        if !found && found_in_tick(other, tuple.proto, now) {
            other.last_seen = last_seen.wrapping_sub(1);
        }
    });
    if touched.is_none() && !left_to_client(own, tuple.proto) {
        n.reply = own.reverse(tuple);
        if t.insert_flow(&n.key, &n.reply).is_ok() {
            t.count(Counter::FlowEntriesRebuilt);
        }
    }
}

/// Whether the other half is left to the client's next packet, not rebuilt. True for UDP flows of services, which the
/// daemon removes together with their backend: a late reply must not direct the client to that backend again.
#[inline(always)]
fn left_to_client(entry: &CtEntry, proto: Proto) -> bool {
    proto == Proto::UDP && entry.flags & CtEntry::REPLY != 0 && entry.service != 0
}
