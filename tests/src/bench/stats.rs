//! Medians and their confidence intervals, without assumptions about the distribution of the noise.
//!
//! A ratio is never the quotient of two medians: each round of a run yields a pair of adjacent measurements, each pair
//! yields a quotient, and the reported ratio is the median of the quotients. Slow drifts of the machine affect both
//! sides of a pair. The interval is based on order statistics: the number of samples below the true median is
//! binomially distributed (David and Nagaraja, Order Statistics, section 7.1), so the interval is exact for any noise
//! that is independent between rounds.

use serde::Serialize;

/// Minimum number of pairs for evaluating a ratio.
pub const ENOUGH_PAIRS: usize = 20;
/// Minimum number of samples for evaluating a value: from six on, a 95 % interval exists.
pub const ENOUGH_VALUES: usize = 6;

/// A median with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The sample median.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Number of samples.
    pub samples: usize,
}

/// Result of comparing a measurement with a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The whole interval is on the good side.
    Reached,
    /// The whole interval is on the bad side.
    Missed,
    /// The interval contains the goal, or there are too few samples.
    Inconclusive,
}

/// A bound for a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// At least this value.
    AtLeast(f64),
    /// At most this value.
    AtMost(f64),
}

impl Bound {
    /// Evaluates an estimate. Fewer than `enough` samples are always inconclusive.
    pub fn evaluate(self, estimate: &Estimate, enough: usize) -> Outcome {
        if estimate.samples < enough {
            return Outcome::Inconclusive;
        }
        let (good, bad) = match self {
            Self::AtLeast(goal) => (estimate.low >= goal, estimate.high < goal),
            Self::AtMost(goal) => (estimate.high <= goal, estimate.low > goal),
        };
        match (good, bad) {
            (true, _) => Outcome::Reached,
            (_, true) => Outcome::Missed,
            _ => Outcome::Inconclusive,
        }
    }
}

/// The median and its interval; `None` without samples. With fewer than six samples the interval is the range, which
/// contains the true median with a probability below 95 %; [`Bound::evaluate`] does not decide on so few.
pub fn estimate(samples: &[f64]) -> Option<Estimate> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let skip = interval_rank(n);
    Some(Estimate { median: median_of_sorted(&sorted)?, low: sorted[skip], high: sorted[n - 1 - skip], samples: n })
}

/// The estimate of `values[i] / baseline[i]`.
pub fn ratio(values: &[f64], baseline: &[f64]) -> Option<Estimate> {
    estimate(&values.iter().zip(baseline).map(|(v, b)| v / b).collect::<Vec<_>>())
}

/// The median; `None` without samples.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

/// The percentile (nearest rank); `None` without samples.
pub fn percentile(samples: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (samples.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let n = sorted.len();
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(sorted[n / 2]),
        _ => Some((sorted[n / 2 - 1] + sorted[n / 2]) / 2.0),
    }
}

/// Number of samples to omit at either end so that the rest spans the true median with a probability of at least 95 %:
/// the largest k with P(Binomial(n, 1/2) <= k) of at most 2.5 %.
fn interval_rank(n: usize) -> usize {
    let mut term = 0.5f64.powi(n as i32);
    let mut below = 0.0;
    for k in 0..n {
        below += term;
        if below > 0.025 {
            return k.saturating_sub(1);
        }
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_match_the_published_tables() {
        // Conover, Practical Nonparametric Statistics, table A3: ranks of the 95 % interval for the median, given here
        // as the number of samples omitted at each end.
        for (n, left_out) in [(5, 0), (6, 0), (8, 0), (9, 1), (15, 3), (20, 5), (25, 7), (40, 13), (100, 39)] {
            assert_eq!(interval_rank(n), left_out, "n = {n}");
        }
    }

    #[test]
    fn interval_contains_the_true_median_with_the_stated_probability() {
        // A skewed distribution: squares of uniform numbers, median 0.25.
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let trials = 4000;
        let held = (0..trials)
            .filter(|_| {
                let samples: Vec<f64> = (0..24).map(|_| uniform().powi(2)).collect();
                let e = estimate(&samples).unwrap();
                e.low <= 0.25 && 0.25 <= e.high
            })
            .count();
        let share = held as f64 / trials as f64;
        assert!((0.945..0.995).contains(&share), "{share}");
    }

    #[test]
    fn ratios_are_computed_within_pairs() {
        // The machine's speed halves in the middle of the run, while the quotient within each pair is 2 throughout.
        let baseline: Vec<f64> = (0..20).map(|i| if i < 10 { 100.0 } else { 50.0 }).collect();
        let values: Vec<f64> = baseline.iter().map(|b| 2.0 * b).collect();
        assert_eq!(ratio(&values, &baseline), Some(Estimate { median: 2.0, low: 2.0, high: 2.0, samples: 20 }));
    }

    #[test]
    fn goals_are_evaluated_by_the_whole_interval() {
        let e = |low, high, samples| Estimate { median: (low + high) / 2.0, low, high, samples };
        assert_eq!(Bound::AtLeast(0.97).evaluate(&e(0.975, 0.99, 20), ENOUGH_PAIRS), Outcome::Reached);
        assert_eq!(Bound::AtLeast(0.97).evaluate(&e(0.90, 0.96, 20), ENOUGH_PAIRS), Outcome::Missed);
        assert_eq!(Bound::AtLeast(0.97).evaluate(&e(0.96, 0.99, 20), ENOUGH_PAIRS), Outcome::Inconclusive);
        assert_eq!(Bound::AtLeast(0.97).evaluate(&e(0.98, 0.99, 19), ENOUGH_PAIRS), Outcome::Inconclusive);
        assert_eq!(Bound::AtMost(2.0).evaluate(&e(1.5, 1.9, 20), ENOUGH_PAIRS), Outcome::Reached);
        assert_eq!(Bound::AtMost(2.0).evaluate(&e(2.1, 2.2, 20), ENOUGH_PAIRS), Outcome::Missed);
        assert_eq!(Bound::AtMost(2.0).evaluate(&e(1.9, 2.2, 20), ENOUGH_PAIRS), Outcome::Inconclusive);
    }

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 99.0), Some(198.0));
        assert_eq!(percentile(&samples, 100.0), Some(200.0));
        assert_eq!((percentile(&[3.0], 99.0), percentile(&[], 99.0)), (Some(3.0), None));
    }

    #[test]
    fn median_of_even_and_odd_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(estimate(&[]), None);
    }
}
