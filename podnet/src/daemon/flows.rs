//! Flow maintenance: sweeps of the connection table, client affinities, drop counters.

use std::time::Instant;

use anyhow::Result;
use podnet_cni::text::chain;
use podnet_common::tables;
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::{Daemon, node};
use crate::{
    control::Control,
    datapath::conntrack::{End, Swept, Way},
    metrics::KernelReader as _,
    status::UnixTime,
};

impl Daemon {
    /// Records drops that concern the operator.
    pub(super) fn observe_drops(&mut self) {
        match self.counts.counters() {
            Ok(counters) => self.drops.observe(&counters, UnixTime::now()),
            Err(error) => warn!("cannot read the datapath's counters: {}", chain(&error)),
        }
    }

    /// Requests a sweep for expired flows, which begins as soon as no other sweep is running.
    pub(super) fn collect(&mut self) {
        self.collector.demand();
        self.sweep();
    }

    /// Requests such a sweep if the connection table is filling up.
    pub(super) fn collect_if_filling(&mut self) {
        match self.datapath.is_filling(self.connections) {
            Ok(filling) if filling || self.collector.hurries() => self.collect(),
            Ok(_) => {}
            Err(error) => warn!("{error}"),
        }
    }

    /// Starts the removal of expired client affinities.
    pub(super) fn expire(&self) {
        let fills = self.metrics.fills.clone();
        match self.datapath.expiry() {
            Ok(expiry) => drop(spawn_blocking(move || match expiry.run() {
                Ok((removed, left)) => {
                    fills.set_entries(tables::AFFINITY, left);
                    debug!(removed, "removed expired affinity entries");
                }
                Err(error) => warn!("cannot sweep the affinity table: {error}"),
            })),
            Err(error) => warn!("{error}"),
        }
    }

    /// Starts a sweep if one is due.
    pub(super) fn sweep(&mut self) {
        let leads = |way: &Way| leads(&self.control, &self.node, way);
        let Some((stale, hurry)) = self.collector.begin(leads, Instant::now()) else { return };
        match self.datapath.sweep(stale, hurry, self.networks.held()) {
            Ok(mut sweep) => {
                sweep.evaluated = self.policies.take_evaluated(&self.control);
                self.sweeping = Some(spawn_blocking(move || sweep.run()));
            }
            Err(error) => {
                warn!("{error}");
                self.collector.end(None, |_| true);
            }
        }
    }

    /// Handles the end of a sweep.
    pub(super) fn swept(&mut self, result: Result<Swept>) {
        self.sweeping = None;
        let swept = match result {
            Ok(swept) => {
                debug!(swept.entries, swept.removed, "swept the connection table");
                self.metrics.fills.set_entries(tables::CONNTRACK, swept.entries as usize);
                self.connections = swept.entries;
                if swept.denied > 0 {
                    self.policies.flows_denied();
                }
                Some(swept)
            }
            Err(error) => {
                warn!("cannot sweep the connection table: {}", chain(error.as_ref()));
                self.policies.sweep_failed();
                None
            }
        };
        self.collector.end(swept, |way| leads(&self.control, &self.node, way));
        self.sweep();
    }
}

/// Whether the path of a flow still leads anywhere. A flow that is forwarded for direct server return leads to a node,
/// which must have a backend.
fn leads(control: &Control, node: &node::Status, way: &Way) -> bool {
    match way.end() {
        End::Backend(backend) => control.leads_to(&way.frontend(), &backend),
        End::Node(_) if !node.ready => true,
        End::Node(addr) => control.backends(&way.frontend()).any(|backend| node.is_on(backend.addr.into(), addr)),
    }
}
