//! Services: what they come to on this node, and which of their changes the tables don't hold yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use podnet_common::addr::{Port, Proto};
use podnet_common::layout::{Backend, FrontendKey};

use super::frontends::Frontends;
use super::guarded::virtual_ips;
use super::index::Index;
use super::nodes::Nodes;
use super::problems::{Notes, Problems};
use super::waiting::Waiting;
use crate::frontend::{FrontendKind, Owner, ServicePortName};
use crate::guard::Guard;
use crate::model::{Condition, Diagnostic, Kind, ObjectKey, ObjectName, Origin, Service, Severity};
use crate::room::Share;
use crate::select::{self, HealthCheck, Selection};

/// What services come to.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// Addresses of services that no range tells, where there are any: see [`Guard::virtual_ips`].
    virtual_ips: BTreeMap<ObjectName, Box<[IpAddr]>>,
    /// Of services whose load balancer asks for their health.
    checks: BTreeMap<ObjectName, HealthCheck>,
    /// Changes of services that aren't true of the tables yet.
    waiting: Waiting,
}

/// What the other rooms give for services.
pub(super) struct Surroundings<'a> {
    pub(super) index: &'a Index,
    pub(super) nodes: &'a mut Nodes,
    pub(super) frontends: &'a mut Frontends,
    pub(super) problems: &'a mut Problems,
}

/// What an update has changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Updated {
    /// Services whose frontends were computed again.
    pub(super) services: usize,
    /// Whether health checks differ.
    pub(super) health: bool,
}

impl Services {
    /// A service has changed.
    pub(super) fn note(&mut self, service: &ObjectName, origin: Origin) {
        self.waiting.note(service, origin);
    }

    /// Computes what these services come to, and those for which their addresses make a difference.
    pub(super) fn update(&mut self, mut dirty: Vec<ObjectName>, around: &mut Surroundings<'_>) -> Updated {
        dirty.sort_unstable();
        dirty.dedup();
        let changed = self.count_addresses(&dirty, around);
        if !changed.is_empty() {
            dirty.extend(around.index.with_endpoints(&changed).cloned());
            dirty.sort_unstable();
            dirty.dedup();
        }
        let mut updated = Updated { services: dirty.len(), health: false };
        for name in dirty {
            updated.health |= self.update_one(name, around);
        }
        updated
    }

    /// Counts which addresses services have, and gives those that came or went.
    fn count_addresses(&mut self, services: &[ObjectName], around: &mut Surroundings<'_>) -> BTreeSet<IpAddr> {
        let mut changed = BTreeSet::new();
        let guard = &mut around.nodes.guard;
        for name in services {
            let service = around.index.service(name).map(|(service, _)| service);
            let now = service.map(|service| virtual_ips(service, guard)).unwrap_or_default();
            let before = self.virtual_ips.remove(name).unwrap_or_default();
            if now != before {
                changed.extend(guard.count(&before, false));
                changed.extend(guard.count(&now, true));
            }
            if !now.is_empty() {
                self.virtual_ips.insert(name.clone(), now);
            }
        }
        changed
    }

    /// Computes what a service comes to. Says whether its health check differs.
    pub(super) fn update_one(&mut self, name: ObjectName, around: &mut Surroundings<'_>) -> bool {
        let Surroundings { index, nodes, frontends, problems } = around;
        let (settings, guard) = (nodes.settings(), &nodes.guard);
        let share = Share::new(frontends.shares.of_service());
        let (selection, check) = match index.service(&name) {
            Some((service, slices)) => (
                select::select(&name, service, slices.clone(), settings, guard, share),
                select::health(&name, service, slices, settings, guard),
            ),
            None => Default::default(),
        };
        let owner = Owner::Service(name);
        let Owner::Service(name) = &owner else { return false };
        frontends.shares.ask(&owner, selection.takes);
        let share = share.within(frontends.shares.limit(&owner));
        let selection = match index.service(name) {
            Some((service, slices)) if share.exceeded_by(selection.takes).is_some() => {
                select::select(name, service, slices, settings, guard, share)
            }
            _ => selection,
        };
        problems.set(&key(name), notes(name, &selection, index, nodes));
        let changed = frontends.set(&owner, selection.frontends);
        self.waiting.add(name, &changed);
        replace(&mut self.checks, name, check)
    }

    /// The tables were written, except for what `is_unwritten`.
    pub(super) fn settle(&mut self, is_unwritten: impl Fn(&FrontendKey) -> bool) {
        self.waiting.settle(is_unwritten);
    }

    /// See [`super::Control::take_effective`].
    pub(super) fn take_effective(&mut self) -> Vec<Origin> {
        self.waiting.take_effective()
    }

    /// Services whose load balancer asks for their endpoints on this node, by name.
    pub(super) fn checks(&self) -> impl Iterator<Item = &HealthCheck> {
        self.checks.values()
    }

    /// Services whose load balancer asks at a port of the node that another service or a pod has: a packet that comes in is
    /// theirs before it is the health server's.
    pub(super) fn contested_checks(&self, frontends: &Frontends) -> impl Iterator<Item = Diagnostic> {
        self.checks.iter().filter_map(|(name, check)| {
            let at =
                |addr| FrontendKey { addr, port: Port::new(check.port), proto: Proto::TCP, scope: FrontendKey::ANY };
            let of_node = [FrontendKey::NODE_V4, FrontendKey::NODE_V6];
            let holder = of_node.into_iter().find_map(|addr| frontends.desired.holder(&at(addr)))?;
            Some(Diagnostic::of(
                key(name),
                Severity::Remark,
                format!(
                    "its healthCheckNodePort {} conflicts with the same node port of {holder}, which receives its \
                     load balancer's health checks; change one of the two ports",
                    check.port
                ),
            ))
        })
    }
}

/// Whether a service port, which a destination is, has this backend, and it is not to be avoided altogether.
pub(super) fn serves(
    port: &ServicePortName,
    key: &FrontendKey,
    backend: &Backend,
    index: &Index,
    guard: &Guard,
) -> bool {
    let Some((_, mut slices)) = index.service(&port.service) else { return false };
    let addr = IpAddr::from(backend.addr);
    slices.any(|slice| {
        let mut ports = slice.ports.iter();
        let at = SocketAddr::new(addr, backend.port.get());
        ports.any(|p| {
            p.name == port.port
                && p.port == at.port()
                && key.proto == p.protocol.into()
                && guard.endpoint(at, p.protocol).is_none()
        }) && slice.endpoints.iter().any(|e| e.addr == addr && e.condition != Condition::Unusable)
    })
}

fn key(name: &ObjectName) -> ObjectKey {
    ObjectKey { kind: Kind::Service, name: name.clone() }
}

/// What there is to say of a service. Those of its slices are noted as they come.
fn notes(name: &ObjectName, selection: &Selection, index: &Index, nodes: &Nodes) -> Notes {
    let mut notes = Notes::default();
    if let Some((service, _)) = index.service(name) {
        notes = Notes::new(&service.left_out);
        notes.left_out.extend(select::refused(service, index.slices(name), &nodes.guard).lines());
        let (beyond, unspread) = selection.shortages();
        notes.left_out.extend(beyond);
        notes.remarks = remarks(service, nodes);
        notes.remarks.extend(unspread);
    }
    notes
}

fn remarks(service: &Service, nodes: &Nodes) -> Vec<String> {
    let mut remarks = select::remarks(service);
    let proxied = service
        .cluster_ips
        .iter()
        .filter(|ip| service.ignored.is_none() && nodes.guard.address(FrontendKind::ClusterIp, **ip).is_none());
    for ip in proxied.filter(|ip| !nodes.service_cidrs().iter().any(|cidr| cidr.contains(**ip))) {
        remarks.push(format!("{ip} is not in serviceCIDRs: host processes cannot reach it"));
    }
    remarks
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
