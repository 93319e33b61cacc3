//! Fair shares of the connection table: may a sender begin one more flow?
//!
//! All senders share the table, and the source ports towards a destination; one pod or one external client could use up
//! both in less than a second. A sender may therefore hold [`TIMES`] times as many entries as are free (dynamic
//! thresholds: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998): almost
//! the whole table if it is alone, while a sender with few entries is never refused. Some room always remains, and
//! nothing has to be partitioned in advance. External clients, whose addresses may be spoofed, are also limited
//! together, as one sender.

use crate::{
    addr::IfIndex,
    layout::{Tuple, holders},
};

use super::{HookPoint, Tables, handover::ToInsert};

/// Maximum number of entries per sender, as a multiple of the free entries. With 4, one greedy sender leaves a fifth of
/// the table free, two leave a ninth.
const TIMES: u32 = 4;

/// Whether the sender of a flow, whose packets have this tuple and arrive on `from`, may begin it. Stores the holder
/// and the number of ports for [`insert`](super::insert()).
#[inline(always)]
pub(super) fn may_begin<At: HookPoint, T: Tables>(t: &T, tuple: &Tuple, from: IfIndex, flow: &mut ToInsert) -> bool {
    let Some(config) = t.config() else { return false };
    flow.holder = if At::FROM_UPLINK {
        holders::of_client(&tuple.src)
    } else {
        holders::of_interface(if At::EGRESS { config.podnet1 } else { from })
    };
    let held = t.held(flow.holder);
    flow.ports = available_ports(config.snat_count, held);
    flow.first_ports = first_ports(config.snat_count);
    let capacity = t.held(holders::CAPACITY);
    let limit = capacity.saturating_sub(t.held(holders::ALL)).saturating_mul(TIMES);
    let held_together = if At::FROM_UPLINK { t.held(holders::OUTSIDE) } else { held };
    // An existing flow may begin again.
    capacity == 0 || (held <= limit && held_together <= limit) || t.flow(tuple, |_| ()).is_some()
}

/// Whether so much of the table is free, a quarter, that flows which can do without an entry get one.
#[inline(always)]
pub(super) fn has_room<T: Tables>(t: &T) -> bool {
    let (capacity, all) = (t.held(holders::CAPACITY), t.held(holders::ALL));
    capacity == 0 || all < capacity - capacity / 4
}

/// Number of SNAT ports available to a sender that holds `held` entries. A sixteenth is reserved for senders with few
/// entries, so that one draw in sixteen succeeds for them.
#[inline(always)]
fn available_ports(count: u32, held: u32) -> u32 {
    // Two entries per flow.
    let many = held / 2 > count / 8;
    if many { unreserved(count) } else { count }
}

#[inline(always)]
fn unreserved(count: u32) -> u32 {
    count - count / 16
}

/// Number of SNAT ports among which the first attempt of any sender chooses. If it changes, all ports of each client
/// move to where servers have met other ports. So it doesn't depend on the sender's entries, and is rounded down, since
/// processes of the host take ports and release them.
#[inline(always)]
fn first_ports(count: u32) -> u32 {
    /// A power of two, and small compared with the ports of an ordinary host.
    const STEP: u32 = 1024;
    let ports = unreserved(count);
    if ports < STEP { ports } else { ports & !(STEP - 1) }
}

/// Counts new entries of a flow for its holder.
#[inline(always)]
pub(super) fn count_entries<T: Tables>(t: &T, flow: &ToInsert, entries: u32) {
    t.add_held(flow.holder, entries);
    t.add_held(holders::ALL, entries);
    if holders::is_outside(flow.holder) {
        t.add_held(holders::OUTSIDE, entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_the_first_attempt_rarely_change() {
        // An ordinary host, with some listeners more or fewer.
        for count in [33_512, 33_510, 33_400] {
            assert_eq!(first_ports(count), 30 * 1024);
        }
        for count in [0, 1, 15, 16, 1023, 1100, 4096, 65_535] {
            assert!(first_ports(count) <= available_ports(count, u32::MAX) && (count == 0 || first_ports(count) > 0));
        }
    }
}
