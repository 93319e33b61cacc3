//! The index: keeps what policies need of all objects, and brings the desired tables up to date after changes.
//!
//! Pods that come and go cost one entry each as long as their class exists; a new class costs its entries in each set.
//! The tables are recomputed, with the same ids for the same contents, if what is in force on this node changes:
//! what the policies that select its pods say, or the labels of a namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use podnet_common::addr::Addr;
use podnet_common::layout::Subject;

use super::atoms::{Atom, Profile, Rule};
use super::compile::{Desired, flags};
use super::intern::{AtomId, Interner, PolicyId, ProfileId, SetId};
use super::pods::Pods;
use super::selector::selects;
use super::tables::{Parts, Tables};
use crate::model::{Namespace, NetworkPolicy, ObjectName, Pod};

/// The policies of a cluster as they concern one node.
#[derive(Clone, Debug, Default)]
pub struct Policies {
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
    sets: Interner<Vec<Rule>, SetId>,
    used: BTreeSet<SetId>,
    tables: Tables,
}

/// A policy with its rules by content.
#[derive(Clone, Debug)]
struct Policy {
    object: Arc<NetworkPolicy>,
    /// `None`: it doesn't isolate.
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

impl Policy {
    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.ingress.iter().chain(&self.egress).flatten()
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
        let sets = sets.filter(|set| *set != Subject::CLOSED).map(|set| set & Subject::ID);
        self.sets.start_after(sets.chain(held.rules.keys().map(|rule| rule.set)).max().unwrap_or(0));
        self.ids.start_after(held.rules.values().copied().max().unwrap_or(0));
        self.tables.start_after(held);
    }

    /// Sets a policy, or (`None`) removes it. [`Self::update`] puts it into effect, as with other changes.
    pub fn set_policy(&mut self, name: &ObjectName, policy: Option<Arc<NetworkPolicy>>) {
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
        let namespace = Arc::from(name.namespace.as_str());
        let mut rules =
            |rules: &Option<Vec<_>>| rules.as_ref().map(|rules| Rule::all(id, &namespace, rules, &mut self.atoms));
        let (ingress, egress) = (rules(&object.ingress), rules(&object.egress));
        self.policies.insert(name.clone(), Policy { object, ingress, egress });
        self.changed = true;
    }

    /// Sets a namespace, or (`None`) removes it.
    pub fn set_namespace(&mut self, name: &str, namespace: Option<&Namespace>) {
        self.pods.set_namespace(name, namespace);
    }

    /// Sets a pod of any node, or (`None`) removes it.
    pub fn set_pod(&mut self, name: &ObjectName, pod: Option<&Pod>) {
        self.pods.set(name, pod);
    }

    /// Brings the desired tables up to date. Returns whether they may have changed.
    ///
    /// They also contain what packets may meet while the tables are written, if that is done in this order: additions
    /// to [`Desired::rules`], then the ports, peers and blocks, then the subjects. A packet that is judged in between
    /// gets the old or the new verdict. Afterwards call [`Self::written`].
    pub fn update(&mut self) -> bool {
        let dirty = self.pods.take_dirty();
        let changed = std::mem::take(&mut self.changed);
        self.loose |= changed;
        let more = (changed || dirty.local) && self.choose_sets();
        if more || dirty.namespaces {
            self.place_all();
        } else {
            self.pods.settle(&self.atoms, &self.in_force, &BTreeSet::new(), &BTreeSet::new());
            let Self { pods, atoms, in_force, sets, tables, .. } = self;
            if !tables.place(&dirty.addresses, Parts { pods, atoms, in_force, sets }) {
                self.place_all();
            }
        }
        changed || dirty.local || dirty.namespaces || !dirty.addresses.is_empty()
    }

    /// Takes out of the desired tables what only packets needed that were judged while the tables were written. Returns
    /// whether anything has changed, so that the tables must be written again.
    pub fn written(&mut self) -> bool {
        let before = self.sets.len();
        self.sets.retain(|id| self.used.contains(&id));
        let forgotten = self.tables.forget(&self.sets);
        let fewer = self.sets.len() != before;
        if fewer {
            self.place_all();
        }
        if std::mem::take(&mut self.loose) {
            let rules = self.policies.values().flat_map(Policy::rules);
            let known: BTreeSet<_> = rules.flat_map(Rule::atoms).chain(self.in_force.iter().copied()).collect();
            self.atoms.retain(|id| known.contains(&id));
        }
        fewer || forgotten
    }

    /// Recomputes everything but the subjects.
    fn place_all(&mut self) {
        let rules = self.sets.iter().flat_map(|(_, rules)| rules);
        let in_force: BTreeSet<AtomId> = rules.flat_map(Rule::atoms).collect();
        let entered = in_force.difference(&self.in_force).copied().collect();
        let left = self.in_force.difference(&in_force).copied().collect();
        self.in_force = in_force;
        self.pods.settle(&self.atoms, &self.in_force, &entered, &left);
        let Self { pods, atoms, in_force, sets, tables, .. } = self;
        tables.place_all(Parts { pods, atoms, in_force, sets });
    }

    /// Finds the subjects and the sets that they need. Returns whether there are new sets.
    fn choose_sets(&mut self) -> bool {
        let before = self.sets.len();
        let mut used = BTreeSet::new();
        let mut chosen: HashMap<ProfileId, Subject> = HashMap::new();
        let mut subjects = BTreeMap::new();
        for (name, pod) in self.pods.local() {
            let Some(profile) = self.pods.profile(pod.profile) else { continue };
            let subject = *chosen.entry(pod.profile).or_insert_with(|| {
                let ingress = ingress(&self.policies, profile, &self.atoms);
                let egress = egress(&self.policies, profile);
                let [ingress, egress] = [ingress, egress].map(|rules| match rules {
                    None => Subject::OPEN,
                    Some(rules) if rules.is_empty() => Subject::CLOSED,
                    Some(rules) => {
                        let flags = flags(&rules);
                        let id = self.sets.intern(rules);
                        used.insert(id);
                        id.0 | flags
                    }
                });
                Subject { ingress, egress }
            });
            if subject != Subject::default() {
                let own = pod.ips.iter().filter(|ip| self.pods.holder(ip) == Some(name));
                subjects.extend(own.map(|ip| (Addr::from(*ip), subject)));
            }
        }
        self.tables.desired.subjects = subjects;
        self.used = used;
        self.sets.len() != before
    }

    /// The desired tables, as of the last update.
    pub fn desired(&self) -> &Desired {
        &self.tables.desired
    }

    /// Whether there is any policy.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether a namespace has policies.
    pub fn has_policies(&self, namespace: &str) -> bool {
        of(&self.policies, namespace).next().is_some()
    }

    /// A policy.
    pub fn get(&self, name: &ObjectName) -> Option<&Arc<NetworkPolicy>> {
        self.policies.get(name).map(|policy| &policy.object)
    }

    /// All policies by name.
    pub fn all(&self) -> impl Iterator<Item = (&ObjectName, &NetworkPolicy)> {
        self.policies.iter().map(|(name, policy)| (name, &*policy.object))
    }

    /// The policies after this one by name, or all.
    pub fn after(&self, name: Option<&ObjectName>) -> impl Iterator<Item = (&ObjectName, &NetworkPolicy)> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.policies.range((start, Bound::Unbounded)).map(|(name, policy)| (name, &*policy.object))
    }

    /// Names of the ids in [`Desired::rules`].
    pub fn names(&self) -> impl Iterator<Item = (u32, &ObjectName)> {
        self.ids.iter().map(|(id, name)| (id.0, name))
    }

    /// The pods of this node that a policy isolates.
    pub fn subjects(&self, policy: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        let selected = move |id: ProfileId| {
            let profile = self.pods.profile(id).filter(|profile| *profile.namespace == *policy.namespace)?;
            Some(selects(&self.policies.get(policy)?.object.pods, &profile.labels))
        };
        self.pods.local().filter(move |(_, pod)| selected(pod.profile) == Some(true)).map(|(name, _)| name)
    }

    /// Whether a pod is on this node; `None` if it is unknown, has ended, or has the network of its node.
    pub fn is_local(&self, pod: &ObjectName) -> Option<bool> {
        self.pods.get(pod).map(|known| known.local)
    }

    /// The policies that isolate a pod of any node, which is where they are enforced.
    pub fn isolating(&self, pod: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        let profile = self.pods.get(pod).and_then(|known| self.pods.profile(known.profile));
        profile.into_iter().flat_map(|profile| selecting(&self.policies, profile)).map(|(name, _)| name)
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

/// The policies that isolate pods with a profile.
fn selecting<'a>(
    policies: &'a BTreeMap<ObjectName, Policy>,
    profile: &'a Profile,
) -> impl Iterator<Item = (&'a ObjectName, &'a Policy)> {
    of(policies, &profile.namespace).filter(|(_, policy)| selects(&policy.object.pods, &profile.labels))
}

/// What is allowed to pods with a profile; `None`: everything, since no policy isolates them.
fn ingress(
    policies: &BTreeMap<ObjectName, Policy>,
    profile: &Profile,
    atoms: &Interner<Atom, AtomId>,
) -> Option<Vec<Rule>> {
    let mut all = None::<Vec<_>>;
    for rules in selecting(policies, profile).filter_map(|(_, policy)| policy.ingress.as_ref()) {
        all.get_or_insert_default().extend(rules.iter().filter_map(|rule| rule.to(profile, atoms)));
    }
    all
}

/// What is allowed from pods with a profile; `None`: everything, since no policy isolates them.
fn egress(policies: &BTreeMap<ObjectName, Policy>, profile: &Profile) -> Option<Vec<Rule>> {
    let mut all = None::<Vec<_>>;
    for rules in selecting(policies, profile).filter_map(|(_, policy)| policy.egress.as_ref()) {
        all.get_or_insert_default().extend(rules.iter().cloned());
    }
    all
}
