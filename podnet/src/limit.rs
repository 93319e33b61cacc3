//! Limits the rate of what a flood of events causes.

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);

/// Admits a number of events per second.
#[derive(Debug)]
pub struct Limit {
    most: u32,
    /// Start of the window.
    since: Instant,
    /// Number of events in it.
    events: u32,
    /// Number of events not admitted since the last one that was.
    omitted: u64,
}

impl Limit {
    /// Admits at most `most` events per second.
    pub fn new(most: u32, now: Instant) -> Self {
        Self { most, since: now, events: 0, omitted: 0 }
    }

    /// Counts an event. If it is admitted, returns the number of those that were not since the last one.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) > WINDOW {
            (self.since, self.events) = (now, 0);
        }
        self.events = self.events.saturating_add(1);
        if self.events > self.most {
            self.omitted += 1;
            return None;
        }
        Some(std::mem::take(&mut self.omitted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_limited_and_the_next_event_says_how_many_are_missing() {
        let start = Instant::now();
        let mut limit = Limit::new(5, start);
        let admitted: Vec<_> = (0..8).map(|_| limit.admit(start)).collect();
        assert_eq!(admitted, [Some(0), Some(0), Some(0), Some(0), Some(0), None, None, None]);
        let later = start + 2 * WINDOW;
        assert_eq!((limit.admit(later), limit.admit(later)), (Some(3), Some(0)));
    }
}
