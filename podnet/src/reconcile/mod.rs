//! Reconciles the tables with the desired state, and retries what fails.
//!
//! To update a frontend, its new backends and a new segment of slots are written, and then its one value is replaced: a
//! reader sees the old backends or the new ones, never a mix. The old segment and ids are quarantined for a grace
//! period. A failure leaves the frontend unchanged and is retried with back-off. Backends, slots and values of many
//! frontends are written by one system call each.
//!
//! Everything to which a frontend's entry refers is written before the entry and removed after it: its segment, its
//! source ranges, and its entries for other scopes. Affinities end together with their backend.
//!
//! At start, [`Reconciler::adopt`] reads what an earlier daemon has left. A frontend that is correct isn't touched, so
//! it keeps its segment and ids; one that isn't desired is removed only once the sources are synced.
//!
//! Time is a parameter; only [`Tables`] has side effects.

mod affinity;
pub mod dump;
mod lists;
mod outcome;
mod ranges;
mod tables;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podnet_common::addr::Proto;
use podnet_common::layout::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange};
use tracing::{debug, warn};

pub use outcome::{Outcome, Pending, Removed, Usage};
pub use tables::{KeepAffinity, Tables};

use crate::compile::{BackendId, Desired, Entry, Segment, ServiceId, ServiceNames, of_node, scoped, show};
use crate::frontend::ServicePortName;
use crate::mirror::{Mirror, Retry, TableError};
use affinity::Affinities;
use lists::{List, Lists};
use ranges::Ranges;

/// Quarantine of segments and ids. A program runs for microseconds; this leaves room for one that was preempted.
pub const GRACE: Duration = Duration::from_secs(2);

/// State of reconciliation: contents of the tables, and pending work.
#[derive(Clone, Debug)]
pub struct Reconciler {
    grace: Duration,
    lists: Lists,
    ranges: Ranges,
    names: ServiceNames,
    affinities: Affinities,
    /// The table `frontends`.
    mirror: Mirror<FrontendKey, Present>,
}

/// A frontend in the tables, and what it uses in other tables.
#[derive(Clone, Debug)]
struct Present {
    value: Frontend,
    list: List,
    /// Whether its segment is correct; a wrong one that was adopted is rewritten.
    sound: bool,
    ranges: Box<[SourceRange]>,
}

/// The backends of a frontend, with the protocol.
type Members = (Proto, Arc<[BackendId]>);

/// Context of [`Reconciler::run`].
struct Round<'a> {
    tables: &'a mut dyn Tables,
    now: Instant,
    outcome: Outcome,
    /// All of one scope.
    staged: Vec<Staged>,
}

/// A frontend whose new value isn't visible yet, and whose list may be unwritten; everything else to which it refers is
/// written.
struct Staged {
    key: FrontendKey,
    new: Present,
    /// Whether its segment should be a [`maglev`](crate::compile::maglev) table.
    spread: bool,
}

/// Number of frontends that are made visible by one system call.
const BATCH: usize = 256;

/// Number of slots to write with which a smaller number of frontends is made visible.
const BATCH_SLOTS: usize = 1 << 16;

/// Why a frontend isn't spread though it should be, and the remedy.
const UNSPREAD: &str = "nodes choose the same backend only until its endpoints change: set a smaller maglevTableSize, \
                        or preserve the source of fewer services";

/// The scopes of a frontend's entries other than [`FrontendKey::ANY`], and the flag in the `ANY` entry that refers to
/// each.
const SCOPES: [(u8, u16); 2] =
    [(FrontendKey::OUTSIDE, Frontend::OUTSIDE_DIFFERS), (FrontendKey::PEER, Frontend::DIRECT_RETURN)];

impl Reconciler {
    /// Adopts the contents of the tables. `names`: read from the earlier daemon's file. `spread`: number of slots of a
    /// frontend for which nodes must agree.
    ///
    /// # Errors
    /// The first read that fails.
    pub fn adopt(tables: &dyn Tables, names: ServiceNames, spread: u32, grace: Duration) -> Result<Self, TableError> {
        let (ranges, ranges_found) = Ranges::adopt(tables)?;
        let mut reconciler = Self {
            grace,
            lists: Lists::new(tables, spread),
            ranges,
            names,
            affinities: Affinities::new(grace),
            mirror: Mirror::default(),
        };
        let frontends = tables.frontends()?;
        let mut present = Vec::with_capacity(frontends.len());
        let segment = |value: &Frontend| Segment { base: value.slot_base, count: value.slot_count };
        let mut lists_found = lists::Found::read(frontends.iter().map(|(_, value)| segment(value)), tables)?;
        for (key, value) in frontends {
            let spread = value.flags & Frontend::DIRECT_RETURN != 0;
            let (list, sound) = reconciler.lists.adopt(segment(&value), spread, &mut lists_found);
            if !sound {
                warn!(frontend = %show(&key), "rewriting an inconsistent frontend in the tables");
            }
            let restricted = value.flags & Frontend::SOURCE_RANGES != 0;
            let ranges = restricted.then(|| reconciler.ranges.adopt_frontend(&key, value.service, &ranges_found));
            reconciler.names.adopt(ServiceId(value.service));
            reconciler.affinities.add(key, &value);
            present.push((key, Present { value, list, sound, ranges: ranges.unwrap_or_default() }));
        }
        reconciler.mirror = Mirror::adopt(present);
        for service in ranges_found.keys() {
            reconciler.names.avoid(ServiceId(*service));
        }
        reconciler.names.forget_unused();
        Ok(reconciler)
    }

    /// Schedules frontends for the next round.
    pub fn mark(&mut self, keys: impl IntoIterator<Item = FrontendKey>) {
        self.mirror.mark(keys);
    }

    /// Does the work that is due. Unless `synced`, an adopted frontend stays unchanged if it isn't desired, or is
    /// desired without backends: its manifest may be unreadable at the moment.
    pub fn run(&mut self, desired: &Desired, tables: &mut dyn Tables, synced: bool, now: Instant) -> Outcome {
        self.lists.expire(now);
        let due = self.mirror.take_due(synced, now);
        let mut round = Round { tables, now, outcome: Outcome::default(), staged: Vec::new() };
        for entries in in_order(due, desired) {
            for (key, entry) in entries {
                let other_scope = round.staged.last().is_some_and(|staged| staged.key.scope != key.scope);
                let full = round.staged.len() == BATCH || self.lists.unwritten_slots() >= BATCH_SLOTS;
                if other_scope || full {
                    self.show_staged(&mut round);
                }
                self.bring_into_line(key, entry, &mut round);
            }
            self.show_staged(&mut round);
            self.ranges.sweep(round.tables, now);
        }
        self.prune_affinities(&mut round);
        let mut outcome = round.outcome;
        outcome.pending = self.pending().count();
        outcome.unwritten = self.pending().filter(|(_, retry)| !retry.written).count();
        let retries = self.pending().map(|(_, retry)| retry.at);
        outcome.next_retry = retries.chain(self.affinities.next()).min();
        outcome
    }

    fn bring_into_line(&mut self, key: FrontendKey, entry: Option<Entry<'_>>, round: &mut Round<'_>) {
        if self.mirror.unclaimed().contains(&key) && entry.is_none_or(|entry| entry.backends.is_empty()) {
            return;
        }
        self.mirror.claim(&key);
        let spread = entry.is_some_and(|entry| self.lists.is_spread(&entry));
        let done = match &entry {
            Some(entry) => match self.stage(key, entry, round) {
                // Done by `show_staged`.
                Ok(true) => return,
                result => result,
            },
            None => self.delete(key, round),
        };
        self.note(key, done, spread, round);
    }

    /// Notes whether a frontend was changed, or why it couldn't be.
    fn note(&mut self, key: FrontendKey, changed: Result<bool, TableError>, spread: bool, round: &mut Round<'_>) {
        match changed {
            Ok(changed) => {
                round.outcome.changed += usize::from(changed);
                if spread && self.mirror.get(&key).is_some_and(|present| !present.list.is_spread()) {
                    self.postpone(key, &TableError::Full { table: "slots", advice: UNSPREAD }, true, round.now);
                } else {
                    self.mirror.done(&key);
                }
            }
            Err(error) => self.note_failure(key, &error, round),
        }
    }

    fn note_failure(&mut self, key: FrontendKey, error: &TableError, round: &mut Round<'_>) {
        round.outcome.failed += 1;
        self.postpone(key, error, false, round.now);
    }

    /// Prepares everything to which a frontend refers and stages its value, unless it is correct already; returns
    /// whether it was staged. On failure nothing changes for readers, and what was allocated is released.
    fn stage(&mut self, key: FrontendKey, entry: &Entry<'_>, round: &mut Round<'_>) -> Result<bool, TableError> {
        if key.scope == FrontendKey::ANY {
            let missing = |scope| self.mirror.get(&scoped(key, scope)).is_none();
            let scopes = SCOPES.into_iter().filter(|(_, flag)| entry.flags & flag != 0);
            if let Some((scope, _)) = scopes.into_iter().find(|(scope, _)| missing(*scope)) {
                return Err(TableError::Waits(format!("the entry of {}", show(&scoped(key, scope)))));
            }
        }
        let known = self.mirror.get(&key).map(|present| ServiceId(present.value.service));
        let service = entry.service.map_or(ServiceId::default(), |name| self.names.acquire(name, known));
        let staged = self.stage_as(service, key, entry, round);
        if !matches!(staged, Ok(true)) {
            self.names.release(service);
        }
        staged
    }

    fn stage_as(
        &mut self,
        service: ServiceId,
        key: FrontendKey,
        entry: &Entry<'_>,
        round: &mut Round<'_>,
    ) -> Result<bool, TableError> {
        let service = service.with_affinity(entry.affinity_group).0;
        let ranges = ranges::of_service(service, entry.source_ranges);
        let spread = self.lists.is_spread(entry);
        let value = |list: &List| Frontend {
            service,
            slot_base: list.segment.base,
            slot_count: list.segment.count,
            flags: entry.flags,
            affinity: entry.affinity,
            ..Frontend::default()
        };
        let is_right =
            |present: &Present, list: &List| present.sound && present.value == value(list) && present.ranges == ranges;
        let right = |p: &Present| is_right(p, &p.list) && p.list.is_spread() == spread;
        if self.mirror.get(&key).is_some_and(|p| right(p) && self.lists.is_of(&p.list, entry.backends)) {
            return Ok(false);
        }
        let until = round.now + self.grace;
        let list = self.lists.acquire(entry.backends, spread, until)?;
        // Without room for spreading, this may be the present list.
        if self.mirror.get(&key).is_some_and(|present| is_right(present, &list)) {
            self.lists.release(&list, until);
            return Ok(false);
        }
        if let Err(error) = self.ranges.acquire(&ranges, round.tables) {
            self.lists.release(&list, until);
            return Err(error);
        }
        let new = Present { value: value(&list), list, sound: true, ranges };
        round.staged.push(Staged { key, new, spread });
        Ok(true)
    }

    /// Writes what the staged frontends still lack, and makes them visible to readers: together, or one by one if the
    /// kernel refuses any of them.
    fn show_staged(&mut self, round: &mut Round<'_>) {
        let mut staged = std::mem::take(&mut round.staged);
        if let Err(error) = self.lists.write(round.tables) {
            let unwritten = staged.extract_if(.., |staged| self.lists.is_unwritten(&staged.new.list));
            for Staged { key, new, .. } in unwritten.collect::<Vec<_>>() {
                self.release(&new, round.now);
                self.note_failure(key, &error, round);
            }
            self.lists.abandon_unwritten();
        }
        let differs = |staged: &&Staged| self.mirror.get(&staged.key).is_none_or(|old| old.value != staged.new.value);
        let entries: Vec<_> = staged.iter().filter(differs).map(|staged| (staged.key, staged.new.value)).collect();
        let mut left = round.tables.put_frontends(&entries);
        for Staged { key, new, spread } in staged {
            let same = self.mirror.get(&key).is_some_and(|old| old.value == new.value);
            let written = if same {
                Ok(())
            } else if left > 0 {
                left -= 1;
                Ok(())
            } else {
                round.tables.put_frontend(&key, &new.value)
            };
            let done = match written {
                Ok(()) => {
                    if let Some(old) = self.mirror.put(key, new.clone()) {
                        self.retire(key, &old, Some(&new), round);
                    }
                    self.affinities.add(key, &new.value);
                    Ok(true)
                }
                Err(error) => {
                    self.release(&new, round.now);
                    Err(error)
                }
            };
            self.note(key, done, spread, round);
        }
    }

    /// Releases what a frontend uses in other tables.
    fn release(&mut self, present: &Present, now: Instant) {
        self.lists.release(&present.list, now + self.grace);
        self.ranges.release(&present.ranges);
        self.names.release(ServiceId(present.value.service));
    }

    fn delete(&mut self, key: FrontendKey, round: &mut Round<'_>) -> Result<bool, TableError> {
        if self.mirror.get(&key).is_none() {
            return Ok(false);
        }
        let any = scoped(key, FrontendKey::ANY);
        let flags = self.mirror.get(&any).map_or(0, |present| present.value.flags);
        if SCOPES.iter().any(|(scope, flag)| *scope == key.scope && flags & flag != 0) {
            return Err(TableError::Waits(format!("the entry of {}", show(&any))));
        }
        round.tables.delete_frontend(&key)?;
        if let Some(old) = self.mirror.delete(&key) {
            self.retire(key, &old, None, round);
        }
        Ok(true)
    }

    /// Releases what a frontend used before it was replaced or deleted.
    fn retire(&mut self, key: FrontendKey, old: &Present, new: Option<&Present>, round: &mut Round<'_>) {
        let follows_backends = key.proto == Proto::UDP;
        if follows_backends || old.value.affinity != 0 {
            let lost = new.map_or_else(|| old.list.ids.to_vec(), |new| old.list.without(&new.list));
            let same_affinity = |new: &Present| new.value.affinity != 0 && new.value.service == old.value.service;
            if old.value.affinity != 0 && !(lost.is_empty() && new.is_some_and(same_affinity)) {
                self.affinities.demand(old.value.service, round.now);
            }
            if follows_backends && !lost.is_empty() {
                let backends = lost.into_iter().map(|id| self.lists.backend(id)).collect();
                round.outcome.removed.push(Removed { key, backends });
            }
        }
        self.affinities.remove(&key, &old.value);
        self.release(old, round.now);
    }

    /// Removes affinities to backends that no frontend with the same service and scope has.
    fn prune_affinities(&mut self, round: &mut Round<'_>) {
        let (due, all) = (self.affinities.due(round.now), self.affinities.all_due(round.now));
        if due.is_empty() && !all {
            return;
        }
        let mut lists: HashMap<u32, Vec<Members>> = HashMap::new();
        for service in &due {
            let lists = lists.entry(*service).or_default();
            for key in self.affinities.frontends(*service) {
                let list = self.mirror.get(key).map(|present| (key.proto, present.list.ids.clone()));
                if let Some(list) = list.filter(|list| !lists.contains(list)) {
                    lists.push(list);
                }
            }
        }
        let keep = |key: &AffinityKey, affinity: &Affinity| {
            let leads = |(proto, ids): &Members| {
                let backend = Backend { addr: affinity.addr, port: affinity.port, proto: *proto, _pad: 0 };
                self.lists.find(&backend).is_some_and(|id| ids.contains(&id))
            };
            let examined = all || due.contains(&key.service);
            !examined || lists.get(&key.service).is_some_and(|lists| lists.iter().any(leads))
        };
        self.affinities.prune(&keep, round.tables, round.now);
    }

    fn postpone(&mut self, key: FrontendKey, error: &TableError, written: bool, now: Instant) {
        let failures = self.mirror.failed(key, error, written, now).failures;
        if failures == 1 {
            warn!(frontend = %show(&key), "cannot write a frontend, retrying: {error}");
        } else {
            debug!(frontend = %show(&key), failures, "cannot write a frontend, retrying: {error}");
        }
    }

    /// Failed work, with the reason.
    pub fn pending(&self) -> impl Iterator<Item = (Pending<'_>, &Retry)> {
        let ranges = self.ranges.retry().map(|retry| (Pending::Table("source_ranges"), retry));
        let affinity = self.affinities.retry().map(|retry| (Pending::Table("affinity"), retry));
        self.mirror.retries().map(|(key, retry)| (Pending::Frontend(key), retry)).chain(ranges).chain(affinity)
    }

    /// Whether the last change of a frontend couldn't be written yet.
    pub fn is_unwritten(&self, key: &FrontendKey) -> bool {
        self.mirror.retry(key).is_some_and(|retry| !retry.written)
    }

    /// Since when the tables have differed from the desired state because the kernel refuses writes; a full table
    /// doesn't count.
    pub fn stale_since(&self) -> Option<Instant> {
        self.pending().filter(|(_, retry)| retry.refused).map(|(_, retry)| retry.since).min()
    }

    /// Names of the service ids in the tables.
    pub fn names(&self) -> &ServiceNames {
        &self.names
    }

    /// The same, for writing the file.
    pub fn names_mut(&mut self) -> &mut ServiceNames {
        &mut self.names
    }

    /// Whether the tables lead from a destination to this backend, for any client; flows for which they don't are
    /// stale. The destination may be an address of the node; the scope of the key is ignored.
    pub fn leads_to(&self, key: &FrontendKey, backend: &Backend) -> bool {
        let Some(id) = self.lists.find(backend) else { return false };
        self.entries(key).any(|present| present.list.ids.contains(&id))
    }

    /// The service port at a destination.
    pub fn service_of(&self, key: &FrontendKey) -> Option<&ServicePortName> {
        let present = self.entries(key).next()?;
        self.names.name(ServiceId(present.value.service))
    }

    /// The backends to which the tables lead from a destination, in the sense of [`Self::leads_to`]; may contain
    /// duplicates.
    pub fn backends(&self, key: &FrontendKey) -> impl Iterator<Item = Backend> {
        self.entries(key).flat_map(|present| present.list.ids.iter().map(|id| self.lists.backend(*id)))
    }

    /// The entries of a destination, for all scopes.
    fn entries(&self, key: &FrontendKey) -> impl Iterator<Item = &Present> {
        let exact = scoped(*key, FrontendKey::ANY);
        let node = if key.addr.is_v4() { FrontendKey::NODE_V4 } else { FrontendKey::NODE_V6 };
        let keys = [exact, FrontendKey { addr: node, ..exact }];
        let any = keys.into_iter().find_map(|key| Some((key, self.mirror.get(&key)?)));
        any.into_iter().flat_map(move |(key, any)| {
            let others = SCOPES.into_iter().filter(move |(_, flag)| any.value.flags & flag != 0);
            let others = others.filter_map(move |(scope, _)| self.mirror.get(&scoped(key, scope)));
            std::iter::once(any).chain(others)
        })
    }

    /// External addresses left by an earlier daemon, none of whose ports has been desired so far.
    pub fn unclaimed_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let external = |key: &FrontendKey| {
            self.mirror.get(key).is_some_and(|present| present.value.flags & Frontend::EXTERNAL != 0)
        };
        let keys = self.mirror.unclaimed().iter().filter(move |key| !of_node(key) && external(key));
        keys.map(|key| IpAddr::from(key.addr))
    }

    /// Table entries in use, including those in quarantine.
    pub fn usage(&self) -> Usage {
        Usage {
            frontends: self.mirror.len(),
            slots: self.lists.slots(),
            backends: self.lists.backends(),
            source_ranges: self.ranges.len(),
        }
    }
}

/// A key with its desired entry, if there should be one.
type Work<'a> = (FrontendKey, Option<Entry<'a>>);

/// The work in three steps: removals make room for additions. What an entry refers to is written before it and removed
/// after it.
fn in_order(due: BTreeSet<FrontendKey>, desired: &Desired) -> [Vec<Work<'_>>; 3] {
    let (mut gone, mut wanted, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for key in due {
        let entry = desired.get(&key);
        let step = if entry.is_some() {
            &mut wanted
        } else if desired.get(&scoped(key, FrontendKey::ANY)).is_some() {
            &mut left
        } else {
            &mut gone
        };
        step.push((key, entry));
    }
    gone.sort_by_key(|(key, _)| key.scope);
    wanted.sort_by_key(|(key, _)| Reverse(key.scope));
    [gone, wanted, left]
}

#[cfg(test)]
mod tests;
