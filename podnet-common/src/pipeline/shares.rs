//! Who may begin one more flow. The connection table is everybody's, and so are the source ports towards a destination; one
//! pod, or one client outside, could take them all in less than a second.
//!
//! A sender may hold [`TIMES`] times as many entries as are free (the dynamic thresholds of Choudhury and Hahne, "Dynamic
//! queue length thresholds for shared-memory packet switches", 1998): alone nearly all, while one who holds few is never
//! refused. So there is always room, and nothing has to be divided beforehand. All clients outside, whose addresses may be
//! invented, together count as one sender too.

use crate::{
    addr::IfIndex,
    layout::{Tuple, holders},
};

use super::{Place, Tables, handover::ToInsert};

/// How many times the free entries one sender may hold: four leave a fifth of the table when one takes all it can, and a
/// ninth when two do.
const TIMES: u32 = 4;

/// Whether the sender of a flow, whose packets have this tuple and come in at `from`, may have it. Notes what
/// [`insert`](super::insert()) needs to know.
#[inline(always)]
pub(super) fn admit<At: Place, T: Tables>(t: &T, tuple: &Tuple, from: IfIndex, flow: &mut ToInsert) -> bool {
    let Some(config) = t.config() else { return false };
    flow.holder = if At::FROM_UPLINK {
        holders::of_client(&tuple.src)
    } else {
        holders::of_interface(if At::EGRESS { config.podnet1 } else { from })
    };
    let held = t.held(flow.holder);
    flow.ports = ports(config.snat_count, held);
    let room = t.held(holders::ROOM);
    let most = room.saturating_sub(t.held(holders::ALL)).saturating_mul(TIMES);
    let most_here = if At::FROM_UPLINK { t.held(holders::OUTSIDE) } else { held };
    // What is there already may begin once more.
    room == 0 || (held <= most && most_here <= most) || t.flow(tuple, |_| ()).is_some()
}

/// How many of the ports for source NAT a sender may draw from who holds so many entries: a sixteenth is left to those
/// who hold few, so that a draw in sixteen finds one.
#[inline(always)]
fn ports(count: u32, held: u32) -> u32 {
    // Two entries a flow.
    let many = held / 2 > count / 8;
    if many { count - count / 16 } else { count }
}

/// Counts new entries of a flow.
#[inline(always)]
pub(super) fn count<T: Tables>(t: &T, flow: &ToInsert, entries: u32) {
    t.hold(flow.holder, entries);
    t.hold(holders::ALL, entries);
    if holders::is_outside(flow.holder) {
        t.hold(holders::OUTSIDE, entries);
    }
}
