//! Reports of dropped packets to user space.

use aya_ebpf::{bindings::__sk_buff, cty::c_void, helpers::generated as helpers};
use podnet_common::{
    addr::IfIndex,
    layout::{EVENT_HEAD, EVENT_HEADS, Hook},
    packet::ETH,
    verdict::Reason,
};

use crate::maps::EVENTS;

/// Writes the head of a packet that a TC program drops to `events`; `ctx` is the context of that program. If the ring
/// buffer is full, the report is lost; the drop has been counted.
#[inline(always)]
pub(crate) fn report(ctx: *mut c_void, hook: Hook, reason: Reason) {
    let skb: *mut __sk_buff = ctx.cast();
    let Some(mut slot) = EVENTS.reserve(0) else { return };
    // SAFETY: the slot is the memory of an event, of which every field is written; the context is valid while the
    // program runs; the helper writes no more than the length passed to it, and nothing if the packet is shorter.
    unsafe {
        let event = slot.as_mut_ptr();
        (*event).time = helpers::bpf_ktime_get_coarse_ns();
        (*event).ifindex = IfIndex((*skb).ifindex);
        (*event).reason = reason as u16;
        (*event).hook = hook as u16;
        (*event).len = (*skb).len;
        (*event).head = [0; EVENT_HEAD];
        let head = (&raw mut (*event).head).cast();
        if hook as u32 == Hook::ToRaw as u32 {
            // Readers expect an Ethernet header, which these frames don't have.
            [(*event).head[12], (*event).head[13]] = ((*skb).protocol as u16).to_ne_bytes();
            let head = (&raw mut (*event).head[ETH]).cast();
            let [all, v6_ports, v6, v4_ports, v4, _] = EVENT_HEADS;
            let _ = copies(ctx, head, all - ETH)
                || copies(ctx, head, v6_ports - ETH)
                || copies(ctx, head, v6 - ETH)
                || copies(ctx, head, v4_ports - ETH)
                || copies(ctx, head, v4 - ETH);
        } else {
            let [all, v6_ports, v6, v4_ports, v4, ethernet] = EVENT_HEADS;
            let _ = copies(ctx, head, all)
                || copies(ctx, head, v6_ports)
                || copies(ctx, head, v6)
                || copies(ctx, head, v4_ports)
                || copies(ctx, head, v4)
                || copies(ctx, head, ethernet);
        }
    }
    slot.submit(0);
}

/// Copies the first bytes of a packet; false if it is shorter.
///
/// # Safety
/// `to` has room for them, and `ctx` is the context of the running program.
#[inline(always)]
unsafe fn copies(ctx: *mut c_void, to: *mut c_void, length: usize) -> bool {
    // SAFETY: guaranteed by the caller.
    unsafe { helpers::bpf_skb_load_bytes(ctx, 0, to, length as u32) == 0 }
}
