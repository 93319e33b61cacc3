//! Removal and denial of flows, as requested by the daemon: see [`podnet_common::removal`].

use aya_ebpf::{EbpfContext as _, macros::classifier, programs::TcContext};
use podnet_common::removal;

use crate::{context::TcPacket, tables::Maps};

/// Attached to no hook. Returns the number of entries that were not denied before.
#[classifier]
pub(crate) fn deny_flows(ctx: TcContext) -> i32 {
    removal::deny(&TcPacket::<0>::new(&ctx), &Maps::<false> { ctx: ctx.as_ptr() }) as i32
}

/// Attached to no hook. Returns the number of entries removed.
#[classifier]
pub(crate) fn remove_flows(ctx: TcContext) -> i32 {
    removal::remove(&TcPacket::<0>::new(&ctx), &Maps::<false> { ctx: ctx.as_ptr() }) as i32
}
