//! Pods, nodes and namespaces: who has which address, and what policies can tell about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;

use super::atoms::{Atom, Class, Profile};
use super::intern::{AtomId, Interner, ProfileId};
use super::owners::Owners;
use crate::model::{Labels, Namespace, Node, ObjectName, Pod};

/// The pods and namespaces of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Pods {
    /// Name of this node.
    node: Box<str>,
    /// Labels of the namespaces.
    namespaces: BTreeMap<String, Labels>,
    /// Pods with a network of their own that haven't ended, and nodes, without a namespace.
    pods: BTreeMap<Arc<ObjectName>, Arc<Known>>,
    /// Those of them that are on this node.
    local: BTreeSet<ObjectName>,
    /// Pods by address. Several may name one for a moment.
    holders: HashMap<IpAddr, Vec<Holder>>,
    owners: Owners,
    /// Names of the pods' nodes.
    nodes: BTreeSet<Arc<str>>,
    profiles: Interner<Profile, ProfileId>,
    members: BTreeMap<ProfileId, Members>,
    /// Profiles without a computed class.
    unsettled: BTreeSet<ProfileId>,
    dirty: Dirty,
}

/// A pod, or a node, that names an address.
type Holder = (Arc<ObjectName>, Arc<Known>);

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) profile: ProfileId,
    pub(super) ips: Vec<IpAddr>,
    pub(super) local: bool,
    /// The pod's node; `None` for a node itself.
    node: Option<Arc<str>>,
    created: Box<str>,
}

/// The pods of a profile.
#[derive(Clone, Debug, Default)]
struct Members {
    /// Their number.
    pods: usize,
    /// Their addresses, each with the number of pods that name it.
    addresses: HashMap<IpAddr, usize>,
    /// What they are in, without blocks; `None` until it is computed.
    class: Option<Class>,
}

/// What has changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    /// Addresses of changed pods.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Whether pods may be in other atoms because of their namespace.
    pub(super) namespaces: bool,
    /// Whether pods of this node have changed.
    pub(super) local: bool,
    /// Profiles that have lost all of their pods.
    vacant: BTreeSet<ProfileId>,
}

impl Pods {
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    /// Sets a namespace, or (`None`) removes it.
    pub(super) fn set_namespace(&mut self, name: &str, namespace: Option<&Namespace>) {
        let labels = namespace.map(|namespace| namespace.labels.clone());
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.into(), labels),
            None => self.namespaces.remove(name),
        };
        for (id, members) in &mut self.members {
            if self.profiles.content(*id).is_some_and(|profile| profile.namespace.as_deref() == Some(name)) {
                members.class = None;
                self.unsettled.insert(*id);
                self.dirty.namespaces = true;
            }
        }
    }

    /// Whether a namespace's object is known.
    pub(super) fn knows_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// Sets a pod, or (`None`) removes it.
    pub(super) fn set(&mut self, name: &ObjectName, pod: Option<&Pod>) {
        // Pods that have ended are no peers, and those with host network are part of their node.
        let known = pod.filter(|pod| !pod.ended && !pod.host_network).map(|pod| Arc::new(self.know(name, pod)));
        self.put(name, known);
    }

    /// Sets a node, or (`None`) removes it. It has its addresses as a pod has, and is never a subject.
    pub(super) fn set_node(&mut self, name: &str, node: Option<&Node>) {
        let known = node.map(|node| {
            let profile = Profile { namespace: None, labels: node.labels.clone(), ports: Vec::new() };
            Arc::new(Known {
                profile: self.profiles.intern(profile),
                ips: node.internal_ips.iter().chain(&node.external_ips).copied().collect(),
                local: false,
                node: None,
                created: node.created.clone(),
            })
        });
        self.put(&ObjectName { namespace: String::new(), name: name.into() }, known);
    }

    fn put(&mut self, name: &ObjectName, known: Option<Arc<Known>>) {
        if self.pods.get(name) == known.as_ref() {
            return;
        }
        if let Some(old) = self.pods.remove(name) {
            self.forget(name, &old);
        }
        let Some(known) = known else { return };
        let shared = Arc::new(name.clone());
        for ip in &known.ips {
            // Nearly all have one.
            self.holders.entry(*ip).or_insert_with(|| Vec::with_capacity(1)).push((shared.clone(), known.clone()));
        }
        self.dirty.addresses.extend(&known.ips);
        if known.local {
            self.local.insert(name.clone());
            self.dirty.local = true;
        }
        let members = self.members.entry(known.profile).or_default();
        members.pods += 1;
        known.ips.iter().for_each(|ip| *members.addresses.entry(*ip).or_default() += 1);
        if members.class.is_none() {
            self.unsettled.insert(known.profile);
        }
        self.pods.insert(shared, known);
    }

    fn know(&mut self, name: &ObjectName, pod: &Pod) -> Known {
        let profile = self.profiles.intern(Profile {
            namespace: Some(name.namespace.as_str().into()),
            labels: pod.labels.clone(),
            ports: pod.ports.clone(),
        });
        let node = self.nodes.get(&*pod.node).cloned().unwrap_or_else(|| {
            let node: Arc<str> = (*pod.node).into();
            self.nodes.insert(node.clone());
            node
        });
        let local = pod.node == self.node;
        Known { profile, ips: pod.ips.clone(), local, node: Some(node), created: pod.created.clone() }
    }

    /// Sets which nodes' addresses and pod CIDRs count.
    pub(super) fn set_owners(&mut self, owners: Owners) {
        let (gone, new) = (self.owners.without(&owners), owners.without(&self.owners));
        let moved = self.holders.keys().filter(|ip| gone.own(ip) || new.own(ip));
        self.dirty.addresses.extend(moved);
        self.owners = owners;
        // The set has one reference to each name.
        self.nodes.retain(|node| Arc::strong_count(node) > 1);
    }

    fn forget(&mut self, name: &ObjectName, old: &Known) {
        self.dirty.local |= self.local.remove(name);
        for ip in &old.ips {
            if let Some(holders) = self.holders.get_mut(ip) {
                holders.retain(|(holder, _)| **holder != *name);
                if holders.is_empty() {
                    self.holders.remove(ip);
                }
            }
        }
        self.dirty.addresses.extend(&old.ips);
        if let Some(members) = self.members.get_mut(&old.profile) {
            members.pods -= 1;
            for ip in &old.ips {
                if let Some(pods) = members.addresses.get_mut(ip).filter(|pods| **pods > 1) {
                    *pods -= 1;
                } else {
                    members.addresses.remove(ip);
                }
            }
            if members.pods == 0 {
                self.dirty.vacant.insert(old.profile);
            }
        }
    }

    /// Takes what has changed since the last call, and forgets what no pod needs any more.
    pub(super) fn take_dirty(&mut self) -> Dirty {
        let dirty = std::mem::take(&mut self.dirty);
        for id in &dirty.vacant {
            if self.members.get(id).is_none_or(|members| members.pods == 0) {
                self.members.remove(id);
                self.profiles.remove(*id);
            }
        }
        dirty
    }

    /// Finds the pods in the atoms that have come into force, given all of them with their ids, and takes them out of
    /// those that have left it. Pods with a new profile, or in a namespace with new labels, are found in all. Returns
    /// the profiles that may be in others than before.
    pub(super) fn settle(
        &mut self,
        atoms: &Interner<Atom, AtomId>,
        all: &BTreeSet<AtomId>,
        entered: &BTreeSet<AtomId>,
        left: &BTreeSet<AtomId>,
    ) -> BTreeSet<ProfileId> {
        let mut changed = std::mem::take(&mut self.unsettled);
        let settle = |id: ProfileId, members: &mut Members| {
            let Some(profile) = self.profiles.content(id) else { return false };
            let labels = profile.namespace.as_deref().and_then(|name| self.namespaces.get(name));
            match &mut members.class {
                Some(class) => leave(class, left) | enter(class, profile, labels, atoms, entered),
                none => enter(none.insert(Class::default()), profile, labels, atoms, all),
            }
        };
        if entered.is_empty() && left.is_empty() {
            for id in &changed {
                self.members.get_mut(id).map(|members| settle(*id, members));
            }
        } else {
            let differ = self.members.iter_mut().filter_map(|(id, members)| settle(*id, members).then_some(*id));
            changed.extend(differ);
        }
        changed
    }

    /// What pods with a profile are in, without blocks.
    pub(super) fn class(&self, profile: ProfileId) -> Option<&Class> {
        self.members.get(&profile)?.class.as_ref()
    }

    /// The pod that has an address.
    pub(super) fn holder(&self, ip: &IpAddr) -> Option<&ObjectName> {
        self.chosen(ip).map(|(name, _)| &**name)
    }

    /// The profile of the pod that has an address.
    pub(super) fn profile_at(&self, ip: &IpAddr) -> Option<ProfileId> {
        self.chosen(ip).map(|(_, pod)| pod.profile)
    }

    /// Of several pods that name an address the one that has it: the one on this node, or else the one created last,
    /// since the object of an earlier one can stay for a moment. A pod of another node has no address that belongs to a
    /// third.
    fn chosen(&self, ip: &IpAddr) -> Option<&Holder> {
        let may_have = |(name, pod): &&Holder| match &pod.node {
            _ if pod.local => true,
            Some(node) => self.owners.allow_pod(node, ip),
            None => self.owners.allow_node(&name.name, ip),
        };
        let holders = self.holders.get(ip)?.iter().filter(may_have);
        holders.max_by_key(|(name, pod)| (pod.local, &pod.created, name))
    }

    /// All addresses of pods.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.holders.keys().copied()
    }

    /// The addresses that pods with a profile name. Another pod may have one of them.
    pub(super) fn addresses_of(&self, profile: ProfileId) -> impl Iterator<Item = IpAddr> {
        self.members.get(&profile).into_iter().flat_map(|members| members.addresses.keys().copied())
    }

    /// The pods of this node.
    pub(super) fn local(&self) -> impl Iterator<Item = (&ObjectName, &Known)> {
        self.local.iter().filter_map(|name| Some((name, &**self.pods.get(name)?)))
    }

    /// What is known of a pod of any node.
    pub(super) fn get(&self, name: &ObjectName) -> Option<&Known> {
        self.pods.get(name).map(|known| &**known)
    }

    /// The labels of the namespace of pods with a profile, if known.
    pub(super) fn labels_of(&self, profile: &Profile) -> Option<&Labels> {
        self.namespaces.get(profile.namespace.as_deref()?)
    }

    /// A profile.
    pub(super) fn profile(&self, id: ProfileId) -> Option<&Profile> {
        self.profiles.content(id)
    }

    /// Number of pods in at least one of these atoms.
    pub(super) fn count(&self, atoms: &[&Atom]) -> usize {
        let within = |(id, _): &(&ProfileId, &Members)| {
            self.profiles.content(**id).is_some_and(|profile| {
                let labels = self.labels_of(profile);
                atoms.iter().any(|atom| profile.is_in(atom, labels))
            })
        };
        self.members.iter().filter(within).map(|(_, members)| members.pods).sum()
    }
}

/// Takes atoms out of a class. Returns whether it had one of them.
fn leave(class: &mut Class, left: &BTreeSet<AtomId>) -> bool {
    if left.is_empty() {
        return false;
    }
    let before = class.len();
    class.atoms.retain(|atom| !left.contains(atom));
    class.named.retain(|(atom, _)| !left.contains(atom));
    class.len() != before
}

/// Adds to a class those of these atoms that a profile is in. Returns whether there are any.
fn enter(
    class: &mut Class,
    profile: &Profile,
    namespace: Option<&Labels>,
    atoms: &Interner<Atom, AtomId>,
    new: &BTreeSet<AtomId>,
) -> bool {
    let before = class.len();
    for id in new {
        match atoms.content(*id) {
            Some(Atom::Named { protocol, name }) => {
                class.named.extend(profile.ports(*protocol, name).map(|port| (*id, port)));
            }
            Some(atom) if profile.is_in(atom, namespace) => class.atoms.push(*id),
            _ => {}
        }
    }
    let more = class.len() != before;
    if more {
        class.atoms.sort_unstable();
        class.named.sort_unstable();
    }
    more
}
