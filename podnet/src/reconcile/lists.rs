//! Backends in the tables: ids, segments of slots, and their sharing among frontends.
//!
//! Frontends with the same backends have the same segment: the frontends of a service port at its ClusterIP, at the
//! nodes and at its load balancer often differ in nothing else. A segment is written once and never modified.
//!
//! New backends and segments are written by [`Lists::write`], those of many lists by two system calls, before any
//! frontend refers to them.
//!
//! Where nodes must agree on a flow's backend, the segment is spread: a [`maglev`] table, which isn't stored here but
//! computed when it is written. It is large, so if little room is left, the backends are listed as usual. Nodes then
//! still agree while they know the same backends, but when these change, most flows move.

use std::sync::Arc;
use std::time::Instant;

use foldhash::{HashMap, HashSet};
use podnet_common::layout::Backend;

use super::tables::{FEWER, Tables};
use crate::compile::{BackendId, BackendIds, Entry, Segment, Segments, maglev};
use crate::mirror::TableError;

/// Share of `slots` that spread segments leave free for others: a quarter.
const RESERVED: u32 = 4;

/// The backends of a frontend, with their segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    /// In the order of the frontend's backends.
    pub(super) ids: Arc<[BackendId]>,
    pub(super) segment: Segment,
}

impl List {
    /// Whether the segment is a [`maglev`] table. A table with as many slots as backends would have no benefit.
    pub(super) fn is_spread(&self) -> bool {
        self.segment.count as usize != self.ids.len()
    }

    /// Ids that aren't in the other list.
    pub(super) fn without(&self, other: &Self) -> Vec<BackendId> {
        let mut others = other.ids.to_vec();
        others.sort_unstable();
        self.ids.iter().filter(|id| others.binary_search(id).is_err()).copied().collect()
    }
}

/// All lists.
#[derive(Clone, Debug)]
pub(super) struct Lists {
    ids: BackendIds,
    segments: Segments,
    /// Number of slots of a spread segment.
    spread: u32,
    /// Segments that can be shared, by ids and whether they are spread.
    known: HashMap<(Arc<[BackendId]>, bool), Segment>,
    /// Number of frontends that use a segment, by its first slot.
    uses: HashMap<u32, u32>,
    unwritten: Unwritten,
}

/// Entries of new lists. Only new lists refer to new backends.
#[derive(Clone, Debug, Default)]
struct Unwritten {
    ids: Vec<BackendId>,
    /// One for each id.
    backends: Vec<Backend>,
    slots: Vec<u32>,
    /// One for each slot.
    slot_ids: Vec<BackendId>,
    /// First slots of their segments.
    segments: HashSet<u32>,
}

/// Contents of the tables, read for adoption.
pub(super) struct Found {
    /// From the first slot on, as far as frontends refer to them.
    slots: Vec<BackendId>,
    /// From the first backend on, as far as these slots refer to them.
    backends: Vec<Backend>,
    /// Lists by their first slot, and whether they are correct.
    lists: HashMap<u32, (List, bool)>,
}

impl Found {
    /// Reads everything that these segments refer to in bulk; otherwise each backend would take a system call.
    pub(super) fn read(segments: impl Iterator<Item = Segment>, tables: &dyn Tables) -> Result<Self, TableError> {
        let capacity = tables.capacity();
        let ends = segments.map(|segment| segment.base.saturating_add(segment.count));
        let slots = match ends.max().unwrap_or_default().min(capacity.slots) {
            0 => Vec::new(),
            count => tables.slots(Segment { base: 0, count })?,
        };
        // Unused slots may contain anything.
        let ids = slots.iter().map(|id| id.0).filter(|id| *id < capacity.backends);
        let backends = match ids.max() {
            None => Vec::new(),
            Some(last) => tables.backends(BackendId(0), last + 1)?,
        };
        Ok(Self { slots, backends, lists: HashMap::default() })
    }
}

impl Lists {
    /// Without knowledge of the tables' contents yet. `spread`: number of slots of a spread segment, a prime; for any
    /// other number nothing is spread.
    pub(super) fn new(tables: &dyn Tables, spread: u32) -> Self {
        let capacity = tables.capacity();
        Self {
            ids: BackendIds::new(capacity.backends),
            segments: Segments::new(capacity.slots),
            spread: if maglev::is_prime(spread) { spread } else { 0 },
            known: HashMap::default(),
            uses: HashMap::default(),
            unwritten: Unwritten::default(),
        }
    }

    /// Adopts what is valid of a frontend's segment and ids. Returns also whether all of it is. `spread`: the segment
    /// may be a [`maglev`] table.
    pub(super) fn adopt(&mut self, segment: Segment, spread: bool, found: &mut Found) -> (List, bool) {
        if segment.count == 0 {
            return (List::default(), true);
        }
        if let Some((list, sound)) = found.lists.get(&segment.base).filter(|(list, _)| list.segment == segment) {
            *self.uses.entry(segment.base).or_default() += 1;
            return (list.clone(), *sound);
        }
        if !self.segments.adopt(segment) {
            return (List::default(), false);
        }
        let slots = &found.slots[segment.base as usize..][..segment.count as usize];
        let mut distinct = slots.to_vec();
        if spread {
            distinct.sort_unstable();
            distinct.dedup();
        }
        let mut members = Vec::with_capacity(distinct.len());
        for id in &distinct {
            let backend = found.backends.get(id.0 as usize).copied().unwrap_or_default();
            if self.ids.adopt(*id, backend) {
                members.push((maglev::identity(&backend), *id));
            }
        }
        let complete = members.len() == distinct.len();
        if spread {
            members.sort_unstable();
        }
        let list = List { ids: members.into_iter().map(|(_, id)| id).collect(), segment };
        let right = |slots: &[BackendId]| {
            if list.is_spread() {
                segment.count == self.spread && slots == self.spread_slots(&list.ids)
            } else {
                slots == &*list.ids
            }
        };
        let sound = complete && right(slots);
        if sound {
            self.known.entry((list.ids.clone(), list.is_spread())).or_insert(segment);
        }
        self.uses.insert(segment.base, 1);
        found.lists.insert(segment.base, (list.clone(), sound));
        (list, sound)
    }

    /// The slots of a spread segment.
    fn spread_slots(&self, ids: &[BackendId]) -> Vec<BackendId> {
        let backends: Vec<_> = ids.iter().map(|id| self.ids.backend(*id)).collect();
        maglev::table(&backends, self.spread).into_iter().map(|i| ids[i as usize]).collect()
    }

    /// Whether the segment of an entry's backends should be a [`maglev`] table.
    pub(super) fn is_spread(&self, entry: &Entry<'_>) -> bool {
        entry.spread() && !entry.backends.is_empty() && entry.backends.len() < self.spread as usize
    }

    /// The list of these backends, for one more frontend; a new one is written by [`Self::write`]. It isn't spread if
    /// there is no room for that, see [`List::is_spread`]. On failure, what was allocated is released, in quarantine
    /// until `until`.
    pub(super) fn acquire(&mut self, backends: &[Backend], spread: bool, until: Instant) -> Result<List, TableError> {
        if backends.is_empty() {
            return Ok(List::default());
        }
        if let Some(list) = self.share(backends, spread) {
            return Ok(list);
        }
        if spread && let Some(segment) = self.allocate_spread() {
            return self.add(backends, segment, until);
        }
        if spread && let Some(list) = self.share(backends, false) {
            return Ok(list);
        }
        let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        let segment = self.segments.allocate(count).ok_or(TableError::Full { table: "slots", advice: FEWER })?;
        self.add(backends, segment, until)
    }

    fn share(&mut self, backends: &[Backend], spread: bool) -> Option<List> {
        let ids: Arc<[BackendId]> = backends.iter().map(|backend| self.ids.find(backend)).collect::<Option<_>>()?;
        let ((ids, _), segment) = self.known.get_key_value(&(ids, spread))?;
        *self.uses.get_mut(&segment.base)? += 1;
        Some(List { ids: ids.clone(), segment: *segment })
    }

    fn allocate_spread(&mut self) -> Option<Segment> {
        let left = self.segments.capacity() - self.segments.taken();
        let enough = left.saturating_sub(self.spread) >= self.segments.capacity() / RESERVED;
        if enough { self.segments.allocate(self.spread) } else { None }
    }

    /// Adds a list that is yet to be written.
    fn add(&mut self, backends: &[Backend], segment: Segment, until: Instant) -> Result<List, TableError> {
        let written = self.unwritten.ids.len();
        let mut ids = Vec::with_capacity(backends.len());
        for &backend in backends {
            let Some((id, fresh)) = self.ids.acquire(backend) else {
                ids.into_iter().for_each(|id| self.ids.release(id, until));
                self.unwritten.backends.truncate(written);
                self.unwritten.ids.drain(written..).for_each(|id| self.ids.forget(id));
                self.segments.release(segment, until);
                return Err(TableError::Full { table: "backends", advice: FEWER });
            };
            ids.push(id);
            if fresh {
                self.unwritten.ids.push(id);
                self.unwritten.backends.push(backend);
            }
        }
        if segment.count as usize == ids.len() {
            self.unwritten.slot_ids.extend(&ids);
        } else {
            let spread = self.spread_slots(&ids);
            self.unwritten.slot_ids.extend(spread);
        }
        self.unwritten.slots.extend((segment.base..).take(segment.count as usize));
        self.unwritten.segments.insert(segment.base);
        let list = List { ids: ids.into(), segment };
        self.known.insert((list.ids.clone(), list.is_spread()), segment);
        self.uses.insert(segment.base, 1);
        Ok(list)
    }

    /// Number of slots to write.
    pub(super) fn unwritten_slots(&self) -> usize {
        self.unwritten.slots.len()
    }

    /// Writes new lists. After a failure, all that are [unwritten](Self::is_unwritten) must be released and
    /// [abandoned](Self::abandon_unwritten).
    pub(super) fn write(&mut self, tables: &mut dyn Tables) -> Result<(), TableError> {
        let Unwritten { ids, backends, slots, slot_ids, .. } = &self.unwritten;
        if !ids.is_empty() {
            tables.put_backends(ids, backends)?;
        }
        if !slots.is_empty() {
            tables.put_slots(slots, slot_ids)?;
        }
        self.unwritten = Unwritten::default();
        Ok(())
    }

    /// Whether a list may be missing in the tables.
    pub(super) fn is_unwritten(&self, list: &List) -> bool {
        list.segment.count != 0 && self.unwritten.segments.contains(&list.segment.base)
    }

    /// Frees the ids of new backends. All new lists have been released.
    pub(super) fn abandon_unwritten(&mut self) {
        let Unwritten { ids, .. } = std::mem::take(&mut self.unwritten);
        ids.into_iter().for_each(|id| self.ids.forget(id));
    }

    /// Releases a frontend's list. With the last release, segment and ids are quarantined until `until`, which must not
    /// be before earlier ones.
    pub(super) fn release(&mut self, list: &List, until: Instant) {
        let Some(uses) = self.uses.get_mut(&list.segment.base).filter(|_| list.segment.count != 0) else { return };
        *uses -= 1;
        if *uses != 0 {
            return;
        }
        self.uses.remove(&list.segment.base);
        let key = (list.ids.clone(), list.is_spread());
        if self.known.get(&key) == Some(&list.segment) {
            self.known.remove(&key);
        }
        list.ids.iter().for_each(|&id| self.ids.release(id, until));
        self.segments.release(list.segment, until);
    }

    /// Frees segments and ids whose quarantine has ended.
    pub(super) fn expire(&mut self, now: Instant) {
        self.ids.expire(now);
        self.segments.expire(now);
    }

    /// Whether a list has exactly these backends, in this order.
    pub(super) fn is_of(&self, list: &List, backends: &[Backend]) -> bool {
        list.ids.len() == backends.len()
            && list.ids.iter().zip(backends).all(|(&id, backend)| self.ids.backend(id) == *backend)
    }

    /// The id of a backend that is in use or in quarantine.
    pub(super) fn find(&self, backend: &Backend) -> Option<BackendId> {
        self.ids.find(backend)
    }

    /// The backend of an id.
    pub(super) fn backend(&self, id: BackendId) -> Backend {
        self.ids.backend(id)
    }

    /// Number of slots in use or in quarantine.
    pub(super) fn slots(&self) -> u32 {
        self.segments.taken()
    }

    /// Number of ids in use or in quarantine.
    pub(super) fn backends(&self) -> usize {
        self.ids.taken()
    }
}
