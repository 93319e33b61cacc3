//! Nodes: their admitted claims, and what follows for this node: its settings, the ranges of service addresses, and the
//! guard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use tracing::{error, warn};

use super::ages::Ages;
use super::claims::{Claims, Evaluated, Setting};
use super::guarded::{evaluated_differently, virtual_ips};
use super::index::{Dirty, Index};
use super::problems::{Notes, Problems};
use crate::config::Config;
use crate::guard::{Guard, HostFacts};
use crate::model::{Kind, Node, ObjectKey, ObjectName};
use crate::select::Settings;

/// State derived from Nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    claims: Claims,
    evaluated: Evaluated,
    host: HostFacts,
    /// From the configuration and from ServiceCIDRs.
    service_cidrs: BTreeSet<IpNetwork>,
    settings: Settings,
    /// Whether this node is leaving the cluster: see [`Node::leaving`].
    leaving: bool,
    pub(super) guard: Arc<Guard>,
}

/// What a change of nodes affects.
#[derive(Debug, Default)]
pub(super) struct Concerned {
    pub(super) services: Vec<ObjectName>,
    /// Whether [`Nodes::leaving`] has changed.
    pub(super) leaving: bool,
}

impl Nodes {
    /// State before any object has been read.
    pub(super) fn new(config: &Config) -> Self {
        let ages = Ages::read(&config.state_dir).unwrap_or_else(|error| {
            warn!("{error}; resolving conflicting claims of nodes by creation time");
            None
        });
        let (host, evaluated) = (HostFacts::default(), Evaluated::default());
        let service_cidrs: BTreeSet<_> = config.service_cidrs().into_iter().collect();
        Self {
            claims: Claims::remember(ages),
            guard: Arc::new(bare_guard(config, &evaluated, &service_cidrs, &host)),
            evaluated,
            host,
            service_cidrs,
            settings: settings(config, None),
            leaving: false,
        }
    }

    /// Applies changes. `first`: the sources are not synced yet.
    pub(super) fn update(
        &mut self,
        config: &Config,
        index: &Index,
        dirty: &Dirty,
        first: bool,
        problems: &mut Problems,
    ) -> Concerned {
        for name in &dirty.nodes {
            self.claims.note(name, index.nodes().get(name).map(|node| &**node), first);
        }
        let mut concerned = Concerned::default();
        if !dirty.nodes.is_empty() || dirty.service_cidrs {
            self.update_own(config, index, &mut concerned);
            self.update_service_cidrs(config, index, &mut concerned.services);
            self.evaluate(config, index, problems);
            self.update_guard(config, index, &mut concerned.services);
        }
        concerned
    }

    /// Sets the facts about the host; returns `None` if they are unchanged. Otherwise also returns whether the admitted
    /// nodes have changed.
    pub(super) fn set_host(
        &mut self,
        config: &Config,
        index: &Index,
        host: HostFacts,
        problems: &mut Problems,
    ) -> Option<(Concerned, bool)> {
        if self.host == host {
            return None;
        }
        self.host = host;
        let mut concerned = Concerned::default();
        let differs = self.evaluate(config, index, problems);
        self.update_guard(config, index, &mut concerned.services);
        Some((concerned, differs))
    }

    /// Writes the age of the claims to disk once all Nodes are known. `settled`: they have just become known.
    pub(super) fn keep_ages(&mut self, config: &Config, settled: bool) {
        if settled {
            self.claims.settle();
        }
        if let Some(ages) = self.claims.take_changed()
            && let Err(error) = ages.write(&config.state_dir)
        {
            warn!("{error}; after a restart, conflicting claims of nodes may be resolved differently");
        }
    }

    /// This node's object determines the zone, which affects all services, and whether the node is leaving.
    fn update_own(&mut self, config: &Config, index: &Index, concerned: &mut Concerned) {
        let node = index.nodes().get(&config.node);
        let leaving = node.is_some_and(|node| node.leaving);
        concerned.leaving = std::mem::replace(&mut self.leaving, leaving) != leaving;
        let settings = settings(config, node.map(|node| &**node));
        if settings != self.settings {
            concerned.services.extend(index.services().cloned());
            self.settings = settings;
        }
    }

    /// Whether an address is in a service range affects all services.
    fn update_service_cidrs(&mut self, config: &Config, index: &Index, concerned: &mut Vec<ObjectName>) {
        let ranges = all_service_cidrs(config, index);
        if ranges != self.service_cidrs {
            concerned.extend(index.services().cloned());
            self.service_cidrs = ranges;
        }
    }

    /// Evaluates the claims of all nodes. Returns whether the outcome has changed.
    fn evaluate(&mut self, config: &Config, index: &Index, problems: &mut Problems) -> bool {
        let setting = Setting {
            own: &config.node,
            services: &self.service_cidrs,
            protected: &config.protected_addresses,
            host: &self.host,
        };
        let evaluated = self.claims.evaluate(index.nodes(), setting);
        for (name, reasons) in &evaluated.refused {
            let known = self.evaluated.refused.get(name).map_or(&[][..], Vec::as_slice);
            for reason in reasons.iter().filter(|reason| !known.contains(reason)) {
                error!(node.name = name, "rejecting a conflicting claim of a node: {reason}");
            }
        }
        let noted = self.evaluated.nodes.keys().chain(index.nodes().keys()).cloned().collect::<BTreeSet<_>>();
        for name in noted {
            let left_out = index.nodes().get(&name).map(|node| Notes::new(&node.left_out)).unwrap_or_default();
            let notes = Notes { alarms: evaluated.refused.get(&name).cloned().unwrap_or_default(), ..left_out };
            problems.set(&ObjectKey::new(Kind::Node, "", &name), notes);
        }
        let differs = self.evaluated.nodes != evaluated.nodes;
        self.evaluated = evaluated;
        differs
    }

    /// Recomputes the guard; other parts of services may then be left out.
    fn update_guard(&mut self, config: &Config, index: &Index, concerned: &mut Vec<ObjectName>) {
        let mut guard = bare_guard(config, &self.evaluated, &self.service_cidrs, &self.host);
        concerned.extend(evaluated_differently(index, &self.guard, &guard).cloned());
        guard.take(Arc::make_mut(&mut self.guard));
        self.guard = Arc::new(guard);
    }

    /// All nodes by name, with their admitted claims.
    pub(super) fn counting(&self) -> &BTreeMap<String, Arc<Node>> {
        &self.evaluated.nodes
    }

    /// The ranges of service addresses.
    pub(super) fn service_cidrs(&self) -> &BTreeSet<IpNetwork> {
        &self.service_cidrs
    }

    /// Facts about the host.
    pub(super) fn host(&self) -> &HostFacts {
        &self.host
    }

    /// Settings of this node that apply to all services.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether this node is leaving.
    pub(super) fn leaving(&self) -> bool {
        self.leaving
    }
}

/// Settings that apply to all services on the node named by the configuration.
fn settings(config: &Config, node: Option<&Node>) -> Settings {
    Settings { spread: config.maglev_table_size, ..Settings::new(config.source_ip, &config.node, node) }
}

fn all_service_cidrs(config: &Config, index: &Index) -> BTreeSet<IpNetwork> {
    let mut ranges = index.service_cidrs();
    ranges.extend(config.service_cidrs());
    ranges
}

/// The guard without the addresses of services.
fn bare_guard(config: &Config, evaluated: &Evaluated, services: &BTreeSet<IpNetwork>, host: &HostFacts) -> Guard {
    let nodes = evaluated.nodes.iter().map(|(name, node)| (name.as_str(), &**node));
    Guard::new(config, nodes, services.iter(), host)
}

/// Settings and guard of the node named by the configuration, for a program that has read the objects once. The age of
/// Nodes' claims is taken from the daemon's file.
pub fn as_read(config: &Config, index: &Index, host: &HostFacts) -> (Settings, Guard) {
    let mut claims = Claims::remember(Ages::read(&config.state_dir).ok().flatten());
    index.nodes().iter().for_each(|(name, node)| claims.note(name, Some(node), true));
    let services = all_service_cidrs(config, index);
    let setting = Setting { own: &config.node, services: &services, protected: &config.protected_addresses, host };
    let evaluated = claims.evaluate(index.nodes(), setting);
    let mut guard = bare_guard(config, &evaluated, &services, host);
    for service in index.all_services() {
        guard.count(&virtual_ips(service, &guard), true);
    }
    (settings(config, index.nodes().get(&config.node).map(|node| &**node)), guard)
}
