//! Back-off.

use std::time::Duration;

/// A delay that doubles with each consecutive failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// Starts with `first`, and never exceeds `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The delay after this number of consecutive failures.
    pub fn after(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let delays = [1, 2, 3, 7, 8, 9, u32::MAX].map(|failures| backoff.after(failures).as_millis());
        assert_eq!(delays, [50, 100, 200, 3200, 5000, 5000, 5000]);
    }
}
