//! Network policies: the room of NetworkPolicies, Namespaces and Pods, and the tables that they are written to.

mod attached;
mod pods;
mod tables;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podnet_cni::node_info::Policed;
use podnet_common::addr::Addr;
use podnet_common::layout::{PolicyDenial, PolicyRule, PolicyVerdict, Prefix, ProtoPort, Subject};
use podnet_common::tables::POLICY_RULES;

pub use attached::{Attached, Attachments};
pub use pods::policy_pods;
pub use tables::PolicyTables;

use self::attached::{BY_THE_PLUGIN, WRITTEN_BY_THE_PLUGIN};
use self::pods::{PolicyPods, Slots};
use super::denials::Denials;
use crate::mirror::{Counts, First, Mirror, TableError};
use crate::model::{Kind, NAMESPACE_NAME_LABEL, Namespace, Node, Object, ObjectKey, ObjectName, Pod};
use crate::policy::{AnyPolicy, DeniedBy, Desired, Owners, Policies};

/// All nodes by name.
type Nodes = BTreeMap<String, Arc<Node>>;

/// All policies, and the tables as written so far.
#[derive(Debug)]
pub struct NetworkPolicies {
    policies: Policies,
    /// Name of this node.
    node: Box<str>,
    /// Whether every namespace has an object, as in Kubernetes.
    with_namespaces: bool,
    /// What an earlier daemon has written, until the first sync.
    adopted: Option<Desired>,
    /// The nodes from which the policies know the owners of addresses, and whether there are newer ones.
    nodes: Nodes,
    nodes_changed: bool,
    /// Whether the policies know the nodes as peers.
    with_nodes: bool,
    /// The Pod objects of this node.
    pods: BTreeMap<ObjectName, Arc<Pod>>,
    /// The pods that the plugin has connected, with their addresses. A Pod object gets them only after the pod has
    /// started.
    attached: Attachments,
    subjects: Mirror<Addr, Subject>,
    policy_pods: PolicyPods,
    peers: Mirror<Addr, u32>,
    blocks: Mirror<Prefix, u32>,
    ports: Mirror<ProtoPort, u32>,
    rules: Mirror<PolicyRule, PolicyVerdict>,
    /// The entries of `policy_denials`, without their counts.
    counted: Mirror<PolicyDenial, ()>,
    /// Who denies what they count; `None` before the first sync.
    denied_by: Option<BTreeMap<PolicyDenial, DeniedBy>>,
    denials: Denials,
}

impl NetworkPolicies {
    /// Without objects, on the node with this name. `with_namespaces`: every namespace has an object.
    pub(super) fn new(node: &str, with_namespaces: bool) -> Self {
        Self {
            policies: Policies::new(node),
            node: node.into(),
            with_namespaces,
            adopted: None,
            nodes: Nodes::new(),
            nodes_changed: true,
            with_nodes: false,
            pods: BTreeMap::new(),
            attached: Attachments::default(),
            subjects: Mirror::default(),
            policy_pods: PolicyPods::default(),
            peers: Mirror::default(),
            blocks: Mirror::default(),
            ports: Mirror::default(),
            rules: Mirror::default(),
            counted: Mirror::default(),
            denied_by: None,
            denials: Denials::default(),
        }
    }

    /// Takes over the tables of an earlier daemon, whose ids are not given to other contents. To be called before the
    /// first objects are applied; the tables stay as they are until [`Self::sync`], which leaves them if they are
    /// already as desired but for the ids.
    ///
    /// # Errors
    /// If the tables can't be read.
    pub fn adopt(&mut self, tables: &impl PolicyTables) -> Result<(), TableError> {
        let held = Desired {
            subjects: tables.list()?.into_iter().collect(),
            peers: tables.list()?.into_iter().collect(),
            blocks: tables.list()?.into_iter().collect(),
            ports: tables.list()?.into_iter().collect(),
            rules: tables.list()?.into_iter().collect(),
        };
        self.policies.start_after(&held);
        self.adopted = Some(held);
        Ok(())
    }

    /// Applies changes. Returns whether the desired tables may have changed. `nodes`: all nodes with their admitted
    /// claims, and whether any has changed.
    pub(super) fn update(&mut self, changes: Vec<(ObjectKey, Option<Object>)>, nodes: (&Nodes, bool)) -> bool {
        self.nodes_changed |= nodes.1;
        if changes.is_empty() && (self.policies.is_empty() || !self.nodes_changed) {
            return false;
        }
        let mut namespaces = false;
        for (ObjectKey { kind, name }, object) in changes {
            namespaces |= kind == Kind::Namespace;
            match (kind, object) {
                (_, Some(Object::NetworkPolicy(policy))) => {
                    self.policies.set_policy(&name, Some(AnyPolicy::Network(policy)))
                }
                (_, Some(Object::ClusterNetworkPolicy(policy))) => {
                    self.policies.set_policy(&name, Some(AnyPolicy::Cluster(policy)));
                }
                (_, Some(Object::Namespace(namespace))) => self.policies.set_namespace(&name.name, Some(&namespace)),
                (_, Some(Object::Pod(pod))) if pod.node == self.node => {
                    self.imply_namespace(&name.namespace);
                    self.pods.insert(name.clone(), pod);
                    self.set_pod(&name);
                }
                (_, Some(Object::Pod(pod))) => {
                    self.imply_namespace(&name.namespace);
                    self.pods.remove(&name);
                    self.policies.set_pod(&name, Some(&pod));
                }
                (Kind::NetworkPolicy | Kind::ClusterNetworkPolicy, None) => self.policies.set_policy(&name, None),
                (Kind::Namespace, None) => {
                    self.policies.set_namespace(&name.name, None);
                    self.imply_namespace(&name.name);
                }
                (Kind::Pod, None) => {
                    self.pods.remove(&name);
                    self.policies.set_pod(&name, None);
                }
                _ => {}
            }
        }
        self.set_nodes(nodes.0);
        self.policies.update() || (namespaces && self.with_namespaces)
    }

    /// Where namespaces need no objects, one without an object has the label that every namespace has.
    fn imply_namespace(&mut self, name: &str) {
        if !self.with_namespaces && !self.policies.knows_namespace(name) {
            let labels = [(NAMESPACE_NAME_LABEL, name)].into_iter().collect();
            self.policies.set_namespace(name, Some(&Namespace { labels, ..Namespace::default() }));
        }
    }

    /// Sets the nodes while there are policies: as owners of addresses, and as peers if rules name any.
    fn set_nodes(&mut self, nodes: &Nodes) {
        let needed = self.policies.needs_nodes();
        let before = std::mem::replace(&mut self.with_nodes, needed);
        let unused = self.policies.is_empty();
        if needed == before && (unused || !self.nodes_changed) {
            return;
        }
        let same = |name: &String| match (self.nodes.get(name), nodes.get(name)) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new) || old == new,
            _ => false,
        };
        let all: BTreeSet<&String> = self.nodes.keys().chain(nodes.keys()).collect();
        let differing: BTreeSet<&String> = all.iter().copied().filter(|name| !same(name)).collect();
        for name in if needed == before { &differing } else { &all }.iter().filter(|_| needed || before) {
            self.policies.set_node(name, nodes.get(*name).filter(|_| needed).map(|node| &**node));
        }
        if !unused {
            self.policies.set_owners(Owners::new(nodes));
            (self.nodes, self.nodes_changed) = (nodes.clone(), false);
        }
    }

    /// Sets the pods that the plugin has connected. Returns whether the tables must be written.
    pub fn set_attached(&mut self, attached: Attachments) -> bool {
        let before = std::mem::replace(&mut self.attached, attached);
        let names: BTreeSet<ObjectName> = before.names().chain(self.attached.names()).cloned().collect();
        let mut changed = false;
        for name in names {
            let (old, new) = (before.of(&name), self.attached.of(&name));
            if old == new {
                continue;
            }
            changed = true;
            // The plugin may have closed the pod, or removed the entry of an earlier pod with this address.
            let is_new = |attached: &&Attached| old.is_none_or(|old| !old.contains(*attached));
            for ip in new.into_iter().flatten().filter(is_new).flat_map(|attached| &attached.ips) {
                self.subjects.put((*ip).into(), WRITTEN_BY_THE_PLUGIN);
            }
            self.set_pod(&name);
        }
        if changed {
            let attached = |name: &&ObjectName| self.attached.of(name).is_some();
            let others: Vec<_> = self.pods.keys().filter(|name| !attached(name)).cloned().collect();
            others.iter().for_each(|name| self.set_pod(name));
        }
        self.policies.update() || changed
    }

    /// Sets a pod of this node. The addresses that the plugin has given it count, not those in its status, which may be
    /// missing or those of a former sandbox, and may belong to another pod by now.
    fn set_pod(&mut self, name: &ObjectName) {
        let Some(pod) = self.pods.get(name) else { return };
        let mut pod = (**pod).clone();
        match self.attached.of(name) {
            // The labels of this pod say nothing about another with the same name, whose sandbox may still exist.
            Some(all) => {
                let own = all.iter().filter(|attached| attached.is_of(&pod));
                let ips: BTreeSet<IpAddr> = own.flat_map(|attached| &attached.ips).copied().collect();
                if ips.is_empty() {
                    return self.policies.set_pod(name, None);
                }
                pod.ips = ips.into_iter().collect();
            }
            None => pod.ips.retain(|ip| !self.attached.have(ip)),
        }
        self.policies.set_pod(name, Some(&pod));
    }

    /// Namespaces in which pods start closed.
    pub fn policed(&self) -> Policed {
        let namespaces = self.policies.all().map(|(name, _)| name.namespace.clone());
        Policed {
            all: self.policies.has_cluster_policies(),
            namespaces: namespaces.filter(|name| !name.is_empty()).collect(),
        }
    }

    /// The pods of this node to which policies apply, by address.
    pub fn subjects(&self) -> impl Iterator<Item = Addr> {
        self.policies.desired().subjects.keys().copied()
    }

    /// The desired contents of `subjects`. The entry of a pod whose object is unknown stays as it is: the plugin has
    /// closed a pod that has just started, and one that has run before there were policies is open. So does the entry
    /// of a pod whose namespace is unknown, by whose labels ClusterNetworkPolicies may select it, and that of an
    /// address that isn't known to be a pod's yet: the plugin has closed a pod that it is connecting, and removes the
    /// entry itself if that fails.
    fn wanted_subjects(&self) -> BTreeMap<Addr, Subject> {
        let attached = self.attached.addresses();
        let connecting = |(addr, held): &(&Addr, &Subject)| **held == Subject::PENDING && !attached.contains(addr);
        let connecting = self.subjects.iter().filter(connecting).map(|(addr, held)| (*addr, *held));
        // The object of a pod that has ended is that of a predecessor with the same name.
        let known = |name: &ObjectName, attached: &Attached| {
            self.pods.get(name).is_some_and(|pod| !pod.ended && attached.is_of(pod))
        };
        let unknown = |name: &ObjectName, attached: &Attached| {
            !known(name, attached) && self.policies.has_policies(&name.namespace)
        };
        let incomplete = |name: &ObjectName, _: &Attached| {
            let cluster = self.with_namespaces && self.policies.has_cluster_policies();
            cluster && !self.policies.knows_namespace(&name.namespace)
        };
        let mut subjects: BTreeMap<Addr, Subject> = self.held_by(unknown).collect();
        subjects.extend(self.policies.desired().subjects.iter().map(|(addr, subject)| (*addr, *subject)));
        subjects.extend(self.held_by(incomplete));
        // The status of an earlier pod may still list the address.
        subjects.extend(connecting);
        subjects
    }

    /// The desired contents of `policy_pods` beside these subjects.
    fn wanted_pods(&self, subjects: &BTreeMap<Addr, Subject>) -> Slots {
        policy_pods(self.attached.iter().map(|(_, attached)| attached), subjects, &self.policies.desired().peers)
    }

    /// Removes the entries of `policy_pods` that change. To be called before the tables that they repeat change.
    fn keep_pods(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        self.policy_pods.keep(&self.wanted_pods(&self.wanted_subjects()), tables)
    }

    /// Whether the entry of an address that isn't known to be a pod's differs.
    fn differs_elsewhere(&self, wanted: &BTreeMap<Addr, Subject>) -> bool {
        let attached = self.attached.addresses();
        let all = wanted.keys().chain(self.subjects.iter().map(|(addr, _)| addr));
        all.filter(|addr| !attached.contains(*addr)).any(|addr| wanted.get(addr) != self.subjects.get(addr))
    }

    /// The entries of those pods that the plugin has connected.
    fn held_by(&self, pods: impl Fn(&ObjectName, &Attached) -> bool) -> impl Iterator<Item = (Addr, Subject)> {
        let matching = self.attached.iter().filter(move |(name, attached)| pods(name, attached));
        let addresses = matching.flat_map(|(_, attached)| &attached.ips);
        let held = addresses.filter_map(|ip| Some((Addr::from(*ip), *self.subjects.get(&(*ip).into())?)));
        held.map(|(addr, held)| (addr, self.with_known_sets(held)))
    }

    /// A subject that stays, closed where its set is of an earlier daemon, whose rules are no longer in the tables.
    fn with_known_sets(&self, held: Subject) -> Subject {
        let known = |set: u32| set == Subject::OPEN || self.policies.has_set(set & Subject::ID);
        let or_closed = |set| if known(set) { set } else { Subject::ID };
        if held == WRITTEN_BY_THE_PLUGIN {
            return held;
        }
        Subject { ingress: or_closed(held.ingress), egress: or_closed(held.egress) }
    }

    /// Ids of the sets of these subjects.
    fn sets_of<'a>(subjects: impl Iterator<Item = &'a Subject>) -> BTreeSet<u32> {
        subjects.flat_map(|subject| [subject.ingress, subject.egress]).map(|set| set & Subject::ID).collect()
    }

    /// Whether the next [`Self::sync`] isolates pods whose flows had no entries before: pods that were open, or whose
    /// own node could always reach them without one.
    ///
    /// # Errors
    /// If the table can't be read.
    pub fn isolates_more(&mut self, tables: &mut impl PolicyTables) -> Result<bool, TableError> {
        self.read_subjects(tables)?;
        let has_entries = |held: &Subject, subject: &Subject| {
            BY_THE_PLUGIN.contains(held)
                || Subject::has_cluster_rules(held.egress)
                || !Subject::has_cluster_rules(subject.egress)
        };
        let mut subjects = self.policies.desired().subjects.iter();
        Ok(subjects.any(|(addr, subject)| self.subjects.get(addr).is_none_or(|held| !has_entries(held, subject))))
    }

    /// Reads the table of subjects, if that hasn't been done.
    fn read_subjects(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        self.subjects.add(&BTreeMap::new(), tables)
    }

    /// Makes the tables match, in an order in which every packet gets the verdict of before or that of after, and then
    /// takes out what no packet needs any more. Before the sources are synced, the absence of a policy means nothing,
    /// so the tables must stay as they are.
    ///
    /// # Errors
    /// The first operation that fails; the next call continues from there. Until then pods keep the policies that they
    /// had, and those that had none are closed, unless `policy_pods` can't be written.
    pub fn sync(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        self.read_subjects(tables)?;
        // First, so that the other tables can be written even after a failure.
        self.keep_pods(tables)?;
        let mut result = self.write(tables);
        if matches!(result, Err(TableError::Full { .. })) {
            // Old and new entries beside each other have no room.
            self.make_room(tables)?;
            result = self.write(tables);
        }
        if matches!(result, Err(TableError::Full { .. }))
            && self.policies.desired().rules.len() <= POLICY_RULES.capacity()
        {
            self.close_changed_subjects(tables)?;
            self.make_room(tables)?;
            result = self.write(tables);
        }
        if result.is_err() {
            self.close_new_subjects(tables)?;
        }
        result
    }

    fn write(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        // Entries of the plugin may stay.
        self.read_subjects(tables)?;
        if let Some(mut held) = self.adopted.take() {
            held.subjects.retain(|_, subject| *subject != Subject::PENDING);
            if !self.policies.adopt_ids(&held)
                && let Err(error) = self.close_subjects_of_cluster_rules(tables)
            {
                self.adopted = Some(held);
                return Err(error);
            }
        }
        loop {
            let desired = self.policies.desired();
            self.rules.add(&desired.rules, tables)?;
            self.ports.sync(&desired.ports, First::Put, tables)?;
            let touched = self.policies.take_touched();
            let desired = self.policies.desired();
            self.peers.sync_keys(&touched, &desired.peers, tables)?;
            self.blocks.sync(&desired.blocks, First::Put, tables)?;
            let mut subjects = self.wanted_subjects();
            if self.differs_elsewhere(&subjects) {
                // The plugin may have closed a pod there since.
                self.subjects.forget();
                self.read_subjects(tables)?;
                subjects = self.wanted_subjects();
            }
            self.subjects.sync(&subjects, First::Put, tables)?;
            self.policy_pods.sync(&self.wanted_pods(&subjects), tables)?;
            self.rules.keep_only(&self.policies.desired().rules, tables)?;
            if !self.policies.written(&Self::sets_of(subjects.values())) {
                break;
            }
            self.keep_pods(tables)?;
        }
        self.sync_denials(tables)
    }

    /// Closes the subjects of an earlier daemon whose sets allow what no rule denies: while the other tables get other
    /// ids, no rule is found.
    fn close_subjects_of_cluster_rules(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        let close = |set| if Subject::has_cluster_rules(set) { Subject::CLOSED } else { set };
        let closed = self.subjects.iter().map(|(addr, Subject { ingress, egress })| {
            (*addr, Subject { ingress: close(*ingress), egress: close(*egress) })
        });
        let closed: BTreeMap<_, _> = closed.filter(|(addr, closed)| self.subjects.get(addr) != Some(closed)).collect();
        self.subjects.add(&closed, tables)
    }

    /// Removes entries that neither desired nor held subjects need: others were added before a table was full.
    fn make_room(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        self.read_subjects(tables)?;
        let sets = Self::sets_of(self.subjects.iter().map(|(_, held)| held));
        while self.policies.written(&sets) {}
        let desired = self.policies.desired();
        self.rules.retain(|rule| desired.rules.contains_key(rule) || sets.contains(&rule.set), tables)?;
        self.ports.retain(|ports| desired.ports.contains_key(ports), tables)?;
        self.peers.retain(|addr| desired.peers.contains_key(addr), tables)?;
        self.blocks.retain(|prefix| desired.blocks.contains_key(prefix), tables)
    }

    /// Closes the subjects that are to get other sets, so that the entries of those before can go.
    fn close_changed_subjects(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        self.read_subjects(tables)?;
        let wanted = self.wanted_subjects();
        let changed = wanted.iter().filter(|(addr, subject)| self.subjects.get(addr) != Some(subject));
        let closed = changed.map(|(addr, subject)| (*addr, subject.closed())).collect();
        self.subjects.add(&closed, tables)
    }

    /// Makes `policy_denials` match the rule sets. The counts of sets that are no longer in use are read first.
    fn sync_denials(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        if self.denied_by.as_ref() == Some(self.policies.denials()) {
            return Ok(());
        }
        self.count(tables)?;
        let denials = self.policies.denials();
        self.counted.sync(&denials.keys().map(|denial| (*denial, ())).collect(), First::Put, tables)?;
        self.denied_by = Some(denials.clone());
        Ok(())
    }

    /// Reads how many packets have been denied.
    ///
    /// # Errors
    /// If the table can't be read.
    pub fn count(&mut self, tables: &impl Counts<PolicyDenial>) -> Result<(), TableError> {
        if let Some(denied_by) = self.denied_by.as_ref().filter(|all| !all.is_empty()) {
            self.denials.add(tables.counts()?, denied_by);
        }
        let policies = &self.policies;
        self.denials.retain(|policy| policies.get(policy).is_some());
        Ok(())
    }

    /// How many packets have been denied.
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    /// Closes the pods that should be isolated and aren't yet, in the directions concerned.
    fn close_new_subjects(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        let closed = self.policies.desired().subjects.iter().map(|(addr, subject)| {
            let held = self.subjects.get(addr).filter(|held| **held != WRITTEN_BY_THE_PLUGIN);
            let (held, closed) = (held.copied().unwrap_or_default(), subject.closed());
            let either = |held, closed| if held == Subject::OPEN { closed } else { held };
            let ingress = either(held.ingress, closed.ingress);
            (*addr, Subject { ingress, egress: either(held.egress, closed.egress) })
        });
        let closed = closed.collect();
        self.subjects.add(&closed, tables)
    }

    /// Number of entries written or removed so far.
    pub fn writes(&self) -> u64 {
        let addresses = self.subjects.writes() + self.peers.writes() + self.blocks.writes();
        addresses + self.ports.writes() + self.rules.writes()
    }

    /// The policies: the desired tables, names, and what each of them concerns.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The `metadata.uid` of a policy.
    pub(super) fn uid(&self, object: &ObjectKey) -> Option<&str> {
        let is_policy = matches!(object.kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy);
        self.policies.get(&object.name).filter(|_| is_policy).map(AnyPolicy::uid)
    }
}

#[cfg(test)]
mod tests;
