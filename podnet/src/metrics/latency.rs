//! Latency until a change takes effect in the tables: `kubeproxy_network_programming_duration_seconds`, and the
//! daemon's own part of it.

use std::time::{Duration, Instant, SystemTime};

use prometheus_client::{
    metrics::histogram::Histogram,
    registry::{Registry, Unit},
};

use super::timing::Timing;
use crate::model::Origin;

/// Upper bounds in seconds. Trigger times often have a resolution of one second.
const PROGRAMMING: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Latency of service changes.
#[derive(Clone, Debug)]
pub struct Latency {
    programming: Histogram,
    application: Timing,
}

impl Default for Latency {
    fn default() -> Self {
        Self { programming: Histogram::new(PROGRAMMING), application: Timing::default() }
    }
}

impl Latency {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Time from the change of a service's endpoints, as in the EndpointSlice's last-change-trigger-time \
                    annotation, until it is programmed in the tables; changes of a service that are written together \
                    count once, from the oldest";
        registry.register_with_unit("network_programming_duration", help, Unit::Seconds, self.programming.clone());
        let help = "Time from receiving a change of a service until it is programmed in the tables";
        registry.register_with_unit("change_application_duration", help, Unit::Seconds, self.application.0.clone());
    }

    /// The change with this origin has taken effect at `now`, one moment on two clocks.
    pub fn observe(&self, origin: &Origin, now: (Instant, SystemTime)) {
        let (application, programming) = durations(origin, now);
        self.application.0.observe(application.as_secs_f64());
        if let Some(programming) = programming {
            self.programming.observe(programming.as_secs_f64());
        }
    }
}

/// Durations since arrival and since the trigger. Clocks differ: a trigger in the future counts as zero.
fn durations(origin: &Origin, (now, wall): (Instant, SystemTime)) -> (Duration, Option<Duration>) {
    let since = |trigger| wall.duration_since(trigger).unwrap_or(Duration::ZERO);
    (now.saturating_duration_since(origin.arrived), origin.trigger.map(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_never_negative() {
        let (now, wall, second) = (Instant::now(), SystemTime::now(), Duration::from_secs(1));
        let arrived = now.checked_sub(second).unwrap();
        for (arrived, trigger, expected) in [
            (arrived, None, (second, None)),
            (arrived, Some(wall - 7 * second), (second, Some(7 * second))),
            (arrived, Some(wall + 60 * second), (second, Some(Duration::ZERO))),
            (now + second, Some(wall), (Duration::ZERO, Some(Duration::ZERO))),
        ] {
            assert_eq!(durations(&Origin { arrived, trigger }, (now, wall)), expected);
        }
    }
}
