//! Answers to packets that go no further, built from the packets themselves.
//!
//! On behalf of a service: a TCP reset (RFC 9293, section 3.10.7.1), an ICMP port unreachable (RFC 792; RFC 4443,
//! section 3.1) or an echo reply. On the path to it: the ICMP errors that a router sends.

use crate::{
    addr::{Addr, Proto},
    checksum,
    packet::{ETH, Ethernet, Icmp, Packet, Tcp},
    verdict::{Counter, Reason},
};

use super::{
    HookPoint, Tables, Verdict,
    family::{Family, FragmentKind, Parsed, V4, V6},
    handover::{ErrorKind, Handover},
    run::run_stage,
};

/// Turns a packet into its answer on behalf of a service. Resets, errors and later fragments are never answered (RFC
/// 1122, section 3.2.2). Follows the stage that rejected it, at the same hook.
#[inline(always)]
pub fn reject<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    run_stage::<At, T>(t, |h| {
        let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::UNANSWERED };
        if h.packet.v6() {
            answer_for_service::<V6, P, T>(p, t, &ethernet, h.packet.parsed())
        } else {
            answer_for_service::<V4, P, T>(p, t, &ethernet, h.packet.parsed())
        }
    })
}

/// Turns a packet into the ICMP error of a router on its path: TTL exceeded, or packet too big. Otherwise the same as
/// [`reject`].
#[inline(always)]
pub fn error<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    run_stage::<At, T>(t, |h| {
        let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::UNANSWERED };
        let made = if h.packet.v6() {
            router_error::<At, V6, P, T>(p, t, &ethernet, h)
        } else {
            router_error::<At, V4, P, T>(p, t, &ethernet, h)
        };
        finish(p, t, made, Counter::Rejected, Verdict::UNANSWERED)
    })
}

/// Verdict on an answer: sends and counts it if it could be `made`, or else returns `otherwise`.
#[inline(always)]
fn finish<P: Packet, T: Tables>(p: &P, t: &T, made: Option<()>, counter: Counter, otherwise: Verdict) -> Verdict {
    match made {
        Some(()) => {
            t.count(counter);
            Verdict::answer(p.ifindex())
        }
        None => otherwise,
    }
}

#[inline(always)]
fn answer_for_service<F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet, v: Parsed<F>) -> Verdict {
    if v.fragment == FragmentKind::Later {
        return Verdict::UNANSWERED;
    }
    if v.echo_request {
        let made = echo::<F, P>(p, ethernet, v);
        return finish(p, t, made, Counter::EchoReplies, Verdict::drop(Reason::PacketWriteFailed));
    }
    let made = if v.tuple.proto == Proto::TCP {
        reset::<F, P>(p, ethernet, &v)
    } else {
        icmp_error::<F, P>(p, ethernet, &v, &v.tuple.dst, F::UNREACHABLE, 0)
    };
    finish(p, t, made, Counter::Rejected, Verdict::UNANSWERED)
}

#[inline(always)]
fn router_error<At: HookPoint, F: Family, P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    ethernet: &Ethernet,
    h: &Handover,
) -> Option<()> {
    let v = h.packet.parsed::<F>();
    if v.icmp_error || v.fragment == FragmentKind::Later {
        return None;
    }
    // This node acts as the router. A process of the host would see its own address as that of a router.
    let node = t.config()?.node(F::V6);
    // Source address: that of the interface by which the error leaves (RFC 1812, section 4.3.2.4).
    let there = t.interface(&p.ifindex()).map(|interface| interface.addr(F::V6));
    let node = there.filter(|own| !own.is_none()).unwrap_or(node);
    let from = if At::FROM_HOST || node.is_none() { &v.tuple.dst } else { node };
    let (kind, rest) = if h.error.kind == ErrorKind::TtlExceeded as u32 {
        (F::EXCEEDED, 0)
    } else {
        (F::TOO_BIG, F::too_big(h.error.mtu))
    };
    icmp_error::<F, P>(p, ethernet, &v, from, kind, rest)
}

/// Turns an echo request into a reply. Exchanging the addresses changes no checksum.
#[inline(always)]
fn echo<F: Family, P: Packet>(p: &mut P, ethernet: &Ethernet, v: Parsed<F>) -> Option<()> {
    /// Default TTL of hosts (RFC 1700, "IP TTL parameter").
    const TTL: u8 = 64;
    let mut header = v.header;
    F::set_ttl(&mut header, TTL);
    F::set_src(&mut header, &v.tuple.dst);
    F::set_dst(&mut header, &v.tuple.src);
    let [kind, code]: [u8; 2] = p.load(v.l4)?;
    let answer = [F::ECHO_REPLY, code];
    let word = |bytes: [u8; 2]| u16::from_ne_bytes(bytes) as u32;
    let data = checksum::difference(word([kind, code]), word(answer));
    p.renew();
    p.store(v.l4, &answer)?;
    F::write(p, &header, true, true)?;
    p.store(0, &Ethernet { dst: ethernet.src, src: ethernet.dst, ..*ethernet })?;
    p.update_l4_checksum(v.l4 + Icmp::CHECKSUM, 0, data, false, F::V6)
}

#[inline(always)]
fn reset<F: Family, P: Packet>(p: &mut P, ethernet: &Ethernet, v: &Parsed<F>) -> Option<()> {
    let old: Tcp = p.load(v.l4)?;
    if old.flags & Tcp::RST != 0 {
        return None;
    }
    // Excludes padding of short Ethernet frames.
    let payload = F::end(&v.header, p.frame_len()).saturating_sub(ETH as u32 + v.headers);
    let mut tcp = Tcp { sport: old.dport, dport: old.sport, offset: 5 << 4, flags: Tcp::RST, ..Tcp::default() };
    if old.flags & Tcp::ACK != 0 {
        tcp.seq = old.ack;
    } else {
        let control = (old.flags & Tcp::SYN != 0) as u32 + (old.flags & Tcp::FIN != 0) as u32;
        tcp.ack = u32::from_be(old.seq).wrapping_add(payload).wrapping_add(control).to_be();
        tcp.flags |= Tcp::ACK;
    }
    let words: [u32; 5] = bytemuck::cast(tcp);
    tcp.checksum =
        !checksum::fold16(sum(&words) + pseudo(&v.tuple.dst, &v.tuple.src, Proto::TCP, size_of::<Tcp>() as u16));
    let ip = F::answer(&v.header, Proto::TCP, size_of::<Tcp>() as u16);
    let l4 = ETH + size_of::<F::Header>();
    p.resize((l4 + size_of::<Tcp>()) as u32)?;
    p.store(0, &Ethernet { dst: ethernet.src, src: ethernet.dst, ..*ethernet })?;
    p.store(ETH, &ip)?;
    p.store(l4, &tcp)
}

/// Turns a packet into an ICMP error about itself, sent by `from`. The error quotes the IP header without options and
/// the eight bytes that follow, by which the sender finds its socket (RFC 792).
#[inline(always)]
fn icmp_error<F: Family, P: Packet>(
    p: &mut P,
    ethernet: &Ethernet,
    v: &Parsed<F>,
    from: &Addr,
    [kind, code]: [u8; 2],
    rest: u32,
) -> Option<()> {
    let beginning: [u32; 2] = p.load(v.l4)?;
    let mut icmp = Icmp { kind, code, rest, ..Icmp::default() };
    let len = (size_of::<Icmp>() + size_of::<F::Header>() + size_of_val(&beginning)) as u16;
    let quoted = F::quote(&v.header, v.tuple.proto);
    let icmp_words: [u32; 2] = bytemuck::cast(icmp);
    let mut total = sum(&icmp_words) + F::sum(&quoted) + sum(&beginning);
    if F::V6 {
        total += pseudo(from, &v.tuple.src, F::ICMP, len);
    }
    icmp.checksum = !checksum::fold16(total);
    let mut ip = F::answer(&v.header, F::ICMP, len);
    let difference = F::set_src(&mut ip, from);
    F::update_checksum(&mut ip, difference);
    let at = ETH + size_of::<F::Header>();
    p.resize((at + len as usize) as u32)?;
    p.store(0, &Ethernet { dst: ethernet.src, src: ethernet.dst, ..*ethernet })?;
    p.store(ETH, &ip)?;
    p.store(at, &icmp)?;
    p.store(at + size_of::<Icmp>(), &quoted)?;
    p.store(at + size_of::<Icmp>() + size_of::<F::Header>(), &beginning)
}

/// Sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1). A mapped address has the same sum as its
/// IPv4 address, since `ffff` is zero in one's complement.
#[inline(always)]
fn pseudo(Addr(src): &Addr, Addr(dst): &Addr, proto: Proto, len: u16) -> u64 {
    sum(src) + sum(dst) + u16::from(proto.0).to_be() as u64 + len.to_be() as u64
}

/// Sum of words.
#[inline(always)]
pub(super) fn sum<const N: usize>(words: &[u32; N]) -> u64 {
    let mut total = 0;
    let mut i = 0;
    while i < N {
        total += words[i] as u64;
        i += 1;
    }
    total
}
