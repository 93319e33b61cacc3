//! Ids of an earlier daemon. Equal contents have one id for as long as a daemon runs, but the tables don't tell the
//! contents to the next one. If its tables would be the same but for the ids, it takes over those, and writes nothing.

use std::collections::BTreeMap;

use podnet_common::layout::{PolicyRule, Subject};

use super::compile::Desired;
use super::intern::Bijection;

/// Ids of tables, each with that of the same thing in other tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Renaming {
    pub(super) sets: Bijection,
    pub(super) classes: Bijection,
    pub(super) ports: Bijection,
}

impl Renaming {
    /// The renaming of ids that turns `new` into `old`; `None` if there is none.
    pub(super) fn between(new: &Desired, old: &Desired) -> Option<Self> {
        let mut all = Self::default();
        pairs(&new.peers, &old.peers, |from, to| all.classes.pair(*from, *to))?;
        pairs(&new.blocks, &old.blocks, |from, to| match (*from, *to) {
            // No class.
            (0, 0) => Some(()),
            (0, _) | (_, 0) => None,
            (from, to) => all.classes.pair(from, to),
        })?;
        pairs(&new.ports, &old.ports, |from, to| all.ports.pair(*from, *to))?;
        pairs(&new.subjects, &old.subjects, |from, to| {
            let fields = [(from.ingress, to.ingress), (from.egress, to.egress)];
            fields.into_iter().try_for_each(|(from, to)| match (from, to) {
                (Subject::OPEN | Subject::CLOSED, _) | (_, Subject::OPEN | Subject::CLOSED) => {
                    (from == to).then_some(())
                }
                _ if (from ^ to) & !Subject::ID != 0 => None,
                _ => all.sets.pair(from & Subject::ID, to & Subject::ID),
            })
        })?;
        let rules = new.rules.iter().map(|(key, verdict)| Some((all.rule(key)?, *verdict)));
        let rules: BTreeMap<_, _> = rules.collect::<Option<_>>()?;
        (rules == old.rules).then_some(all)
    }

    fn rule(&self, key: &PolicyRule) -> Option<PolicyRule> {
        let class = if key.class == PolicyRule::ANY { key.class } else { self.classes.of(key.class)? };
        // ALL has this bit as well.
        let ports = if key.ports & PolicyRule::PROTOCOL != 0 { key.ports } else { self.ports.of(key.ports)? };
        Some(PolicyRule { set: self.sets.of(key.set)?, class, ports })
    }
}

/// Calls a function with the values of each key; `None` if the keys differ or the function says so.
fn pairs<K: Ord, V>(
    new: &BTreeMap<K, V>,
    old: &BTreeMap<K, V>,
    mut pair: impl FnMut(&V, &V) -> Option<()>,
) -> Option<()> {
    let same = new.len() == old.len();
    same.then_some(())?;
    new.iter().zip(old).try_for_each(|((key, from), (other, to))| if key == other { pair(from, to) } else { None })
}

#[cfg(test)]
mod tests {
    use podnet_common::addr::{Port, Proto};
    use podnet_common::layout::{PolicyVerdict, ProtoPort};

    use super::*;

    /// Tables with these ids of a set, a class and a port class.
    fn tables(set: u32, class: u32, ports: u32) -> Desired {
        let addr = |host: u8| std::net::IpAddr::from([10, 0, 0, host]).into();
        let verdict = PolicyVerdict { network: 1, ..PolicyVerdict::default() };
        let keys = [(class, ports), (class, PolicyRule::ALL), (PolicyRule::ANY, PolicyRule::PROTOCOL | 6)];
        Desired {
            subjects: [(addr(1), Subject { ingress: Subject::CLASS_ALL | set, egress: Subject::CLOSED })].into(),
            peers: [(addr(2), class)].into(),
            blocks: [(podnet_common::layout::Prefix { len: 128, addr: addr(3) }, 0)].into(),
            ports: [(ProtoPort::new(Proto::TCP, Port::new(80)), ports)].into(),
            rules: keys.map(|(class, ports)| (PolicyRule { set, class, ports }, verdict)).into(),
        }
    }

    #[test]
    fn only_ids_may_differ() {
        let (new, old) = (tables(1, 2, 3), tables(4, 5, 6));
        let renaming = Renaming::between(&new, &old).unwrap();
        let ids = (renaming.sets.of(1), renaming.classes.of(2), renaming.ports.of(3), renaming.sets.of(2));
        assert_eq!(ids, (Some(4), Some(5), Some(6), None));
        assert!(Renaming::between(&Desired::default(), &Desired::default()).is_some());
        let changes: [fn(&mut Desired); 6] = [
            |tables| tables.subjects.clear(),
            |tables| tables.peers.values_mut().for_each(|class| *class = 9),
            |tables| tables.blocks.values_mut().for_each(|class| *class = 5),
            |tables| tables.ports.clear(),
            |tables| tables.rules.values_mut().for_each(|verdict| verdict.network = 2),
            |tables| tables.subjects.values_mut().for_each(|subject| subject.ingress |= Subject::ANY_ALL),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut other = old.clone();
            change(&mut other);
            assert_eq!(Renaming::between(&new, &other), None, "{number}");
        }
    }
}
