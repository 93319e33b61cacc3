//! Each service's share of tables that are too small for all demands.
//!
//! While all demands fit, the only limit is the [share](EntryCounts::of_service) of a Service. When demands exceed the
//! size of a table, it is divided among namespaces by max-min fairness: small demands are met in full, and the rest is
//! divided equally among the others. A namespace that is limited divides its part among its services in the same way.
//! So it is always the largest demands that are refused, and the outcome depends on nothing but the demands: every node
//! decides alike, before and after a restart.

use std::collections::BTreeMap;

use foldhash::HashMap;

use crate::entry_counts::{BACKENDS, EntryCounts, TABLES};
use crate::frontend::Owner;

/// Demands and limits of services.
#[derive(Debug)]
pub(super) struct Shares {
    capacity: EntryCounts,
    /// Demand of each owner.
    asked: HashMap<Owner, EntryCounts>,
    totals: [u64; TABLES.len()],
    /// Lower bound of the number of different backends: services with common backends share the entries.
    backends: u64,
    /// The backends didn't fit into the table `backends`.
    backends_scarce: bool,
    /// Owners whose demands aren't met in full.
    limits: BTreeMap<Owner, EntryCounts>,
    /// Limit of each service, for namespaces whose demands aren't met in full.
    each: BTreeMap<String, EntryCounts>,
    scarcities: Vec<Scarcity>,
}

/// A namespace whose demand isn't met in full.
#[derive(Debug)]
struct Scarcity {
    /// Index of the table in [`TABLES`].
    table: usize,
    /// `None`: the host ports.
    namespace: Option<String>,
    asks: u64,
    gets: u64,
    /// Limit of each of its services.
    each: u64,
}

impl Shares {
    /// For tables of this size.
    pub(super) fn new(capacity: EntryCounts) -> Self {
        Self {
            capacity,
            asked: HashMap::default(),
            totals: Default::default(),
            backends: 0,
            backends_scarce: false,
            limits: BTreeMap::new(),
            each: BTreeMap::new(),
            scarcities: Vec::new(),
        }
    }

    /// The most that a single service may ever have.
    pub(super) fn of_service(&self) -> EntryCounts {
        self.capacity.of_service()
    }

    /// Makes room for this number of owners.
    pub(super) fn reserve(&mut self, owners: usize) {
        self.asked.reserve(owners.saturating_sub(self.asked.len()));
    }

    /// Sets the demand of an owner; zero if it is gone.
    pub(super) fn ask(&mut self, owner: &Owner, asks: EntryCounts) {
        let before = match asks {
            none if none == EntryCounts::default() => self.asked.remove(owner),
            asks => self.asked.insert(owner.clone(), asks),
        };
        self.backends += u64::from(asks.backends);
        for (total, (new, old)) in
            self.totals.iter_mut().zip(asks.counts().into_iter().zip(before.unwrap_or_default().counts()))
        {
            *total = *total + u64::from(new) - u64::from(old);
        }
    }

    /// Limit of an owner, as last settled.
    pub(super) fn limit(&self, owner: &Owner) -> Option<EntryCounts> {
        self.limits.get(owner).copied()
    }

    /// Limit of each service, for namespaces whose demands aren't met in full.
    pub(super) fn each(&self) -> &BTreeMap<String, EntryCounts> {
        &self.each
    }

    /// The same, in readable form.
    pub(super) fn scarcities(&self) -> impl Iterator<Item = String> {
        self.scarcities.iter().map(|Scarcity { table, namespace, asks, gets, each }| {
            let who = match namespace {
                Some(namespace) => format!("namespace {namespace}"),
                None => "the host ports of this node's pods".to_owned(),
            };
            let (name, size) = (TABLES[*table], self.capacity.counts()[*table]);
            format!(
                "{who}: {asks} entries of the table `{name}` requested, {gets} granted, at most {each} per Service: its \
                 {size} entries are oversubscribed and divided equally among namespaces; raise frontendsMax, or remove \
                 Services"
            )
        })
    }

    /// Recomputes the limits. Returns the owners whose limit has changed. `backends` counts the different backends; it
    /// is slow and called only if the number matters.
    pub(super) fn settle(&mut self, backends: impl FnOnce() -> usize) -> Vec<Owner> {
        let capacity = self.capacity.counts().map(u64::from);
        let mut scarce: [bool; TABLES.len()] = std::array::from_fn(|i| self.totals[i] > capacity[i]);
        if scarce[BACKENDS] && !self.backends_scarce && self.backends > capacity[BACKENDS] {
            self.backends = backends() as u64;
        }
        // Scarce until all would fit even without sharing: how many of the refused ones would share entries is unknown.
        self.backends_scarce = scarce[BACKENDS] && (self.backends_scarce || self.backends > capacity[BACKENDS]);
        scarce[BACKENDS] = self.backends_scarce;
        let mut limits = BTreeMap::new();
        self.scarcities.clear();
        for (table, _) in scarce.iter().enumerate().filter(|(_, scarce)| **scarce) {
            let scarcities = self.limit_table(table, capacity[table], &mut limits);
            self.scarcities.extend(scarcities);
        }
        self.each.clear();
        for Scarcity { table, namespace, each, .. } in &self.scarcities {
            let Some(namespace) = namespace else { continue };
            let limit = self.each.entry(namespace.clone()).or_insert(EntryCounts::MAX);
            *limit = limit.with(*table, u32::try_from(*each).unwrap_or(u32::MAX));
        }
        let before = std::mem::replace(&mut self.limits, limits);
        let differs = |owner: &&Owner| before.get(*owner) != self.limits.get(*owner);
        let mut changed: Vec<_> = before.keys().chain(self.limits.keys()).filter(differs).cloned().collect();
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    fn limit_table(&self, table: usize, capacity: u64, limits: &mut BTreeMap<Owner, EntryCounts>) -> Vec<Scarcity> {
        let asked = |counts: &EntryCounts| u64::from(counts.counts()[table]);
        let mut namespaces: BTreeMap<Option<&str>, Vec<(&Owner, u64)>> = BTreeMap::new();
        for (owner, counts) in self.asked.iter().filter(|(_, counts)| asked(counts) != 0) {
            namespaces.entry(owner.namespace()).or_default().push((owner, asked(counts)));
        }
        let total = |services: &[(&Owner, u64)]| services.iter().map(|(_, asked)| asked).sum::<u64>();
        let gets = level(namespaces.values().map(|services| total(services)).collect(), capacity);
        let mut scarcities = Vec::new();
        for (namespace, services) in namespaces.iter().filter(|(_, services)| total(services) > gets) {
            let each = level(services.iter().map(|(_, asked)| *asked).collect(), gets);
            for (owner, _) in services.iter().filter(|(_, asked)| *asked > each) {
                let limit = limits.entry((*owner).clone()).or_insert(EntryCounts::MAX);
                *limit = limit.with(table, u32::try_from(each).unwrap_or(u32::MAX));
            }
            let (namespace, asks) = (namespace.map(ToOwned::to_owned), total(services));
            scarcities.push(Scarcity { table, namespace, asks, gets, each });
        }
        scarcities
    }
}

/// The largest equal limit at which all demands together fit.
fn level(mut asked: Vec<u64>, mut left: u64) -> u64 {
    asked.sort_unstable();
    let mut others = asked.len() as u64;
    for ask in asked {
        if ask * others > left {
            return left / others;
        }
        left -= ask;
        others -= 1;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ObjectName;

    fn name(namespace: &str, name: &str) -> Owner {
        Owner::Service(ObjectName { namespace: namespace.into(), name: name.into() })
    }

    fn frontends(frontends: u32) -> EntryCounts {
        EntryCounts { frontends, ..EntryCounts::default() }
    }

    /// Tables of 1,000 entries, and the number of frontends that each service asks for.
    fn shares(asked: &[(&str, &str, u32)]) -> Shares {
        let mut shares = Shares::new(EntryCounts::of_counts([1000; 5]));
        asked.iter().for_each(|(namespace, service, asks)| shares.ask(&name(namespace, service), frontends(*asks)));
        shares.settle(|| unreachable!());
        shares
    }

    fn shown(owner: &Owner) -> String {
        match owner {
            Owner::HostPorts => "host ports".into(),
            Owner::Service(name) => name.to_string(),
        }
    }

    fn limits(shares: &Shares) -> Vec<(String, u32)> {
        shares.limits.iter().map(|(owner, limit)| (shown(owner), limit.frontends)).collect()
    }

    #[test]
    fn no_limits_while_all_demands_fit() {
        assert_eq!(limits(&shares(&[("a", "s", 62), ("a", "t", 900), ("b", "s", 38)])), []);
    }

    #[test]
    fn largest_demand_is_refused() {
        let greedy = [("a", "s", 900), ("a", "t", 10), ("b", "s", 200), ("c", "s", 100)];
        assert_eq!(limits(&shares(&greedy)), [("a/s".into(), 690)]);
        // Many services of one tenant.
        let many: Vec<_> = (0..40).map(|i| format!("s{i:02}")).collect();
        let many = many.iter().map(|service| ("greedy", service.as_str(), 50));
        let modest = (0..10).map(|_| ("b", "s", 250));
        let shares = shares(&many.chain(modest).collect::<Vec<_>>());
        assert!(shares.limits.keys().all(|owner| owner.namespace() == Some("greedy")), "{:?}", shares.limits);
        assert_eq!(shares.limits.len(), 40);
    }

    #[test]
    fn limits_end_with_scarcity_and_changes_are_returned() {
        let mut shares = shares(&[("a", "s", 900), ("b", "s", 200)]);
        assert_eq!(limits(&shares), [("a/s".into(), 800)]);
        shares.ask(&name("b", "t"), frontends(100));
        assert_eq!(shares.settle(|| unreachable!()), [name("a", "s")]);
        assert_eq!(shares.limit(&name("a", "s")).map(|limit| limit.frontends), Some(700));
        assert_eq!(shares.settle(|| unreachable!()), []);
        shares.ask(&name("a", "s"), EntryCounts::default());
        assert_eq!(shares.settle(|| unreachable!()), [name("a", "s")]);
        assert_eq!((limits(&shares), shares.totals[0]), (vec![], 300));
    }

    #[test]
    fn shared_backends_count_once() {
        let mut shares = Shares::new(EntryCounts::of_counts([1000; 5]));
        let ask = |shares: &mut Shares, i: usize, backends| {
            shares.ask(&name("a", &i.to_string()), EntryCounts { backends, ..EntryCounts::default() });
        };
        (0..3).for_each(|i| ask(&mut shares, i, 400));
        assert_eq!(shares.settle(|| 400), [], "three services of the same endpoints");
        assert_eq!(shares.settle(|| unreachable!("nothing has changed")), []);
        ask(&mut shares, 3, 700);
        assert_eq!(shares.settle(|| 1100).len(), 4);
        assert_eq!(shares.settle(|| unreachable!("it stays so")), []);
        (0..3).for_each(|i| ask(&mut shares, i, 50));
        assert_eq!(shares.settle(|| unreachable!()).len(), 4);
    }

    proptest! {
        /// The total never exceeds the table, in a namespace a larger demand never gets less than a smaller one, and
        /// the order of arrival is irrelevant.
        #[test]
        fn fair_and_full(asked in prop::collection::vec((0u8..4, 0u8..6, 0u32..600), 1..40)) {
            let text: Vec<_> = asked.iter().map(|(n, s, asks)| (n.to_string(), s.to_string(), *asks)).collect();
            let mut last = BTreeMap::new();
            last.extend(text.iter().map(|(n, s, asks)| ((n.clone(), s.clone()), *asks)));
            let forward: Vec<_> = last.iter().map(|((n, s), asks)| (n.as_str(), s.as_str(), *asks)).collect();
            let (one, other) = (shares(&forward), shares(&forward.iter().rev().copied().collect::<Vec<_>>()));
            prop_assert_eq!(&one.limits, &other.limits);
            let gets = |(n, s, asks): &(&str, &str, u32)| {
                one.limit(&name(n, s)).map_or(*asks, |limit| limit.frontends.min(*asks))
            };
            let total: u32 = forward.iter().map(gets).sum();
            let wanted: u32 = forward.iter().map(|(_, _, asks)| asks).sum();
            prop_assert!(total <= 1000 && (wanted > 1000 || total == wanted));
            // Only rounding is lost.
            prop_assert!(wanted <= 1000 || total + 30 > 1000, "{total}");
            for a in &forward {
                for b in forward.iter().filter(|b| b.0 == a.0 && b.2 >= a.2) {
                    prop_assert!(gets(b) >= gets(a));
                }
            }
        }
    }
}
