//! Reports of dropped packets.

use bytemuck::{Pod, Zeroable};

use crate::addr::IfIndex;

/// What `events` (ring buffer) carries: one dropped packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    /// Where it arrived.
    pub ifindex: IfIndex,
    /// A [`crate::verdict::Reason`] as a number.
    pub reason: u16,
    /// A [`Hook`](super::Hook) as a number.
    pub hook: u16,
    /// Length of the frame in bytes.
    pub len: u32,
    /// The frame's first bytes; zeros where it is shorter.
    pub head: [u8; EVENT_HEAD],
}

/// How much of a dropped packet an [`Event`] carries: Ethernet, IPv6 and TCP headers.
pub const EVENT_HEAD: usize = 76;

const _: () = assert!(size_of::<Event>() == 96);
