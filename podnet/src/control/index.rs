//! The index of the objects: which objects belong to which service, and which keys of each domain a change makes dirty.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use foldhash::HashMap;
use ipnetwork::IpNetwork;

use crate::model::{
    Change, Condition, EndpointSlice, Kind, Node, Object, ObjectKey, ObjectName, Origin, Protocol, Service, ServiceCidr,
};

/// EndpointSlices with their names.
pub type NamedSlices = Vec<(String, Arc<EndpointSlice>)>;

/// The EndpointSlices of a service.
#[derive(Clone, Copy, Debug)]
pub struct Slices<'a>(&'a [(String, Arc<EndpointSlice>)]);

impl<'a> Slices<'a> {
    /// The slices.
    pub fn iter(self) -> impl Iterator<Item = &'a EndpointSlice> + Clone {
        self.0.iter().map(|(_, slice)| &**slice)
    }

    /// The slices with their names.
    pub fn named(self) -> impl Iterator<Item = (&'a str, &'a EndpointSlice)> + Clone {
        self.0.iter().map(|(name, slice)| (name.as_str(), &**slice))
    }
}

/// Dirty keys of each domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services whose object or slices have changed, with the origin of the change; one entry per change.
    pub services: Vec<(ObjectName, Origin)>,
    /// Changed nodes, in order of the changes.
    pub nodes: Vec<String>,
    /// Whether a ServiceCIDR has changed.
    pub service_cidrs: bool,
    /// Whether an endpoint that may have UDP flows is gone or no longer serving.
    pub lost: bool,
    /// Changed policies, Namespaces and Pods, in order of the changes, with their new state. Their room keeps
    /// them in a form of its own, so they are not kept here.
    pub policies: Vec<(ObjectKey, Option<Object>)>,
}

/// All objects of the sources.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// Services, and names that have only slices so far.
    services: BTreeMap<ObjectName, Indexed>,
    /// The service of each slice.
    owners: HashMap<ObjectName, String>,
    nodes: BTreeMap<String, Arc<Node>>,
    service_cidrs: BTreeMap<String, Arc<ServiceCidr>>,
    service_count: usize,
    dirty: Dirty,
}

#[derive(Clone, Debug, Default)]
struct Indexed {
    service: Option<Arc<Service>>,
    /// With their names; few.
    slices: NamedSlices,
}

impl Index {
    /// Applies a change. An object without a relevant difference makes nothing dirty: the status of a Node is written
    /// every few minutes.
    pub fn apply(&mut self, change: Change) {
        let Change { key: ObjectKey { kind, name }, object, origin } = change;
        debug_assert!(object.as_ref().is_none_or(|object| object.kind() == kind));
        match (kind, object) {
            (Kind::Node, object) => {
                let node = object.and_then(|object| if let Object::Node(node) = object { Some(node) } else { None });
                if put(&mut self.nodes, &name.name, node) {
                    self.dirty.nodes.push(name.name);
                }
            }
            (Kind::ServiceCidr, object) => {
                let ranges = object
                    .and_then(|object| if let Object::ServiceCidr(ranges) = object { Some(ranges) } else { None });
                self.dirty.service_cidrs |= put(&mut self.service_cidrs, &name.name, ranges);
            }
            (Kind::Service, object) => {
                let service = match object {
                    Some(Object::Service(service)) => Some(service),
                    _ => None,
                };
                self.apply_service(name, service, origin);
            }
            (Kind::EndpointSlice, object) => {
                let slice = match object {
                    Some(Object::EndpointSlice(slice)) => Some(slice),
                    _ => None,
                };
                self.apply_slice(name, slice, origin);
            }
            (Kind::NetworkPolicy | Kind::ClusterNetworkPolicy | Kind::Namespace | Kind::Pod, object) => {
                self.dirty.policies.push((ObjectKey { kind, name }, object));
            }
        }
    }

    /// Takes the keys that have become dirty since the last call.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    fn apply_service(&mut self, name: ObjectName, service: Option<Arc<Service>>, origin: Origin) {
        let indexed = self.services.entry(name.clone()).or_default();
        if service.is_some() && indexed.service == service {
            return;
        }
        self.service_count -= usize::from(indexed.service.is_some());
        indexed.service = service;
        match indexed.service.is_some() {
            true => self.service_count += 1,
            false => self.forget_empty(&name),
        }
        self.dirty.services.push((name, origin));
    }

    fn apply_slice(&mut self, name: ObjectName, slice: Option<Arc<EndpointSlice>>, origin: Origin) {
        let ObjectName { namespace, .. } = &name;
        let service = slice.as_ref().and_then(|slice| slice.service.clone());
        let owner_name = |service: String| ObjectName { namespace: namespace.clone(), name: service };
        let old = self.owners.get(&name).filter(|old| Some(*old) != service.as_ref()).cloned();
        if let Some(old) = old.map(owner_name) {
            if let Some(indexed) = self.services.get_mut(&old) {
                let gone = indexed.slices.extract_if(.., |(other, _)| *other == name.name);
                self.dirty.lost |= gone.fold(false, |lost, (_, slice)| lost | loses(&slice, None));
            }
            self.owners.remove(&name);
            self.forget_empty(&old);
            self.dirty.services.push((old, origin));
        }
        if let (Some(slice), Some(service)) = (slice, service) {
            let owner = owner_name(service.clone());
            let slices = &mut self.services.entry(owner.clone()).or_default().slices;
            match slices.binary_search_by(|(other, _)| other.cmp(&name.name)) {
                Ok(place) if slices[place].1 == slice => return,
                Ok(place) => {
                    self.dirty.lost |= loses(&slices[place].1, Some(&slice));
                    slices[place].1 = slice;
                }
                Err(place) => {
                    slices.reserve_exact(1);
                    slices.insert(place, (name.name.clone(), slice));
                }
            }
            self.owners.insert(name, service);
            self.dirty.services.push((owner, origin));
        }
    }

    fn forget_empty(&mut self, name: &ObjectName) {
        if self.services.get(name).is_some_and(|indexed| indexed.service.is_none() && indexed.slices.is_empty()) {
            self.services.remove(name);
        }
    }

    /// A service with its slices.
    pub fn service(&self, name: &ObjectName) -> Option<(&Service, Slices<'_>)> {
        let indexed = self.services.get(name)?;
        Some((indexed.service.as_deref()?, Slices(&indexed.slices)))
    }

    /// A service with its slices and their names, shared, to be kept while the index changes.
    pub fn shared(&self, service: &ObjectName) -> Option<(Arc<Service>, NamedSlices)> {
        let indexed = self.services.get(service)?;
        Some((indexed.service.clone()?, indexed.slices.clone()))
    }

    /// The services after one, or all, ascending; `None` for names that have only slices so far.
    pub fn services_after(&self, name: Option<&ObjectName>) -> impl Iterator<Item = (&ObjectName, Option<&Service>)> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.services.range((start, Bound::Unbounded)).map(|(name, indexed)| (name, indexed.service.as_deref()))
    }

    /// The `metadata.uid` of a Service, a Node, or a slice of a service.
    pub fn uid(&self, object: &ObjectKey) -> Option<&str> {
        let ObjectKey { kind, name } = object;
        match kind {
            Kind::Service => Some(&*self.services.get(name)?.service.as_ref()?.uid),
            Kind::Node => Some(&*self.nodes.get(&name.name)?.uid),
            Kind::EndpointSlice => {
                let owner = ObjectName { namespace: name.namespace.clone(), name: self.owners.get(name)?.clone() };
                let slices = &self.services.get(&owner)?.slices;
                slices.iter().find(|(slice, _)| *slice == name.name).map(|(_, slice)| &*slice.uid)
            }
            Kind::ServiceCidr | Kind::NetworkPolicy | Kind::ClusterNetworkPolicy | Kind::Namespace | Kind::Pod => None,
        }
    }

    /// All services, and names that have only slices so far.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// Number of services.
    pub fn service_count(&self) -> usize {
        self.service_count
    }

    /// Number of slices of a service.
    pub fn slice_count(&self) -> usize {
        self.owners.len()
    }

    /// The ranges of all ServiceCIDRs, ascending, without duplicates.
    pub fn service_cidrs(&self) -> BTreeSet<IpNetwork> {
        self.service_cidrs.values().flat_map(|ranges| &ranges.cidrs).copied().collect()
    }

    /// All services.
    pub(super) fn all_services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().filter_map(|indexed| indexed.service.as_deref())
    }

    /// The services that have an endpoint with one of these addresses.
    pub fn with_endpoints(&self, addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = &ObjectName> {
        let concerned = move |indexed: &Indexed| {
            let mut endpoints = indexed.slices.iter().flat_map(|(_, slice)| &slice.endpoints);
            endpoints.any(|endpoint| addresses.contains(&endpoint.addr))
        };
        self.services.iter().filter(move |(_, indexed)| concerned(indexed)).map(|(name, _)| name)
    }

    /// All nodes by name.
    pub fn nodes(&self) -> &BTreeMap<String, Arc<Node>> {
        &self.nodes
    }
}

/// Sets or (`None`) removes a value. Returns whether that is a change.
fn put<T: PartialEq>(map: &mut BTreeMap<String, Arc<T>>, name: &str, value: Option<Arc<T>>) -> bool {
    let differs = map.get(name) != value.as_ref();
    match value {
        Some(value) => map.insert(name.to_owned(), value),
        None => map.remove(name),
    };
    differs
}

/// Whether a slice with a UDP port loses a serving endpoint when `new` replaces it.
fn loses(old: &EndpointSlice, new: Option<&EndpointSlice>) -> bool {
    let serving = |slice: &EndpointSlice, addr| {
        slice.endpoints.iter().any(|other| other.addr == addr && other.condition != Condition::Unusable)
    };
    let addrs = old.endpoints.iter().map(|endpoint| endpoint.addr);
    old.ports.iter().any(|port| port.protocol == Protocol::Udp)
        && addrs.filter(|addr| serving(old, *addr)).any(|addr| !new.is_some_and(|new| serving(new, addr)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "x".into(), name: name.into() }
    }

    fn slice(index: &mut Index, slice: &str, service: Option<&str>) -> Vec<String> {
        let object = EndpointSlice { service: service.map(Into::into), ..EndpointSlice::default() };
        change(index, Kind::EndpointSlice, slice, Some(Object::EndpointSlice(object.into())))
    }

    fn service(index: &mut Index, service: &str) -> Vec<String> {
        change(index, Kind::Service, service, Some(Object::Service(Arc::default())))
    }

    fn change(index: &mut Index, kind: Kind, at: &str, object: Option<Object>) -> Vec<String> {
        index.apply(Change::new(ObjectKey { kind, name: name(at) }, object));
        let dirty = index.take_dirty();
        assert_eq!(dirty.nodes.is_empty(), kind != Kind::Node);
        let mut services: Vec<_> = dirty.services.into_iter().map(|(name, _)| name.to_string()).collect();
        services.sort();
        services
    }

    fn slices(index: &Index, service: &str) -> Option<usize> {
        index.service(&name(service)).map(|(_, slices)| slices.iter().count())
    }

    #[test]
    fn slice_makes_only_its_service_dirty() {
        let mut index = Index::default();
        assert_eq!(slice(&mut index, "a-1", Some("a")), ["x/a"]);
        assert_eq!(slices(&index, "a"), None, "there is no service yet");
        assert_eq!(service(&mut index, "a"), ["x/a"]);
        service(&mut index, "b");
        assert_eq!(slice(&mut index, "a-2", Some("a")), ["x/a"]);
        assert_eq!(slice(&mut index, "a-2", Some("a")), [""; 0], "it says nothing new");
        assert_eq!(service(&mut index, "a"), [""; 0]);
        assert_eq!((slices(&index, "a"), slices(&index, "b")), (Some(2), Some(0)));
        assert_eq!(slice(&mut index, "a-2", Some("b")), ["x/a", "x/b"], "its label has changed");
        assert_eq!((slices(&index, "a"), slices(&index, "b")), (Some(1), Some(1)));
        assert_eq!(slice(&mut index, "a-2", None), ["x/b"]);
        assert_eq!(slice(&mut index, "none", None), [""; 0]);
        assert_eq!(change(&mut index, Kind::EndpointSlice, "a-1", None), ["x/a"]);
        assert_eq!((slices(&index, "a"), slices(&index, "b"), index.slice_count()), (Some(0), Some(0), 0));
    }

    #[test]
    fn deleted_objects_leave_nothing_behind() {
        let mut index = Index::default();
        service(&mut index, "a");
        slice(&mut index, "a-1", Some("a"));
        assert_eq!(change(&mut index, Kind::Service, "a", None), ["x/a"]);
        assert_eq!(slices(&index, "a"), None);
        service(&mut index, "a");
        assert_eq!(slices(&index, "a"), Some(1), "the slice was still there");
        change(&mut index, Kind::Service, "a", None);
        change(&mut index, Kind::EndpointSlice, "a-1", None);
        change(&mut index, Kind::Node, "n", Some(Object::Node(Arc::default())));
        assert_eq!(index.nodes().len(), 1);
        change(&mut index, Kind::Node, "n", None);
        assert_eq!(index.service_count(), 0);
        assert!(index.services.is_empty() && index.owners.is_empty() && index.nodes.is_empty());
    }
}
