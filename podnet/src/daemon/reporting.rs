//! Writes the status file and the state metrics.

use podnet_common::tables;
use tracing::warn;

use super::{Daemon, report};
use crate::{metrics::ControlState, reconcile::Usage};

impl Daemon {
    /// Writes the report if it has changed.
    pub(super) fn write_report(&mut self) {
        let (source, control) = (self.source.status(), self.control.status());
        let servers = self.servers.problems().into_iter();
        let servers = servers.chain(self.listener.problem()).chain(self.socket.problem()).collect();
        let now = report::Now {
            source: &source,
            control: &control,
            node: &self.node,
            health: self.servers.status(),
            host: self.control.host(),
            drops: self.drops.seen(),
            servers,
            repairs: self.links.status(),
            links: self.pod_problems(),
        };
        let (warnings, written) = self.report.write(&self.config, now);
        let Usage { frontends, slots, backends, source_ranges } = control.usage;
        for (table, entries) in [
            (tables::FRONTENDS.table(), frontends),
            (tables::SLOTS.table(), slots as usize),
            (tables::BACKENDS.table(), backends),
            (tables::SOURCE_RANGES.table(), source_ranges),
        ] {
            self.metrics.fills.set_entries(table, entries);
        }
        self.metrics.state(ControlState {
            synced: control.synced,
            services: control.services,
            endpoint_slices: control.endpoint_slices,
            nodes: control.nodes,
            mistakes: source.mistakes.len(),
            warnings,
        });
        if let Err(error) = written {
            warn!("{error}; `podnet status` shows the previous report");
        }
    }
}
