//! Slots of `holders` (array of `u32`): the number of `conntrack` entries of each sender.
//!
//! An entry is counted for the sender that began its flow. Several senders may share a slot. Programs only increment
//! the counts; the daemon's sweeps replace them with exact ones, unless only a small part of the table is in use.

use crate::{
    addr::{Addr, IfIndex},
    hash::mix,
};

/// Number of slots for pods, and also for clients outside the cluster.
const SENDER_SLOTS: u32 = 32_768;
/// Slot: all entries.
pub const ALL: u32 = 2 * SENDER_SLOTS;
/// Slot: entries of all clients outside the cluster.
pub const OUTSIDE: u32 = ALL + 1;
/// Slot: no count, but the capacity of `conntrack`; 0 while it is unknown.
pub const CAPACITY: u32 = ALL + 2;
/// Number of slots.
pub const LEN: usize = CAPACITY as usize + 1;

/// Slot of a sender on this node, by ingress interface: a pod, or the processes of the host.
#[inline(always)]
pub const fn of_interface(ifindex: IfIndex) -> u32 {
    ifindex.0 % SENDER_SLOTS
}

/// Slot of a client outside the cluster.
#[inline(always)]
pub const fn of_client(addr: &Addr) -> u32 {
    let [a, b, c, d] = addr.0;
    SENDER_SLOTS + mix(a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d) % SENDER_SLOTS
}

/// Whether a slot belongs to a client outside the cluster.
#[inline(always)]
pub const fn is_outside(slot: u32) -> bool {
    slot >= SENDER_SLOTS && slot < ALL
}
