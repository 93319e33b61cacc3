//! SCTP checksum: a CRC over the whole packet (RFC 9260, section 6.8).
//!
//! Updating it takes thousands of instructions to verify, so a separate program does it, and only if ports have
//! changed.

use crate::{
    checksum,
    layout::CtEntry,
    packet::{Packet, Sctp},
    verdict::Reason,
};

use super::{
    Action, HookPoint, Stage, Tables, Verdict,
    family::{Family, Parsed, V4, V6},
    handover::{Departure, Handover, ToSctp},
    rewrite::ports_word,
    run::run_stage,
};

/// Continues in [`Stage::Sctp`] if a translated packet's ports have changed; otherwise returns `verdict`.
#[inline(always)]
pub(super) fn update_checksum<F: Family, P: Packet>(
    p: &P,
    h: &mut Handover,
    v: &Parsed<F>,
    verdict: Verdict,
) -> Verdict {
    let (s, tuple) = (&h.send, &v.tuple);
    let (mut sport, mut dport) = (tuple.sport, tuple.dport);
    if s.entry.flags & CtEntry::REWRITE_SRC != 0 {
        sport = s.entry.sport;
    }
    if s.entry.flags & CtEntry::REWRITE_DST != 0 {
        dport = s.entry.dport;
    }
    let change = ports_word(tuple.sport.wire(), tuple.dport.wire()) ^ ports_word(sport.wire(), dport.wire());
    h.departure = match verdict {
        Verdict { action: Action::Forward, egress, .. } => Departure::by(egress),
        Verdict { action: Action::Pass, .. } => Departure::default(),
        _ => return verdict,
    };
    if change == 0 {
        return verdict;
    }
    h.sctp =
        ToSctp { change, after: F::end(&v.header, p.frame_len()).wrapping_sub(v.l4 as u32 + size_of::<u32>() as u32) };
    Verdict::tail(Stage::Sctp)
}

/// Updates the checksum and forwards the packet. Follows [`send`](super::send()) at the same hook.
#[inline(always)]
pub fn sctp<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    run_stage::<At, T>(t, |h| {
        // First, while the verifier tracks only one packet state.
        let difference = checksum::crc32c_difference(h.sctp.change, h.sctp.after & 0xffff);
        let l4 = if h.packet.v6() { h.packet.parsed::<V6>().l4 } else { h.packet.parsed::<V4>().l4 };
        match store_checksum(p, l4, difference) {
            None => Verdict::drop(Reason::PacketWriteFailed),
            Some(()) if At::EGRESS => Verdict::PASS,
            Some(()) => h.departure.verdict(),
        }
    })
}

#[inline(always)]
fn store_checksum<P: Packet>(p: &mut P, l4: usize, difference: u32) -> Option<()> {
    let field: u32 = p.load(l4 + Sctp::CHECKSUM)?;
    let crc = u32::from_le(field) ^ difference;
    p.renew();
    p.store(l4 + Sctp::CHECKSUM, &crc.to_le())
}
