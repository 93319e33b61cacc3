//! Network policies: from the control plane to the tables, to the plugin, and to the flows that exist.

use std::time::Instant;

use podnet_cni::text::chain;
use podnet_common::addr::IfIndex;
use tracing::warn;

use super::{Daemon, node};
use crate::control::policies::{Attached, Attachments};
use crate::model::ObjectName;

impl Daemon {
    /// Learns the addresses of pods from their records.
    pub(super) fn learn_attached(&mut self) {
        let mut attachments = Attachments::default();
        for record in self.records.iter() {
            let Some(pod) = &record.pod else { continue };
            let name = ObjectName { namespace: pod.namespace.clone(), name: pod.name.clone() };
            attachments.insert(
                name,
                Attached {
                    uid: pod.uid.as_str().into(),
                    container: record.id.container.as_str().into(),
                    ips: record.ips.iter().copied().collect(),
                    link: IfIndex(record.host_ifindex),
                },
            );
        }
        if self.control.policies_mut().set_attached(attachments) {
            self.sync_policies();
        }
    }

    /// Brings the tables of network policy up to date, and whatever follows from them.
    pub(super) fn sync_policies(&mut self) {
        // The absence of a policy means nothing before.
        if !self.control.policies_synced() {
            return;
        }
        let policies = self.control.policies_mut();
        if policies.isolates_more(self.datapath.policy_tables()).unwrap_or(true) {
            self.policies.note_new_subjects(Instant::now());
            self.set_new_subjects();
        }
        // Before the tables: a pod that starts meanwhile is closed until its policies are in effect.
        let policed = self.control.policies().policed();
        let publish = !std::mem::replace(&mut self.policies.synced, true) || self.policies.published != policed;
        if publish {
            // Whatever else of the node can't be set up.
            if let Err(error) = node::publish_policed(&self.config.run_dir, &policed) {
                warn!("new pods may start before their network policies are in effect: {}", chain(error.as_ref()));
            }
            self.policies.published = policed;
            self.node_due = Some(Instant::now());
        }
        let policies = self.control.policies_mut();
        let writes = policies.writes();
        let problem = policies.sync(self.datapath.policy_tables()).err().map(|error| error.to_string());
        let changed = policies.writes() != writes;
        for (table, entries) in policies.usage() {
            self.metrics.fills.set_entries(table, entries);
        }
        if let Some(problem) = problem.as_ref().filter(|problem| self.policies.problem.as_ref() != Some(problem)) {
            warn!(
                "{problem}; retrying: pods keep their former network policies, and newly isolated ones are closed to \
                 all but this node"
            );
        }
        self.policies.problem = problem;
        let (active, isolated) = (!policies.policies().is_empty(), policies.subjects().next().is_some());
        if !publish && (!changed || !active) {
            return;
        }
        if let Err(error) = self.datapath.policies_changed(active) {
            warn!("{error}");
        }
        if isolated {
            self.policies.evaluate_again();
            self.collect();
        }
    }

    /// Has the programs know whether pods have become subjects lately. Call it every second.
    pub(super) fn set_new_subjects(&mut self) {
        let are_new = self.policies.has_new_subjects(Instant::now());
        // Before the sources are synced, what an earlier daemon has set counts.
        if !are_new && !self.policies.synced {
            return;
        }
        if let Err(error) = self.datapath.set_new_subjects(are_new) {
            warn!("{error}");
        }
    }

    /// Reads how many packets each policy has denied. Call it every second.
    pub(super) fn count_denials(&mut self) {
        let policies = self.control.policies_mut();
        if let Err(error) = policies.count(self.datapath.policy_tables()) {
            warn!("cannot read how many packets network policies have denied: {error}");
        }
        let totals = policies.denials().totals();
        self.metrics.denials.set(totals.map(|(policy, to, packets)| (policy.to_string(), to.name(), packets)));
    }

    /// Tries again to write tables that the kernel has refused.
    pub(super) fn retry_policies(&mut self) {
        if self.policies.problem.is_some() {
            self.sync_policies();
        }
    }
}
