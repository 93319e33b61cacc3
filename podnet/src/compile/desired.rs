//! The desired contents of the tables, for all services together.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use podnet_common::addr::Addr;
use podnet_common::layout::{Backend, FrontendKey};

use super::claim::{Claim, Entry, Sharing};
use super::key::{of_node, scoped};
use crate::frontend::{Frontend, FrontendKind, Owner, ServicePortName};

/// A key with several claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict<'a> {
    /// The key, with scope [`FrontendKey::ANY`].
    pub key: FrontendKey,
    /// The owner that has the key.
    pub holder: &'a ServicePortName,
    /// An owner that doesn't get it.
    pub refused: &'a ServicePortName,
}

/// All claims to keys, and which of them wins.
///
/// The first claim by kind, then by the service's name wins, so the outcome doesn't depend on the order in which
/// services arrive, and no external IP takes the traffic of a ClusterIP. Among host ports the first in the list wins.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// By key with scope [`FrontendKey::ANY`]. Lists are never empty; the winner comes first.
    claims: BTreeMap<FrontendKey, Vec<Claim>>,
    /// Keys claimed by each owner, ascending.
    keys: HashMap<Owner, Box<[FrontendKey]>>,
    /// Keys with several claims.
    contested: BTreeSet<FrontendKey>,
    /// Host ports that another pod has: key, the pod that has it, the pod that doesn't.
    refused: Vec<(FrontendKey, Arc<ServicePortName>, Arc<ServicePortName>)>,
    /// Addresses of load balancers and external IPs, with the number of claims to ports of each.
    service_addresses: BTreeMap<Addr, u32>,
    /// Whether these have changed since the last query.
    addresses_changed: bool,
}

fn owns(owner: &Owner, claim: &Claim) -> bool {
    match owner {
        Owner::HostPorts => claim.kind == FrontendKind::HostPort,
        Owner::Service(name) => claim.kind != FrontendKind::HostPort && claim.service.service == *name,
    }
}

fn order(a: &Claim, b: &Claim) -> Ordering {
    (a.kind.cmp(&b.kind)).then_with(|| a.service.service.cmp(&b.service.service))
}

impl Desired {
    /// Ports at an address; the unspecified address stands for all addresses of the node.
    pub fn ports_at(&self, addr: IpAddr) -> impl Iterator<Item = u16> {
        let addr = Addr::from(addr);
        let keys = self.claims.range(FrontendKey::address(addr)..).map(|(key, _)| key);
        keys.take_while(move |key| key.addr == addr).map(|key| key.port.get())
    }

    /// The owner of a key; the unspecified address stands for all addresses of the node.
    pub fn holder(&self, key: &FrontendKey) -> Option<&ServicePortName> {
        Some(&self.claims.get(key)?.first()?.service)
    }

    /// Ports at the address of a load balancer or at an external IP, with their owners.
    pub fn at_service_address(&self, addr: IpAddr) -> impl Iterator<Item = (&FrontendKey, &ServicePortName)> {
        let addr = Addr::from(addr);
        let known = self.service_addresses.contains_key(&addr);
        let claims =
            self.claims.range(FrontendKey::address(addr)..).take_while(move |(key, _)| known && key.addr == addr);
        claims.filter_map(|(key, claims)| {
            let claim = claims.first().filter(|claim| is_service_address(claim.kind))?;
            Some((key, &*claim.service))
        })
    }

    /// Makes room for the frontends of this number of owners.
    pub fn reserve(&mut self, owners: usize) {
        self.keys.reserve(owners.saturating_sub(self.keys.len()));
    }

    /// Replaces the frontends of an owner. Returns the keys whose entries may have changed, ascending.
    pub fn set(&mut self, owner: &Owner, frontends: Vec<Frontend>) -> Vec<FrontendKey> {
        let new = self.compile(owner, frontends);
        let old = self.keys.remove(owner).unwrap_or_default();
        let mut addresses: Vec<_> = old.iter().chain(new.iter().map(|(key, _)| key)).map(|key| key.addr).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let before: Vec<_> = addresses.iter().map(|addr| self.address_flags(*addr)).collect();
        if !new.is_empty() {
            self.keys.insert(owner.clone(), new.iter().map(|(key, _)| *key).collect());
        }
        let mut changed = Vec::new();
        for key in old.iter().filter(|key| new.binary_search_by_key(key, |(key, _)| key).is_err()) {
            self.remove(owner, *key, &mut changed);
        }
        for (key, claim) in new {
            if old.binary_search(&key).is_ok() {
                self.replace(owner, key, claim, &mut changed);
            } else {
                self.insert(key, claim, &mut changed);
            }
        }
        for (addr, before) in addresses.into_iter().zip(before) {
            if self.address_flags(addr) != before {
                changed.push(FrontendKey::address(addr));
            }
        }
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// One claim per key, by key. If an owner has several, the first kind wins, then the first in the list.
    fn compile(&mut self, owner: &Owner, frontends: Vec<Frontend>) -> Vec<(FrontendKey, Claim)> {
        let mut sharing = Sharing::default();
        let mut claims: Vec<_> = frontends.into_iter().map(|frontend| Claim::new(frontend, &mut sharing)).collect();
        claims.sort_by_key(|(key, claim)| (*key, claim.kind));
        let of_pods = *owner == Owner::HostPorts;
        if of_pods {
            self.refused.clear();
        }
        claims.dedup_by(|(other_key, other), (key, first)| {
            let same = other_key == key;
            if same && of_pods {
                self.refused.push((*key, first.service.clone(), other.service.clone()));
            }
            same
        });
        claims
    }

    fn replace(&mut self, owner: &Owner, key: FrontendKey, claim: Claim, changed: &mut Vec<FrontendKey>) {
        let known = self.claims.get_mut(&key).and_then(|claims| {
            let place = claims.iter().position(|known| owns(owner, known) && known.kind == claim.kind)?;
            Some((place, &mut claims[place]))
        });
        let Some((place, known)) = known else {
            self.remove(owner, key, changed);
            return self.insert(key, claim, changed);
        };
        let old = std::mem::replace(known, claim);
        if place == 0 {
            let scopes = old.scopes().chain(known.scopes());
            changed.extend(scopes.filter(|s| old.entry(*s) != known.entry(*s)).map(|s| scoped(key, s)));
        }
    }

    fn insert(&mut self, key: FrontendKey, claim: Claim, changed: &mut Vec<FrontendKey>) {
        if is_service_address(claim.kind) {
            let claims = self.service_addresses.entry(key.addr).or_default();
            *claims += 1;
            self.addresses_changed |= *claims == 1;
        }
        let claims = self.claims.entry(key).or_default();
        let place = claims.partition_point(|known| order(known, &claim) != Ordering::Greater);
        if place == 0 {
            let scopes = claims.first().into_iter().flat_map(Claim::scopes).chain(claim.scopes());
            changed.extend(scopes.map(|scope| scoped(key, scope)));
        }
        claims.reserve_exact(1);
        claims.insert(place, claim);
        if claims.len() > 1 {
            self.contested.insert(key);
        }
    }

    fn remove(&mut self, owner: &Owner, key: FrontendKey, changed: &mut Vec<FrontendKey>) {
        let Some(claims) = self.claims.get_mut(&key) else { return };
        let Some(place) = claims.iter().position(|claim| owns(owner, claim)) else { return };
        let old = claims.remove(place);
        if place == 0 {
            let scopes = claims.first().into_iter().flat_map(Claim::scopes).chain(old.scopes());
            changed.extend(scopes.map(|scope| scoped(key, scope)));
        }
        if claims.len() <= 1 {
            self.contested.remove(&key);
        }
        if claims.is_empty() {
            self.claims.remove(&key);
        }
        if is_service_address(old.kind)
            && let Some(count) = self.service_addresses.get_mut(&key.addr)
        {
            *count -= 1;
            if *count == 0 {
                self.service_addresses.remove(&key.addr);
                self.addresses_changed = true;
            }
        }
    }

    /// Flags of an address's entry; `None` if it has none.
    fn address_flags(&self, addr: Addr) -> Option<u16> {
        let address = FrontendKey::address(addr);
        // A node's own addresses have none, but thousands of ports.
        if of_node(&address) {
            return None;
        }
        let ports = self.claims.range(address..).take_while(|(key, _)| key.addr == addr);
        let claims = ports.filter_map(|(_, claims)| claims.first().filter(|claim| is_of_service(claim)));
        claims.map(Claim::address_flags).reduce(|a, b| a | b)
    }

    /// Desired entry of a key; `None` if there should be none.
    pub fn get(&self, key: &FrontendKey) -> Option<Entry<'_>> {
        if *key == FrontendKey::address(key.addr) {
            let flags = self.address_flags(key.addr)?;
            return Some(Entry { flags, ..Entry::default() });
        }
        self.claims.get(&scoped(*key, FrontendKey::ANY))?.first()?.entry(key.scope)
    }

    /// All keys that should have an entry.
    pub fn keys(&self) -> BTreeSet<FrontendKey> {
        let claims = || self.claims.iter().filter_map(|(key, claims)| Some((key, claims.first()?)));
        let ports = claims().flat_map(|(key, claim)| claim.scopes().map(|scope| scoped(*key, scope)));
        let addresses = claims().filter(|(key, claim)| !of_node(key) && is_of_service(claim));
        ports.chain(addresses.map(|(key, _)| FrontendKey::address(key.addr))).collect()
    }

    /// Number of different backends.
    pub fn backends(&self) -> usize {
        let claims = self.claims.values().flatten();
        // Claims of a service share their lists.
        let mut lists: Vec<&Arc<[Backend]>> = claims.flat_map(Claim::lists).collect();
        lists.sort_unstable_by_key(|list| list.as_ptr());
        lists.dedup_by_key(|list| list.as_ptr());
        lists.into_iter().flat_map(|list| list.iter()).collect::<HashSet<_>>().len()
    }

    /// Addresses of load balancers and external IPs.
    pub fn service_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.service_addresses.keys().map(|addr| IpAddr::from(*addr))
    }

    /// Whether [`Self::service_addresses`] may have changed since the last call.
    pub fn take_addresses_changed(&mut self) -> bool {
        std::mem::take(&mut self.addresses_changed)
    }

    /// Claims that lost.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict<'_>> {
        let contested = self.contested.iter().filter_map(|key| self.claims.get_key_value(key));
        let of_services = contested.flat_map(|(key, claims)| {
            let mut names = claims.iter().map(|claim| &*claim.service);
            let holder = names.next();
            names.filter_map(move |refused| Some(Conflict { key: *key, holder: holder?, refused }))
        });
        let of_pods = self.refused.iter().map(|(key, holder, refused)| Conflict { key: *key, holder, refused });
        of_services.chain(of_pods)
    }
}

/// Whether a service has the claim, and not a pod.
fn is_of_service(claim: &Claim) -> bool {
    claim.kind != FrontendKind::HostPort
}

/// Whether addresses of this kind are neither a node's own nor known to the programs otherwise.
fn is_service_address(kind: FrontendKind) -> bool {
    matches!(kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp)
}

#[cfg(test)]
mod tests {
    use podnet_common::layout;

    use super::*;
    use crate::compile::tests::{backends, frontend, service};
    use crate::compile::{key, show};
    use crate::frontend::IfNone;

    fn owner(name: &str) -> Owner {
        Owner::Service(service(name))
    }

    fn at(at: &str) -> FrontendKey {
        key(&frontend("", at, &[]).key)
    }

    fn shown(keys: impl IntoIterator<Item = FrontendKey>) -> Vec<String> {
        keys.into_iter().map(|key| show(&key).to_string()).collect()
    }

    #[test]
    fn only_changed_keys_are_reported() {
        let mut desired = Desired::default();
        let web = owner("web");
        let one = |list: &[u8]| frontend("web", "10.96.0.1:80", list);
        let two = |list: &[u8]| frontend("web", "10.96.0.1:81", list);
        let mut set = |frontends| shown(desired.set(&web, frontends));
        assert_eq!(set(vec![one(&[1])]), ["10.96.0.1", "10.96.0.1:80/TCP"]);
        assert_eq!(set(vec![one(&[1])]), [""; 0]);
        assert_eq!(set(vec![one(&[1]), two(&[2])]), ["10.96.0.1:81/TCP"]);
        assert_eq!(set(vec![one(&[]), two(&[2])]), ["10.96.0.1:80/TCP"], "another port has a backend");
        assert_eq!(set(vec![one(&[]), two(&[])]), ["10.96.0.1", "10.96.0.1:81/TCP"], "it answers no more pings");
        assert_eq!(set(vec![]).len(), 3);
        assert!(desired.get(&at("10.96.0.1:80")).is_none() && desired.keys().is_empty());
    }

    #[test]
    fn scopes_are_added_and_removed_with_their_frontend() {
        let mut desired = Desired::default();
        let web = owner("web");
        let node_port = || Frontend { kind: FrontendKind::NodePort, ..frontend("web", "0.0.0.0:30080", &[1, 2]) };
        let local = |list: &[u8]| Frontend { outside: Some(backends(list, IfNone::Drop)), ..node_port() };
        let direct = || Frontend { here: Some(vec![]), ..node_port() };
        let mut set = |frontends| shown(desired.set(&web, frontends));
        assert_eq!(set(vec![node_port()]), ["0.0.0.0:30080/TCP"], "no entry for the node's addresses");
        let both = ["0.0.0.0:30080/TCP", "0.0.0.0:30080/TCP from outside"];
        assert_eq!(set(vec![local(&[1])]), both);
        assert_eq!(set(vec![local(&[])]), both[1..]);
        let all = ["0.0.0.0:30080/TCP", "0.0.0.0:30080/TCP from outside", "0.0.0.0:30080/TCP sent on"];
        assert_eq!(set(vec![direct()]), all);
        let keys = desired.keys();
        assert_eq!(shown(keys.clone()), [all[0], all[2]]);
        assert!(keys.iter().all(|key| desired.get(key).is_some()));
        assert!(desired.get(&scoped(at("0.0.0.0:30080"), FrontendKey::OUTSIDE)).is_none());
        assert_eq!(shown(desired.set(&web, vec![])), [all[0], all[2]]);
    }

    #[test]
    fn finds_the_ports_at_an_address() {
        let mut desired = Desired::default();
        let node_port = |at| Frontend { kind: FrontendKind::NodePort, ..frontend("a", at, &[]) };
        let frontends = vec![
            frontend("a", "10.96.0.1:80", &[]),
            frontend("a", "10.96.0.1:81", &[]),
            frontend("a", "10.96.0.2:82", &[]),
            node_port("0.0.0.0:30080"),
            node_port("[::]:30081"),
        ];
        desired.set(&owner("a"), frontends);
        for (addr, ports) in [
            ("10.96.0.1", &[80, 81][..]),
            ("10.96.0.2", &[82]),
            ("10.96.0.3", &[]),
            ("0.0.0.0", &[30_080]),
            ("::", &[30_081]),
        ] {
            assert_eq!(
                desired.ports_at(addr.parse().unwrap()).collect::<BTreeSet<_>>(),
                BTreeSet::from_iter(ports.to_vec())
            );
        }
    }

    #[test]
    fn address_entry_lasts_as_long_as_any_of_its_ports() {
        let mut desired = Desired::default();
        desired.set(&owner("a"), vec![frontend("a", "10.96.0.1:80", &[])]);
        desired.set(&owner("b"), vec![frontend("b", "10.96.0.1:81", &[])]);
        desired.set(&owner("c"), vec![frontend("c", "10.96.0.2:80", &[])]);
        let address = FrontendKey::address(at("10.96.0.1:80").addr);
        desired.set(&owner("a"), vec![]);
        assert!(desired.get(&address).is_some_and(|entry| entry == Entry::default()));
        assert!(desired.set(&owner("b"), vec![]).contains(&address));
        assert!(desired.get(&address).is_none());
        assert_eq!(desired.keys().len(), 2);
    }

    #[test]
    fn address_entry_has_the_flags_of_its_ports() {
        use layout::Frontend as Flags;
        let mut desired = Desired::default();
        let external = |owner: &str, at: &str, list: &[u8]| Frontend {
            kind: FrontendKind::ExternalIp,
            ..frontend(owner, at, list)
        };
        let address = FrontendKey::address(at("192.0.2.1:80").addr);
        let flags = |desired: &Desired| desired.get(&address).map(|entry| entry.flags);
        desired.set(&owner("a"), vec![external("a", "192.0.2.1:80", &[])]);
        assert_eq!(flags(&desired), Some(Flags::EXTERNAL));
        // Only this node has no backend.
        let local = Frontend { outside: Some(backends(&[], IfNone::Drop)), ..external("b", "192.0.2.1:81", &[1]) };
        assert!(desired.set(&owner("b"), vec![local]).contains(&address));
        assert_eq!(flags(&desired), Some(Flags::EXTERNAL | Flags::ANSWERS_ECHO));
    }

    #[test]
    fn first_claim_by_name_wins_in_any_order_of_arrival() {
        for order in [["a", "b"], ["b", "a"]] {
            let mut desired = Desired::default();
            let at = at("10.96.0.1:80");
            for name in order {
                desired.set(&owner(name), vec![frontend(name, "10.96.0.1:80", &[])]);
            }
            let holder = |desired: &Desired| desired.get(&at).unwrap().service.unwrap().service.name.clone();
            assert_eq!(holder(&desired), "a");
            let conflicts: Vec<_> = desired.conflicts().map(|c| c.refused.to_string()).collect();
            assert_eq!(conflicts, ["default/b"]);
            assert_eq!(desired.set(&owner("b"), vec![frontend("b", "10.96.0.1:80", &[])]), []);
            assert_eq!(desired.set(&owner("a"), vec![]), [at]);
            assert_eq!(holder(&desired), "b");
            assert_eq!(desired.conflicts().count(), 0);
        }
    }

    #[test]
    fn cluster_ip_wins_over_external_ip() {
        let mut desired = Desired::default();
        let key = at("10.96.0.10:53");
        let thief = Frontend { kind: FrontendKind::ExternalIp, ..frontend("a", "10.96.0.10:53", &[1]) };
        let thief = Frontend { here: Some(vec![]), ..thief };
        desired.set(&owner("a"), vec![thief.clone()]);
        assert_eq!(desired.get(&key).unwrap().service.unwrap().service.name, "a");
        let changed = shown(desired.set(&owner("dns"), vec![frontend("dns", "10.96.0.10:53", &[2])]));
        assert_eq!(changed, ["10.96.0.10", "10.96.0.10:53/TCP", "10.96.0.10:53/TCP sent on"]);
        assert_eq!(desired.get(&key).unwrap().service.unwrap().service.name, "dns");
        assert!(desired.get(&scoped(key, FrontendKey::PEER)).is_none(), "a key is one service's in all scopes");
        let conflicts: Vec<_> = desired.conflicts().map(|c| format!("{} {}", c.refused, c.holder)).collect();
        assert_eq!(conflicts, ["default/a default/dns"]);
        // Two claims of one service are no conflict.
        let both = [FrontendKind::ExternalIp, FrontendKind::LoadBalancer];
        desired.set(&owner("a"), both.map(|kind| Frontend { kind, ..thief.clone() }).into());
        assert_eq!(desired.conflicts().count(), 1);
    }

    #[test]
    fn first_pod_has_a_host_port_unless_a_service_has_it() {
        let mut desired = Desired::default();
        let port = |pod: &str, at: &str| Frontend { kind: FrontendKind::HostPort, ..frontend(pod, at, &[1]) };
        let key = at("0.0.0.0:8080");
        let ports = || vec![port("z", "0.0.0.0:8080"), port("a", "0.0.0.0:8080"), port("a", "[::]:8080")];
        assert_eq!(desired.set(&Owner::HostPorts, ports()).len(), 2);
        let holder = |desired: &Desired| desired.get(&key).unwrap().service.unwrap().service.name.clone();
        let conflicts = |desired: &Desired| -> Vec<_> {
            desired.conflicts().map(|c| format!("{} {}", c.refused, c.holder)).collect()
        };
        assert_eq!((holder(&desired), conflicts(&desired)), ("z".into(), vec!["default/a default/z".to_owned()]));
        // A pod with the name of a service isn't that service.
        let node_port = Frontend { kind: FrontendKind::NodePort, ..frontend("z", "0.0.0.0:8080", &[2]) };
        desired.set(&owner("z"), vec![node_port]);
        assert_eq!(desired.get(&key).unwrap().backends.len(), 1);
        assert_ne!(desired.get(&key).unwrap().flags & layout::Frontend::NODE_PORT, 0);
        assert_eq!(conflicts(&desired).len(), 2);
        desired.set(&owner("z"), vec![]);
        // A node's own address doesn't belong to a service.
        let more = [ports(), vec![port("y", "203.0.113.7:80")]].concat();
        assert_eq!(shown(desired.set(&Owner::HostPorts, more)), ["203.0.113.7:80/TCP"]);
        desired.set(&Owner::HostPorts, ports().split_off(1));
        assert_eq!((holder(&desired), conflicts(&desired)), ("a".into(), vec![]));
    }

    #[test]
    fn addresses_of_load_balancers_and_external_ips() {
        let mut desired = Desired::default();
        let with = |kind, at| Frontend { kind, ..frontend("a", at, &[1]) };
        let addresses = |desired: &Desired| desired.service_addresses().map(|ip| ip.to_string()).collect::<Vec<_>>();
        let all = vec![
            with(FrontendKind::ClusterIp, "10.96.0.1:80"),
            with(FrontendKind::NodePort, "0.0.0.0:30080"),
            with(FrontendKind::LoadBalancer, "192.0.2.1:80"),
            with(FrontendKind::LoadBalancer, "192.0.2.1:81"),
            with(FrontendKind::ExternalIp, "[2001:db8::1]:80"),
            with(FrontendKind::HostPort, "192.0.2.9:80"),
        ];
        desired.set(&owner("a"), all.clone());
        let mut found = addresses(&desired);
        found.sort();
        assert_eq!(found, ["192.0.2.1", "2001:db8::1"]);
        assert!(desired.take_addresses_changed() && !desired.take_addresses_changed());
        desired.set(&owner("a"), all[..4].to_vec());
        assert_eq!(addresses(&desired), ["192.0.2.1"]);
        assert!(desired.take_addresses_changed());
        desired.set(&owner("a"), all[..3].to_vec());
        assert_eq!(addresses(&desired), ["192.0.2.1"]);
        assert!(!desired.take_addresses_changed(), "another port is there still");
        // The same address, as another kind.
        desired.set(&owner("a"), vec![with(FrontendKind::ClusterIp, "192.0.2.1:80")]);
        assert_eq!(addresses(&desired), [""; 0]);
    }
}
