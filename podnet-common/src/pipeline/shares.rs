//! Who may begin one more flow. The connection table is everybody's, and so are the source ports towards a destination; one
//! pod, or one client outside, could take them all in less than a second.
//!
//! A sender may hold [`TIMES`] times as many entries as are free (the dynamic thresholds of Choudhury and Hahne, "Dynamic
//! queue length thresholds for shared-memory packet switches", 1998): alone nearly all, while one who holds few is never
//! refused. So there is always room, and nothing has to be divided beforehand. All clients outside, whose addresses may be
//! invented, together count as one sender too.

use crate::layout::{Config, Hook, Scratch, holders};

use super::{Place, Tables};

/// How many times the free entries one sender may hold: four leave a fifth of the table when one takes all it can, and a
/// ninth when two do.
const TIMES: u32 = 4;

/// Who counts the flow in `s`, and whether that one may have it. Leaves in `s` what [`insert`](super::insert) needs to know.
#[inline(always)]
pub(super) fn admit<At: Place, T: Tables>(t: &T, s: &mut Scratch, config: &Config) -> bool {
    let outside = At::HOOK as u32 == Hook::FromUplink as u32;
    s.holder = if outside {
        holders::of_client(&s.tuple.src)
    } else {
        holders::of_interface(if At::EGRESS { config.podnet1 } else { s.entry.in_ifindex })
    };
    let held = t.held(s.holder);
    s.ports = ports(config.snat_count, held);
    let room = t.held(holders::ROOM);
    let most = room.saturating_sub(t.held(holders::ALL)).saturating_mul(TIMES);
    let most_here = if outside { t.held(holders::OUTSIDE) } else { held };
    // What is there already may begin anew.
    room == 0 || (held <= most && most_here <= most) || t.flow(&s.tuple, |_| ()).is_some()
}

/// How many of the ports for source NAT a sender may draw from who holds so many entries: a sixteenth is left to those
/// who hold few, so that a draw in sixteen finds one.
#[inline(always)]
fn ports(count: u32, held: u32) -> u32 {
    // Two entries a flow.
    let many = held / 2 > count / 8;
    if many { count - count / 16 } else { count }
}

/// Counts new entries of the flow in `s`.
#[inline(always)]
pub(super) fn count<T: Tables>(t: &T, s: &Scratch, entries: u32) {
    t.hold(s.holder, entries);
    t.hold(holders::ALL, entries);
    if holders::is_outside(s.holder) {
        t.hold(holders::OUTSIDE, entries);
    }
}
