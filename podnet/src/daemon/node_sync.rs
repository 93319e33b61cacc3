//! When the node is synced with its Node object and its network, and what follows from that.

use std::time::{Duration, Instant};

use podnet_cni::text::chain;
use podnet_common::tables;
use tracing::{Instrument as _, info_span, warn};

use super::{CHECK_INTERVAL, Daemon, in_use, node};
use crate::{
    backoff::Backoff,
    host::{sysctl::Sysctl, watch::Change},
    install,
    metrics::NodeState,
};

/// Failed steps are retried, with back-off while the same ones fail.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), CHECK_INTERVAL);

impl Daemon {
    /// Detaches programs whose pins are gone. Their tables are gone as well, so they would drop everything, while they
    /// look like the wanted programs. [`Self::repair`] attaches the new ones.
    pub(super) async fn shed(&self) {
        match self.host.snapshot().await {
            Ok(snapshot) => {
                for link in snapshot.links.iter().filter(|link| link.is_host_end()) {
                    if let Err(error) = self.datapath.detach_pod(link.ifindex) {
                        warn!("{error}");
                    }
                }
            }
            Err(error) => warn!("{error}"),
        }
        if let Err(error) = self.host.remove_podnet0().await {
            warn!("{error}");
        }
    }

    /// Syncs links, routes, settings and hooks.
    pub(super) async fn sync_node(&mut self) {
        // One snapshot for all steps: thousands of nodes mean as many routes and neighbours.
        let snapshot = match self.host.snapshot().await {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                warn!("{error}");
                None
            }
        };
        if snapshot.as_ref().is_some_and(|snapshot| self.learn_host(snapshot)) {
            self.reconcile();
            self.tell_health();
        }
        let services = self.control.service_addresses();
        let heard = snapshot.as_ref().map(|snapshot| in_use::heard(snapshot, &services)).unwrap_or_default();
        let wanted = node::Wanted { config: &self.config, control: &self.control };
        let before = std::mem::take(&mut self.node.problems);
        let took_pods = self.node.takes_pods;
        let began = Instant::now();
        let sync = node::sync(&wanted, &self.host, snapshot, &mut self.networks, &mut self.datapath);
        self.node = sync.instrument(info_span!("node.sync")).await;
        let took = began.elapsed();
        let nodes = self.node.routes.addresses.iter().filter_map(|address| address.mac).collect();
        self.in_use.note(heard, &services, &nodes, Instant::now());
        self.control.set_in_use(self.in_use.machines());
        self.metrics.fills.set_entries(tables::NODES, self.networks.len());
        self.report.set_nodes(&self.node);
        if self.node.takes_pods && !took_pods {
            self.install();
            self.source.announce();
        }
        self.node.problems.extend(self.not_installed.clone());
        self.metrics.node(NodeState {
            took,
            problems: self.node.problems.len(),
            // Until the objects are read, the earlier daemon's state applies.
            takes_pods: self.node.takes_pods || (self.was_set_up && !self.control.synced()),
        });
        // A problem that is retried every second is logged once.
        for problem in self.node.problems.iter().filter(|problem| !before.contains(problem)) {
            warn!("{problem}");
        }
        self.node_due = self.node.incomplete.then(|| {
            let stuck = self.node.problems == before;
            self.node_failures = if stuck { self.node_failures + 1 } else { 1 };
            Instant::now() + BACKOFF.after(self.node_failures)
        });
    }

    /// Installs the plugin for the container runtime, if configured and if pods can start.
    pub(super) fn install(&mut self) {
        let Some(wanted) = self.config.install.as_ref().filter(|_| self.node.takes_pods) else { return };
        self.not_installed = match install::install(&self.config, wanted) {
            Ok(None) => None,
            Ok(Some(other)) if install::chains(&other, "bandwidth") => Some(format!(
                "{} chains the plugin `bandwidth` behind podnet-cni, where its egress limits fail (\"file exists\") \
                 and its ingress limits do not apply between pods: remove it, and give podnet-cni the capability \
                 `bandwidth`",
                other.display()
            )),
            Ok(Some(other)) => Some(format!(
                "the container runtime uses {} instead of podnet's list, which sorts after it: remove that file",
                other.display()
            )),
            Err(error) => Some(error.to_string()),
        };
    }

    /// Excludes the ports that processes have bound from those of source NAT.
    pub(super) fn sync_ports(&mut self) {
        let sysctl = Sysctl::at(&self.config.sysctls);
        if let Err(error) = node::sync_ports(&self.control, &self.node.addresses, &sysctl, &mut self.datapath) {
            warn!("{}", chain(error.as_ref()));
        }
    }

    /// Handles a change of the host's network.
    pub(super) fn network_changed(&mut self, change: Change) {
        if change.of_node() {
            self.node_due = Some(Instant::now());
        }
        if change.lost {
            self.repair();
        }
        let mut links = change.pods;
        links.extend(self.records.links_to(&change.hosts));
        self.links.touched(links, Instant::now());
    }
}
