//! Reports of dropped packets to user space.

use aya_ebpf::{bindings::__sk_buff, cty::c_void, helpers::generated as helpers};
use podnet_common::{
    addr::IfIndex,
    layout::{EVENT_HEAD, Hook},
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
    // program runs; the helper writes no more than the length passed to it.
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
            if helpers::bpf_skb_load_bytes(ctx, 0, head, (EVENT_HEAD - ETH) as u32) != 0 {
                helpers::bpf_skb_load_bytes(ctx, 0, head, 28);
            }
            slot.submit(0);
            return;
        }
        // The helper copies all or nothing: try the full length, then IPv4 with ports, then Ethernet.
        if helpers::bpf_skb_load_bytes(ctx, 0, head, EVENT_HEAD as u32) != 0
            && helpers::bpf_skb_load_bytes(ctx, 0, head, 42) != 0
        {
            helpers::bpf_skb_load_bytes(ctx, 0, head, 14);
        }
    }
    slot.submit(0);
}
