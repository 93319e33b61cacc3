//! Packets that network policies have denied, by policy: the daemon attributes the kernel's counts every second.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};

/// Counts by policy and direction. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct DenialMetrics(Arc<Mutex<Vec<(ByPolicy, u64)>>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPolicy {
    policy: String,
    direction: &'static str,
}

impl DenialMetrics {
    /// Sets all counts: the policy, the direction, and the number of packets.
    pub fn set(&self, counts: impl Iterator<Item = (String, &'static str, u64)>) {
        let counts = counts.map(|(policy, direction, packets)| (ByPolicy { policy, direction }, packets));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counts.collect();
    }
}

impl Collector for DenialMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Packets denied by a network policy that applies to pods of this node.";
        let mut family = encoder.encode_descriptor("policy_denied_packets", help, None, MetricType::Counter)?;
        for (labels, packets) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            ConstCounter::new(*packets).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}
