//! Services: from batches of the source to the tables, and to the health servers.

use std::time::{Instant, SystemTime};

use tracing::{debug, info_span};

use super::{Daemon, facts};
use crate::{control, health::Condition, heap, host::snapshot::Snapshot, metrics::Writes, model::Batch};

/// Number of objects in a list after which the heap is trimmed.
const LARGE: usize = 10_000;

impl Daemon {
    /// Applies a batch of the source.
    pub(super) fn take_in(&mut self, batch: Batch) {
        let large = batch.changes.len() >= LARGE;
        let applied = self.control.apply(batch);
        if applied.nodes || applied.addresses {
            self.node_due = Some(Instant::now());
        }
        self.reconcile();
        if applied.policies || !self.policies.synced {
            self.sync_policies();
        }
        if applied.lost {
            self.collect();
        }
        if applied.health {
            self.tell_health();
        }
        if large {
            heap::trim();
        }
    }

    /// Updates the facts about the host. Returns whether that affects services.
    pub(super) fn learn_host(&mut self, snapshot: &Snapshot) -> bool {
        self.watcher.learn(snapshot);
        let applied = self.control.set_host(facts::gather(snapshot, self.api_servers.known()));
        if applied.policies && self.policies.synced {
            self.sync_policies();
        }
        applied.services > 0 || applied.host_ports
    }

    /// Reports the node's condition to the health servers.
    pub(super) fn tell_health(&mut self) {
        let control::Health { checks, leaving, stale_since } = self.control.health();
        // Sources, whether API server or directory, don't count: while one is unavailable, existing objects stay in
        // effect, another daemon would know no more, and load balancers would have no node left.
        let current = stale_since.is_none();
        // At start, the set-up of an earlier daemon is still in effect.
        let ready = self.node.ready || (self.was_set_up && !self.control.synced());
        self.health.report(Condition { ready, current, leaving }, Instant::now());
        self.servers.settle(checks);
    }

    /// Brings the service tables closer to the desired state.
    pub(super) fn reconcile(&mut self) {
        let _span = info_span!("reconcile").entered();
        self.outcome = self.control.reconcile(self.datapath.tables(), Instant::now());
        if self.control.synced() && !std::mem::replace(&mut self.has_loaded, true) {
            heap::trim();
        }
        self.metrics.reconciled(Writes {
            done: self.outcome.changed,
            failed: self.outcome.failed,
            pending: self.outcome.unwritten,
        });
        let now = (Instant::now(), SystemTime::now());
        self.control.take_effective().iter().for_each(|origin| self.metrics.latency.observe(origin, now));
        if self.outcome.changed > 0 {
            debug!(changed = self.outcome.changed, pending = self.outcome.pending, "reconciled the tables");
        }
        // Datagrams to an endpoint that is gone would be lost as long as their flow lives.
        if !self.outcome.removed.is_empty() {
            self.collect();
        }
    }
}
