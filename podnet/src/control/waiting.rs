//! Changes of services that aren't true of the tables yet, for measuring how long that takes.
//!
//! As kube-proxy's tracker has it: what counts is the oldest change that a write makes true, and after a write that
//! failed the change still waits. A service has one entry, however often it changes meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use podnet_common::layout::FrontendKey;

use crate::model::{ObjectName, Origin};

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    services: BTreeMap<ObjectName, Wait>,
    effective: Vec<Origin>,
}

#[derive(Debug)]
struct Wait {
    since: Origin,
    /// Frontends that have to be written for it; none: what has changed makes no difference to the tables.
    frontends: BTreeSet<FrontendKey>,
}

impl Waiting {
    /// A service has changed.
    pub(super) fn note(&mut self, service: &ObjectName, origin: Origin) {
        match self.services.get_mut(service) {
            Some(wait) => wait.since = wait.since.older(origin),
            None => {
                let wait = Wait { since: origin, frontends: BTreeSet::new() };
                self.services.insert(service.clone(), wait);
            }
        }
    }

    /// What follows for its frontends.
    pub(super) fn add(&mut self, service: &ObjectName, frontends: &BTreeSet<FrontendKey>) {
        if let Some(wait) = self.services.get_mut(service) {
            wait.frontends.extend(frontends);
        }
    }

    /// The tables were written, except for what `is_unwritten`.
    pub(super) fn settle(&mut self, is_unwritten: impl Fn(&FrontendKey) -> bool) {
        let done = self.services.extract_if(.., |_, wait| !wait.frontends.iter().any(&is_unwritten));
        self.effective.extend(done.map(|(_, wait)| wait.since));
    }

    /// What has become true since the last call.
    pub(super) fn take_effective(&mut self) -> Vec<Origin> {
        std::mem::take(&mut self.effective)
    }
}
