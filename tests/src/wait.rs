//! Waiting for conditions.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podnet_common::time;

/// Timeout of anything that must happen: much longer than it takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Calls `condition` every few milliseconds until it holds.
///
/// # Errors
/// Its error, or a timeout after [`PATIENCE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if condition().with_context(|| format!("while waiting for: {what}"))? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("not after {PATIENCE:?}: {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for longer than processors use cached routes: a tick (see "Cached lookups" in docs/datapath.md).
pub fn wait_for_cached_routes_to_expire() {
    const TICK: Duration = Duration::from_nanos(1 << time::TICK_SHIFT);
    thread::sleep(TICK + TICK / 10);
}

/// Calls `attempt` every few milliseconds until it succeeds.
///
/// # Errors
/// The error of the last attempt, after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not after {PATIENCE:?}: {what}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
            success => return success,
        }
    }
}
