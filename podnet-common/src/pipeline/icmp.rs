//! ICMP errors about translated packets (RFC 792, RFC 4443, RFC 5508).
//!
//! A router, a host or the stack of this node quotes a packet as it saw it, but the sender must find in the quotation
//! what it sent. Translating the quotation makes path MTU discovery work through services.
//!
//! An error travels along the path of a reply to the quoted packet. The flow's entry for such a reply determines how to
//! rewrite the quotation, the destination of the error, and its source if that is the host to which the quoted packet
//! was sent.
//!
//! An error is trusted because of what it quotes, so guessing the addresses and ports of a connection would be enough
//! to end it or slow it down. Errors are therefore accepted only from senders that can have seen the quoted packet: a
//! pod, which is never a router, can have seen packets to itself only, and a sender outside only packets that leave
//! this node. And an error is delivered only to the sender of the quoted packet.

use crate::{
    addr::{Port, Proto},
    checksum,
    layout::{CtEntry, Network, NetworkKind, Out, Tuple},
    packet::{Ethernet, Icmp, Packet, Tcp, Udp},
    verdict::Reason,
};

use super::{
    HookPoint, Stage, Tables, Verdict, admit,
    family::{Control, Family, Parsed, V4, V6, echo_ports},
    handover::{Handover, ToQuotation, ToSend},
    next_hop, policy,
    rewrite::{fits, ports_word, uses_entry_macs, verdict_for},
    run::run_stage,
    track::forwarded_twice,
};

/// Number of bytes to make readable: Ethernet, IP, the ICMP header, the quoted IP and TCP headers.
const HEADERS: u32 = 14 + 60 + 8 + 60 + 20;

/// Identifies the flow that an ICMP error is about. Follows [`enter`](super::enter()) at the same hook.
#[inline(always)]
pub fn icmp<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    run_stage::<At, T>(t, |h| {
        let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::drop(Reason::Malformed) };
        if h.packet.v6() {
            recognise::<At, V6, P, T>(p, t, &ethernet, h)
        } else {
            recognise::<At, V4, P, T>(p, t, &ethernet, h)
        }
    })
}

#[inline(always)]
fn recognise<At: HookPoint, F: Family, P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    ethernet: &Ethernet,
    h: &mut Handover,
) -> Verdict {
    let v = h.packet.parsed::<F>();
    if let Err(reason) = admit::check_source::<At, P, T>(p, t, ethernet, &h.packet.tuple, F::V6) {
        return Verdict::drop(reason);
    }
    let (tuple, answer) = (&h.packet.tuple, &mut h.quotation.answer);
    // An error that doesn't quote a complete header belongs to no flow.
    if let Some(quoted) = quoted::<F, P>(p, &v, answer) {
        if !may_have_seen::<At, T>(t, tuple, answer) {
            return Verdict::drop(Reason::UnrelatedIcmpError);
        }
        // The error must be addressed to the sender of the quoted packet, whose flow network policy must still allow.
        let allowed = |entry: &mut CtEntry| {
            h.send.entry = *entry;
            entry.out != Out::Denied as u8
        };
        let known = quoted.is_some() && answer.dst.same(&tuple.dst) && t.flow(answer, allowed) == Some(true);
        if known {
            let own = || t.network(&tuple.dst).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
            let twice = forwarded_twice::<At, T>(t, &h.send.entry, ethernet) && !own();
            if twice {
                return Verdict::drop(Reason::NotForThisNode);
            }
            if !At::EGRESS {
                next_hop::find::<T>(t, p.ifindex(), &tuple.src, &mut h.send);
            }
            return Verdict::tail(Stage::Quotation);
        }
    }
    // About a packet of no flow. The stack would route an error to a service back here.
    if At::EGRESS {
        policy::leaving::<At, T>(t, &h.packet, false, &mut h.insert.key)
    } else {
        Verdict::tail(Stage::Classify)
    }
}

/// Translates an ICMP error about a flow. The handed-over entry is that for replies to the quoted packet, with the next
/// hop of the error. Follows [`icmp`] or [`classify`](super::classify()) at the same hook.
#[inline(always)]
pub fn quotation<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    run_stage::<At, T>(t, |h| {
        if h.packet.v6() { translate_error::<At, V6, P>(p, h) } else { translate_error::<At, V4, P>(p, h) }
    })
}

#[inline(always)]
fn translate_error<At: HookPoint, F: Family, P: Packet>(p: &mut P, h: &mut Handover) -> Verdict {
    let mut v = h.packet.parsed::<F>();
    let Handover { send: s, quotation: ToQuotation { answer }, .. } = h;
    let Some(Some(mut quoted)) = quoted::<F, P>(p, &v, answer) else { return Verdict::drop(Reason::Malformed) };
    translate::<At, F, P>(p, s, answer, &mut v, &mut quoted).unwrap_or(Verdict::drop(Reason::PacketWriteFailed))
}

/// Whether the sender of an error can have seen the packet that it quotes. `answer` has the addresses of a reply to
/// that packet.
// Out of line: stack is scarce.
#[inline(never)]
fn may_have_seen<At: HookPoint, T: Tables>(t: &T, error: &Tuple, answer: &Tuple) -> bool {
    let to_sender = answer.dst.same(&error.dst);
    if At::FROM_POD {
        return to_sender && answer.src.same(&error.src);
    }
    if At::FROM_UPLINK {
        let here = |n: &Network| n.kind == NetworkKind::LocalPods as u32 || n.kind == NetworkKind::LocalNode as u32;
        let stays = t.endpoint(&answer.src).is_some() || t.network(&answer.src).is_some_and(here);
        return !stays && (to_sender || t.endpoint(&error.dst).is_none());
    }
    true
}

/// The packet quoted by an ICMP error.
struct Quoted<F: Family> {
    header: F::Header,
    /// Offset of the quoted transport header in the frame.
    l4: usize,
}

/// Reads the quotation and the tuple of a reply to the quoted packet. `None` if it doesn't contain a complete IP
/// header. The inner `None` if it quotes no packet of a tracked protocol; the tuple then has addresses only.
#[inline(always)]
fn quoted<F: Family, P: Packet>(p: &P, v: &Parsed<F>, answer: &mut Tuple) -> Option<Option<Quoted<F>>> {
    let at = v.l4 + size_of::<Icmp>();
    *answer = Tuple::default();
    let header: F::Header = p.load(at)?;
    *answer = Tuple { src: F::dst(&header), dst: F::src(&header), ..Tuple::default() };
    Some(transport::<F, P>(p, v, header, at, answer))
}

/// Transport part of a quotation whose IP header is at offset `at`.
#[inline(always)]
fn transport<F: Family, P: Packet>(
    p: &P,
    v: &Parsed<F>,
    header: F::Header,
    at: usize,
    answer: &mut Tuple,
) -> Option<Quoted<F>> {
    let (proto, len) = F::quoted_transport(p, at, &header)?;
    let l4 = at + len;
    if l4 + size_of::<[u32; 2]>() > F::end(&v.header, p.frame_len()) as usize {
        return None;
    }
    let [first, second]: [u32; 2] = p.load(l4)?;
    let [kind, _, _, _] = first.to_ne_bytes();
    let (sport, dport) = if proto == F::ICMP {
        let request = match F::control(kind) {
            Control::EchoRequest => true,
            Control::EchoReply => false,
            Control::Error | Control::Other => return None,
        };
        echo_ports(low_half(second), request)
    } else {
        (Port::from_wire(low_half(first)), Port::from_wire(high_half(first)))
    };
    // The source of a reply is the destination of the quoted packet.
    (answer.sport, answer.dport, answer.proto) = (dport, sport, proto);
    Some(Quoted { header, l4 })
}

/// Translates an error according to its flow's entry; `answer` is the key of that entry.
#[inline(always)]
fn translate<At: HookPoint, F: Family, P: Packet>(
    p: &mut P,
    s: &mut ToSend,
    answer: &Tuple,
    v: &mut Parsed<F>,
    quoted: &mut Quoted<F>,
) -> Option<Verdict> {
    if At::EGRESS {
        s.entry.out = Out::Stack as u8;
    } else if s.entry.out_ifindex.0 == 0 || !fits::<F, P>(p, v, s.entry.out_mtu as u32) {
        // The stack has no route for packets forwarded to another node, and would discard the host's own: they come
        // back from podnet1 with an address of the host as source.
        let own = At::FROM_HOST && s.entry.flags & CtEntry::REWRITE_DST == 0;
        if s.entry.flags & CtEntry::ONE_WAY != 0 || own {
            return Some(Verdict::drop(Reason::NoRoute));
        }
        s.entry.out = Out::Stack as u8;
    }
    let data = rewrite_quotation::<F, P>(p, s, answer, v, quoted)?;
    let entry = &s.entry;
    let outer = &mut v.header;
    let mut pseudo = 0;
    if entry.flags & CtEntry::REWRITE_DST != 0 {
        pseudo += F::set_dst(outer, &entry.dst);
    }
    if entry.flags & CtEntry::REWRITE_SRC != 0 && v.tuple.src.same(&answer.src) {
        pseudo += F::set_src(outer, &entry.src);
    }
    F::update_checksum(outer, pseudo);
    if entry.out != Out::Stack as u8 && entry.out != Out::Host as u8 {
        F::decrement_ttl(outer);
    }
    p.renew();
    F::write(p, outer, true, true)?;
    if uses_entry_macs(entry.out) {
        p.store(0, &entry.macs)?;
    }
    // ICMP for IPv4 has no pseudo header.
    p.update_l4_checksum(v.l4 + Icmp::CHECKSUM, if F::V6 { pseudo } else { 0 }, data, false, F::V6)?;
    Some(verdict_for(entry.out, entry.out_ifindex, &s.hop))
}

/// Rewrites the quotation, whose direction is opposite to that of the entry, and returns the resulting difference of
/// the ICMP checksum.
#[inline(always)]
fn rewrite_quotation<F: Family, P: Packet>(
    p: &mut P,
    s: &ToSend,
    answer: &Tuple,
    v: &Parsed<F>,
    quoted: &mut Quoted<F>,
) -> Option<u64> {
    let (mut sport, mut dport) = (answer.dport, answer.sport);
    let old_ports = ports_word(sport.wire(), dport.wire());
    let mut addresses = 0;
    if s.entry.flags & CtEntry::REWRITE_DST != 0 {
        addresses += F::set_src(&mut quoted.header, &s.entry.dst);
        sport = s.entry.dport;
    }
    if s.entry.flags & CtEntry::REWRITE_SRC != 0 {
        addresses += F::set_dst(&mut quoted.header, &s.entry.src);
        dport = s.entry.sport;
    }
    F::update_checksum(&mut quoted.header, addresses);
    let echo = answer.proto == F::ICMP;
    let (old_ports, new_ports) = if echo {
        // One of the two ports is absent and zero.
        let identifier = |sport: Port, dport: Port| (sport.wire() | dport.wire()) as u32;
        (identifier(answer.dport, answer.sport), identifier(sport, dport))
    } else {
        (old_ports, ports_word(sport.wire(), dport.wire()))
    };
    let ports = checksum::difference(old_ports, new_ports);
    // The IPv4 header checksum compensates for the addresses.
    let mut data = ports + if F::V6 { addresses } else { 0 };
    let udp = answer.proto == Proto::UDP;
    let field = quoted.l4
        + if udp {
            Udp::CHECKSUM
        } else if echo {
            Icmp::CHECKSUM
        } else {
            Tcp::CHECKSUM
        };
    let covered = if echo && !F::V6 { 0 } else { checksum::fold32(addresses) as u64 };
    // The quotation may end before the checksum. SCTP's is a CRC, which the receiver can't verify without the rest of
    // the packet.
    if answer.proto != Proto::SCTP
        && field + size_of::<u16>() <= F::end(&v.header, p.frame_len()) as usize
        && let Some(old) = p.load::<u16>(field)
        && !(udp && old == 0)
    {
        let new = checksum::apply(old, covered + ports);
        data += checksum::difference(old as u32, new as u32);
        p.renew();
        p.store(field, &new)?;
    }
    p.renew();
    p.store(v.l4 + size_of::<Icmp>(), &quoted.header)?;
    p.renew();
    if echo {
        p.store(quoted.l4 + Icmp::IDENTIFIER, &(new_ports as u16))?;
    } else {
        p.store(quoted.l4, &new_ports)?;
    }
    Some(data)
}

/// First two bytes of a word in memory order.
#[inline(always)]
fn low_half(word: u32) -> u16 {
    let [a, b, ..] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

/// Last two bytes of a word in memory order.
#[inline(always)]
fn high_half(word: u32) -> u16 {
    let [.., a, b] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}
