//! Services: their frontends on this node, and their changes that haven't taken effect yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podnet_common::addr::{Port, Proto};
use podnet_common::layout::{Backend, FrontendKey};

use super::frontends::Frontends;
use super::guarded::virtual_ips;
use super::index::{Index, Slices};
use super::nodes::Nodes;
use super::problems::{Notes, Problems};
use super::waiting::Waiting;
use crate::entry_counts::Share;
use crate::frontend::{FrontendKind, Owner, ServicePortName};
use crate::guard::Guard;
use crate::model::{Condition, Diagnostic, Kind, ObjectKey, ObjectName, Origin, Service, Severity};
use crate::select::{self, HealthCheck, Selection};

/// State derived from services.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// Service addresses outside the service ranges. Contains only services with such addresses: see
    /// [`Guard::virtual_ips`].
    virtual_ips: BTreeMap<ObjectName, Box<[IpAddr]>>,
    /// Services with a health check node port.
    checks: BTreeMap<ObjectName, HealthCheck>,
    /// Changes that haven't taken effect in the tables yet.
    waiting: Waiting,
}

/// A service with its slices.
type Found<'a> = (&'a Service, Slices<'a>);

/// Input from the other rooms.
pub(super) struct Surroundings<'a> {
    pub(super) index: &'a Index,
    pub(super) nodes: &'a mut Nodes,
    pub(super) frontends: &'a mut Frontends,
    pub(super) problems: &'a mut Problems,
}

/// Effects of an update.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Updated {
    /// Number of services whose frontends were recomputed.
    pub(super) services: usize,
    /// Whether health checks have changed.
    pub(super) health: bool,
}

impl Services {
    /// Records a change of a service.
    pub(super) fn note(&mut self, service: &ObjectName, origin: Origin) {
        self.waiting.note(service, origin);
    }

    /// Recomputes these services, and those affected by their addresses.
    pub(super) fn update(&mut self, mut dirty: Vec<ObjectName>, around: &mut Surroundings<'_>) -> Updated {
        // Stable, since this is faster if the names come from lists that are sorted.
        dirty.sort();
        dirty.dedup();
        let index = around.index;
        let mut dirty: Vec<_> = dirty.into_iter().map(|name| (index.service(&name), name)).collect();
        let changed = self.count_addresses(&dirty, around);
        if !changed.is_empty() {
            dirty.extend(index.with_endpoints(&changed).map(|name| (index.service(name), name.clone())));
            dirty.sort_unstable_by(|(_, a), (_, b)| a.cmp(b));
            dirty.dedup_by(|(_, a), (_, b)| a == b);
        }
        around.frontends.reserve(dirty.len());
        let mut updated = Updated { services: dirty.len(), health: false };
        for (found, name) in dirty {
            updated.health |= self.update_one(name, found, around);
        }
        updated
    }

    /// Recomputes a service whose share has changed.
    pub(super) fn update_share(&mut self, name: ObjectName, around: &mut Surroundings<'_>) {
        let found = around.index.service(&name);
        self.update_one(name, found, around);
    }

    /// Updates the addresses of these services. Returns those that were added or removed.
    fn count_addresses(
        &mut self,
        services: &[(Option<Found<'_>>, ObjectName)],
        around: &mut Surroundings<'_>,
    ) -> BTreeSet<IpAddr> {
        let mut changed = BTreeSet::new();
        let guard = Arc::make_mut(&mut around.nodes.guard);
        for (found, name) in services {
            let now = found.map(|(service, _)| virtual_ips(service, guard)).unwrap_or_default();
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

    /// Recomputes a service. Returns whether its health check has changed.
    fn update_one(&mut self, name: ObjectName, found: Option<Found<'_>>, around: &mut Surroundings<'_>) -> bool {
        let Surroundings { nodes, frontends, problems, .. } = around;
        let (settings, guard) = (nodes.settings(), &nodes.guard);
        let share = Share::new(frontends.shares.of_service());
        let (selection, check) = match found {
            Some((service, slices)) => (
                select::select(&name, service, slices.iter(), settings, guard, share),
                select::health(&name, service, slices.iter(), settings, guard),
            ),
            None => Default::default(),
        };
        let owner = Owner::Service(name);
        let Owner::Service(name) = &owner else { return false };
        frontends.shares.ask(&owner, selection.takes);
        let share = share.within(frontends.shares.limit(&owner));
        let selection = match found {
            Some((service, slices)) if share.exceeded_by(selection.takes).is_some() => {
                select::select(name, service, slices.iter(), settings, guard, share)
            }
            _ => selection,
        };
        let notes = found.map(|(service, slices)| notes(service, slices, &selection, nodes));
        problems.set(&key(name), notes.unwrap_or_default());
        let changed = frontends.set(&owner, selection.frontends);
        self.waiting.add(name, &changed);
        replace(&mut self.checks, name, check)
    }

    /// The tables have been written, except for the keys for which `is_unwritten` is true.
    pub(super) fn settle(&mut self, is_unwritten: impl Fn(&FrontendKey) -> bool) {
        self.waiting.settle(is_unwritten);
    }

    /// See [`super::Control::take_effective`].
    pub(super) fn take_effective(&mut self) -> Vec<Origin> {
        self.waiting.take_effective()
    }

    /// Health checks of services, by name of the service.
    pub(super) fn checks(&self) -> impl Iterator<Item = &HealthCheck> {
        self.checks.values()
    }

    /// Health check node ports that collide with a frontend of another service or with a host port. Incoming packets
    /// then go to that frontend instead of the health server.
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

/// Whether the service port at this destination has this backend, and the backend isn't excluded altogether.
pub(super) fn serves(
    port: &ServicePortName,
    key: &FrontendKey,
    backend: &Backend,
    index: &Index,
    guard: &Guard,
) -> bool {
    let Some((_, slices)) = index.service(&port.service) else { return false };
    let addr = IpAddr::from(backend.addr);
    slices.iter().any(|slice| {
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

/// Remarks about a service. Problems of its slices are recorded when they arrive.
fn notes(service: &Service, slices: Slices<'_>, selection: &Selection, nodes: &Nodes) -> Notes {
    let mut notes = Notes::new(&service.left_out);
    notes.left_out.extend(select::refused(service, slices.named(), &nodes.guard).lines());
    let (beyond, unspread) = selection.shortages();
    notes.left_out.extend(beyond);
    notes.remarks = remarks(service, nodes);
    notes.remarks.extend(unspread);
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

/// Sets or (`None`) removes a value. Returns whether that is a change.
fn replace<T: PartialEq>(map: &mut BTreeMap<ObjectName, T>, name: &ObjectName, value: Option<T>) -> bool {
    let differs = map.get(name) != value.as_ref();
    match value {
        Some(value) if differs => drop(map.insert(name.clone(), value)),
        None if differs => drop(map.remove(name)),
        _ => {}
    }
    differs
}
