//! Pauses between attempts to reach the API server.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(400), Duration::from_secs(30));
/// Time without a failure after which the count of failures restarts.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// Pause after a failure: a back-off with jitter, so that nodes don't retry in step.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// Number of consecutive failures.
    failures: u32,
    /// When the last pause ended.
    ended: Option<Instant>,
}

impl Pause {
    pub(super) fn next(&mut self) -> Duration {
        let now = Instant::now();
        let recent = self.ended.is_some_and(|ended| now.saturating_duration_since(ended) < FORGOTTEN);
        self.failures = if recent { self.failures.saturating_add(1) } else { 1 };
        let length = BACKOFF.after(self.failures);
        self.ended = Some(now + length);
        // Between half and all of it; the hasher's state has a random seed.
        let random = RandomState::new().hash_one(0) % 1000;
        length.mul_f64(0.5 + random as f64 / 2000.0)
    }
}
