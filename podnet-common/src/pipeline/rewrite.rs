//! Rewriting packets according to their flow's entry.

use crate::{
    addr::{Addr, IfIndex, Proto},
    checksum,
    layout::{CtEntry, Out},
    packet::{Icmp, Packet, Tcp, Udp},
    verdict::Reason,
};

use super::{
    Egress, HookPoint, Verdict,
    family::{Family, FragmentKind, Parsed},
};

/// Whether a packet can be forwarded without the stack: TTL and length allow it.
#[inline(always)]
pub(super) fn fits<F: Family, P: Packet>(p: &P, v: &Parsed<F>, mtu: u32) -> bool {
    F::ttl(&v.header) > 1 && p.segment_len(v.headers) <= mtu
}

/// Rewrites a packet according to its entry and returns the verdict; `hop` is the next hop for egress through the
/// neighbour table. With `ANY`, the packet may be of any tracked protocol, or a fragment; otherwise it must be an
/// unfragmented TCP or UDP packet.
#[inline(always)]
pub(super) fn translate<At: HookPoint, F: Family, P: Packet, const ANY: bool>(
    p: &mut P,
    v: &Parsed<F>,
    entry: &CtEntry,
    hop: &Addr,
) -> Verdict {
    match rewrite::<At, F, P, ANY>(p, v, entry, hop) {
        Some(verdict) => verdict,
        None => Verdict::drop(Reason::PacketWriteFailed),
    }
}

#[inline(always)]
fn rewrite<At: HookPoint, F: Family, P: Packet, const ANY: bool>(
    p: &mut P,
    v: &Parsed<F>,
    entry: &CtEntry,
    hop: &Addr,
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
    // Otherwise the stack decrements the TTL, or there is no router in between (RFC 1812, section 5.3.1).
    if out != Out::Stack as u8 && out != Out::Host as u8 {
        F::decrement_ttl(&mut header);
    }
    F::write(p, &header, src, dst)?;
    if uses_entry_macs(out) {
        p.store(0, &entry.macs)?;
    }
    if (src || dst) && !(ANY && v.fragment == FragmentKind::Later) {
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
            // The checksum, which doesn't cover addresses, is updated by a separate program.
            p.store(v.l4, &new)?;
        } else {
            // One of the two ports is absent and zero.
            let (old, new) = (v.tuple.sport.wire() | v.tuple.dport.wire(), sport.wire() | dport.wire());
            p.store(v.l4 + Icmp::IDENTIFIER, &new)?;
            let data = checksum::difference(old as u32, new as u32);
            // ICMP for IPv4 has no pseudo header.
            p.update_l4_checksum(v.l4 + Icmp::CHECKSUM, if F::V6 { pseudo } else { 0 }, data, false, F::V6)?;
        }
    }
    Some(verdict_for(out, entry.out_ifindex, hop))
}

/// Whether egress of this kind (an [`Out`] as a number) uses the MACs of the entry.
#[inline(always)]
pub(super) fn uses_entry_macs(out: u8) -> bool {
    const WAYS: u32 = 1 << Out::Pod as u32
        | 1 << Out::Host as u32
        | 1 << Out::Link as u32
        | 1 << Out::Tunnel as u32
        | 1 << Out::Queue as u32;
    WAYS >> (out & 31) & 1 != 0
}

/// Verdict on a packet that is ready to leave. `out` is an [`Out`] as a number.
#[inline(always)]
pub(super) fn verdict_for(out: u8, ifindex: IfIndex, hop: &Addr) -> Verdict {
    match Out::from_number(out) {
        Out::Stack => Verdict::PASS,
        out => Verdict::forward(Egress { out, ifindex, hop: *hop }),
    }
}

/// Both ports as one word of the packet, all in network byte order.
#[inline(always)]
pub(super) fn ports_word(sport: u16, dport: u16) -> u32 {
    let [a, b] = sport.to_ne_bytes();
    let [c, d] = dport.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
