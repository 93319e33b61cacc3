//! Sending packets on by the entry that is left in `scratch`: those that [`track`](super::track) and
//! [`insert`](super::insert) have looked at.

use crate::{
    addr::Proto,
    layout::{CtEntry, NetworkKind, Out, Scratch, macs},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Packet},
    verdict::{Counter, Reason},
};

use super::{
    Place, Tables, Verdict,
    family::{Family, V4, V6, parse},
    flow::go,
    hot::{HEADERS, translate},
    sctp,
};

/// Rewrites a packet as the entry in `scratch` says, and sends it on.
#[inline(always)]
pub fn send<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::Drop(Reason::Malformed) };
    let verdict = t.scratch(|s| match ethernet.ethertype {
        ETHERTYPE_IPV4 => finish::<At, V4, P, T>(p, t, s),
        ETHERTYPE_IPV6 => finish::<At, V6, P, T>(p, t, s),
        _ => Verdict::Drop(Reason::Malformed),
    });
    verdict.unwrap_or(Verdict::Drop(Reason::NoProgram))
}

/// Sends the packet on its way: one that has lived too long or is too long for it becomes an error for its sender; one
/// that may be cut goes up the stack, which does that.
#[inline(always)]
fn finish<At: Place, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, s: &mut Scratch) -> Verdict {
    let Some(mut v) = parse::<F, P>(p) else { return Verdict::Drop(Reason::Malformed) };
    (v.tuple.sport, v.tuple.dport) = (s.tuple.sport, s.tuple.dport);
    let one_way = s.entry.flags & CtEntry::ONE_WAY != 0;
    if one_way && s.entry.out_ifindex.0 == 0 {
        return Verdict::Drop(Reason::NoRoute);
    }
    if !At::EGRESS && s.entry.out != Out::Stack as u8 {
        // A process of the host may have it however long it has lived.
        if F::ttl(&v.header) <= 1 && s.entry.out != Out::Host as u8 {
            s.mtu = 0;
            return Verdict::Reject(Reason::TtlExceeded);
        }
        if p.segment_len(v.headers) > s.entry.out_mtu as u32 {
            // What is sent on can't be cut here either: the stack doesn't know the way.
            if F::whole_only(&v.header) || one_way || past_tunnel(t, &s.entry) {
                s.mtu = s.entry.out_mtu as u32;
                return Verdict::Reject(Reason::TooBig);
            }
            t.count(Counter::ToStack);
            to_stack(t, &mut s.entry);
        }
        // The entry has the next hop's MAC; through the neighbour table the kernel learns that the neighbour is in use
        // and sees to it that the MAC stays right.
        if s.entry.out == Out::Link as u8 {
            s.entry.out = if one_way { Out::Via as u8 } else { Out::Uplink as u8 };
        }
    }
    let verdict = translate::<At, F, P, true>(p, &v, &s.entry);
    if s.tuple.proto == Proto::SCTP {
        return sctp::summed(p, s, &v, verdict);
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
        go(entry, Out::Host, c.podnet0, u16::MAX as u32, macs(c.podnet0_mac, c.podnet1_mac));
    }
}
