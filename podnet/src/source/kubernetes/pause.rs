//! Pauses between attempts to reach the API server.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(400), Duration::from_secs(30));
/// Without a failure for so long, the next one is the first again.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// How long to wait after a failure: longer after each, and not all nodes alike.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// Failures that followed each other closely.
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
        // From a half to all of it; the state is seeded at random.
        let random = RandomState::new().hash_one(0) % 1000;
        length.mul_f64(0.5 + random as f64 / 2000.0)
    }
}
