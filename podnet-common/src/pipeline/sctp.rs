//! SCTP's checksum, which is a CRC of the whole packet (RFC 9260, section 6.8). Bringing it up to date takes the kernel's
//! verifier thousands of instructions, so it is done in a program of its own, when the ports have been replaced.

use crate::{
    checksum,
    layout::{CtEntry, Scratch},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Packet, Sctp},
    verdict::Reason,
};

use super::{
    Place, Stage, Tables, Verdict,
    family::{Family, Parsed, V4, V6, parse},
    hot::{HEADERS, depart, ports_word},
};

/// Has the checksum of a translated packet brought up to date, if its ports have changed.
#[inline(always)]
pub(super) fn summed<F: Family, P: Packet>(p: &P, s: &mut Scratch, v: &Parsed<F>, verdict: Verdict) -> Verdict {
    s.after = F::end(&v.header, p.frame_len()).wrapping_sub(v.l4 as u32 + size_of::<u32>() as u32);
    let (mut sport, mut dport) = (s.tuple.sport, s.tuple.dport);
    if s.entry.flags & CtEntry::REWRITE_SRC != 0 {
        sport = s.entry.sport;
    }
    if s.entry.flags & CtEntry::REWRITE_DST != 0 {
        dport = s.entry.dport;
    }
    s.change = ports_word(s.tuple.sport.wire(), s.tuple.dport.wire()) ^ ports_word(sport.wire(), dport.wire());
    match verdict {
        Verdict::Drop(_) => verdict,
        _ if s.change == 0 => verdict,
        _ => Verdict::Tail(Stage::Sctp),
    }
}

/// Brings the checksum up to date and sends the packet on. Follows [`super::track`] or [`super::insert`] at the same hook.
#[inline(always)]
pub fn sctp<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    t.scratch(|s| {
        // First, before the verifier has several packets to think of.
        let difference = checksum::crc32c_difference(s.change, s.after & 0xffff);
        let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::Drop(Reason::Malformed) };
        let done = match ethernet.ethertype {
            ETHERTYPE_IPV4 => update::<V4, P>(p, difference),
            ETHERTYPE_IPV6 => update::<V6, P>(p, difference),
            _ => None,
        };
        if done.is_none() {
            return Verdict::Drop(Reason::StoreFailed);
        }
        if At::EGRESS { Verdict::Pass } else { depart(s.entry.out, s.entry.out_ifindex) }
    })
    .unwrap_or(Verdict::Drop(Reason::NoProgram))
}

#[inline(always)]
fn update<F: Family, P: Packet>(p: &mut P, difference: u32) -> Option<()> {
    let v = parse::<F, P>(p)?;
    let field: u32 = p.load(v.l4 + Sctp::CHECKSUM)?;
    let crc = u32::from_le(field) ^ difference;
    p.renew();
    p.store(v.l4 + Sctp::CHECKSUM, &crc.to_le())
}
