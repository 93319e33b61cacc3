//! How many packets network policies have denied, by policy.

use std::collections::{BTreeMap, HashMap};

use podnet_common::layout::PolicyDenial;

use crate::model::ObjectName;
use crate::policy::{DeniedBy, Direction};

/// Packets by policy. An entry of the table lasts as long as its rule set; the sums go on.
#[derive(Debug, Default)]
pub struct Denials {
    /// Each entry as last read.
    seen: HashMap<PolicyDenial, u64>,
    totals: BTreeMap<(ObjectName, Direction), u64>,
}

impl Denials {
    /// Adds what has been counted since the last call. If several NetworkPolicies isolate a pod, a packet counts for
    /// each of them.
    pub(super) fn add(&mut self, counts: Vec<(PolicyDenial, u64)>, known: &BTreeMap<PolicyDenial, DeniedBy>) {
        for (denial, packets) in &counts {
            let Some(DeniedBy { direction, policies }) = known.get(denial) else { continue };
            // Less than before: it is the entry of another set with the same id.
            let before = self.seen.get(denial).filter(|before| *before <= packets).copied().unwrap_or_default();
            for policy in policies {
                *self.totals.entry((policy.clone(), *direction)).or_default() += packets - before;
            }
        }
        self.seen = counts.into_iter().collect();
    }

    /// Ends the counts of policies that don't exist any more.
    pub(super) fn retain(&mut self, exists: impl Fn(&ObjectName) -> bool) {
        self.totals.retain(|(policy, _), _| exists(policy));
    }

    /// Number of packets that a policy has denied in a direction.
    pub fn of(&self, policy: &ObjectName, direction: Direction) -> u64 {
        self.totals.get(&(policy.clone(), direction)).copied().unwrap_or_default()
    }

    /// Number of packets that each policy has denied in a direction.
    pub fn totals(&self) -> impl Iterator<Item = (&ObjectName, Direction, u64)> {
        self.totals.iter().map(|((policy, direction), packets)| (policy, *direction, *packets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_when_sets_are_replaced() {
        let name = |name: &str| ObjectName { namespace: "x".into(), name: name.into() };
        let by = |policies: &[&str]| DeniedBy {
            direction: Direction::Ingress,
            policies: policies.iter().map(|policy| name(policy)).collect(),
        };
        let key = |set, rule| PolicyDenial { set, rule };
        let mut denials = Denials::default();
        let mut add = |counts: &[(PolicyDenial, u64)], known: &[(PolicyDenial, DeniedBy)]| {
            denials.add(counts.to_vec(), &known.iter().cloned().collect());
            denials.totals().map(|(policy, _, packets)| format!("{}={packets}", policy.name)).collect::<Vec<_>>()
        };
        let both = [(key(1, 0), by(&["a", "b"])), (key(2, 4), by(&["a"]))];
        let (first, second) = both.split_at(1);
        assert_eq!(add(&[(key(1, 0), 3)], first), ["a=3", "b=3"]);
        assert_eq!(add(&[(key(1, 0), 5), (key(9, 0), 7)], first), ["a=5", "b=5"], "set 9 is unknown");
        assert_eq!(add(&[(key(1, 0), 6), (key(2, 4), 1)], &both), ["a=7", "b=6"]);
        assert_eq!(add(&[(key(2, 4), 1)], second), ["a=7", "b=6"]);
        assert_eq!(add(&[(key(1, 0), 2)], first), ["a=9", "b=8"], "a new entry with an earlier key");
        denials.retain(|policy| policy.name == "b");
        assert_eq!(denials.totals().count(), 1);
    }
}
