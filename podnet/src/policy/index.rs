//! The index: keeps what policies need of all objects, and brings the desired tables up to date after changes.
//!
//! Pods that come and go cost one entry each as long as their class exists; a new class costs its entries in each set.
//! If what is in force on this node changes (what the policies that select its pods say, or the labels of a namespace),
//! the addresses of the pods that this concerns are placed again, and the rules recomputed, with the same ids for the
//! same contents.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use podnet_common::addr::Addr;
use podnet_common::layout::{PolicyDenial, Subject};

use super::adopt::Renaming;
use super::atoms::{Atom, Class, DeniedBy, Direction, Profile, Rule, RuleSet, Stage};
use super::compile::{Desired, flags, number};
use super::intern::{AtomId, Interner, PolicyId, ProfileId, SetId};
use super::owners::Owners;
use super::pods::Pods;
use super::selector::{selects, selects_namespace};
use super::tables::{Parts, Tables};
use crate::model::{
    Action, ClusterNetworkPolicy, Kind, Labels, LeftOut, Namespace, NetworkPolicy, Node, ObjectName, Pod, PolicyPeer,
};

/// The policies of a cluster as they concern one node.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// ClusterNetworkPolicies have no namespace.
    policies: BTreeMap<ObjectName, Policy>,
    ids: Interner<ObjectName, PolicyId>,
    /// Whether a policy has changed since the last update.
    changed: bool,
    /// Whether atoms may no longer be needed.
    loose: bool,
    pods: Pods,
    atoms: Interner<Atom, AtomId>,
    /// The atoms of the sets.
    in_force: BTreeSet<AtomId>,
    /// The sets of the subjects, and those that subjects had before.
    sets: Interner<RuleSet, SetId>,
    used: BTreeSet<SetId>,
    /// Who denies what the entries of `policy_denials` count.
    denials: BTreeMap<PolicyDenial, DeniedBy>,
    tables: Tables,
}

/// A policy of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyPolicy {
    /// Of a namespace.
    Network(Arc<NetworkPolicy>),
    /// Of the cluster.
    Cluster(Arc<ClusterNetworkPolicy>),
}

impl From<NetworkPolicy> for AnyPolicy {
    fn from(policy: NetworkPolicy) -> Self {
        Self::Network(Arc::new(policy))
    }
}

impl From<ClusterNetworkPolicy> for AnyPolicy {
    fn from(policy: ClusterNetworkPolicy) -> Self {
        Self::Cluster(Arc::new(policy))
    }
}

impl AnyPolicy {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Network(_) => Kind::NetworkPolicy,
            Self::Cluster(_) => Kind::ClusterNetworkPolicy,
        }
    }

    /// Its `metadata.uid`.
    pub fn uid(&self) -> &str {
        match self {
            Self::Network(policy) => &policy.uid,
            Self::Cluster(policy) => &policy.uid,
        }
    }

    /// Its elements that are left out as invalid.
    pub fn left_out(&self) -> &LeftOut {
        match self {
            Self::Network(policy) => &policy.left_out,
            Self::Cluster(policy) => &policy.left_out,
        }
    }

    /// Whether it has rules about connections to its pods, or isolates them from these.
    pub fn has_ingress(&self) -> bool {
        match self {
            Self::Network(policy) => policy.ingress.is_some(),
            Self::Cluster(policy) => !policy.ingress.is_empty(),
        }
    }

    /// The same for connections from its pods.
    pub fn has_egress(&self) -> bool {
        match self {
            Self::Network(policy) => policy.egress.is_some(),
            Self::Cluster(policy) => !policy.egress.is_empty(),
        }
    }

    /// When its rules are evaluated, and the priority.
    fn place(&self) -> (Stage, u16) {
        match self {
            Self::Network(_) => (Stage::Network, 0),
            Self::Cluster(policy) => (policy.tier.into(), policy.priority),
        }
    }

    /// Whether it applies to pods with a profile. `labels`: those of their namespace, if known.
    fn selects(&self, profile: &Profile, labels: Option<&Labels>) -> bool {
        let Some(namespace) = &profile.namespace else { return false };
        match self {
            Self::Network(policy) => selects(&policy.pods, &profile.labels),
            Self::Cluster(policy) => {
                selects(&policy.pods, &profile.labels) && selects_namespace(&policy.namespaces, namespace, labels)
            }
        }
    }

    fn names_nodes(&self) -> bool {
        let Self::Cluster(policy) = self else { return false };
        let mut peers = policy.egress.iter().flat_map(|rule| &rule.matches.peers).flatten();
        peers.any(|peer| matches!(peer, PolicyPeer::Nodes(_)))
    }
}

/// A policy with its rules by content.
#[derive(Clone, Debug)]
struct Policy {
    object: AnyPolicy,
    /// `None`: it doesn't isolate, or has no rules.
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

impl Policy {
    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.ingress.iter().chain(&self.egress).flatten()
    }

    fn direction(&self, direction: Direction) -> Option<&Vec<Rule>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

impl Policies {
    /// Without objects, on the node with this name.
    pub fn new(node: &str) -> Self {
        Self { pods: Pods::new(node), ..Self::default() }
    }

    /// Gives other ids than these tables have, which an earlier daemon has written: the same id could mean something
    /// else. To be called before there are objects.
    pub fn start_after(&mut self, held: &Desired) {
        let sets = held.subjects.values().flat_map(|subject| [subject.ingress, subject.egress]);
        let sets = sets.filter(|set| ![Subject::CLOSED, Subject::PENDING.ingress].contains(set));
        let sets = sets.map(|set| set & Subject::ID);
        self.sets.start_after(sets.chain(held.rules.keys().map(|rule| rule.set)).max().unwrap_or(0));
        self.tables.start_after(held);
    }

    /// Takes over the ids of tables that an earlier daemon has written, if these are as desired otherwise. To be called
    /// before anything has been written. Otherwise (false) nothing changes, and all ids are others than those of the
    /// tables.
    pub fn adopt_ids(&mut self, held: &Desired) -> bool {
        // No packet has met what was desired in the meantime.
        while self.written(&BTreeSet::new()) {}
        let Some(others) = Renaming::between(self.desired(), held) else { return false };
        let can = self.sets.can_rename(&others.sets) && self.tables.can_rename(&others);
        if can {
            self.sets.rename(&others.sets);
            self.used = self.used.iter().filter_map(|id| others.sets.of(id.0).map(SetId)).collect();
            let denials = std::mem::take(&mut self.denials).into_iter();
            let renamed =
                |(key, by): (PolicyDenial, _)| Some((PolicyDenial { set: others.sets.of(key.set)?, ..key }, by));
            self.denials = denials.filter_map(renamed).collect();
            self.tables.rename(&others, held);
        }
        can
    }

    /// Whether a set with this id is known.
    pub fn has_set(&self, id: u32) -> bool {
        self.sets.content(SetId(id)).is_some()
    }

    /// Sets a policy, or (`None`) removes it. [`Self::update`] puts it into effect, as with other changes.
    pub fn set_policy(&mut self, name: &ObjectName, policy: Option<AnyPolicy>) {
        let Some(object) = policy else {
            if self.policies.remove(name).is_some() {
                self.ids.id(name).into_iter().for_each(|id| self.ids.remove(id));
                self.changed = true;
            }
            return;
        };
        if self.policies.get(name).is_some_and(|known| known.object == object) {
            return;
        }
        let id = self.ids.intern(name.clone());
        let (ingress, egress) = match &object {
            AnyPolicy::Network(policy) => {
                let namespace = Arc::from(name.namespace.as_str());
                let mut rules = |rules: &Option<Vec<_>>| {
                    rules.as_ref().map(|rules| Rule::of_network(id, &namespace, rules, &mut self.atoms))
                };
                (rules(&policy.ingress), rules(&policy.egress))
            }
            AnyPolicy::Cluster(policy) => {
                let mut rules = |rules: &[_]| {
                    (!rules.is_empty()).then(|| Rule::of_cluster(id, policy.tier, rules, &mut self.atoms))
                };
                (rules(&policy.ingress), rules(&policy.egress))
            }
        };
        self.policies.insert(name.clone(), Policy { object, ingress, egress });
        self.changed = true;
    }

    /// Sets a namespace, or (`None`) removes it.
    pub fn set_namespace(&mut self, name: &str, namespace: Option<&Namespace>) {
        self.pods.set_namespace(name, namespace);
    }

    /// Whether a namespace's object is known.
    pub fn knows_namespace(&self, name: &str) -> bool {
        self.pods.knows_namespace(name)
    }

    /// Sets a node, or (`None`) removes it. Only needed while [`Self::needs_nodes`].
    pub fn set_node(&mut self, name: &str, node: Option<&Node>) {
        self.pods.set_node(name, node);
    }

    /// Sets which node each address belongs to.
    pub fn set_owners(&mut self, owners: Owners) {
        self.pods.set_owners(owners);
    }

    /// Whether rules name nodes.
    pub fn needs_nodes(&self) -> bool {
        self.of_cluster().any(|(_, policy)| policy.object.names_nodes())
    }

    /// Sets a pod of any node, or (`None`) removes it.
    pub fn set_pod(&mut self, name: &ObjectName, pod: Option<&Pod>) {
        self.pods.set(name, pod);
    }

    /// Brings the desired tables up to date. Returns whether they may have changed.
    ///
    /// They also contain what packets may meet while the tables are written, if that is done in this order: additions
    /// to [`Desired::rules`], then the ports, peers and blocks, then the subjects. A packet in between gets the old or
    /// the new verdict. Afterwards call [`Self::written`].
    pub fn update(&mut self) -> bool {
        let dirty = self.pods.take_dirty();
        let changed = std::mem::take(&mut self.changed);
        self.loose |= changed;
        // Subjects of ClusterNetworkPolicies depend on their namespaces' labels.
        let namespaces = dirty.namespaces && self.of_cluster().next().is_some();
        let more = (changed || dirty.local || namespaces) && self.choose_sets();
        let any = changed || dirty.local || dirty.namespaces || !dirty.addresses.is_empty();
        self.place(dirty.addresses, more);
        any
    }

    /// Removes entries from the desired tables that were kept only for packets evaluated during the last write. The
    /// sets in `held` stay, since their subjects do. Returns whether anything has changed, so that the tables must be
    /// written again.
    pub fn written(&mut self, held: &BTreeSet<u32>) -> bool {
        let before = self.sets.len();
        self.sets.retain(|id| self.used.contains(&id) || held.contains(&id.0));
        self.denials.retain(|denial, _| self.used.contains(&SetId(denial.set)) || held.contains(&denial.set));
        let forgotten = self.tables.forget(&self.sets);
        let fewer = self.sets.len() != before;
        if fewer {
            self.place(BTreeSet::new(), true);
        }
        if std::mem::take(&mut self.loose) {
            let rules = self.policies.values().flat_map(Policy::rules);
            let known: BTreeSet<_> = rules.flat_map(Rule::atoms).chain(self.in_force.iter().copied()).collect();
            self.atoms.retain(|id| known.contains(&id));
        }
        fewer || forgotten
    }

    /// Brings everything but the subjects up to date. `sets`: the sets have changed.
    fn place(&mut self, addresses: BTreeSet<IpAddr>, sets: bool) {
        let (mut entered, mut left) = (BTreeSet::new(), BTreeSet::new());
        if sets {
            let rules = self.sets.iter().flat_map(|(_, set)| &set.rules);
            let in_force: BTreeSet<AtomId> = rules.flat_map(Rule::atoms).collect();
            entered = in_force.difference(&self.in_force).copied().collect();
            left = self.in_force.difference(&in_force).copied().collect();
            self.in_force = in_force;
        }
        let profiles = self.pods.settle(&self.atoms, &self.in_force, &entered, &left);
        let parts = Parts { pods: &self.pods, atoms: &self.atoms, in_force: &self.in_force, sets: &self.sets };
        self.tables.place(addresses, &profiles, sets, parts);
    }

    /// Finds the subjects and the sets that they need. Returns whether there are new sets.
    fn choose_sets(&mut self) -> bool {
        let before = self.sets.len();
        self.used.clear();
        let pods = &self.pods;
        let addresses = pods.local().flat_map(|(name, pod)| {
            let own = pod.ips.iter().filter(move |ip| pods.holder(ip) == Some(name));
            own.map(|ip| (Addr::from(*ip), pod.profile))
        });
        let addresses: Vec<(Addr, ProfileId)> = addresses.collect();
        let mut chosen = BTreeMap::new();
        for profile in addresses.iter().map(|(_, profile)| *profile).collect::<BTreeSet<_>>() {
            let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|to| self.choose_set(profile, to));
            chosen.insert(profile, Subject { ingress, egress });
        }
        let subjects = addresses.into_iter().filter_map(|(addr, profile)| Some((addr, *chosen.get(&profile)?)));
        self.tables.desired.subjects = subjects.filter(|(_, subject)| *subject != Subject::default()).collect();
        self.sets.len() != before
    }

    /// A field of [`Subject`] for pods with a profile.
    fn choose_set(&mut self, profile: ProfileId, direction: Direction) -> u32 {
        let Some(profile) = self.pods.profile(profile) else { return Subject::OPEN };
        let set = self.rule_set(profile, direction);
        if set.rules.is_empty() && set.isolating.is_empty() {
            return Subject::OPEN;
        }
        let mut flags = flags(&set.rules);
        if set.rules.iter().any(|rule| rule.stage != Stage::Network) {
            flags |= Subject::CLUSTER | if set.isolating.is_empty() { 0 } else { Subject::ISOLATED };
        }
        let id = self.sets.intern(set);
        if self.used.insert(id) {
            self.name_denials(id);
        }
        id.0 | flags
    }

    /// Notes which policies deny what is counted for a set.
    fn name_denials(&mut self, id: SetId) {
        let Some(RuleSet { direction, rules, isolating }) = self.sets.content(id) else { return };
        let name = |policy: &PolicyId| self.ids.content(*policy).cloned();
        let mut put = |rule, policies| {
            let by = DeniedBy { direction: *direction, policies };
            self.denials.insert(PolicyDenial { set: id.0, rule }, by);
        };
        if !isolating.is_empty() {
            put(PolicyDenial::ISOLATION, isolating.iter().filter_map(name).collect());
        }
        for (place, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.action == Action::Deny) {
            put(number(place), name(&rule.policy).into_iter().collect());
        }
    }

    /// The policies that deny what the entries of `policy_denials` count: those of the sets in use, and of earlier
    /// ones, until [`Self::written`].
    pub fn denials(&self) -> &BTreeMap<PolicyDenial, DeniedBy> {
        &self.denials
    }

    /// What policies say about pods with a profile.
    pub(super) fn rule_set(&self, profile: &Profile, direction: Direction) -> RuleSet {
        let policies = self.selecting(profile);
        let of = policies.iter().filter_map(|(name, policy)| Some((*name, *policy, policy.direction(direction)?)));
        let network = of.clone().filter(|(_, policy, _)| matches!(policy.object, AnyPolicy::Network(_)));
        let isolating = network.filter_map(|(name, ..)| self.ids.id(name)).collect();
        let rules = of.flat_map(|(.., rules)| rules);
        let rules = match direction {
            Direction::Ingress => rules.filter_map(|rule| rule.to(profile, &self.atoms)).collect(),
            Direction::Egress => rules.cloned().collect(),
        };
        RuleSet { direction, rules, isolating }
    }

    /// The policies that apply to pods with a profile, in the order in which they are evaluated.
    fn selecting<'a>(&'a self, profile: &'a Profile) -> Vec<(&'a ObjectName, &'a Policy)> {
        let labels = self.pods.labels_of(profile);
        let own = of(&self.policies, profile.namespace.as_deref().unwrap_or_default());
        let policies = self.of_cluster().chain(own);
        let mut policies: Vec<_> = policies.filter(|(_, policy)| policy.object.selects(profile, labels)).collect();
        policies.sort_by_key(|(name, policy)| (policy.object.place(), *name));
        policies
    }

    /// The profile of the pod that has an address.
    pub(super) fn profile_at(&self, ip: IpAddr) -> Option<&Profile> {
        self.pods.profile(self.pods.profile_at(&ip)?)
    }

    /// What an address is in, as far as rules in force here are concerned.
    pub(super) fn class_at(&self, ip: IpAddr) -> Class {
        self.tables.class_at(ip, &self.pods)
    }

    /// The name of a policy.
    pub(super) fn name_of(&self, policy: PolicyId) -> Option<&ObjectName> {
        self.ids.content(policy)
    }

    /// The ClusterNetworkPolicies.
    fn of_cluster(&self) -> impl Iterator<Item = (&ObjectName, &Policy)> {
        of(&self.policies, "")
    }

    /// The desired tables, as of the last update.
    pub fn desired(&self) -> &Desired {
        &self.tables.desired
    }

    /// Takes the addresses whose entries in [`Desired::peers`] may have changed since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<Addr> {
        self.tables.take_touched()
    }

    /// Whether there is any policy.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether policies may apply to pods of a namespace.
    pub fn has_policies(&self, namespace: &str) -> bool {
        self.has_cluster_policies() || of(&self.policies, namespace).next().is_some()
    }

    /// Whether there is any ClusterNetworkPolicy.
    pub fn has_cluster_policies(&self) -> bool {
        self.of_cluster().next().is_some()
    }

    /// A policy.
    pub fn get(&self, name: &ObjectName) -> Option<&AnyPolicy> {
        self.policies.get(name).map(|policy| &policy.object)
    }

    /// All policies by name.
    pub fn all(&self) -> impl Iterator<Item = (&ObjectName, &AnyPolicy)> {
        self.policies.iter().map(|(name, policy)| (name, &policy.object))
    }

    /// The policies after this one by name, or all.
    pub fn after(&self, name: Option<&ObjectName>) -> impl Iterator<Item = (&ObjectName, &AnyPolicy)> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.policies.range((start, Bound::Unbounded)).map(|(name, policy)| (name, &policy.object))
    }

    /// The pods of this node that a policy applies to.
    pub fn subjects(&self, policy: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        let selected = move |id: ProfileId| {
            let profile = self.pods.profile(id)?;
            let own = policy.namespace.is_empty() || profile.namespace.as_deref() == Some(&policy.namespace);
            Some(own && self.policies.get(policy)?.object.selects(profile, self.pods.labels_of(profile)))
        };
        self.pods.local().filter(move |(_, pod)| selected(pod.profile) == Some(true)).map(|(name, _)| name)
    }

    /// Whether a pod is on this node; `None` if it is unknown, has ended, or has the network of its node.
    pub fn is_local(&self, pod: &ObjectName) -> Option<bool> {
        self.pods.get(pod).map(|known| known.local)
    }

    /// The policies that apply to a pod of any node, which is where they are enforced, in the order in which they are
    /// evaluated.
    pub fn applying(&self, pod: &ObjectName) -> Vec<(&ObjectName, &AnyPolicy)> {
        let profile = self.pods.get(pod).and_then(|known| self.pods.profile(known.profile));
        let policies = profile.map(|profile| self.selecting(profile)).unwrap_or_default();
        policies.into_iter().map(|(name, policy)| (name, &policy.object)).collect()
    }

    /// Number of pods that the selectors of a policy's rules find, on all nodes.
    pub fn peers(&self, policy: &ObjectName) -> usize {
        let rules = self.policies.get(policy).into_iter().flat_map(Policy::rules);
        let atoms: BTreeSet<AtomId> = rules.flat_map(Rule::atoms).collect();
        let atoms: Vec<_> = atoms.iter().filter_map(|id| self.atoms.content(*id)).collect();
        self.pods.count(&atoms)
    }
}

/// The policies of a namespace.
fn of<'a>(
    policies: &'a BTreeMap<ObjectName, Policy>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectName, &'a Policy)> {
    let first = ObjectName { namespace: namespace.into(), name: String::new() };
    policies.range(first..).take_while(move |(name, _)| name.namespace == namespace)
}
