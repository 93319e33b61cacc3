//! Maintenance of pods: their records, links and host ports.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Instant, SystemTime},
};

use ipnetwork::IpNetwork;
use podnet_cni::{
    record::Record,
    repair::{self, Keep, Subject},
};
use tracing::{info, warn};

use super::{Daemon, abandoned, node};
use crate::host::sysctl::Sysctl;

impl Daemon {
    /// Reads the records and the host ports in them.
    pub(super) fn read_records(&mut self) {
        if let Err(error) = self.records.refresh(&self.store) {
            warn!("{error}; keeping the known pods and host ports");
        }
        if self.host_ports.refresh(&self.records) {
            self.control.set_host_ports(self.host_ports.frontends().to_vec());
        }
        self.learn_attached();
    }

    /// The plugin has added or removed a pod.
    pub(super) fn attachments_changed(&mut self) {
        if let Err(error) = self.records.refresh(&self.store) {
            warn!("{error}; keeping the known pods and host ports");
        }
        // DEL removes the link before the record.
        let lost = |record| podnet_cni::repair::has_link(&self.store, record).unwrap_or(false);
        if self.records.gone().iter().any(lost) {
            self.repair();
        }
        self.records.forget_gone();
        self.read_records();
        self.reconcile();
        self.collect();
    }

    /// Restores missing parts of pods' links that have changed.
    pub(super) fn mend(&mut self) {
        let now = Instant::now();
        let names = self.records.of_links(&self.links.take(now));
        if names.is_empty() {
            return;
        }
        // First, because addresses are rejected while IPv6 is off.
        let own = self.control.nodes().get(&self.config.node);
        let addresses = own.map(|node| node.internal_ips.as_slice()).unwrap_or_default();
        let ends: Vec<String> = names.iter().map(|name| name.id.host_ifname()).collect();
        node::set_host_ends(&Sysctl::at(&self.config.sysctls), addresses, &ends);
        let report = repair::mend(&self.store, self.datapath.pins(), &names);
        self.links.note(&report, false, &self.metrics, now);
    }

    /// Removes leftovers of crashed plugins and deleted namespaces, and restores what is missing.
    pub(super) fn repair(&mut self) {
        let abandoned = self.source.pods().map(|pods| {
            abandoned::find(&self.store, &pods, &self.config.cgroup, SystemTime::now()).unwrap_or_else(|error| {
                warn!("cannot look for abandoned attachments: {error}");
                BTreeSet::new()
            })
        });
        let abandoned = abandoned.unwrap_or_default();
        for id in &abandoned {
            info!(container.id = id.container.as_str(), "removing the abandoned attachment of a deleted pod");
        }
        let (keep, known) = (Keep::Whole { but: &abandoned }, self.records.known());
        let report = repair::repair(&self.store, Some(self.datapath.pins()), &keep, &known);
        self.links.note(&report, true, &self.metrics, Instant::now());
    }

    /// Problems of pods' links, records and addresses.
    pub(super) fn pod_problems(&self) -> Vec<String> {
        let own = self.control.nodes().get(&self.config.node);
        let cidrs: &[IpNetwork] = own.map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
        let outside = |record: &Record| {
            let outside = |ip: &&IpAddr| !cidrs.is_empty() && !cidrs.iter().any(|cidr| cidr.contains(**ip));
            let ip = record.ips.iter().find(outside)?;
            Some(format!(
                "{} has the address {ip}, which is in none of this node's pod CIDRs: these have changed, and other \
                 nodes cannot reach it; replace the pod",
                Subject::of(record)
            ))
        };
        let outsiders = self.records.iter().filter_map(outside);
        let others = self.attachments.problem().into_iter().chain(self.policies.problem.clone());
        self.links.problems(Instant::now()).into_iter().chain(others).chain(outsiders).collect()
    }

    /// Polls the records, for changes that the kernel doesn't report.
    pub(super) fn look_for_records(&mut self) {
        if self.attachments.look() {
            self.attachments_changed();
        }
    }
}
