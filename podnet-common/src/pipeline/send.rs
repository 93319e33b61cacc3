//! Sending: the last step of packets whose flow is known only now, or has changed.

use crate::{
    addr::Proto,
    layout::{CtEntry, NetworkKind, Out, macs},
    packet::Packet,
    verdict::{Counter, Reason},
};

use super::{
    Place, Tables, Verdict,
    family::{Family, V4, V6},
    handover::{Handover, ToError},
    next_hop::note,
    rewrite::translate,
    sctp, staged,
};

/// Rewrites a packet as its flow's entry says, and sends it on. Follows [`track`](super::track()), [`begin`](super::begin())
/// or [`insert`](super::insert()) at the same hook.
#[inline(always)]
pub fn send<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    staged::<At, T>(
        t,
        |h| if h.packet.v6() { finish::<At, V6, P, T>(p, t, h) } else { finish::<At, V4, P, T>(p, t, h) },
    )
}

/// Sends the packet on its way: one whose TTL is exceeded, or that is too big and mustn't be fragmented, becomes an error
/// for its sender; one that may be fragmented goes up the stack, which does that.
#[inline(always)]
fn finish<At: Place, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Verdict {
    let v = h.packet.parsed::<F>();
    let s = &mut h.send;
    let one_way = s.entry.flags & CtEntry::ONE_WAY != 0;
    if one_way && s.entry.out_ifindex.0 == 0 {
        return Verdict::drop(Reason::NoRoute);
    }
    if !At::EGRESS && s.entry.out != Out::Stack as u8 {
        // A process of the host may have it however long it has lived.
        if F::ttl(&v.header) <= 1 && s.entry.out != Out::Host as u8 {
            h.error = ToError::TTL_EXCEEDED;
            return Verdict::reject(Reason::TtlExceeded);
        }
        if p.segment_len(v.headers) > s.entry.out_mtu as u32 {
            // What is sent on can't be fragmented here either: the stack doesn't know the way.
            if F::dont_fragment(&v.header) || one_way || past_tunnel(t, &s.entry) {
                h.error = ToError::too_big(s.entry.out_mtu as u32);
                return Verdict::reject(Reason::TooBig);
            }
            t.count(Counter::ToStack);
            to_stack(t, &mut s.entry);
        }
        // The entry has the next hop's MAC. Once in a tick a packet goes through the neighbour table, by which the kernel
        // learns that the neighbour is in use and sees to it that the MAC stays right.
        if s.entry.out == Out::Link as u8 && s.resolved == 0 {
            s.entry.out = if one_way { Out::Via as u8 } else { Out::Uplink as u8 };
        }
    }
    let verdict = translate::<At, F, P, true>(p, &v, &s.entry, &s.hop);
    if v.tuple.proto == Proto::SCTP {
        return sctp::summed(p, h, &v, verdict);
    }
    verdict
}

/// Whether the stack would send past the tunnel what goes through it: it does that with packets to nodes.
#[inline(always)]
fn past_tunnel<T: Tables>(t: &T, entry: &CtEntry) -> bool {
    entry.out == Out::Tunnel as u8 && t.network(&entry.dst).is_some_and(|n| n.kind == NetworkKind::RemoteNode as u32)
}

/// Lets the stack have a translated packet. Where it would take the new source, the host's own, for a forgery, it gets
/// the packet from podnet0.
#[inline(always)]
fn to_stack<T: Tables>(t: &T, entry: &mut CtEntry) {
    entry.out = Out::Stack as u8;
    if let (true, Some(c)) = (entry.flags & CtEntry::REWRITE_SRC != 0, t.config()) {
        note(entry, Out::Host, c.podnet0, u16::MAX as u32, macs(c.podnet0_mac, c.podnet1_mac));
    }
}
