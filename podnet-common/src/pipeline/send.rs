//! Sending packets of flows that are new or have changed: the last step off the fast path.

use crate::{
    addr::Proto,
    layout::{CtEntry, NetworkKind, Out, macs},
    packet::Packet,
    verdict::{Counter, Reason},
};

use super::{
    HookPoint, Tables, Verdict,
    family::{Family, V4, V6},
    handover::{Handover, ToError},
    next_hop::set_egress,
    rewrite::translate,
    run::run_stage,
    sctp,
};

/// Rewrites a packet according to its flow's entry and forwards it. Follows [`track`](super::track()),
/// [`begin`](super::begin()) or [`insert`](super::insert()) at the same hook.
#[inline(always)]
pub fn send<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    run_stage::<At, T>(
        t,
        |h| if h.packet.v6() { finish::<At, V6, P, T>(p, t, h) } else { finish::<At, V4, P, T>(p, t, h) },
    )
}

/// Rewrites and forwards a packet. If its TTL is exceeded, or if it exceeds the MTU and may not be fragmented, its
/// sender gets an ICMP error; if it may be fragmented, the stack does that.
#[inline(always)]
fn finish<At: HookPoint, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, h: &mut Handover) -> Verdict {
    let v = h.packet.parsed::<F>();
    let s = &mut h.send;
    let one_way = s.entry.flags & CtEntry::ONE_WAY != 0;
    if one_way && s.entry.out_ifindex.0 == 0 {
        return Verdict::drop(Reason::NoRoute);
    }
    if !At::EGRESS && s.entry.out != Out::Stack as u8 {
        // A process of the host may receive the packet whatever its TTL.
        if F::ttl(&v.header) <= 1 && s.entry.out != Out::Host as u8 {
            h.error = ToError::TTL_EXCEEDED;
            return Verdict::reject(Reason::TtlExceeded);
        }
        if p.segment_len(v.headers) > s.entry.out_mtu as u32 {
            // The stack has no route for packets forwarded to another node, so it can't fragment them.
            if F::dont_fragment(&v.header) || one_way || stack_bypasses_tunnel(t, &s.entry) {
                h.error = ToError::too_big(s.entry.out_mtu as u32);
                return Verdict::reject(Reason::TooBig);
            }
            t.count(Counter::ToStack);
            leave_to_stack(t, &mut s.entry);
        }
        // The entry contains the next hop's MAC. Once per tick, a packet passes the neighbour table, so that the kernel
        // knows the neighbour is in use and keeps its MAC up to date.
        if s.entry.out == Out::Link as u8 && s.resolved == 0 {
            s.entry.out = if one_way { Out::Via as u8 } else { Out::Uplink as u8 };
        }
    }
    let verdict = translate::<At, F, P, true>(p, &v, &s.entry, &s.hop);
    if v.tuple.proto == Proto::SCTP {
        return sctp::update_checksum(p, h, &v, verdict);
    }
    verdict
}

/// Whether the stack would bypass the tunnel for this entry, as it does for packets to nodes.
#[inline(always)]
fn stack_bypasses_tunnel<T: Tables>(t: &T, entry: &CtEntry) -> bool {
    entry.out == Out::Tunnel as u8 && t.network(&entry.dst).is_some_and(|n| n.kind == NetworkKind::RemoteNode as u32)
}

/// Leaves a translated packet to the stack. If its source is now an address of the host, the stack would treat it as
/// spoofed on the interface where it arrived; it then gets the packet from podnet0.
#[inline(always)]
fn leave_to_stack<T: Tables>(t: &T, entry: &mut CtEntry) {
    entry.out = Out::Stack as u8;
    if let (true, Some(c)) = (entry.flags & CtEntry::REWRITE_SRC != 0, t.config()) {
        set_egress(entry, Out::Host, c.podnet0, u16::MAX as u32, macs(c.podnet0_mac, c.podnet1_mac));
    }
}
