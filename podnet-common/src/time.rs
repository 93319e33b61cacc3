//! The datapath's clock: ticks of 2^30 ns (1.07 s) of `CLOCK_MONOTONIC`, which kernel and user space read alike.

/// Shift from nanoseconds to ticks.
pub const TICK_SHIFT: u32 = 30;

/// Ticks for a time of `CLOCK_MONOTONIC` in nanoseconds. Wraps after 146 years.
#[inline(always)]
pub const fn ticks(ns: u64) -> u32 {
    (ns >> TICK_SHIFT) as u32
}

/// Ticks that cover a number of seconds.
pub const fn ticks_of_seconds(s: u64) -> u32 {
    ((s * 1_000_000_000 + (1 << TICK_SHIFT) - 1) >> TICK_SHIFT) as u32
}
