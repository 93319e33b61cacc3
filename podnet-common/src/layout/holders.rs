//! Places in `holders` (array of `u32`): how many entries of `conntrack` everybody holds by whom flows were begun. A place may be
//! shared by several. Each sweep of the daemon replaces the counts, which programs only add to, by exact ones.

use crate::addr::{Addr, IfIndex};

/// How many places pods have, and outside clients.
const PLACES: u32 = 32_768;
/// All entries.
pub const ALL: u32 = 2 * PLACES;
/// Those of all outside clients.
pub const OUTSIDE: u32 = ALL + 1;
/// No count, but how many entries `conntrack` has room for; 0: that isn't known yet.
pub const ROOM: u32 = ALL + 2;
/// How many places there are.
pub const LEN: usize = ROOM as usize + 1;

/// The place of what comes in by an interface of this node: a pod's, or that of the host's processes.
#[inline(always)]
pub const fn of_interface(ifindex: IfIndex) -> u32 {
    ifindex.0 % PLACES
}

/// The place of an outside client.
#[inline(always)]
pub const fn of_client(addr: &Addr) -> u32 {
    let [a, b, c, d] = addr.0;
    PLACES + crate::pipeline::mix(a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d) % PLACES
}

/// Whether a place is an outside client's.
#[inline(always)]
pub const fn is_outside(place: u32) -> bool {
    place >= PLACES && place < ALL
}
