//! The control plane of one node, driven by the daemon's event loop.
//!
//! ```text
//!                                ┌→ policies ──→ their tables
//!                                ├→ nodes ──┐ guard, settings, ranges
//! source ── Batch ──→ index ── Dirty        ↓
//!                                └→ services ──┐
//!   records ──→ host ports ────────────────────┴→ frontends (desired, shares) ── reconcile ──→ tables
//! ```
//! Each domain has a room, a module that keeps the derived state of that domain: `nodes`, `services`, `host_ports`,
//! `policies`. The `index` tells each of them which of its keys are dirty. All work is done synchronously on the
//! caller's thread; a changed EndpointSlice costs the work for its service only.

mod ages;
mod asked;
mod claim;
mod claims;
pub mod denials;
mod frontends;
mod guarded;
mod host_ports;
mod index;
pub mod networks;
mod nodes;
pub mod policies;
mod problems;
mod services;
mod shadows;
mod shares;
mod status;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnetwork::IpNetwork;
use podnet_common::addr::{Mac, Port};
use podnet_common::layout::{Backend, FrontendKey};
use tracing::{info, warn};

pub use index::{Dirty, Index};
pub use nodes::as_read;
pub use status::{ControlStatus, Health, Pending};

use crate::compile::{NamesError, ServiceNames, show};
use crate::config::Config;
use crate::frontend::{Frontend, Owner};
use crate::guard::HostFacts;
use crate::mirror::TableError;
use crate::model::{Batch, Complaint, Diagnostic, Kind, Node, ObjectKey, ObjectName, Origin, Severity};
use crate::policy::Denial;
use crate::reconcile::{Outcome, Tables};
use frontends::Frontends;
use host_ports::HostPorts;
use nodes::Nodes;
use policies::NetworkPolicies;
use problems::{Notes, Problems, SHOWN_MAX};
use services::{Services, Surroundings};

/// The control plane.
#[derive(Debug)]
pub struct Control {
    config: Config,
    index: Index,
    nodes: Nodes,
    services: Services,
    policies: NetworkPolicies,
    host_ports: HostPorts,
    frontends: Frontends,
    problems: Problems,
    /// Machines that answer at service addresses.
    in_use: BTreeMap<IpAddr, Mac>,
    synced: bool,
    policies_synced: bool,
}

/// Effects of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Number of services whose frontends were recomputed.
    pub services: usize,
    /// Whether [`Control::nodes`] or [`Control::service_cidrs`] have changed.
    pub nodes: bool,
    /// Whether [`Control::service_addresses`] have changed, or will once the tables are reconciled.
    pub addresses: bool,
    /// Whether [`Health::checks`] or [`Health::leaving`] have changed.
    pub health: bool,
    /// Whether the host ports in effect may have changed.
    pub host_ports: bool,
    /// Whether an endpoint that may have UDP flows is no longer serving, even if it got no new flows.
    pub lost: bool,
    /// Whether the desired tables of [`Control::policies`] may have changed.
    pub policies: bool,
}

impl Control {
    /// Starts from the tables as an earlier daemon left them.
    ///
    /// # Errors
    /// If the tables can't be read.
    pub fn adopt(config: &Config, tables: &dyn Tables) -> Result<Self, TableError> {
        let names = ServiceNames::read(&config.run_dir).unwrap_or_else(|error| {
            warn!("{error}; rebuilding the service names");
            ServiceNames::default()
        });
        let frontends = Frontends::adopt(config, names, tables)?;
        let adopted = frontends.reconciler.usage().frontends;
        if adopted > 0 {
            info!(frontends = adopted, "adopted the tables");
        }
        Ok(Self {
            nodes: Nodes::new(config),
            config: config.clone(),
            index: Index::default(),
            services: Services::default(),
            policies: NetworkPolicies::new(&config.node, config.kubernetes.is_some()),
            host_ports: HostPorts::default(),
            frontends,
            problems: Problems::default(),
            in_use: BTreeMap::new(),
            synced: false,
            policies_synced: false,
        })
    }

    /// The rooms that own frontends, and their surroundings.
    fn rooms(&mut self) -> (&mut Services, &mut HostPorts, Surroundings<'_>) {
        let Self { index, nodes, services, host_ports, frontends, problems, .. } = self;
        (services, host_ports, Surroundings { index, nodes, frontends, problems })
    }

    /// Applies a batch of a source. [`Self::reconcile`] puts it into effect.
    pub fn apply(&mut self, batch: Batch) -> Applied {
        for change in batch.changes {
            // Problems of Services and Nodes depend on other objects too; they are recorded when these are evaluated.
            if !matches!(change.key.kind, Kind::Service | Kind::Node) {
                let notes = change.object.as_ref().map(|object| Notes::new(object.left_out()));
                self.problems.set(&change.key, notes.unwrap_or_default());
            }
            self.index.apply(change);
        }
        let dirty = self.index.take_dirty();
        // The initial list doesn't count as changes.
        if self.synced {
            dirty.services.iter().for_each(|(service, origin)| self.services.note(service, *origin));
        }
        let evaluated = !dirty.nodes.is_empty() || dirty.service_cidrs;
        let concerned = self.nodes.update(&self.config, &self.index, &dirty, !self.synced, &mut self.problems);
        let mut applied = Applied {
            nodes: evaluated,
            health: concerned.leaving,
            lost: dirty.lost,
            policies: self.policies.update(dirty.policies, (self.nodes.counting(), evaluated)),
            ..Applied::default()
        };
        let was_synced = std::mem::replace(&mut self.synced, batch.synced);
        self.policies_synced = batch.policies_synced;
        if self.synced {
            self.nodes.keep_ages(&self.config, !was_synced);
        }
        let services = dirty.services.into_iter().map(|(service, _)| service);
        self.update_services(services.chain(concerned.services).collect(), &mut applied);
        applied.addresses |= was_synced != self.synced;
        applied
    }

    /// Sets the facts about the host. [`Self::reconcile`] puts them into effect.
    pub fn set_host(&mut self, host: HostFacts) -> Applied {
        let mut applied = Applied::default();
        let changed = self.nodes.set_host(&self.config, &self.index, host, &mut self.problems);
        let Some((concerned, nodes)) = changed else { return applied };
        applied.nodes = nodes;
        applied.policies = self.policies.update(Vec::new(), (self.nodes.counting(), true));
        self.update_services(concerned.services, &mut applied);
        if !self.host_ports.is_empty() {
            let (_, host_ports, around) = self.rooms();
            host_ports.update(&around.nodes.guard, around.frontends);
            applied.host_ports = true;
        }
        applied
    }

    /// Sets the machines that answer at service addresses. Services are unaffected; the status shows them.
    pub fn set_in_use(&mut self, machines: BTreeMap<IpAddr, Mac>) {
        self.in_use = machines;
    }

    /// Sets the host ports of this node's pods: the complete list, oldest pod first. If several pods want the same
    /// port, the oldest has it; a NodePort takes precedence over any. [`Self::reconcile`] puts them into effect. At
    /// start, call this before the first reconciliation: otherwise the host ports left by an earlier daemon are
    /// removed.
    pub fn set_host_ports(&mut self, asked: Vec<Frontend>) {
        let (_, host_ports, around) = self.rooms();
        host_ports.set(asked, around.frontends);
        host_ports.update(&around.nodes.guard, around.frontends);
        self.settle_shares();
    }

    /// Recomputes services, and those that depend on them.
    fn update_services(&mut self, dirty: Vec<ObjectName>, applied: &mut Applied) {
        let (services, _, mut around) = self.rooms();
        let updated = services.update(dirty, &mut around);
        applied.services = updated.services;
        applied.health |= updated.health;
        self.settle_shares();
        applied.addresses |= self.frontends.desired.take_addresses_changed();
    }

    /// Recomputes owners whose share has changed.
    fn settle_shares(&mut self) {
        let (services, host_ports, mut around) = self.rooms();
        for owner in around.frontends.settle_shares() {
            match owner {
                Owner::HostPorts => host_ports.update(&around.nodes.guard, around.frontends),
                Owner::Service(name) => services.update_share(name, &mut around),
            }
        }
    }

    /// Facts about the host.
    pub fn host(&self) -> &HostFacts {
        self.nodes.host()
    }

    /// The next object of which a part is left out. Each is returned once.
    pub fn complaint(&mut self) -> Option<Complaint> {
        let uid =
            |key: &ObjectKey| self.index.uid(key).or_else(|| self.policies.uid(key)).unwrap_or_default().to_owned();
        self.problems.complaint(uid)
    }

    /// Returns a complaint, which is then the next one again.
    pub fn keep(&mut self, complaint: Complaint) {
        self.problems.keep(complaint.key);
    }

    /// Brings the tables closer to the desired state, and writes the service names if they have changed. Call it after
    /// [`Self::apply`] and at [`Outcome::next_retry`].
    pub fn reconcile(&mut self, tables: &mut dyn Tables, now: Instant) -> Outcome {
        let outcome = self.frontends.reconciler.run(&self.frontends.desired, tables, self.synced, now);
        self.services.settle(|key| self.frontends.reconciler.is_unwritten(key));
        if let Err(error) = self.write_names() {
            warn!("{error}; commands show ids instead of names");
        }
        outcome
    }

    /// Origins of the service changes that have taken effect in the tables since the last call: one per service, the
    /// oldest. Changes from before the sources were synced are excluded.
    pub fn take_effective(&mut self) -> Vec<Origin> {
        self.services.take_effective()
    }

    fn write_names(&mut self) -> Result<bool, NamesError> {
        self.frontends.reconciler.names_mut().write(&self.config.run_dir)
    }

    /// All nodes by name, with their admitted claims.
    pub fn nodes(&self) -> &BTreeMap<String, Arc<Node>> {
        self.nodes.counting()
    }

    /// The ranges of service addresses.
    pub fn service_cidrs(&self) -> &BTreeSet<IpNetwork> {
        self.nodes.service_cidrs()
    }

    /// Whether the sources are synced, except for network policies.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Whether the sources are synced for network policies.
    pub fn policies_synced(&self) -> bool {
        self.policies_synced
    }

    /// State of the health servers.
    pub fn health(&self) -> Health {
        let checks = self.services.checks().cloned().collect();
        Health { checks, leaving: self.nodes.leaving(), stale_since: self.frontends.reconciler.stale_since() }
    }

    /// Addresses of load balancers and external IPs, which may be a node's own. Includes those left by an earlier
    /// daemon until the sources are synced.
    pub fn service_addresses(&self) -> BTreeSet<IpAddr> {
        self.frontends.desired.service_addresses().chain(self.frontends.reconciler.unclaimed_addresses()).collect()
    }

    /// Frontend ports at an address; the unspecified address stands for all addresses of the node.
    pub fn ports_at(&self, addr: IpAddr) -> impl Iterator<Item = u16> {
        self.frontends.desired.ports_at(addr)
    }

    /// The backends to which the tables lead from a destination: see [`Self::leads_to`].
    pub fn backends(&self, key: &FrontendKey) -> impl Iterator<Item = Backend> {
        self.frontends.reconciler.backends(key)
    }

    /// Whether the tables lead from a destination to a backend for any client, or the backend is at least still
    /// serving: new flows may prefer other backends (those that aren't terminating, or closer ones), but existing flows
    /// continue. The destination may be an address of the node. A UDP flow to which neither applies is stale. Such
    /// flows must be searched for at start, since the daemon may have been killed between a change and
    /// [`Outcome::removed`].
    pub fn leads_to(&self, key: &FrontendKey, backend: &Backend) -> bool {
        let reconciler = &self.frontends.reconciler;
        let serves = |port| services::serves(port, key, backend, &self.index, &self.nodes.guard);
        reconciler.leads_to(key, backend) || reconciler.service_of(key).is_some_and(serves)
    }

    /// The policies that have denied a connection. If it was to a Service, they are those of its backends on this node
    /// that could.
    pub fn denying(&self, denial: &Denial) -> Vec<ObjectName> {
        let policies = self.policies.policies();
        let mut names: Vec<_> = policies.denying(denial).into_iter().cloned().collect();
        if names.is_empty() && !denial.egress {
            let key = FrontendKey {
                addr: denial.destination.into(),
                port: Port::new(denial.port.unwrap_or_default()),
                proto: denial.protocol,
                scope: FrontendKey::ANY,
            };
            let subjects = &policies.desired().subjects;
            let backends = self.frontends.reconciler.backends(&key);
            for backend in backends.filter(|backend| subjects.contains_key(&backend.addr)) {
                let destination = IpAddr::from(backend.addr);
                let of_backend = Denial { destination, port: Some(backend.port.get()), ..*denial };
                names.extend(policies.denying(&of_backend).into_iter().cloned());
            }
            names.sort_unstable();
            names.dedup();
        }
        names
    }

    /// Network policies.
    pub fn policies(&self) -> &NetworkPolicies {
        &self.policies
    }

    /// Network policies, to write their tables. To be called only once [`Self::policies_synced`].
    pub fn policies_mut(&mut self) -> &mut NetworkPolicies {
        &mut self.policies
    }

    /// Names of the service ids in the tables.
    pub fn names(&self) -> &ServiceNames {
        self.frontends.reconciler.names()
    }

    /// Current status.
    pub fn status(&self) -> ControlStatus {
        let mut problems: Vec<_> = self.problems.all().take(SHOWN_MAX).collect();
        problems.extend(self.host_ports.problems().iter().cloned());
        problems.extend(self.frontends.desired.conflicts().take(SHOWN_MAX).map(|conflict| {
            let object = conflict.refused.object();
            let (key, holder) = (show(&conflict.key), conflict.holder);
            let reason = format!("{key} is already used by {holder}: choose another address or port");
            Diagnostic::of(object, Severity::LeftOut, reason)
        }));
        problems.extend(self.shadows().take(SHOWN_MAX));
        problems.extend(self.services.contested_checks(&self.frontends).take(SHOWN_MAX));
        problems.sort();
        ControlStatus {
            synced: self.synced && self.policies_synced,
            services: self.index.service_count(),
            endpoint_slices: self.index.slice_count(),
            nodes: self.index.nodes().len(),
            usage: self.frontends.reconciler.usage(),
            alarms: self.problems.alarms().take(SHOWN_MAX).collect(),
            problems,
            shares: self.frontends.shares.each().clone(),
            scarcities: self.frontends.shares.scarcities().take(SHOWN_MAX).collect(),
            pending: self.pending(),
        }
    }

    /// Services at addresses that also belong to something else.
    fn shadows(&self) -> impl Iterator<Item = Diagnostic> {
        let own = self
            .nodes
            .host()
            .addresses
            .iter()
            .flat_map(|ip| shadows::at(&self.frontends.desired, *ip, "an address of this node"));
        let nodes = self.nodes.counting().iter().filter(|(name, _)| **name != self.config.node);
        let external = nodes.flat_map(|(name, node)| node.external_ips.iter().map(move |ip| (*ip, name)));
        let external = external.filter(|(ip, _)| !self.nodes.host().addresses.contains(ip));
        let external = external
            .flat_map(|(ip, name)| shadows::at(&self.frontends.desired, ip, &format!("an ExternalIP of node {name}")));
        let machine = |(ip, mac): (&IpAddr, &Mac)| {
            let whose = format!("in use by the machine with the MAC {mac} on a link of this node");
            shadows::at(&self.frontends.desired, *ip, &whose)
        };
        own.chain(external).chain(self.in_use.iter().flat_map(machine))
    }
}

#[cfg(test)]
mod tests;
