//! Pauses between attempts to reach the API server.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

/// How long to wait after a failure: longer after each, and not all nodes alike.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// When the last one ended, and how long it was.
    last: Option<(Instant, Duration)>,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(400);
    const LONGEST: Duration = Duration::from_secs(30);
    /// Without a failure for so long, the next one is the first again.
    const FORGOTTEN: Duration = Duration::from_secs(120);

    pub(super) fn next(&mut self) -> Duration {
        let now = Instant::now();
        let longer = |(ended, length): (Instant, Duration)| {
            let recent = now.saturating_duration_since(ended) < Self::FORGOTTEN;
            recent.then(|| (length * 2).min(Self::LONGEST))
        };
        let length = self.last.and_then(longer).unwrap_or(Self::FIRST);
        self.last = Some((now + length, length));
        // From a half to all of it; the state is seeded at random.
        let random = RandomState::new().hash_one(0) % 1000;
        length.mul_f64(0.5 + random as f64 / 2000.0)
    }
}
