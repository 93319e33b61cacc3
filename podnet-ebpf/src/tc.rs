//! TC programs: for each hook a frozen dispatcher, and the stages of a generation behind it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::generated as helpers,
    macros::classifier,
    programs::TcContext,
};
use podnet_common::{
    addr::{Addr, IfIndex},
    layout::{GENERATION_SLOTS, Hook, MARK_DONE, Out},
    packet::{ETH, Ethernet, Packet as _},
    pipeline::{self, FromHost, FromLoopback, FromPod, FromUplink, Place, Stage, ToPod, ToRaw, ToUplink, Verdict},
    verdict::{Counter, Reason},
};

use crate::{context::TcPacket, events, maps, tables::Maps};

/// `PACKET_OTHERHOST` of linux/if_packet.h.
const PACKET_OTHERHOST: u32 = 3;
/// `AF_INET`.
const AF_INET: u32 = 2;
/// `AF_INET6`.
const AF_INET6: u32 = 10;

/// Not decided here: the next program, or else the stack, goes on (`TCX_NEXT`, and the same for clsact).
const NEXT: i32 = -1;

/// What a dispatcher does when its program is missing. Pods are cut off, uplinks stay with the stack.
#[inline(always)]
fn dispatch(ctx: &TcContext, hook: Hook, missing: i32) -> i32 {
    // Sent to another machine, as an interface sees it that takes all; the stack leaves it alone as well.
    // SAFETY: the context is valid while the program runs.
    if hook as u32 == Hook::FromUplink as u32 && unsafe { (*ctx.skb.skb).pkt_type } == PACKET_OTHERHOST {
        return NEXT;
    }
    if let Some(generation) = maps::GENERATION.get(0) {
        // SAFETY: on success nothing of this program is left.
        unsafe { maps::PROGRAMS_TC.tail_call(ctx, generation * GENERATION_SLOTS + hook as u32) };
    }
    maps::count_drop(Reason::NoProgram);
    missing
}

/// Carries out a verdict.
#[inline(always)]
fn act<At: Place>(ctx: &TcContext, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => NEXT,
        Verdict::Forward(out, to) => forward(ctx, out, to),
        Verdict::Tail(stage) => tail::<At>(ctx, stage),
        Verdict::Drop(reason) => {
            maps::count_drop(reason);
            events::report(ctx, At::HOOK, reason);
            TC_ACT_SHOT
        }
        Verdict::Reject(reason) => {
            maps::count_drop(reason);
            events::report(ctx, At::HOOK, reason);
            tail::<At>(ctx, Stage::answering(reason))
        }
    }
}

#[inline(always)]
fn forward(ctx: &TcContext, out: Out, to: IfIndex) -> i32 {
    // SAFETY, for all three: no pointers.
    match out {
        // SAFETY: see above.
        Out::Pod => unsafe { helpers::bpf_redirect_peer(to.0, 0) as i32 },
        Out::Link | Out::Tunnel | Out::Queue => {
            ctx.set_mark(MARK_DONE);
            // SAFETY: see above.
            unsafe { helpers::bpf_redirect(to.0, 0) as i32 }
        }
        Out::Uplink | Out::Via => {
            ctx.set_mark(MARK_DONE);
            to_neighbour(to, out)
        }
        // SAFETY: see above.
        Out::Host => unsafe { helpers::bpf_redirect(to.0, u64::from(BPF_F_INGRESS)) as i32 },
        Out::Stack => NEXT,
    }
}

/// Out of an interface, to the next hop that the routing table was last asked for, or to the node that is the destination
/// of the flow at hand. The helper's own look-up would ask for a packet of the host's, for which other rules may hold.
#[inline(always)]
fn to_neighbour(to: IfIndex, out: Out) -> i32 {
    let (Some(fib), Some(scratch)) = (maps::FIB.get_ptr_mut(0), maps::SCRATCH.get_ptr_mut(0)) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: both are this CPU's own, and were written by this very run.
    let (hop, node): (&mut maps::NextHop, &Addr) = unsafe { (&mut (*fib).hop, &(*scratch).entry.dst) };
    if out as u8 == Out::Via as u8 {
        *hop = if node.is_v4() {
            maps::NextHop { family: AF_INET, addr: [node.0[3], 0, 0, 0] }
        } else {
            maps::NextHop { family: AF_INET6, addr: node.0 }
        };
    }
    // SAFETY: the pointer and the size are the structure's.
    unsafe {
        helpers::bpf_redirect_neigh(to.0, core::ptr::from_mut(hop).cast(), size_of::<maps::NextHop>() as i32, 0) as i32
    }
}

/// Goes on in another stage of the hook.
#[inline(always)]
fn tail<At: Place>(ctx: &TcContext, stage: Stage) -> i32 {
    go_on(ctx, stage.slot(At::HOOK))
}

/// Goes on in another program of the same generation.
#[inline(always)]
fn go_on(ctx: &TcContext, slot: u32) -> i32 {
    if let Some(generation) = maps::GENERATION.get(0) {
        // SAFETY: on success nothing of this program is left.
        unsafe { maps::PROGRAMS_TC.tail_call(ctx, generation * GENERATION_SLOTS + slot) };
    }
    maps::count_drop(Reason::NoTail);
    TC_ACT_SHOT
}

#[inline(always)]
fn enter<At: Place, const MISSING: usize>(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    if At::EGRESS && unsafe { (*ctx.skb.skb).mark } == MARK_DONE {
        return NEXT;
    }
    act::<At>(ctx, pipeline::enter::<At, _, _>(&mut TcPacket::<MISSING>::new(ctx), &Maps { ctx: ctx.as_ptr() }))
}

#[inline(always)]
fn track<At: Place, const MISSING: usize>(ctx: &TcContext) -> i32 {
    act::<At>(ctx, pipeline::track::<At, _, _>(&mut TcPacket::<MISSING>::new(ctx), &Maps { ctx: ctx.as_ptr() }))
}

#[inline(always)]
fn begin<At: Place, const MISSING: usize>(ctx: &TcContext) -> i32 {
    act::<At>(ctx, pipeline::begin::<At, _, _>(&mut TcPacket::<MISSING>::new(ctx), &Maps { ctx: ctx.as_ptr() }))
}

#[inline(always)]
fn insert<At: Place>(ctx: &TcContext) -> i32 {
    match pipeline::insert(&Maps { ctx: ctx.as_ptr() }) {
        // What the host's own processes send goes on without a flow too.
        Verdict::Drop(_) if At::EGRESS => NEXT,
        verdict => act::<At>(ctx, verdict),
    }
}

#[inline(always)]
fn direct<At: Place>(ctx: &TcContext) -> i32 {
    act::<At>(ctx, pipeline::alone::<At, _, _>(&mut TcPacket::<0>::new(ctx), &Maps { ctx: ctx.as_ptr() }))
}

#[inline(always)]
fn sctp<At: Place, const MISSING: usize>(ctx: &TcContext) -> i32 {
    act::<At>(ctx, pipeline::sctp::<At, _, _>(&mut TcPacket::<MISSING>::new(ctx), &Maps { ctx: ctx.as_ptr() }))
}

#[inline(always)]
fn send<At: Place, const MISSING: usize>(ctx: &TcContext) -> i32 {
    act::<At>(ctx, pipeline::send::<At, _, _>(&mut TcPacket::<MISSING>::new(ctx), &Maps { ctx: ctx.as_ptr() }))
}

#[inline(always)]
fn icmp<At: Place, const MISSING: usize>(ctx: &TcContext) -> i32 {
    act::<At>(ctx, pipeline::icmp::<At, _, _>(&mut TcPacket::<MISSING>::new(ctx), &Maps { ctx: ctx.as_ptr() }))
}

#[inline(always)]
fn reject(ctx: &TcContext) -> i32 {
    answer(pipeline::reject(&mut TcPacket::<0>::new(ctx)))
}

#[inline(always)]
fn error<At: Place>(ctx: &TcContext) -> i32 {
    answer(pipeline::error::<At, _, _>(&mut TcPacket::<0>::new(ctx), &Maps { ctx: ctx.as_ptr() }))
}

/// Sends what the packet has become back to where it came from.
#[inline(always)]
fn answer(to: Option<IfIndex>) -> i32 {
    let Some(to) = to else { return TC_ACT_SHOT };
    maps::count(Counter::Rejected);
    // SAFETY: no pointers.
    unsafe { helpers::bpf_redirect(to.0, 0) as i32 }
}

/// The programs of a hook: dispatcher, first stage, and the rarer stages. `$lacks` is how much of an Ethernet header its frames
/// lack.
macro_rules! hook {
    ($place:ident, $lacks:expr, $missing:expr, $dispatcher:ident, $enter:ident, $track:ident, $icmp:ident, $send:ident, $sctp:ident, $begin:ident, $insert:ident $(, $direct:ident, $reject:ident, $error:ident)?) => {
        #[classifier]
        pub(crate) fn $dispatcher(ctx: TcContext) -> i32 {
            dispatch(&ctx, $place::HOOK, $missing)
        }

        #[classifier]
        pub(crate) fn $enter(ctx: TcContext) -> i32 {
            enter::<$place, { $lacks }>(&ctx)
        }

        #[classifier]
        pub(crate) fn $track(ctx: TcContext) -> i32 {
            track::<$place, { $lacks }>(&ctx)
        }

        #[classifier]
        pub(crate) fn $icmp(ctx: TcContext) -> i32 {
            icmp::<$place, { $lacks }>(&ctx)
        }

        #[classifier]
        pub(crate) fn $send(ctx: TcContext) -> i32 {
            send::<$place, { $lacks }>(&ctx)
        }

        #[classifier]
        pub(crate) fn $sctp(ctx: TcContext) -> i32 {
            sctp::<$place, { $lacks }>(&ctx)
        }

        #[classifier]
        pub(crate) fn $begin(ctx: TcContext) -> i32 {
            begin::<$place, { $lacks }>(&ctx)
        }

        #[classifier]
        pub(crate) fn $insert(ctx: TcContext) -> i32 {
            insert::<$place>(&ctx)
        }

        $(#[classifier]
        pub(crate) fn $direct(ctx: TcContext) -> i32 {
            direct::<$place>(&ctx)
        }

        #[classifier]
        pub(crate) fn $reject(ctx: TcContext) -> i32 {
            reject(&ctx)
        }

        #[classifier]
        pub(crate) fn $error(ctx: TcContext) -> i32 {
            error::<$place>(&ctx)
        })?
    };
}

hook!(
    FromPod,
    0,
    TC_ACT_SHOT,
    from_pod,
    from_pod_enter,
    from_pod_track,
    from_pod_icmp,
    from_pod_send,
    from_pod_sctp,
    from_pod_begin,
    from_pod_insert,
    from_pod_direct,
    from_pod_reject,
    from_pod_error
);
hook!(
    ToPod,
    0,
    TC_ACT_SHOT,
    to_pod,
    to_pod_enter,
    to_pod_track,
    to_pod_icmp,
    to_pod_send,
    to_pod_sctp,
    to_pod_begin,
    to_pod_insert
);
hook!(
    FromUplink,
    0,
    NEXT,
    from_uplink,
    from_uplink_enter,
    from_uplink_track,
    from_uplink_icmp,
    from_uplink_send,
    from_uplink_sctp,
    from_uplink_begin,
    from_uplink_insert,
    from_uplink_direct,
    from_uplink_reject,
    from_uplink_error
);
hook!(
    ToUplink,
    0,
    NEXT,
    to_uplink,
    to_uplink_enter,
    to_uplink_track,
    to_uplink_icmp,
    to_uplink_send,
    to_uplink_sctp,
    to_uplink_begin,
    to_uplink_insert
);
hook!(
    ToRaw,
    ETH,
    NEXT,
    to_raw,
    to_raw_enter,
    to_raw_track,
    to_raw_icmp,
    to_raw_send,
    to_raw_sctp,
    to_raw_begin,
    to_raw_insert
);
hook!(
    FromHost,
    0,
    TC_ACT_SHOT,
    from_host,
    from_host_enter,
    from_host_track,
    from_host_icmp,
    from_host_send,
    from_host_sctp,
    from_host_begin,
    from_host_insert,
    from_host_direct,
    from_host_reject,
    from_host_error
);

#[classifier]
pub(crate) fn from_loopback(ctx: TcContext) -> i32 {
    dispatch(&ctx, Hook::FromLoopback, NEXT)
}

#[classifier]
pub(crate) fn from_loopback_enter(ctx: TcContext) -> i32 {
    let verdict = pipeline::loopback::<FromLoopback, _, _>(&mut TcPacket::<0>::new(&ctx), &Maps { ctx: ctx.as_ptr() });
    act::<FromLoopback>(&ctx, verdict)
}

#[classifier]
pub(crate) fn from_raw(ctx: TcContext) -> i32 {
    dispatch(&ctx, Hook::FromRaw, NEXT)
}

/// Gives a frame that begins with its IP header an Ethernet header, which redirects to other interfaces want: the stack
/// skips it, and what leaves by such an interface loses it. Then it is a packet like any other.
#[classifier]
pub(crate) fn from_raw_enter(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let (ethertype, extended) = unsafe {
        // The word has the two bytes of the field as they are on the wire.
        let ethertype = (*ctx.skb.skb).protocol as u16;
        (ethertype, helpers::bpf_skb_change_head(ctx.skb.skb, ETH as u32, 0) == 0)
    };
    let header = Ethernet { ethertype, ..Ethernet::default() };
    if !extended || TcPacket::<0>::new(&ctx).store(0, &header).is_none() {
        return act::<FromUplink>(&ctx, Verdict::Drop(Reason::StoreFailed));
    }
    go_on(&ctx, Hook::FromUplink as u32)
}
