//! What the daemon does about services: from what a source says to the tables, and to the health servers.

use std::time::{Instant, SystemTime};

use tracing::{debug, info_span};

use super::{Daemon, facts};
use crate::{control, health::Condition, host::snapshot::Snapshot, metrics::Writes, model::Batch};

impl Daemon {
    /// Takes in what the source says.
    pub(super) fn take_in(&mut self, batch: Batch) {
        let applied = self.control.apply(batch);
        if applied.nodes || applied.addresses {
            self.node_due = Some(Instant::now());
        }
        self.reconcile();
        if applied.lost {
            self.collect();
        }
        if applied.health {
            self.tell_health();
        }
    }

    /// Takes in what the host is like. Says whether that makes a difference to services.
    pub(super) fn learn_host(&mut self, snapshot: &Snapshot) -> bool {
        self.watcher.learn(&snapshot.neighbours);
        let applied = self.control.set_host(facts::gather(snapshot, self.api_servers.known()));
        applied.services > 0 || applied.host_ports
    }

    /// Has the health servers say how the node stands.
    pub(super) fn tell_health(&mut self) {
        let control::Health { checks, leaving, stale_since } = self.control.health();
        // Where objects come from doesn't count, whether it is an API server or a directory: while it is away what is there
        // holds, another daemon would know no more, and load balancers would have no node left.
        let current = stale_since.is_none();
        // At the start it changes nothing of what an earlier daemon has set up.
        let ready = self.node.ready || (self.was_set_up && !self.control.synced());
        self.health.report(Condition { ready, current, leaving }, Instant::now());
        self.servers.settle(checks);
    }

    /// Brings the service tables nearer to what is wanted.
    pub(super) fn reconcile(&mut self) {
        let _span = info_span!("reconcile").entered();
        self.outcome = self.control.reconcile(self.datapath.tables(), Instant::now());
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
        // Datagrams to an endpoint that is gone would be lost for as long as their flow lives.
        if !self.outcome.removed.is_empty() {
            self.collect();
        }
    }
}
