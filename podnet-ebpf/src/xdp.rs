//! XDP program of an uplink: drops what may not come in, and sends on what only passes through this node, before the
//! kernel makes a packet of it.

use aya_ebpf::{
    EbpfContext as _, bindings::xdp_action, helpers::generated as helpers, macros::xdp, programs::XdpContext,
};
use podnet_common::{
    layout::{GENERATION_SLOTS, Hook},
    pipeline::{self, UplinkXdp, Verdict},
};

use crate::{context::XdpPacket, maps, tables::Maps};

#[xdp]
pub(crate) fn uplink_xdp(ctx: XdpContext) -> u32 {
    if let Some(generation) = maps::GENERATION.get(0) {
        // SAFETY: on success nothing of this program is left.
        unsafe { maps::PROGRAMS_XDP.tail_call(&ctx, generation * GENERATION_SLOTS + Hook::UplinkXdp as u32) };
    }
    xdp_action::XDP_PASS
}

#[xdp]
pub(crate) fn uplink_xdp_enter(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(&ctx);
    match pipeline::express::<UplinkXdp, _, _>(&mut packet, &Maps::<false> { ctx: ctx.as_ptr() }) {
        Verdict::Forward(egress) if egress.ifindex.0 == ctx.ingress_ifindex() as u32 => xdp_action::XDP_TX,
        // SAFETY: no pointers.
        Verdict::Forward(egress) => unsafe { helpers::bpf_redirect(egress.ifindex.0, 0) as u32 },
        Verdict::Drop(_) => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}
