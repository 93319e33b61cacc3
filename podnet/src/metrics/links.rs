//! Repairs of pods' links and records.

use podnet_cni::repair::KINDS;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPart {
    part: &'static str,
}

/// Repairs.
#[derive(Clone, Debug, Default)]
pub struct LinkMetrics {
    repairs: Family<OfPart, Counter>,
    records: Counter,
}

impl LinkMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Repairs of pods' links, by repaired part";
        registry.register("link_repairs", help, self.repairs.clone());
        KINDS.into_iter().for_each(|part| drop(self.repairs.get_or_create(&OfPart { part })));
        let help = "Damaged or missing pod records that were rewritten";
        registry.register("records_rewritten", help, self.records.clone());
    }

    /// A part of a pod's link was restored.
    pub fn repaired(&self, part: &'static str) {
        self.repairs.get_or_create(&OfPart { part }).inc();
    }

    /// A pod's record was rewritten.
    pub fn rewritten(&self) {
        self.records.inc();
    }
}
