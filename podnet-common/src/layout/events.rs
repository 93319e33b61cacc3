//! Reports of dropped packets.

use bytemuck::{Pod, Zeroable};

use crate::addr::IfIndex;

/// Record in `events` (ring buffer): one dropped packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// Time of the drop: `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    /// Interface of the hook that dropped it.
    pub ifindex: IfIndex,
    /// A [`crate::verdict::Reason`] as a number.
    pub reason: u16,
    /// A [`Hook`](super::Hook) as a number.
    pub hook: u16,
    /// Length of the frame in bytes.
    pub len: u32,
    /// First bytes of the frame; zeros beyond its end.
    pub head: [u8; EVENT_HEAD],
}

/// Number of bytes of a dropped packet in an [`Event`]: enough for Ethernet, IPv6 and TCP headers.
pub const EVENT_HEAD: usize = 76;

/// Possible numbers of these bytes, in the order in which they are tried: all, IPv6 with ports, IPv6, IPv4 with ports,
/// IPv4, and Ethernet. The rest is zero. The kernel copies all or nothing, and older ones take no variable length.
pub const EVENT_HEADS: [usize; 6] = [EVENT_HEAD, 62, 54, 42, 34, 14];

const _: () = assert!(size_of::<Event>() == 96);
