//! XDP program of an uplink: drops packets that may not enter the node, and forwards those of established flows out of
//! an uplink, before the kernel allocates an skb.

use aya_ebpf::{
    EbpfContext as _, bindings::xdp_action, helpers::generated as helpers, macros::xdp, programs::XdpContext,
};
use podnet_common::{
    layout::Hook,
    pipeline::{self, Action, UplinkXdp},
};

use crate::{context::XdpPacket, maps, tables::Maps};

#[xdp]
pub(crate) fn uplink_xdp(ctx: XdpContext) -> u32 {
    if let Some(running) = maps::GENERATION.get(0) {
        jump!(maps::PROGRAMS_XDP, &ctx, *running, Hook::UplinkXdp as u32);
    }
    xdp_action::XDP_PASS
}

#[xdp]
pub(crate) fn uplink_xdp_enter(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(&ctx);
    let verdict = pipeline::express::<UplinkXdp, _, _>(&mut packet, &Maps::<false> { ctx: ctx.as_ptr() });
    let to = verdict.egress.ifindex;
    match verdict.action {
        Action::Forward if to.0 == ctx.ingress_ifindex() as u32 => xdp_action::XDP_TX,
        // SAFETY: no pointers.
        Action::Forward => unsafe { helpers::bpf_redirect(to.0, 0) as u32 },
        Action::Drop => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}
