//! The datapath's clock: ticks of 2^30 ns (1.07 s) of `CLOCK_MONOTONIC`, which programs and user space read alike.

/// Number of bits to shift nanoseconds right by to get ticks.
pub const TICK_SHIFT: u32 = 30;

/// Converts a `CLOCK_MONOTONIC` time in nanoseconds to ticks. Wraps after 146 years.
#[inline(always)]
pub const fn ticks(ns: u64) -> u32 {
    (ns >> TICK_SHIFT) as u32
}

/// Number of ticks that cover `s` seconds, rounded up.
pub const fn ticks_of_seconds(s: u64) -> u32 {
    ((s * 1_000_000_000 + (1 << TICK_SHIFT) - 1) >> TICK_SHIFT) as u32
}
