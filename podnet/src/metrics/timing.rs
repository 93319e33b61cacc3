//! Histograms of durations in milliseconds.

use prometheus_client::metrics::histogram::Histogram;

/// Duration of an operation that usually takes milliseconds.
#[derive(Clone, Debug)]
pub(super) struct Timing(pub(super) Histogram);

impl Default for Timing {
    fn default() -> Self {
        /// Upper bounds in seconds.
        const BOUNDS: [f64; 15] =
            [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 10.0];
        Self(Histogram::new(BOUNDS))
    }
}
