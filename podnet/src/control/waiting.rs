//! Service changes that haven't taken effect in the tables yet, for measuring the latency.
//!
//! As in kube-proxy's tracker, the oldest change that a write puts into effect counts, and a change whose write failed
//! continues to wait. A service has a single entry, however often it changes in the meantime.

use std::collections::{BTreeMap, BTreeSet};

use podnet_common::layout::FrontendKey;

use crate::model::{ObjectName, Origin};

/// A waiting change.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    services: BTreeMap<ObjectName, Wait>,
    effective: Vec<Origin>,
}

#[derive(Debug)]
struct Wait {
    since: Origin,
    /// Frontends that must be written for it; empty if the change makes no difference to the tables.
    frontends: BTreeSet<FrontendKey>,
}

impl Waiting {
    /// Records a change of a service.
    pub(super) fn note(&mut self, service: &ObjectName, origin: Origin) {
        match self.services.get_mut(service) {
            Some(wait) => wait.since = wait.since.older(origin),
            None => {
                let wait = Wait { since: origin, frontends: BTreeSet::new() };
                self.services.insert(service.clone(), wait);
            }
        }
    }

    /// Adds the frontends that the change affects.
    pub(super) fn add(&mut self, service: &ObjectName, frontends: &[FrontendKey]) {
        if let Some(wait) = self.services.get_mut(service) {
            wait.frontends.extend(frontends);
        }
    }

    /// The tables have been written, except for the keys for which `is_unwritten` is true.
    pub(super) fn settle(&mut self, is_unwritten: impl Fn(&FrontendKey) -> bool) {
        let done = self.services.extract_if(.., |_, wait| !wait.frontends.iter().any(&is_unwritten));
        self.effective.extend(done.map(|(_, wait)| wait.since));
    }

    /// Takes the origins of changes that have taken effect since the last call.
    pub(super) fn take_effective(&mut self) -> Vec<Origin> {
        std::mem::take(&mut self.effective)
    }
}
