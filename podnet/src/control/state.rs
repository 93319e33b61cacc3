//! The index of all objects: what belongs to which service, so that a change touches only what it concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::ages::Ages;
use super::claims::{Claims, Judged, Setting};
use crate::config::Config;
use crate::guard::{Guard, HostFacts};
use crate::model::{
    Change, Condition, EndpointSlice, Kind, Node, Object, ObjectKey, ObjectName, Protocol, Service, ServiceCidr,
    ServicePort, SlicePort,
};
use crate::select;

/// All objects that the sources have given.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Services, and names for which there are only slices so far.
    services: BTreeMap<ObjectName, Indexed>,
    /// Which service a slice belongs to.
    owners: BTreeMap<ObjectName, String>,
    nodes: BTreeMap<String, Arc<Node>>,
    service_cidrs: BTreeMap<String, Arc<ServiceCidr>>,
    service_count: usize,
    /// An endpoint that UDP flows may lead to has gone or doesn't serve any more.
    lost: bool,
}

#[derive(Clone, Debug, Default)]
struct Indexed {
    service: Option<Arc<Service>>,
    /// By their names; few.
    slices: Vec<(String, Arc<EndpointSlice>)>,
}

impl State {
    /// Takes in a change and adds the services that it concerns to `dirty`, once for each change that does. Says whether
    /// nodes or service ranges differ.
    /// An object that says what it said before changes nothing: a Node is written every few minutes, whatever happens.
    pub fn apply(&mut self, change: Change, dirty: &mut Vec<ObjectName>) -> bool {
        let Change { key: ObjectKey { kind, name }, object, .. } = change;
        debug_assert!(object.as_ref().is_none_or(|object| object.kind() == kind));
        match (kind, object) {
            (Kind::Node, object) => {
                let node = object.and_then(|object| if let Object::Node(node) = object { Some(node) } else { None });
                return put(&mut self.nodes, name.name, node);
            }
            (Kind::ServiceCidr, object) => {
                let ranges = object
                    .and_then(|object| if let Object::ServiceCidr(ranges) = object { Some(ranges) } else { None });
                return put(&mut self.service_cidrs, name.name, ranges);
            }
            (Kind::Service, object) => {
                let service = match object {
                    Some(Object::Service(service)) => Some(service),
                    _ => None,
                };
                let indexed = self.services.entry(name.clone()).or_default();
                if service.is_some() && indexed.service == service {
                    return false;
                }
                self.service_count -= usize::from(indexed.service.is_some());
                indexed.service = service;
                self.service_count += usize::from(indexed.service.is_some());
                self.forget_empty(&name);
                dirty.push(name);
            }
            (Kind::EndpointSlice, object) => {
                let slice = match object {
                    Some(Object::EndpointSlice(slice)) => Some(slice),
                    _ => None,
                };
                self.apply_slice(name, slice, dirty);
            }
        }
        false
    }

    fn apply_slice(&mut self, name: ObjectName, slice: Option<Arc<EndpointSlice>>, dirty: &mut Vec<ObjectName>) {
        let ObjectName { namespace, .. } = &name;
        let service = slice.as_ref().and_then(|slice| slice.service.clone());
        let owner_name = |service: String| ObjectName { namespace: namespace.clone(), name: service };
        let old = self.owners.get(&name).filter(|old| Some(*old) != service.as_ref()).cloned();
        if let Some(old) = old.map(owner_name) {
            if let Some(indexed) = self.services.get_mut(&old) {
                let gone = indexed.slices.extract_if(.., |(other, _)| *other == name.name);
                self.lost |= gone.fold(false, |lost, (_, slice)| lost | loses(&slice, None));
            }
            self.owners.remove(&name);
            self.forget_empty(&old);
            dirty.push(old);
        }
        if let (Some(slice), Some(service)) = (slice, service) {
            let owner = owner_name(service.clone());
            let slices = &mut self.services.entry(owner.clone()).or_default().slices;
            match slices.binary_search_by(|(other, _)| other.cmp(&name.name)) {
                Ok(place) if slices[place].1 == slice => return,
                Ok(place) => {
                    self.lost |= loses(&slices[place].1, Some(&slice));
                    slices[place].1 = slice;
                }
                Err(place) => {
                    slices.reserve_exact(1);
                    slices.insert(place, (name.name.clone(), slice));
                }
            }
            self.owners.insert(name, service);
            dirty.push(owner);
        }
    }

    fn forget_empty(&mut self, name: &ObjectName) {
        if self.services.get(name).is_some_and(|indexed| indexed.service.is_none() && indexed.slices.is_empty()) {
            self.services.remove(name);
        }
    }

    /// Whether an endpoint of UDP has been lost since the last call.
    pub fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// A service with its slices.
    pub fn service(&self, name: &ObjectName) -> Option<(&Service, impl Iterator<Item = &EndpointSlice> + Clone)> {
        let indexed = self.services.get(name)?;
        Some((indexed.service.as_deref()?, indexed.slices.iter().map(|(_, slice)| &**slice)))
    }

    /// A service's slices with their names.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = (&str, &EndpointSlice)> + Clone {
        let slices = self.services.get(service).into_iter().flat_map(|indexed| &indexed.slices);
        slices.map(|(name, slice)| (name.as_str(), &**slice))
    }

    /// The `metadata.uid` of a Service, a Node, or a slice of a service.
    pub fn uid(&self, object: &ObjectKey) -> Option<&str> {
        let ObjectKey { kind, name } = object;
        match kind {
            Kind::Service => Some(&*self.services.get(name)?.service.as_ref()?.uid),
            Kind::Node => Some(&*self.nodes.get(&name.name)?.uid),
            Kind::EndpointSlice => {
                let owner = ObjectName { namespace: name.namespace.clone(), name: self.owners.get(name)?.clone() };
                self.slices(&owner).find(|(slice, _)| *slice == name.name).map(|(_, slice)| &*slice.uid)
            }
            Kind::ServiceCidr => None,
        }
    }

    /// All services, and names for which there are only slices so far.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.service_count
    }

    /// How many slices belong to a service.
    pub fn slice_count(&self) -> usize {
        self.owners.len()
    }

    /// The ranges that ServiceCIDRs give, ascending, each once.
    pub fn service_cidrs(&self) -> BTreeSet<IpNetwork> {
        self.service_cidrs.values().flat_map(|ranges| &ranges.cidrs).copied().collect()
    }

    /// What counts of all nodes, for one who knows of them what the daemon has written down.
    pub fn judged(&self, config: &Config, host: &HostFacts) -> Judged {
        let mut claims = Claims::remember(Ages::read(&config.state_dir).ok().flatten());
        self.nodes.iter().for_each(|(name, node)| claims.note(name, Some(node), true));
        let services = self.all_service_cidrs(config);
        let setting = Setting { own: &config.node, services: &services, protected: &config.protected_addresses, host };
        claims.judge(&self.nodes, setting)
    }

    /// What no object may take, on the node that the configuration names and among these.
    pub fn guard(&self, config: &Config, nodes: &BTreeMap<String, Arc<Node>>, host: &HostFacts) -> Guard {
        let nodes = nodes.iter().map(|(name, node)| (name.as_str(), &**node));
        let mut guard = Guard::new(config, nodes, self.all_service_cidrs(config).iter(), host);
        for service in self.services.values().filter_map(|indexed| indexed.service.as_ref()) {
            let ips = virtual_ips(service, &guard);
            guard.count(&ips, true);
        }
        guard
    }

    fn all_service_cidrs(&self, config: &Config) -> BTreeSet<IpNetwork> {
        let mut ranges = self.service_cidrs();
        ranges.extend(config.service_cidrs());
        ranges
    }

    /// The services with an endpoint of one of these addresses.
    pub fn with_endpoints(&self, addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = &ObjectName> {
        let concerned = move |indexed: &Indexed| {
            let mut endpoints = indexed.slices.iter().flat_map(|(_, slice)| &slice.endpoints);
            endpoints.any(|endpoint| addresses.contains(&endpoint.addr))
        };
        self.services.iter().filter(move |(_, indexed)| concerned(indexed)).map(|(name, _)| name)
    }

    /// The services of which another guard may refuse something else.
    pub fn judged_differently(&self, a: &Guard, b: &Guard) -> impl Iterator<Item = &ObjectName> {
        let ports_differ = a.differs_in_ports(b);
        let differs = move |indexed: &Indexed| {
            let Some(service) = &indexed.service else { return false };
            let tunnel = |port: &SlicePort| Guard::is_tunnel(port.port, port.protocol);
            let port = |port: &ServicePort| {
                let mut places = select::all_places(select::all_addresses(service), service, port);
                places.any(|(kind, at)| a.port(kind, at, port.protocol) != b.port(kind, at, port.protocol))
            };
            select::all_addresses(service).any(|(kind, ip)| a.address(kind, ip) != b.address(kind, ip))
                || (ports_differ && (service.health_check_port.is_some() || service.ports.iter().any(port)))
                || indexed.slices.iter().any(|(_, slice)| slice.ports.iter().any(tunnel))
        };
        self.services.iter().filter(move |(_, indexed)| differs(indexed)).map(|(name, _)| name)
    }

    /// All nodes by name.
    pub fn nodes(&self) -> &BTreeMap<String, Arc<Node>> {
        &self.nodes
    }
}

/// See [`Guard::virtual_ips`]. A service that isn't for podnet leads nowhere.
pub(super) fn virtual_ips(service: &Service, guard: &Guard) -> Box<[IpAddr]> {
    if service.ignored.is_some() {
        return Box::default();
    }
    guard.virtual_ips(&service.cluster_ips, &service.load_balancer_ips)
}

/// Puts a value in its place, or none. Says whether that differs from what was there.
fn put<T: PartialEq>(map: &mut BTreeMap<String, Arc<T>>, name: String, value: Option<Arc<T>>) -> bool {
    let differs = map.get(&name) != value.as_ref();
    match value {
        Some(value) => map.insert(name, value),
        None => map.remove(&name),
    };
    differs
}

/// Whether a slice with a UDP port has an endpoint that serves, and what comes in its place hasn't.
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

    fn slice(state: &mut State, slice: &str, service: Option<&str>) -> Vec<String> {
        let object = EndpointSlice { service: service.map(Into::into), ..EndpointSlice::default() };
        change(state, Kind::EndpointSlice, slice, Some(Object::EndpointSlice(object.into())))
    }

    fn service(state: &mut State, service: &str) -> Vec<String> {
        change(state, Kind::Service, service, Some(Object::Service(Arc::default())))
    }

    fn change(state: &mut State, kind: Kind, at: &str, object: Option<Object>) -> Vec<String> {
        let mut dirty = Vec::new();
        let key = ObjectKey { kind, name: name(at) };
        assert_eq!(state.apply(Change::new(key, object), &mut dirty), kind == Kind::Node);
        dirty.sort();
        dirty.into_iter().map(|name| name.to_string()).collect()
    }

    fn slices(state: &State, service: &str) -> Option<usize> {
        state.service(&name(service)).map(|(_, slices)| slices.count())
    }

    #[test]
    fn a_slice_concerns_its_service_only() {
        let mut state = State::default();
        assert_eq!(slice(&mut state, "a-1", Some("a")), ["x/a"]);
        assert_eq!(slices(&state, "a"), None, "there is no service yet");
        assert_eq!(service(&mut state, "a"), ["x/a"]);
        service(&mut state, "b");
        assert_eq!(slice(&mut state, "a-2", Some("a")), ["x/a"]);
        assert_eq!(slice(&mut state, "a-2", Some("a")), [""; 0], "it says nothing new");
        assert_eq!(service(&mut state, "a"), [""; 0]);
        assert_eq!((slices(&state, "a"), slices(&state, "b")), (Some(2), Some(0)));
        assert_eq!(slice(&mut state, "a-2", Some("b")), ["x/a", "x/b"], "its label has changed");
        assert_eq!((slices(&state, "a"), slices(&state, "b")), (Some(1), Some(1)));
        assert_eq!(slice(&mut state, "a-2", None), ["x/b"]);
        assert_eq!(slice(&mut state, "none", None), [""; 0]);
        assert_eq!(change(&mut state, Kind::EndpointSlice, "a-1", None), ["x/a"]);
        assert_eq!((slices(&state, "a"), slices(&state, "b"), state.slice_count()), (Some(0), Some(0), 0));
    }

    #[test]
    fn what_goes_leaves_nothing_behind() {
        let mut state = State::default();
        service(&mut state, "a");
        slice(&mut state, "a-1", Some("a"));
        assert_eq!(change(&mut state, Kind::Service, "a", None), ["x/a"]);
        assert_eq!(slices(&state, "a"), None);
        service(&mut state, "a");
        assert_eq!(slices(&state, "a"), Some(1), "the slice was still there");
        change(&mut state, Kind::Service, "a", None);
        change(&mut state, Kind::EndpointSlice, "a-1", None);
        change(&mut state, Kind::Node, "n", Some(Object::Node(Arc::default())));
        assert_eq!(state.nodes().len(), 1);
        change(&mut state, Kind::Node, "n", None);
        assert_eq!(state.service_count(), 0);
        assert!(state.services.is_empty() && state.owners.is_empty() && state.nodes.is_empty());
    }
}
