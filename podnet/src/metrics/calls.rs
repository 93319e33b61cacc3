//! The plugin's calls, from its log.

use podnet_cni::call_log::Call;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Upper bounds in seconds: an ADD usually takes some milliseconds, one that waits for another much longer.
const BOUNDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 20.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    command: &'static str,
    /// Code of the specification or podnet's own; 0 for success.
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCommand {
    command: &'static str,
}

/// Calls of the plugin.
#[derive(Clone, Debug)]
pub struct CallMetrics {
    calls: Family<Ended, Counter>,
    duration: Family<OfCommand, Histogram, fn() -> Histogram>,
}

impl Default for CallMetrics {
    fn default() -> Self {
        Self { calls: Family::default(), duration: Family::new_with_constructor(|| Histogram::new(BOUNDS)) }
    }
}

impl CallMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Calls of the CNI plugin by command and error code; 0 is success";
        registry.register("cni_calls", help, self.calls.clone());
        let help = "Duration of calls of the CNI plugin";
        registry.register_with_unit("cni_call_duration", help, Unit::Seconds, self.duration.clone());
    }

    /// Counts a call.
    pub fn observe(&self, call: &Call) {
        let command = call.command.name();
        self.calls.get_or_create(&Ended { command, code: call.code }).inc();
        self.duration.get_or_create(&OfCommand { command }).observe(call.duration.as_secs_f64());
    }
}
