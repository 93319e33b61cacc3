//! When what has failed is tried again.

use std::time::{Duration, Instant};

use super::tables::TableError;

/// After the first failure; doubled after each further one.
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
/// The longest back-off.
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// Something that has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// When it is tried again.
    pub at: Instant,
    /// When it failed first.
    pub since: Instant,
    /// How often it has failed.
    pub failures: u32,
    /// The last time, because the kernel refused; else for want of room.
    pub refused: bool,
    /// It is in the tables, in a form that isn't the best.
    pub written: bool,
    /// Why, the last time.
    pub reason: String,
}

impl Retry {
    /// After a further failure.
    pub(super) fn after(earlier: Option<&Self>, error: &TableError, now: Instant) -> Self {
        let failures = earlier.map_or(0, |retry| retry.failures) + 1;
        let delay = BACK_OFF_MIN.saturating_mul(1 << (failures - 1).min(16)).min(BACK_OFF_MAX);
        let refused = matches!(error, TableError::Io { .. });
        let since = earlier.map_or(now, |retry| retry.since);
        Self { at: now + delay, since, failures, refused, written: false, reason: error.to_string() }
    }
}
