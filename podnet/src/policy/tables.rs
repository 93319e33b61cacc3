//! The desired tables, and the classes that they are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use foldhash::{HashMap, HashSet};
use podnet_common::addr::Addr;
use podnet_common::layout::{PolicyRule, PolicyVerdict};

use super::adopt::Renaming;
use super::atoms::{Atom, Class, PortRange, Rule, RuleSet};
use super::classes::Blocks;
use super::compile::{Desired, entries_for_any, entries_for_class, verdict};
use super::intern::{AtomId, ClassId, Interner, ProfileId, SetId};
use super::pods::Pods;
use super::ports::PortClasses;

/// The desired tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    blocks: Blocks,
    ports: PortClasses,
    classes: Interner<Class, ClassId>,
    /// Number of entries of each class in `policy_peers` and `policy_blocks`. Other classes are earlier ones that
    /// packets may still meet.
    uses: HashMap<ClassId, usize>,
    /// Classes that have lost their last entry.
    idle: BTreeSet<ClassId>,
    /// Addresses whose entries in `policy_peers` may have changed.
    touched: BTreeSet<Addr>,
    pub(super) desired: Desired,
}

/// What the tables are made from.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) pods: &'a Pods,
    pub(super) atoms: &'a Interner<Atom, AtomId>,
    /// The atoms of the sets.
    pub(super) in_force: &'a BTreeSet<AtomId>,
    pub(super) sets: &'a Interner<RuleSet, SetId>,
}

impl Tables {
    /// Gives other ids than these tables have.
    pub(super) fn start_after(&mut self, held: &Desired) {
        let keys = held.rules.keys().map(|rule| rule.class).filter(|class| *class != PolicyRule::ANY);
        let classes = held.peers.values().chain(held.blocks.values()).copied().chain(keys);
        self.classes.start_after(classes.max().unwrap_or(0));
        let keys = held.rules.keys().map(|rule| rule.ports).filter(|ports| ports & PolicyRule::PROTOCOL == 0);
        self.ports.start_after(held.ports.values().copied().chain(keys).max().unwrap_or(0));
    }

    /// Whether all classes have other ids.
    pub(super) fn can_rename(&self, others: &Renaming) -> bool {
        self.classes.can_rename(&others.classes) && self.ports.can_rename(&others.ports)
    }

    /// Takes over the ids of tables that are the same otherwise.
    pub(super) fn rename(&mut self, others: &Renaming, held: &Desired) {
        self.classes.rename(&others.classes);
        self.ports.rename(&others.ports);
        let uses = std::mem::take(&mut self.uses).into_iter();
        self.uses = uses.filter_map(|(id, uses)| Some((ClassId(others.classes.of(id.0)?), uses))).collect();
        self.desired = held.clone();
    }

    /// Brings everything but the subjects up to date after changes of these addresses, of the atoms that these profiles
    /// are in, and (`in_force`) of the sets and their atoms. The same contents keep their ids.
    pub(super) fn place(
        &mut self,
        addresses: BTreeSet<IpAddr>,
        profiles: &BTreeSet<ProfileId>,
        in_force: bool,
        parts: Parts<'_>,
    ) {
        let divided_anew = in_force && self.place_blocks(parts);
        let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
        match divided_anew {
            true => addresses.extend(parts.pods.addresses()),
            false => addresses.extend(profiles.iter().flat_map(|profile| parts.pods.addresses_of(*profile))),
        }
        let new = self.place_pods(addresses, parts.pods);
        let used = || self.uses.keys().filter_map(|id| self.classes.content(*id));
        let named = || used().flat_map(|class| numbers(class, parts.atoms));
        if in_force || !named().all(|range| self.ports.has(&range)) {
            let in_sets = parts.sets.iter().flat_map(|(_, set)| &set.rules).flat_map(Rule::ranges);
            let ranges = in_sets.chain(named()).collect();
            if let Some(ports) = self.ports.divide(ranges) {
                self.desired.ports = ports;
            }
            self.desired.rules = self.rules(parts.sets);
        } else {
            new.into_iter().for_each(|id| self.add_rules(id, parts.sets));
        }
    }

    /// Updates the entries of blocks. Returns whether they divide the addresses in another way.
    fn place_blocks(&mut self, parts: Parts<'_>) -> bool {
        let blocks = Blocks::new(parts.in_force.iter().filter_map(|id| Some((*id, parts.atoms.content(*id)?))));
        if blocks == self.blocks {
            return false;
        }
        let entries: Vec<_> = blocks.entries().map(|(prefix, atoms)| (prefix, atoms.to_vec())).collect();
        let entries = entries.into_iter().map(|(prefix, atoms)| {
            let class = Class { atoms, named: Vec::new() };
            (prefix, if class.is_none() { 0 } else { self.take(class).0 })
        });
        let entries = entries.collect();
        let old = std::mem::replace(&mut self.desired.blocks, entries);
        old.into_values().filter(|class| *class != 0).for_each(|class| self.release(ClassId(class)));
        self.blocks = blocks;
        true
    }

    /// Updates the entries of pods' addresses. Returns the classes that had none before.
    fn place_pods(&mut self, addresses: Vec<IpAddr>, pods: &Pods) -> Vec<ClassId> {
        // Pods of one profile in one range are in one class.
        let mut known: HashMap<_, Option<ClassId>> = HashMap::default();
        let mut first = Vec::new();
        for ip in addresses {
            let addr = Addr::from(ip);
            let id = pods.profile_at(&ip).and_then(|profile| {
                let range = self.blocks.range(ip);
                let class = || Some(self.classes.intern(self.class(profile, range, pods)?));
                *known.entry((profile, range)).or_insert_with(class)
            });
            let old = match id {
                Some(id) => {
                    if self.reuse(id) {
                        first.push(id);
                    }
                    self.desired.peers.insert(addr, id.0)
                }
                None => self.desired.peers.remove(&addr),
            };
            if let Some(old) = old {
                self.release(ClassId(old));
            }
            if old != id.map(|id| id.0) {
                self.touched.insert(addr);
            }
        }
        first
    }

    /// Takes the addresses whose entries in `policy_peers` may have changed since the last call.
    pub(super) fn take_touched(&mut self) -> BTreeSet<Addr> {
        std::mem::take(&mut self.touched)
    }

    /// The class of pods' addresses of which this is the narrowest range; `None` without entries in `policy_peers`.
    fn class(&self, profile: ProfileId, range: Option<usize>, pods: &Pods) -> Option<Class> {
        let mut class = pods.class(profile).filter(|class| !class.is_none())?.clone();
        class.atoms.extend(self.blocks.of(range));
        class.atoms.sort_unstable();
        Some(class)
    }

    /// What an address is in.
    pub(super) fn class_at(&self, ip: IpAddr, pods: &Pods) -> Class {
        let range = self.blocks.range(ip);
        let of_pod = pods.profile_at(&ip).and_then(|profile| self.class(profile, range, pods));
        of_pod.unwrap_or_else(|| Class { atoms: self.blocks.of(range).to_vec(), named: Vec::new() })
    }

    /// The id of a class that has one more entry.
    fn take(&mut self, class: Class) -> ClassId {
        let id = self.classes.intern(class);
        self.reuse(id);
        id
    }

    /// A class has one more entry. Returns whether it is the first.
    fn reuse(&mut self, id: ClassId) -> bool {
        let uses = self.uses.entry(id).or_default();
        *uses += 1;
        *uses == 1
    }

    /// A class has one entry less.
    fn release(&mut self, id: ClassId) {
        if let Some(uses) = self.uses.get_mut(&id).filter(|uses| **uses > 1) {
            *uses -= 1;
        } else {
            self.uses.remove(&id);
            self.idle.insert(id);
        }
    }

    /// Forgets classes without entries, once no table leads to them. Returns whether that has changed the rules.
    pub(super) fn forget(&mut self, sets: &Interner<RuleSet, SetId>) -> bool {
        let idle: Vec<_> =
            std::mem::take(&mut self.idle).into_iter().filter(|id| !self.uses.contains_key(id)).collect();
        idle.iter().for_each(|id| self.classes.remove(*id));
        if self.ports.forget() {
            self.desired.rules = self.rules(sets);
            return true;
        }
        for (id, (set, _)) in idle.iter().flat_map(|id| sets.iter().map(move |set| (id, set))) {
            let key = |ports| PolicyRule { set: set.0, class: id.0, ports };
            let gone: Vec<_> = self.desired.rules.range(key(0)..=key(u32::MAX)).map(|(key, _)| *key).collect();
            gone.iter().for_each(|key| _ = self.desired.rules.remove(key));
        }
        !idle.is_empty()
    }

    /// Adds the entries of a new class.
    fn add_rules(&mut self, id: ClassId, sets: &Interner<RuleSet, SetId>) {
        let Some(class) = self.classes.content(id) else { return };
        for (set, RuleSet { rules, .. }) in sets.iter() {
            for (place, rule) in rules.iter().enumerate() {
                entries_for_class(set, rule, (id, class), &self.ports, |key| {
                    let entry = self.desired.rules.entry(key).or_default();
                    *entry = entry.first(verdict(place, rule));
                });
            }
        }
    }

    /// All entries of `policy_rules`.
    fn rules(&self, sets: &Interner<RuleSet, SetId>) -> BTreeMap<PolicyRule, PolicyVerdict> {
        let mut within: HashMap<AtomId, Vec<ClassId>> = HashMap::default();
        for (id, class) in self.classes.iter() {
            let named = class.named.iter().map(|(atom, _)| atom);
            class.atoms.iter().chain(named).for_each(|atom| within.entry(*atom).or_default().push(id));
        }
        let (mut entries, mut seen) = (Vec::new(), HashSet::default());
        for (set, RuleSet { rules, .. }) in sets.iter() {
            for (place, rule) in rules.iter().enumerate() {
                let mut put = |key| entries.push((key, verdict(place, rule)));
                entries_for_any(set, rule, &self.ports, &mut put);
                let atoms: Vec<AtomId> = match &rule.peers {
                    Some(peers) => peers.clone(),
                    None => rule.named().map(|(_, atom)| atom).collect(),
                };
                // Blocks of a rule that lie in one another have classes in common, up to the square of their number.
                seen.clear();
                let classes = atoms.iter().filter_map(|atom| within.get(atom)).flatten().filter(|id| seen.insert(**id));
                for (id, class) in classes.filter_map(|id| Some((*id, self.classes.content(*id)?))) {
                    entries_for_class(set, rule, (id, class), &self.ports, &mut put);
                }
            }
        }
        entries.sort_by_key(|(key, _)| *key);
        entries.dedup_by(|(key, verdict), (first, all)| {
            let same = key == first;
            if same {
                *all = all.first(*verdict);
            }
            same
        });
        entries.into_iter().collect()
    }
}

/// The numbers of a class's named ports.
fn numbers<'a>(class: &'a Class, atoms: &'a Interner<Atom, AtomId>) -> impl Iterator<Item = PortRange> {
    class.named.iter().filter_map(|(atom, port)| match atoms.content(*atom)? {
        Atom::Named { protocol, .. } => Some(PortRange { protocol: *protocol, first: *port, last: *port }),
        _ => None,
    })
}
