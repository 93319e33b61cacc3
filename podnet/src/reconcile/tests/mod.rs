//! Reconciliation with tables that fail, fill up, and are read between any two writes.

mod adopted;
mod affinities;
mod frontends;
mod segments;
mod sequences;
mod source_ranges;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::*;
use crate::compile::{self, maglev};
use crate::datapath::memory::MemoryTables;
use crate::frontend::{self, Backends, FrontendAddr, FrontendKind, IfNone, Owner, ServicePortName, SourceMode};
use crate::model::{ObjectName, Protocol};

/// Number of slots of a spread segment.
const SPREAD: u32 = 7;

fn service(name: &str) -> ObjectName {
    ObjectName { namespace: "default".into(), name: name.into() }
}

fn addresses(list: &[u8]) -> Vec<SocketAddr> {
    list.iter().map(|n| SocketAddr::from(([10, 0, 0, *n], 80))).collect()
}

fn list(list: &[u8]) -> Backends {
    Backends { list: addresses(list), if_none: IfNone::Reject }
}

fn frontend(owner: &str, at: &str, protocol: Protocol, backends: &[u8]) -> frontend::Frontend {
    frontend::Frontend {
        key: FrontendAddr { socket: at.parse().unwrap(), protocol },
        kind: FrontendKind::ClusterIp,
        service: ServicePortName { service: service(owner), port: format!("{protocol}") },
        source: SourceMode::Auto,
        affinity: 0,
        source_ranges: None,
        backends: list(backends),
        outside: None,
        here: None,
        spread: true,
    }
}

fn udp(owner: &str, at: &str, backends: &[u8]) -> frontend::Frontend {
    frontend(owner, at, Protocol::Udp, backends)
}

/// A load balancer address with direct server return.
fn direct(owner: &str, at: &str, backends: &[u8]) -> frontend::Frontend {
    let kind = FrontendKind::LoadBalancer;
    frontend::Frontend { kind, here: Some(addresses(&backends[..1])), ..frontend(owner, at, Protocol::Tcp, backends) }
}

/// Key of a frontend, with scope `ANY`.
fn key(frontend: &frontend::Frontend) -> FrontendKey {
    compile::key(&frontend.key)
}

/// Tables, desired frontends, the reconciler between them, and a clock.
struct Bench {
    tables: MemoryTables,
    desired: Desired,
    reconciler: Reconciler,
    now: Instant,
    synced: bool,
    /// Frontends that were readable: when they last were, and their backends.
    seen: Vec<Seen>,
}

type Seen = (Instant, Frontend, Vec<Backend>);

impl Bench {
    fn new(tables: MemoryTables) -> Self {
        let reconciler = Reconciler::adopt(&tables, ServiceNames::default(), SPREAD, GRACE).unwrap();
        Self { tables, desired: Desired::default(), reconciler, now: Instant::now(), synced: true, seen: Vec::new() }
    }

    /// Starts another daemon on the same tables; with `names`, it reads the file of the last one.
    fn restart(&mut self, names: bool) {
        let names = if names { self.reconciler.names().clone() } else { ServiceNames::default() };
        self.reconciler = Reconciler::adopt(&self.tables, names, SPREAD, GRACE).unwrap();
        self.desired = Desired::default();
        self.synced = false;
        // Starting a daemon takes longer than a program runs.
        self.seen.clear();
    }

    fn set(&mut self, owner: &str, frontends: Vec<frontend::Frontend>) {
        self.reconciler.mark(self.desired.set(&Owner::Service(service(owner)), frontends));
    }

    fn run(&mut self) -> Outcome {
        let before = self.resolved();
        let old_ranges = self.reconciler.mirror.iter().map(|(key, present)| (*key, present.ranges.to_vec())).collect();
        let mut watched = Watched::new(&mut self.tables, &self.desired, old_ranges, &mut self.seen, self.now);
        let outcome = self.reconciler.run(&self.desired, &mut watched, self.synced, self.now);
        // Exactly the losses of UDP frontends are reported.
        let after = self.resolved();
        let mut lost = BTreeMap::new();
        for (key, old) in before.iter().filter(|(key, _)| key.proto == Proto::UDP) {
            let new = after.get(key).map_or(&[][..], Vec::as_slice);
            let gone: Vec<_> = old.iter().filter(|backend| !new.contains(backend)).copied().collect();
            if !gone.is_empty() {
                lost.insert(*key, gone);
            }
        }
        assert_eq!(outcome.removed.iter().map(|r| (r.key, r.backends.clone())).collect::<BTreeMap<_, _>>(), lost);
        let affinities = &self.reconciler.affinities;
        let soon = self.now + Duration::from_millis(100);
        if affinities.retry().is_none() && affinities.next().is_none_or(|next| next > soon) {
            for (key, affinity) in &*self.tables.affinity.borrow() {
                let meant = |(at, value): (&FrontendKey, &Frontend)| {
                    let backend = Backend { addr: affinity.addr, port: affinity.port, proto: at.proto, _pad: 0 };
                    value.service == key.service && value.affinity != 0 && after[at].contains(&backend)
                };
                assert!(
                    self.tables.frontends.iter().any(meant),
                    "{key:?} leads to {affinity:?}, and nothing else does"
                );
            }
        }
        outcome
    }

    /// Runs until nothing is in quarantine and nothing is pending.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.run();
            self.now += Duration::from_secs(6);
        }
        assert_eq!(self.run(), Outcome::default());
    }

    fn resolved(&self) -> BTreeMap<FrontendKey, Vec<Backend>> {
        self.tables.frontends.iter().map(|(key, value)| (*key, resolve(&self.tables, value))).collect()
    }

    fn wanted(&self) -> BTreeMap<FrontendKey, Vec<Backend>> {
        let keys = self.desired.keys().into_iter();
        keys.map(|key| (key, self.desired.get(&key).unwrap().backends.to_vec())).collect()
    }

    /// Values are as desired, except for ids and positions.
    fn assert_as_desired(&self) {
        assert_eq!(self.resolved(), self.wanted());
        let mut ranges = BTreeSet::new();
        for (key, value) in &self.tables.frontends {
            let entry = self.desired.get(key).unwrap();
            assert_eq!((value.flags, value.affinity), (entry.flags, entry.affinity), "{key:?}");
            let name = self.reconciler.names().name(ServiceId(value.service));
            assert_eq!(name, entry.service.map(|name| &**name), "{key:?}");
            ranges.extend(ranges::of_service(value.service, entry.source_ranges));
        }
        assert_eq!(self.tables.source_ranges, ranges);
    }
}

/// The backends of a frontend, without duplicates.
fn resolve(tables: &MemoryTables, frontend: &Frontend) -> Vec<Backend> {
    let mut slots = tables.resolve(frontend);
    if slots.len() == SPREAD as usize {
        let mut members = slots.clone();
        members.sort_by_key(maglev::identity);
        members.dedup();
        let table: Vec<_> = maglev::table(&members, SPREAD).iter().map(|i| members[*i as usize]).collect();
        if table == slots {
            slots = members;
        }
    }
    slots
}

/// Reads all frontends after every write, as packets do, including packets in flight that have read a frontend earlier.
struct Watched<'a> {
    tables: &'a mut MemoryTables,
    desired: &'a Desired,
    /// Backends of each frontend at the beginning of the round.
    old: BTreeMap<FrontendKey, Vec<Backend>>,
    /// Source ranges of each.
    old_ranges: BTreeMap<FrontendKey, Vec<SourceRange>>,
    /// Frontends as known to slow readers.
    seen: &'a mut Vec<Seen>,
    now: Instant,
}

impl<'a> Watched<'a> {
    fn new(
        tables: &'a mut MemoryTables,
        desired: &'a Desired,
        old_ranges: BTreeMap<FrontendKey, Vec<SourceRange>>,
        seen: &'a mut Vec<Seen>,
        now: Instant,
    ) -> Self {
        let old = tables.frontends.iter().map(|(key, value)| (*key, resolve(tables, value))).collect();
        seen.retain(|(last, ..)| *last + GRACE > now);
        seen.extend(tables.frontends.values().map(|value| (now, *value, tables.resolve(value))));
        Self { tables, desired, old, old_ranges, seen, now }
    }

    fn check<T>(&mut self, result: T) -> T {
        for (key, value) in &self.tables.frontends {
            let found = resolve(self.tables, value);
            assert!(!found.contains(&Backend::default()), "{key:?} leads to an id that was never written");
            let entry = self.desired.get(key);
            let new = entry.map(|entry| entry.backends.to_vec());
            assert!(Some(&found) == self.old.get(key) || Some(&found) == new.as_ref(), "{key:?} leads to {found:?}");
            let others = SCOPES.iter().filter(|(_, flag)| key.scope == FrontendKey::ANY && value.flags & flag != 0);
            for (scope, _) in others {
                assert!(self.tables.frontends.contains_key(&scoped(*key, *scope)), "{key:?} lacks scope {scope}");
            }
            self.check_ranges(key, value, entry);
        }
        for (_, value, backends) in &*self.seen {
            assert_eq!(self.tables.resolve(value), *backends, "a slow reader of {value:?}");
        }
        result
    }

    /// Clients that may use a frontend before and after a change are never refused in between.
    fn check_ranges(&self, key: &FrontendKey, value: &Frontend, entry: Option<Entry<'_>>) {
        if value.flags & Frontend::SOURCE_RANGES != 0 {
            let new = ranges::of_service(value.service, entry.map_or(&[], |entry| entry.source_ranges));
            let old = self.old_ranges.get(key).map_or(&[][..], Vec::as_slice);
            let has = |all: &[SourceRange]| all.iter().all(|range| self.tables.source_ranges.contains(range));
            assert!(has(old) || has(&new), "{key:?} has neither {old:?} nor {new:?}");
        }
    }
}

impl Tables for Watched<'_> {
    fn capacity(&self) -> crate::entry_counts::EntryCounts {
        self.tables.capacity()
    }
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, TableError> {
        self.tables.frontends()
    }
    fn slots(&self, segment: Segment) -> Result<Vec<BackendId>, TableError> {
        self.tables.slots(segment)
    }
    fn backends(&self, first: BackendId, count: u32) -> Result<Vec<Backend>, TableError> {
        self.tables.backends(first, count)
    }
    fn put_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), TableError> {
        let result = self.tables.put_frontend(key, value);
        if result.is_ok() {
            self.seen.push((self.now, *value, self.tables.resolve(value)));
        }
        self.check(result)
    }
    fn delete_frontend(&mut self, key: &FrontendKey) -> Result<(), TableError> {
        let result = self.tables.delete_frontend(key);
        self.check(result)
    }
    fn put_slots(&mut self, slots: &[u32], ids: &[BackendId]) -> Result<(), TableError> {
        let result = self.tables.put_slots(slots, ids);
        self.check(result)
    }
    fn put_backends(&mut self, ids: &[BackendId], backends: &[Backend]) -> Result<(), TableError> {
        let result = self.tables.put_backends(ids, backends);
        self.check(result)
    }
    fn source_ranges(&self) -> Result<Vec<SourceRange>, TableError> {
        self.tables.source_ranges()
    }
    fn put_source_range(&mut self, range: &SourceRange) -> Result<(), TableError> {
        let result = self.tables.put_source_range(range);
        self.check(result)
    }
    fn delete_source_range(&mut self, range: &SourceRange) -> Result<(), TableError> {
        let result = self.tables.delete_source_range(range);
        self.check(result)
    }
    fn prune_affinity(&mut self, keep: &KeepAffinity<'_>) -> Result<usize, TableError> {
        self.tables.prune_affinity(keep)
    }
}

const AT: &str = "10.96.0.1:53";

fn roomy() -> MemoryTables {
    MemoryTables::new(100, 100, 100)
}
