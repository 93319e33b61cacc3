//! TC programs: a frozen dispatcher per hook, and the stages of a generation.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, bpf_redir_neigh},
    helpers::generated as helpers,
    macros::classifier,
    programs::TcContext,
};
use podnet_common::{
    addr::Addr,
    layout::{GENERATION_SLOTS, Hook, MARK_DONE, Out},
    packet::{ETH, Ethernet, Packet as _},
    pipeline::{
        self, Action, Egress, FromHost, FromLoopback, FromPod, FromUplink, HookPoint, Stage, Tables as _, ToPod, ToRaw,
        ToUplink, Verdict,
    },
    verdict::Reason,
};

use crate::{context::TcPacket, jump::own_generation, maps, tables::Maps};

/// `PACKET_OTHERHOST` of linux/if_packet.h.
const PACKET_OTHERHOST: u32 = 3;
/// `AF_INET`.
const AF_INET: u32 = 2;
/// `AF_INET6`.
const AF_INET6: u32 = 10;

/// Continue with the next program or the host's stack (`TCX_NEXT`; clsact treats it alike).
const NEXT: i32 = -1;

/// Runs a dispatcher. `no_program` is its return value if there are no programs: pods are cut off, uplinks fall back to
/// the stack.
#[inline(always)]
fn dispatch<const HOOK: u32>(ctx: &TcContext, no_program: i32) -> i32 {
    // For another machine, received in promiscuous mode; the stack ignores such packets as well.
    // SAFETY: the context is valid while the program runs.
    if HOOK == Hook::FromUplink as u32 && unsafe { (*ctx.skb.skb).pkt_type } == PACKET_OTHERHOST {
        return NEXT;
    }
    if let Some(running) = maps::GENERATION.get(0) {
        jump!(maps::PROGRAMS_TC, ctx, *running, HOOK);
    }
    maps::count_drop(Reason::NoProgram);
    no_program
}

/// Carries out a verdict.
#[inline(always)]
fn act<At: HookPoint>(ctx: &TcContext, verdict: Verdict) -> i32 {
    match verdict.action {
        Action::Pass => NEXT,
        Action::Forward => forward(ctx, &verdict.egress),
        Action::Tail => tail_call::<At>(ctx, verdict.stage),
        Action::Reject => tail_call::<At>(ctx, Stage::answering(verdict.reason)),
        Action::Answer => answer::<At>(ctx, &verdict.egress),
        Action::Drop | Action::Unanswered => TC_ACT_SHOT,
    }
}

/// Sends an answer back. Pods get it whatever their network policies say: it belongs to no flow, so the egress hook
/// must not take it for the first packet of one.
#[inline(always)]
fn answer<At: HookPoint>(ctx: &TcContext, egress: &Egress) -> i32 {
    if At::FROM_POD {
        ctx.set_mark(MARK_DONE);
    }
    // SAFETY: no pointers.
    unsafe { helpers::bpf_redirect(egress.ifindex.0, 0) as i32 }
}

#[inline(always)]
fn forward(ctx: &TcContext, egress: &Egress) -> i32 {
    let to = egress.ifindex;
    // SAFETY, for all three: no pointers.
    match egress.out {
        // SAFETY: see above.
        Out::Pod => unsafe { helpers::bpf_redirect_peer(to.0, 0) as i32 },
        Out::Link | Out::Tunnel | Out::Queue => {
            ctx.set_mark(MARK_DONE);
            // SAFETY: see above.
            unsafe { helpers::bpf_redirect(to.0, 0) as i32 }
        }
        Out::Uplink | Out::Via => {
            ctx.set_mark(MARK_DONE);
            to_neighbour(egress)
        }
        // SAFETY: see above.
        Out::Host => unsafe { helpers::bpf_redirect(to.0, u64::from(BPF_F_INGRESS)) as i32 },
        Out::Stack | Out::Denied => NEXT,
    }
}

/// Redirects out of an interface to a next hop, whose MAC the kernel knows or resolves. Without an explicit next hop,
/// the helper would look up the route of a packet sent by the host, to which other rules may apply.
#[inline(always)]
fn to_neighbour(egress: &Egress) -> i32 {
    let Addr([a, b, c, d]) = egress.hop;
    let mut hop = if egress.hop.is_v4() {
        NextHop { family: AF_INET, addr: [d, 0, 0, 0] }
    } else {
        NextHop { family: AF_INET6, addr: [a, b, c, d] }
    };
    // SAFETY: pointer and size are those of the structure.
    unsafe {
        let hop = core::ptr::from_mut(&mut hop).cast();
        helpers::bpf_redirect_neigh(egress.ifindex.0, hop, size_of::<NextHop>() as i32, 0) as i32
    }
}

/// `struct bpf_redir_neigh`: a next hop to look up in the neighbour table.
#[repr(C)]
struct NextHop {
    /// `AF_INET` or `AF_INET6`.
    family: u32,
    /// Next hop; IPv4 in the first word.
    addr: [u32; 4],
}

const _: () = assert!(size_of::<NextHop>() == size_of::<bpf_redir_neigh>());

/// Tail call to another stage of the same hook and generation. Frequent stages, in which flows begin or are tracked,
/// have direct jumps; having them for all stages would make every program larger.
#[inline(always)]
fn tail_call<At: HookPoint>(ctx: &TcContext, stage: Stage) -> i32 {
    let own = own_generation();
    match stage {
        Stage::Track => jump!(maps::PROGRAMS_TC, ctx, own, Stage::Track.slot(At::HOOK)),
        Stage::Begin => jump!(maps::PROGRAMS_TC, ctx, own, Stage::Begin.slot(At::HOOK)),
        Stage::Classify => jump!(maps::PROGRAMS_TC, ctx, own, Stage::Classify.slot(At::HOOK)),
        Stage::Send => jump!(maps::PROGRAMS_TC, ctx, own, Stage::Send.slot(At::HOOK)),
        // SAFETY: a successful tail call doesn't return, and this program needs nothing afterwards.
        _ => unsafe { maps::PROGRAMS_TC.tail_call(ctx, own * GENERATION_SLOTS + stage.slot(At::HOOK)) },
    }
    maps::count_drop(Reason::MissedTailCall);
    TC_ACT_SHOT
}

/// The tables, for the packet of a context.
#[inline(always)]
fn tables(ctx: &TcContext) -> Maps<true> {
    Maps { ctx: ctx.as_ptr() }
}

/// Runs the first program of a hook, except at egress for packets that another hook has already forwarded.
#[inline(always)]
fn run_enter<At: HookPoint, const MISSING: usize>(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    if At::EGRESS && unsafe { (*ctx.skb.skb).mark } == MARK_DONE {
        return NEXT;
    }
    act::<At>(ctx, pipeline::enter::<At, _, _>(&mut TcPacket::<MISSING>::new(ctx), &tables(ctx)))
}

/// Runs a stage, by name.
macro_rules! run {
    (enter, $point:ident, $missing_header:expr, $ctx:ident) => {
        run_enter::<$point, { $missing_header }>(&$ctx)
    };
    ($stage:ident, $point:ident, $missing_header:expr, $ctx:ident) => {
        act::<$point>(
            &$ctx,
            pipeline::$stage::<$point, _, _>(&mut TcPacket::<{ $missing_header }>::new(&$ctx), &tables(&$ctx)),
        )
    };
}

/// Declares the programs of a hook: dispatcher, first program, and all stages reachable from it. The dispatcher has the
/// name of the hook; the others append the name of the stage. `$missing_header` is the number of bytes of the Ethernet
/// header that frames lack, `$no_program` the return value of the dispatcher if there are no programs.
macro_rules! hook {
    ($hook:ident, $point:ident, $missing_header:expr, $no_program:expr, [$($stage:ident)*]) => {
        mod $hook {
            use super::*;

            #[unsafe(export_name = stringify!($hook))]
            #[unsafe(link_section = "classifier")]
            extern "C" fn dispatcher(skb: *mut __sk_buff) -> i32 {
                dispatch::<{ $point::HOOK as u32 }>(&TcContext::new(skb), $no_program)
            }

            $(
                #[unsafe(export_name = concat!(stringify!($hook), "_", stringify!($stage)))]
                #[unsafe(link_section = "classifier")]
                extern "C" fn $stage(skb: *mut __sk_buff) -> i32 {
                    let ctx = TcContext::new(skb);
                    run!($stage, $point, $missing_header, ctx)
                }
            )*
        }
    };
}

hook!(from_pod, FromPod, 0, TC_ACT_SHOT, [enter track icmp quotation send sctp begin insert classify external reject error]);
hook!(to_pod, ToPod, 0, TC_ACT_SHOT, [enter track icmp quotation send sctp begin insert]);
hook!(from_uplink, FromUplink, 0, NEXT, [enter track icmp quotation send sctp begin insert classify external reject error]);
hook!(to_uplink, ToUplink, 0, NEXT, [enter track icmp quotation send sctp begin insert]);
hook!(to_raw, ToRaw, ETH, NEXT, [enter track icmp quotation send sctp begin insert]);
hook!(from_host, FromHost, 0, TC_ACT_SHOT, [enter track icmp quotation send sctp begin insert classify external reject error]);

#[classifier]
pub(crate) fn from_loopback(ctx: TcContext) -> i32 {
    dispatch::<{ Hook::FromLoopback as u32 }>(&ctx, NEXT)
}

#[classifier]
pub(crate) fn from_loopback_enter(ctx: TcContext) -> i32 {
    act::<FromLoopback>(&ctx, pipeline::loopback::<FromLoopback, _, _>(&mut TcPacket::<0>::new(&ctx), &tables(&ctx)))
}

#[classifier]
pub(crate) fn from_raw(ctx: TcContext) -> i32 {
    dispatch::<{ Hook::FromRaw as u32 }>(&ctx, NEXT)
}

/// Adds an Ethernet header to a frame that starts with its IP header, and continues as at other uplinks. Redirects to
/// other interfaces require the header; the stack skips it, and it is stripped when a packet leaves by an interface
/// without Ethernet.
#[classifier]
pub(crate) fn from_raw_enter(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let (ethertype, extended) = unsafe {
        // The two bytes of the field are in network byte order.
        let ethertype = (*ctx.skb.skb).protocol as u16;
        (ethertype, helpers::bpf_skb_change_head(ctx.skb.skb, ETH as u32, 0) == 0)
    };
    let header = Ethernet { ethertype, ..Ethernet::default() };
    if !extended || TcPacket::<0>::new(&ctx).store(0, &header).is_none() {
        tables(&ctx).report(Hook::FromRaw, Reason::PacketWriteFailed);
        return TC_ACT_SHOT;
    }
    jump!(maps::PROGRAMS_TC, &ctx, own_generation(), Hook::FromUplink as u32);
    maps::count_drop(Reason::MissedTailCall);
    TC_ACT_SHOT
}
