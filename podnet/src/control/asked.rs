//! Queries from commands to the control plane. Their cost doesn't depend on the number of services or endpoints.

use super::{Control, Pending};
use crate::entry_counts::Share;
use crate::frontend::Owner;
use crate::model::{ObjectName, Service};
use crate::select::Inputs;

impl Control {
    /// Everything that determines the outcome for a service; `None` if it doesn't exist.
    pub fn inputs(&self, name: &ObjectName) -> Option<Inputs> {
        let (service, slices) = self.index.shared(name)?;
        let owner = Owner::Service(name.clone());
        let share = Share::new(self.frontends.shares.of_service()).within(self.frontends.shares.limit(&owner));
        let (settings, guard) = (self.nodes.settings().clone(), self.nodes.guard.clone());
        Some(Inputs { name: name.clone(), service, slices, settings, guard, share })
    }

    /// The services after this one, or all, in ascending order; `None` for names that have only EndpointSlices so far.
    pub fn services_after(&self, name: Option<&ObjectName>) -> impl Iterator<Item = (&ObjectName, Option<&Service>)> {
        self.index.services_after(name)
    }

    /// Frontends that haven't been written yet because of errors.
    pub fn pending(&self) -> Vec<Pending> {
        let pending = self.frontends.reconciler.pending().map(|(what, retry)| Pending {
            frontend: what.to_string(),
            failures: retry.failures,
            reason: retry.reason.clone(),
        });
        pending.collect()
    }
}
