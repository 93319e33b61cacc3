//! The control plane of one node: what the daemon's event loop drives.
//!
//! ```text
//! source ── Batch ──→ apply: index ── dirty services ──→ select ──→ desired ── dirty frontends ──┐
//!                                                              tables ←── reconcile ←────────────┘
//! ```
//! Everything happens in the caller's thread and time; a changed EndpointSlice costs the work for its service only.

mod ages;
mod claim;
mod claims;
mod problems;
mod shadows;
mod shares;
mod state;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use ipnetwork::IpNetwork;
use podnet_common::addr::{Mac, Port, Proto};
use podnet_common::layout::{Backend, FrontendKey};
use tracing::{error, info, warn};

pub use problems::Problem;
pub use state::State;

use crate::compile::{Desired, NamesError, ServiceNames, host_ports, show};
use crate::config::Config;
use crate::frontend::{Frontend, FrontendKind};
use crate::guard::{Guard, HostFacts};
use crate::model::{Batch, Complaint, Condition, Kind, Node, Object, ObjectKey, ObjectName, Origin, Service};
use crate::reconcile::{GRACE, Outcome, Reconciler, TableError, Tables, Usage};
use crate::room::{Room, Share};
use crate::select::{self, HealthCheck, Selection, Settings};
use ages::Ages;
use claims::{Claims, Judged, Setting};
use problems::{Notes, Problems, SHOWN_MAX};
use shares::Shares;
use waiting::Waiting;

/// The control plane.
#[derive(Debug)]
pub struct Control {
    config: Config,
    settings: Settings,
    /// Those of the configuration and of the objects.
    service_cidrs: BTreeSet<IpNetwork>,
    state: State,
    claims: Claims,
    /// What counts of the nodes.
    judged: Judged,
    host: HostFacts,
    /// Machines that answer at addresses of services.
    in_use: BTreeMap<IpAddr, Mac>,
    guard: Guard,
    /// Addresses of services that no range tells, where there are any: see [`Guard::virtual_ips`].
    virtual_ips: BTreeMap<ObjectName, Box<[IpAddr]>>,
    desired: Desired,
    reconciler: Reconciler,
    shares: Shares,
    /// Those of this node's pods, all that they ask for.
    host_ports: Vec<Frontend>,
    /// What of them is left out.
    host_port_problems: Vec<Problem>,
    problems: Problems,
    /// Of services whose load balancer asks for their health.
    checks: BTreeMap<ObjectName, HealthCheck>,
    /// Changes of services that aren't true of the tables yet.
    waiting: Waiting,
    /// Whether this node is on its way out.
    leaving: bool,
    synced: bool,
}

/// What a batch has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Services whose frontends were computed again.
    pub services: usize,
    /// Whether [`Control::nodes`] or [`Control::service_cidrs`] differ.
    pub nodes: bool,
    /// Whether [`Control::service_addresses`] differ, or will once the tables are reconciled.
    pub addresses: bool,
    /// Whether [`Health::checks`] or [`Health::leaving`] differ.
    pub health: bool,
    /// Whether other host ports may be in effect.
    pub host_ports: bool,
    /// Whether an endpoint that UDP flows may lead to serves no more, also one to which no new flows went.
    pub lost: bool,
}

/// What the health servers tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Services whose load balancer asks for their endpoints on this node, by name.
    pub checks: Vec<HealthCheck>,
    /// This node is on its way out: see [`Node::leaving`].
    pub leaving: bool,
    /// Since when the tables haven't been what they should be. That they are full doesn't count: they are so on every
    /// node, and none would be left.
    pub stale_since: Option<Instant>,
}

/// What `podnet status` shows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlStatus {
    /// Whether the sources have given everything.
    pub synced: bool,
    /// Services, those without frontends included.
    pub services: usize,
    /// EndpointSlices.
    pub endpoint_slices: usize,
    /// Nodes.
    pub nodes: usize,
    /// How many table entries are taken.
    pub usage: Usage,
    /// Nodes that would take others' traffic if they counted as they are.
    pub alarms: Vec<Problem>,
    /// Objects that aren't, or not wholly, put into effect.
    pub problems: Vec<Problem>,
    /// By namespace, where all together ask for more than the tables hold, what each of its services gets at most.
    pub shares: BTreeMap<String, Room>,
    /// The same for people.
    pub scarcities: Vec<String>,
    /// Frontends that couldn't be written yet.
    pub pending: Vec<Pending>,
}

/// A frontend that couldn't be written yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its address, port and protocol number.
    pub frontend: String,
    /// How often it has been tried.
    pub failures: u32,
    /// Why it failed, the last time.
    pub reason: String,
}

impl Control {
    /// Begins with what the tables hold from an earlier daemon.
    ///
    /// # Errors
    /// If the tables can't be read.
    pub fn adopt(config: &Config, tables: &dyn Tables) -> Result<Self, TableError> {
        let names = ServiceNames::read(&config.run_dir).unwrap_or_else(|error| {
            warn!("{error}; rebuilding the service names");
            ServiceNames::default()
        });
        let reconciler = Reconciler::adopt(tables, names, config.maglev_table_size, GRACE)?;
        info!(frontends = reconciler.usage().frontends, "adopted the tables");
        let service_cidrs: BTreeSet<_> = config.service_cidrs().into_iter().collect();
        let (state, host) = (State::default(), HostFacts::default());
        Ok(Self {
            config: config.clone(),
            settings: Settings {
                spread: config.maglev_table_size,
                ..Settings::new(config.source_ip, &config.node, None)
            },
            guard: state.guard(config, &BTreeMap::new(), &host),
            claims: Claims::remember(Ages::read(&config.state_dir).unwrap_or_else(|error| {
                warn!("{error}; resolving conflicting claims of nodes by creation time");
                None
            })),
            judged: Judged::default(),
            service_cidrs,
            state,
            host,
            in_use: BTreeMap::new(),
            virtual_ips: BTreeMap::new(),
            desired: Desired::default(),
            reconciler,
            shares: Shares::new(tables.capacity()),
            host_ports: Vec::new(),
            host_port_problems: Vec::new(),
            problems: Problems::default(),
            checks: BTreeMap::new(),
            waiting: Waiting::default(),
            leaving: false,
            synced: false,
        })
    }

    /// Takes in what a source has said. [`Self::reconcile`] puts it into effect.
    pub fn apply(&mut self, batch: Batch) -> Applied {
        let mut dirty = Vec::new();
        let mut applied = Applied::default();
        for change in batch.changes {
            let (origin, before) = (change.origin, dirty.len());
            // Services' and Nodes' depend on other objects too, and are noted with what follows from them.
            if matches!(change.key.kind, Kind::EndpointSlice | Kind::ServiceCidr) {
                let notes = match &change.object {
                    Some(Object::EndpointSlice(slice)) => Notes::new(&slice.left_out),
                    Some(Object::ServiceCidr(ranges)) => Notes::new(&ranges.left_out),
                    _ => Notes::default(),
                };
                self.problems.set(&change.key, notes);
            }
            let key = change.key.clone();
            applied.nodes |= self.state.apply(change, &mut dirty);
            if key.kind == Kind::Node {
                self.claims.note(
                    &key.name.name,
                    self.state.nodes().get(&key.name.name).map(|node| &**node),
                    !self.synced,
                );
            }
            // What is there at the start is no change.
            if self.synced {
                dirty[before..].iter().for_each(|service| self.waiting.note(service, origin));
            }
        }
        if applied.nodes {
            applied.health = self.update_own_node(&mut dirty);
            self.update_service_cidrs(&mut dirty);
            self.judge_nodes();
            self.update_guard(&mut dirty);
        }
        applied.lost = self.state.take_lost();
        let was_synced = std::mem::replace(&mut self.synced, batch.synced);
        self.keep_ages(was_synced);
        self.update_services(dirty, &mut applied);
        applied.addresses |= was_synced != self.synced;
        applied
    }

    /// Writes down since when nodes have claimed what they claim, once all of them are known.
    fn keep_ages(&mut self, was_synced: bool) {
        if !self.synced {
            return;
        }
        if !was_synced {
            self.claims.settle();
        }
        if let Some(ages) = self.claims.take_changed()
            && let Err(error) = ages.write(&self.config.state_dir)
        {
            warn!("{error}; after a restart, conflicting claims of nodes may be resolved differently");
        }
    }

    /// Takes in what the host is like. [`Self::reconcile`] puts it into effect.
    pub fn set_host(&mut self, host: HostFacts) -> Applied {
        let (mut dirty, mut applied) = (Vec::new(), Applied::default());
        if self.host != host {
            self.host = host;
            applied.nodes = self.judge_nodes();
            self.update_guard(&mut dirty);
            self.update_services(dirty, &mut applied);
            if !self.host_ports.is_empty() {
                self.update_host_ports();
                applied.host_ports = true;
            }
        }
        applied
    }

    /// Takes in which machines answer at addresses of services. It makes no difference to these, but people should know.
    pub fn set_in_use(&mut self, machines: BTreeMap<IpAddr, Mac>) {
        self.in_use = machines;
    }

    /// What the host is like.
    pub fn host(&self) -> &HostFacts {
        &self.host
    }

    /// Finds out what counts of the nodes, and says whether that differs.
    fn judge_nodes(&mut self) -> bool {
        let setting = Setting {
            own: &self.config.node,
            services: &self.service_cidrs,
            protected: &self.config.protected_addresses,
            host: &self.host,
        };
        let judged = self.claims.judge(self.state.nodes(), setting);
        for (name, reasons) in &judged.refused {
            let known = self.judged.refused.get(name).map_or(&[][..], Vec::as_slice);
            for reason in reasons.iter().filter(|reason| !known.contains(reason)) {
                error!(node.name = name, "rejecting a conflicting claim of a node: {reason}");
            }
        }
        let noted = self.judged.nodes.keys().chain(self.state.nodes().keys()).cloned().collect::<BTreeSet<_>>();
        for name in noted {
            let left_out = self.state.nodes().get(&name).map(|node| Notes::new(&node.left_out)).unwrap_or_default();
            let notes = Notes { alarms: judged.refused.get(&name).cloned().unwrap_or_default(), ..left_out };
            self.problems.set(&ObjectKey::new(Kind::Node, "", &name), notes);
        }
        let differs = self.judged.nodes != judged.nodes;
        self.judged = judged;
        differs
    }

    /// Something else may be left out of services.
    fn update_guard(&mut self, dirty: &mut Vec<ObjectName>) {
        let nodes = self.judged.nodes.iter().map(|(name, node)| (name.as_str(), &**node));
        let mut guard = Guard::new(&self.config, nodes, self.service_cidrs.iter(), &self.host);
        dirty.extend(self.state.judged_differently(&self.guard, &guard).cloned());
        guard.take(&mut self.guard);
        self.guard = guard;
    }

    /// Computes what services come to, and those for which it makes a difference.
    fn update_services(&mut self, mut dirty: Vec<ObjectName>, applied: &mut Applied) {
        dirty.sort_unstable();
        dirty.dedup();
        let changed = self.count_addresses(&dirty);
        if !changed.is_empty() {
            dirty.extend(self.state.with_endpoints(&changed).cloned());
            dirty.sort_unstable();
            dirty.dedup();
        }
        applied.services = dirty.len();
        for name in dirty {
            applied.health |= self.update_service(&name);
        }
        self.settle_shares();
        applied.addresses |= self.desired.take_addresses_changed();
    }

    /// Counts which addresses services have, and gives those that came or went.
    fn count_addresses(&mut self, services: &[ObjectName]) -> BTreeSet<IpAddr> {
        let mut changed = BTreeSet::new();
        for name in services {
            let service = self.state.service(name).map(|(service, _)| service);
            let now = service.map(|service| state::virtual_ips(service, &self.guard)).unwrap_or_default();
            let before = self.virtual_ips.remove(name).unwrap_or_default();
            if now != before {
                changed.extend(self.guard.count(&before, false));
                changed.extend(self.guard.count(&now, true));
            }
            if !now.is_empty() {
                self.virtual_ips.insert(name.clone(), now);
            }
        }
        changed
    }

    /// This node's object may say another zone, which concerns all services. Says whether the node is on its way out
    /// now and wasn't, or the other way round.
    fn update_own_node(&mut self, dirty: &mut Vec<ObjectName>) -> bool {
        let node = self.state.nodes().get(&self.settings.node);
        let leaving = node.is_some_and(|node| node.leaving);
        let settings = Settings {
            spread: self.settings.spread,
            ..Settings::new(self.settings.source_ip, &self.settings.node, node.map(|node| &**node))
        };
        if settings != self.settings {
            dirty.extend(self.state.services().cloned());
            self.settings = settings;
        }
        std::mem::replace(&mut self.leaving, leaving) != leaving
    }

    /// Whether a service's address is in one of the ranges concerns all services.
    fn update_service_cidrs(&mut self, dirty: &mut Vec<ObjectName>) {
        let mut ranges = self.state.service_cidrs();
        ranges.extend(self.config.service_cidrs());
        if ranges != self.service_cidrs {
            dirty.extend(self.state.services().cloned());
            self.service_cidrs = ranges;
        }
    }

    /// Computes what a service comes to. Says whether its health check differs.
    fn update_service(&mut self, name: &ObjectName) -> bool {
        let share = Share::new(self.shares.of_service());
        let (selection, check) = match self.state.service(name) {
            Some((service, slices)) => (
                select::select(name, service, slices.clone(), &self.settings, &self.guard, share),
                select::health(name, service, slices, &self.settings, &self.guard),
            ),
            None => Default::default(),
        };
        self.shares.ask(name, selection.takes);
        let share = share.within(self.shares.limit(name));
        let selection = match self.state.service(name) {
            Some((service, slices)) if share.exceeded_by(selection.takes).is_some() => {
                select::select(name, service, slices, &self.settings, &self.guard, share)
            }
            _ => selection,
        };
        self.note_problems(name, &selection);
        let changed = self.desired.set(name, selection.frontends);
        self.waiting.add(name, &changed);
        self.reconciler.mark(changed);
        replace(&mut self.checks, name, check)
    }

    /// Notes what there is to say of a service. Those of its slices have been noted as they came.
    fn note_problems(&mut self, name: &ObjectName, selection: &Selection) {
        let mut notes = Notes::default();
        if let Some((service, _)) = self.state.service(name) {
            notes = Notes::new(&service.left_out);
            notes.left_out.extend(select::refused(service, self.state.slices(name), &self.guard).lines());
            let (beyond, unspread) = selection.shortages();
            notes.left_out.extend(beyond);
            notes.remarks = self.remarks(service);
            notes.remarks.extend(unspread);
        }
        self.problems.set(&ObjectKey { kind: Kind::Service, name: name.clone() }, notes);
    }

    /// Computes the services again that may have more or less of the tables than before.
    fn settle_shares(&mut self) {
        for name in self.shares.settle(|| self.desired.backends()) {
            if name == host_ports() {
                self.update_host_ports();
            } else {
                self.update_service(&name);
            }
        }
    }

    /// Takes in the host ports of this node's pods: all of them, those that came first first. Of several pods that want
    /// the same the first has it; a service's NodePort comes before any. [`Self::reconcile`] puts them into effect. At
    /// start they have to be known before that, or those that an earlier daemon left are removed.
    pub fn set_host_ports(&mut self, frontends: Vec<Frontend>) {
        self.host_ports = frontends;
        let all = u32::try_from(self.host_ports.len()).unwrap_or(u32::MAX);
        let asks = Room { frontends: all, slots: all, backends: all, source_ranges: 0, spread: 0 };
        self.shares.ask(&host_ports(), asks.min(self.shares.of_service()));
        self.update_host_ports();
        self.settle_shares();
    }

    /// All host ports together have the share of one service: those that came first.
    fn update_host_ports(&mut self) {
        let room = self.shares.limit(&host_ports()).unwrap_or(Room::MAX).min(self.shares.of_service());
        let most = room.frontends.min(room.slots).min(room.backends) as usize;
        let refused = |port: &Frontend| self.guard.port(port.kind, port.key.socket, port.key.protocol);
        let problems = self.host_ports.iter().filter_map(|port| {
            let object = ObjectKey { kind: Kind::Service, name: port.service.service.clone() };
            Some(Problem { object, reason: format!("{} is ignored: {}", port.key, refused(port)?) })
        });
        self.host_port_problems = problems.take(SHOWN_MAX).collect();
        let admitted = self.host_ports.iter().filter(|port| refused(port).is_none()).take(most).cloned().collect();
        self.reconciler.mark(self.desired.set(&host_ports(), admitted));
    }

    /// The next object of which a part is left out and that wasn't asked for yet.
    pub fn complaint(&mut self) -> Option<Complaint> {
        let uid = |key: &ObjectKey| self.state.uid(key).unwrap_or_default().to_owned();
        self.problems.complaint(uid)
    }

    /// Gives one back, to be the next again.
    pub fn keep(&mut self, complaint: Complaint) {
        self.problems.keep(complaint.key);
    }

    /// Brings the tables nearer to what is desired, and writes the service names if they have changed. To be called
    /// after [`Self::apply`] and at [`Outcome::next_retry`].
    pub fn reconcile(&mut self, tables: &mut dyn Tables, now: Instant) -> Outcome {
        let outcome = self.reconciler.run(&self.desired, tables, self.synced, now);
        self.waiting.settle(|key| self.reconciler.is_unwritten(key));
        if let Err(error) = self.write_names() {
            warn!("{error}; commands show ids instead of names");
        }
        outcome
    }

    /// When the changes of services began that the tables hold since the last call, those of a service together as the
    /// oldest. Changes that were there when the sources first gave everything are not among them.
    pub fn take_effective(&mut self) -> Vec<Origin> {
        self.waiting.take_effective()
    }

    fn write_names(&mut self) -> Result<bool, NamesError> {
        self.reconciler.names_mut().write(&self.config.run_dir)
    }

    /// All nodes by name, with what counts of them.
    pub fn nodes(&self) -> &BTreeMap<String, Arc<Node>> {
        &self.judged.nodes
    }

    /// The ranges that services' addresses come from.
    pub fn service_cidrs(&self) -> &BTreeSet<IpNetwork> {
        &self.service_cidrs
    }

    /// Whether the sources have given everything.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// What the health servers tell.
    pub fn health(&self) -> Health {
        let checks = self.checks.values().cloned().collect();
        Health { checks, leaving: self.leaving, stale_since: self.reconciler.stale_since() }
    }

    /// Addresses of load balancers and external IPs, which may be a node's own. Those that an earlier daemon left are
    /// among them until the sources are synced.
    pub fn service_addresses(&self) -> BTreeSet<IpAddr> {
        self.desired.service_addresses().chain(self.reconciler.unclaimed_addresses()).collect()
    }

    /// The ports of an address; the unspecified one stands for all of the node's.
    pub fn ports_at(&self, addr: IpAddr) -> impl Iterator<Item = u16> {
        self.desired.ports_at(addr)
    }

    /// The backends that the tables lead to from a packet's destination: see [`Self::leads_to`].
    pub fn backends(&self, key: &FrontendKey) -> impl Iterator<Item = Backend> {
        self.reconciler.backends(key)
    }

    /// Whether the tables lead from a packet's destination to a backend, whoever the client is, or the backend at least
    /// still serves: new flows may go to better ones (others that aren't terminating, or nearer ones), but those that are
    /// there go on. The destination may be an address of the node. A UDP flow for which neither is true is stale: at start
    /// these have to be looked for, since the daemon may have been killed between a change and [`Outcome::removed`].
    pub fn leads_to(&self, key: &FrontendKey, backend: &Backend) -> bool {
        self.reconciler.leads_to(key, backend) || self.serves(key, backend)
    }

    /// Whether the service at a destination has this backend, and it is not to be avoided altogether.
    fn serves(&self, key: &FrontendKey, backend: &Backend) -> bool {
        let Some(port) = self.reconciler.service_of(key) else { return false };
        let Some((_, mut slices)) = self.state.service(&port.service) else { return false };
        let addr = IpAddr::from(backend.addr);
        slices.any(|slice| {
            let mut ports = slice.ports.iter();
            let at = SocketAddr::new(addr, backend.port.get());
            ports.any(|p| {
                p.name == port.port
                    && p.port == at.port()
                    && key.proto == p.protocol.into()
                    && self.guard.endpoint(at, p.protocol).is_none()
            }) && slice.endpoints.iter().any(|e| e.addr == addr && e.condition != Condition::Unusable)
        })
    }

    /// Names of the service ids in the tables.
    pub fn names(&self) -> &ServiceNames {
        self.reconciler.names()
    }

    /// How it stands.
    pub fn status(&self) -> ControlStatus {
        let mut problems: Vec<_> = self.problems.all().take(SHOWN_MAX).collect();
        problems.extend(self.host_port_problems.iter().cloned());
        problems.extend(self.desired.conflicts().take(SHOWN_MAX).map(|conflict| Problem {
            object: ObjectKey { kind: Kind::Service, name: conflict.refused.service.clone() },
            reason: format!(
                "{} is already used by {}: choose another address or port",
                show(&conflict.key),
                conflict.holder
            ),
        }));
        problems.extend(self.shadows().take(SHOWN_MAX));
        problems.extend(self.contested_checks().take(SHOWN_MAX));
        problems.sort();
        let pending = self.reconciler.pending().map(|(what, retry)| Pending {
            frontend: what.to_string(),
            failures: retry.failures,
            reason: retry.reason.clone(),
        });
        ControlStatus {
            synced: self.synced,
            services: self.state.service_count(),
            endpoint_slices: self.state.slice_count(),
            nodes: self.state.nodes().len(),
            usage: self.reconciler.usage(),
            alarms: self.problems.alarms().take(SHOWN_MAX).collect(),
            problems,
            shares: self.shares.each().clone(),
            scarcities: self.shares.scarcities().take(SHOWN_MAX).collect(),
            pending: pending.collect(),
        }
    }

    /// Services at addresses that are somebody's besides.
    fn shadows(&self) -> impl Iterator<Item = Problem> {
        let own = self.host.addresses.iter().flat_map(|ip| shadows::at(&self.desired, *ip, "an address of this node"));
        let nodes = self.judged.nodes.iter().filter(|(name, _)| **name != self.config.node);
        let external = nodes.flat_map(|(name, node)| node.external_ips.iter().map(move |ip| (*ip, name)));
        let external = external.filter(|(ip, _)| !self.host.addresses.contains(ip));
        let external =
            external.flat_map(|(ip, name)| shadows::at(&self.desired, ip, &format!("an ExternalIP of node {name}")));
        let machine = |(ip, mac): (&IpAddr, &Mac)| {
            let whose = format!("in use by the machine with the MAC {mac} on a link of this node");
            shadows::at(&self.desired, *ip, &whose)
        };
        own.chain(external).chain(self.in_use.iter().flat_map(machine))
    }

    /// Services whose load balancer asks at a port of the node that another service or a pod has: a packet that comes in is
    /// theirs before it is the health server's.
    fn contested_checks(&self) -> impl Iterator<Item = Problem> {
        self.checks.iter().filter_map(|(name, check)| {
            let at =
                |addr| FrontendKey { addr, port: Port::new(check.port), proto: Proto::TCP, scope: FrontendKey::ANY };
            let holder = [FrontendKey::NODE_V4, FrontendKey::NODE_V6]
                .into_iter()
                .find_map(|addr| self.desired.holder(&at(addr)))?;
            Some(Problem {
                object: ObjectKey { kind: Kind::Service, name: name.clone() },
                reason: format!(
                    "its healthCheckNodePort {} conflicts with the same node port of {holder}, which receives its \
                     load balancer's health checks; change one of the two ports",
                    check.port
                ),
            })
        })
    }

    fn remarks(&self, service: &Service) -> Vec<String> {
        let mut problems = select::remarks(service);
        let proxied = service
            .cluster_ips
            .iter()
            .filter(|ip| service.ignored.is_none() && self.guard.address(FrontendKind::ClusterIp, **ip).is_none());
        for ip in proxied.filter(|ip| !self.service_cidrs.iter().any(|cidr| cidr.contains(**ip))) {
            problems.push(format!("{ip} is not in serviceCIDRs: host processes cannot reach it"));
        }
        problems
    }
}

/// Puts a value in its place, or none. Says whether that differs from what was there.
fn replace<T: PartialEq>(map: &mut BTreeMap<ObjectName, T>, name: &ObjectName, value: Option<T>) -> bool {
    let differs = map.get(name) != value.as_ref();
    match value {
        Some(value) if differs => drop(map.insert(name.clone(), value)),
        None if differs => drop(map.remove(name)),
        _ => {}
    }
    differs
}

#[cfg(test)]
mod tests;
