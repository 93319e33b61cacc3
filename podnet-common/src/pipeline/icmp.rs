//! ICMP errors about translated packets (RFC 792, RFC 4443, RFC 5508): a router, a host or the stack here quotes the
//! packet as it saw it, and the one who sent it must find in the quotation what it has sent. So path-MTU discovery
//! works through a service.
//!
//! An error about a packet travels the way that an answer to it would. The flow's entry for such an answer tells what
//! becomes of the quotation, of the error's destination, and of its source if it is the very host that was written to.
//!
//! An error is believed by what it quotes, so whoever guesses a connection's addresses and ports could end it or make it
//! slow. A pod, which is nobody's router, can only know of what was sent to itself, and who is outside only of what leaves
//! this node; and both tell it to the one who has sent that.

use crate::{
    addr::{Port, Proto},
    checksum,
    layout::{CtEntry, Network, NetworkKind, Out, Tuple},
    packet::{Ethernet, Icmp, Packet, Tcp, Udp},
    verdict::Reason,
};

use super::{
    Place, Stage, Tables, Verdict, admit,
    family::{Control, Family, Parsed, V4, V6, echo_ports},
    handover::{Handover, ToQuotation, ToSend},
    next_hop,
    rewrite::{depart, fits, has_macs, ports_word},
    staged,
    track::sent_twice,
};

/// What is read at once: Ethernet, IP, the ICMP header, the quoted IP and TCP headers.
const HEADERS: u32 = 14 + 60 + 8 + 60 + 20;

/// Recognises the flow that an ICMP error is about. Follows [`enter`](super::enter()) at the same hook.
#[inline(always)]
pub fn icmp<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    staged::<At, T>(t, |h| {
        let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::drop(Reason::Malformed) };
        if h.packet.v6() {
            recognise::<At, V6, P, T>(p, t, &ethernet, h)
        } else {
            recognise::<At, V4, P, T>(p, t, &ethernet, h)
        }
    })
}

#[inline(always)]
fn recognise<At: Place, F: Family, P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    ethernet: &Ethernet,
    h: &mut Handover,
) -> Verdict {
    let v = h.packet.parsed::<F>();
    if let Err(reason) = admit::source::<At, P, T>(p, t, ethernet, &h.packet.tuple, F::V6) {
        return Verdict::drop(reason);
    }
    let (tuple, answer) = (&h.packet.tuple, &mut h.quotation.answer);
    // What doesn't even quote a header is about no flow.
    if let Some(quoted) = quoted::<F, P>(p, &v, answer) {
        if !can_know::<At, T>(t, tuple, answer) {
            return Verdict::drop(Reason::UnrelatedIcmpError);
        }
        // It goes to the one who has sent what it quotes, and to no other.
        let known =
            quoted.is_some() && answer.dst.same(&tuple.dst) && t.flow(answer, |entry| h.send.entry = *entry).is_some();
        if known {
            let own = || t.network(&tuple.dst).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
            let twice = sent_twice::<At, T>(t, &h.send.entry, ethernet) && !own();
            if twice {
                return Verdict::drop(Reason::NotForThisNode);
            }
            if !At::EGRESS {
                next_hop::find::<T>(t, p.ifindex(), &tuple.src, &mut h.send);
            }
            return Verdict::tail(Stage::Quotation);
        }
    }
    // About a packet of no flow. Up the stack one to a service would find its way back here.
    if At::EGRESS { Verdict::PASS } else { Verdict::tail(Stage::Classify) }
}

/// Translates an ICMP error about a flow whose entry for answers is handed over, with the way of the error in it. Follows [`icmp`] or
/// [`classify`](super::classify()) at the same hook.
#[inline(always)]
pub fn quotation<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    staged::<At, T>(t, |h| if h.packet.v6() { about_flow::<At, V6, P>(p, h) } else { about_flow::<At, V4, P>(p, h) })
}

#[inline(always)]
fn about_flow<At: Place, F: Family, P: Packet>(p: &mut P, h: &mut Handover) -> Verdict {
    let mut v = h.packet.parsed::<F>();
    let Handover { send: s, quotation: ToQuotation { answer }, .. } = h;
    let Some(Some(mut quoted)) = quoted::<F, P>(p, &v, answer) else { return Verdict::drop(Reason::Malformed) };
    translate::<At, F, P>(p, s, answer, &mut v, &mut quoted).unwrap_or(Verdict::drop(Reason::PacketWriteFailed))
}

/// Whether an error's sender can know of what it quotes. `answer` has the addresses of an answer to that.
// On its own, like others: the stack is small.
#[inline(never)]
fn can_know<At: Place, T: Tables>(t: &T, error: &Tuple, answer: &Tuple) -> bool {
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

/// The packet that an error quotes.
struct Quoted<F: Family> {
    header: F::Header,
    /// Offset of its transport header.
    l4: usize,
}

/// Reads the quotation, and the tuple of an answer to what it quotes. `None`: it doesn't even quote a header; within: none of
/// a packet that flows have, so that the tuple has addresses only.
#[inline(always)]
fn quoted<F: Family, P: Packet>(p: &P, v: &Parsed<F>, answer: &mut Tuple) -> Option<Option<Quoted<F>>> {
    let at = v.l4 + size_of::<Icmp>();
    *answer = Tuple::default();
    let header: F::Header = p.load(at)?;
    *answer = Tuple { src: F::dst(&header), dst: F::src(&header), ..Tuple::default() };
    Some(transport::<F, P>(p, v, header, at, answer))
}

/// The rest of it, from a quotation that begins at `at`.
#[inline(always)]
fn transport<F: Family, P: Packet>(
    p: &P,
    v: &Parsed<F>,
    header: F::Header,
    at: usize,
    answer: &mut Tuple,
) -> Option<Quoted<F>> {
    let (proto, len) = F::quoted_transport(&header)?;
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
    // An answer's source is what was written to.
    (answer.sport, answer.dport, answer.proto) = (dport, sport, proto);
    Some(Quoted { header, l4 })
}

/// Translates an error as its flow's entry says, whose key is there too.
#[inline(always)]
fn translate<At: Place, F: Family, P: Packet>(
    p: &mut P,
    s: &mut ToSend,
    answer: &Tuple,
    v: &mut Parsed<F>,
    quoted: &mut Quoted<F>,
) -> Option<Verdict> {
    if At::EGRESS {
        s.entry.out = Out::Stack as u8;
    } else if s.entry.out_ifindex.0 == 0 || !fits::<F, P>(p, v, s.entry.out_mtu as u32) {
        if s.entry.flags & CtEntry::ONE_WAY != 0 {
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
    if has_macs(entry.out) {
        p.store(0, &entry.macs)?;
    }
    // ICMP for IPv4 has no pseudo header.
    p.update_l4_checksum(v.l4 + Icmp::CHECKSUM, if F::V6 { pseudo } else { 0 }, data, false, F::V6)?;
    Some(depart(entry.out, entry.out_ifindex, &s.hop))
}

/// Rewrites the quotation, which goes the other way than the answers that the entry is for, and returns the
/// difference that it makes to the ICMP checksum.
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
        // The port that isn't there is zero.
        let identifier = |sport: Port, dport: Port| (sport.wire() | dport.wire()) as u32;
        (identifier(answer.dport, answer.sport), identifier(sport, dport))
    } else {
        (old_ports, ports_word(sport.wire(), dport.wire()))
    };
    let ports = checksum::difference(old_ports, new_ports);
    // An IPv4 header's own checksum makes up for its addresses.
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
    // The quotation may end before it, and SCTP's is of another kind, which nobody can check without the rest.
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

/// The first two bytes of a word as it lies in memory.
#[inline(always)]
fn low_half(word: u32) -> u16 {
    let [a, b, ..] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

/// The last two.
#[inline(always)]
fn high_half(word: u32) -> u16 {
    let [.., a, b] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}
