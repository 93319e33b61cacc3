//! The first program of every hook: established flows, and who takes the rest.

use crate::{
    addr::{IfIndex, Mac, Proto},
    checksum,
    layout::{CtEntry, Frontend, Hook, NetworkKind, Out},
    packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Icmp, Packet, Tcp, Udp},
    verdict::Reason,
};

use super::{
    Place, Stage, Tables, Verdict, checks,
    direct::{answers_collide, direct},
    family::{Family, Parsed, Piece, V4, V6, parse},
    frontend,
};

/// What is read of a packet at once: Ethernet, the longest IPv4 header or IPv6 with an extension, TCP.
pub(super) const HEADERS: u32 = 14 + 60 + 20;

/// Handles a packet at a hook.
#[inline(always)]
pub fn enter<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    // Another link's, which only shares the interface.
    if p.tagged() {
        let of_pod = At::HOOK as u32 == Hook::FromPod as u32;
        return if of_pod { Verdict::Drop(Reason::NotIp) } else { Verdict::Pass };
    }
    p.pull(HEADERS);
    let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::Drop(Reason::Malformed) };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => family::<At, V4, P, T>(p, t, &ethernet),
        ETHERTYPE_IPV6 => family::<At, V6, P, T>(p, t, &ethernet),
        ETHERTYPE_ARP if At::HOOK as u32 == Hook::FromPod as u32 => match checks::arp(p, t, &ethernet) {
            Ok(()) => Verdict::Pass,
            Err(reason) => Verdict::Drop(reason),
        },
        _ if At::HOOK as u32 == Hook::FromPod as u32 => Verdict::Drop(Reason::NotIp),
        _ => Verdict::Pass,
    }
}

/// Does what can be done for a packet from outside before the kernel makes anything of it: sends on those of established
/// flows that leave by an uplink again, drops what may not come in. What passes is still to be handled by the hooks that
/// follow.
#[inline(always)]
pub fn express<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::Drop(Reason::Malformed) };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => express_family::<At, V4, P, T>(p, t, &ethernet),
        ETHERTYPE_IPV6 => express_family::<At, V6, P, T>(p, t, &ethernet),
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn express_family<At: Place, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet) -> Verdict {
    let Some(v) = parse::<F, P>(p) else { return Verdict::Drop(Reason::Malformed) };
    // It would be taken for the flow of an IPv4 packet.
    if F::mapped(&v.tuple.src) {
        return Verdict::Drop(Reason::MappedAddress);
    }
    if v.ports && v.piece == Piece::Whole {
        let now = t.now();
        let sent = t.flow(&v.tuple, |entry| {
            // Of a packet for another machine, which it has sent to all, there would be two. And not every interface sends
            // what XDP gives it.
            let [_, own]: [Mac; 2] = bytemuck::cast(entry.macs);
            let sends = if entry.out_ifindex == p.ifindex() {
                own == ethernet.dst
            } else {
                t.config().is_some_and(|config| config.is_uplink(entry.out_ifindex))
            };
            if entry.out != Out::Link as u8 || !sends {
                return Verdict::Pass;
            }
            match established::<At, F, P>(p, now, &v, entry) {
                // The other hooks' matter.
                Verdict::Tail(_) => Verdict::Pass,
                verdict => verdict,
            }
        });
        if let Some(verdict @ (Verdict::Forward(..) | Verdict::Drop(_))) = sent {
            return verdict;
        }
    }
    if let Err(reason) = checks::source::<At, F, P, T>(p, t, ethernet, &v.tuple) {
        return Verdict::Drop(reason);
    }
    if !checks::may_use_cluster_ip::<At, T>(t)
        && t.network(&v.tuple.dst).is_some_and(|n| n.kind == NetworkKind::Services as u32)
        && t.frontend(&frontend::exact(&v.tuple)).is_none_or(|f| f.flags & Frontend::EXTERNAL == 0)
    {
        return Verdict::Drop(Reason::ClusterIpFromOutside);
    }
    Verdict::Pass
}

#[inline(always)]
fn family<At: Place, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet) -> Verdict {
    let Some(v) = parse::<F, P>(p) else { return Verdict::Drop(Reason::Malformed) };
    // In the tables it would be taken for the IPv4 address (and on a wire it means nothing: RFC 4038, section 4.2). No
    // flow has one such address, so the destination's turn comes with the other checks.
    if F::mapped(&v.tuple.src) {
        return Verdict::Drop(Reason::MappedAddress);
    }
    if v.piece != Piece::Whole {
        return Verdict::Tail(Stage::Track);
    }
    if v.ports {
        let now = t.now();
        if let Some(verdict) = t.flow(&v.tuple, |entry| established::<At, F, P>(p, now, &v, entry)) {
            return verdict;
        }
        if !At::EGRESS && t.frontend(&frontend::exact(&v.tuple)).is_some() {
            return Verdict::Tail(Stage::Begin);
        }
    }
    if v.icmp_error {
        return Verdict::Tail(Stage::Icmp);
    }
    if answers_collide::<At, T>(t, &v.tuple, v.tcp_flags) {
        return Verdict::Tail(Stage::Begin);
    }
    if At::EGRESS {
        let noted = v.ports && frontend::speaks_for_itself(t, &v.tuple);
        return if noted { Verdict::Tail(Stage::Begin) } else { Verdict::Pass };
    }
    direct::<At, F, P, T>(p, t, ethernet, &v)
}

/// A packet of a known flow: forwarded here when nothing about it is new, else left to [`Stage::Track`].
#[inline(always)]
fn established<At: Place, F: Family, P: Packet>(p: &mut P, now: u32, v: &Parsed<F>, entry: &CtEntry) -> Verdict {
    // A way that has to be looked up, and a protocol that isn't done here.
    if matches!(entry.out, o if o == Out::Via as u8 || o == Out::Uplink as u8)
        || !(v.tuple.proto == Proto::TCP || v.tuple.proto == Proto::UDP)
    {
        return Verdict::Tail(Stage::Track);
    }
    if entry.last_seen != now
        || entry.in_ifindex != At::side(p.ifindex())
        || v.tcp_flags & (Tcp::SYN | Tcp::FIN | Tcp::RST) != 0
        || (!At::EGRESS && !fits::<F, P>(p, v, entry.out_mtu as u32))
    {
        return Verdict::Tail(Stage::Track);
    }
    translate::<At, F, P, false>(p, v, entry)
}

/// Whether a packet may leave by a way without the stack: its lifetime and its length allow it.
#[inline(always)]
pub(super) fn fits<F: Family, P: Packet>(p: &P, v: &Parsed<F>, mtu: u32) -> bool {
    F::ttl(&v.header) > 1 && p.segment_len(v.headers) <= mtu
}

/// Rewrites a packet as the entry says. The verdict is where it goes. `ANY`: it may be of any protocol that has flows,
/// and in pieces; else it is a whole packet of TCP or UDP.
#[inline(always)]
pub(super) fn translate<At: Place, F: Family, P: Packet, const ANY: bool>(
    p: &mut P,
    v: &Parsed<F>,
    entry: &CtEntry,
) -> Verdict {
    match rewrite::<At, F, P, ANY>(p, v, entry) {
        Some(verdict) => verdict,
        None => Verdict::Drop(Reason::StoreFailed),
    }
}

#[inline(always)]
fn rewrite<At: Place, F: Family, P: Packet, const ANY: bool>(
    p: &mut P,
    v: &Parsed<F>,
    entry: &CtEntry,
) -> Option<Verdict> {
    let mut header = v.header;
    let (mut sport, mut dport) = (v.tuple.sport, v.tuple.dport);
    let (src, dst) = (entry.flags & CtEntry::REWRITE_SRC != 0, entry.flags & CtEntry::REWRITE_DST != 0);
    let mut pseudo = 0;
    if src {
        pseudo += F::set_src(&mut header, &entry.src);
        sport = entry.sport;
    }
    if dst {
        pseudo += F::set_dst(&mut header, &entry.dst);
        dport = entry.dport;
    }
    F::update_checksum(&mut header, pseudo);
    let out = if At::EGRESS { Out::Stack as u8 } else { entry.out };
    // On other ways the stack takes one off, or there is no router in between (RFC 1812, section 5.3.1).
    if out != Out::Stack as u8 && out != Out::Host as u8 {
        F::decrement_ttl(&mut header);
    }
    F::write(p, &header, src, dst)?;
    if has_macs(out) {
        p.store(0, &entry.macs)?;
    }
    if (src || dst) && !(ANY && v.piece == Piece::Later) {
        let old = ports_word(v.tuple.sport.wire(), v.tuple.dport.wire());
        let new = ports_word(sport.wire(), dport.wire());
        if !ANY || v.tuple.proto == Proto::TCP || v.tuple.proto == Proto::UDP {
            p.store(v.l4, &new)?;
            let udp = v.tuple.proto == Proto::UDP;
            if !(udp && v.checksum == 0) {
                let field = v.l4 + if udp { Udp::CHECKSUM } else { Tcp::CHECKSUM };
                let data = if old == new { 0 } else { checksum::difference(old, new) };
                p.update_l4_checksum(field, pseudo, data, udp, F::V6)?;
            }
        } else if v.tuple.proto == Proto::SCTP {
            // The checksum, which covers no addresses, is a program of its own.
            p.store(v.l4, &new)?;
        } else {
            // The port that isn't there is zero.
            let (was, is) = (v.tuple.sport.wire() | v.tuple.dport.wire(), sport.wire() | dport.wire());
            p.store(v.l4 + Icmp::IDENTIFIER, &is)?;
            let data = checksum::difference(was as u32, is as u32);
            // ICMP for IPv4 has no pseudo header.
            p.update_l4_checksum(v.l4 + Icmp::CHECKSUM, if F::V6 { pseudo } else { 0 }, data, false, F::V6)?;
        }
    }
    Some(depart(out, entry.out_ifindex))
}

/// Whether packets leave that way with the MACs of their entry. `out` is an [`Out`] as a number.
#[inline(always)]
pub(super) fn has_macs(out: u8) -> bool {
    const WAYS: u32 = 1 << Out::Pod as u32
        | 1 << Out::Host as u32
        | 1 << Out::Link as u32
        | 1 << Out::Tunnel as u32
        | 1 << Out::Queue as u32;
    WAYS >> (out & 31) & 1 != 0
}

/// The verdict for a packet that is ready to leave. `out` is an [`Out`] as a number.
#[inline(always)]
pub(super) fn depart(out: u8, to: IfIndex) -> Verdict {
    match Out::from_number(out) {
        Out::Stack => Verdict::Pass,
        out => Verdict::Forward(out, to),
    }
}

/// Both ports as one word of the packet.
#[inline(always)]
pub(super) fn ports_word(sport: u16, dport: u16) -> u32 {
    let [a, b] = sport.to_ne_bytes();
    let [c, d] = dport.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
