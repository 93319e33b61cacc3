//! Backends in the tables: ids, segments of slots, and their sharing among frontends.
//!
//! Frontends with the same backends have the same segment: the frontends of a service port at its ClusterIP, at the
//! nodes and at its load balancer often differ in nothing else. A segment is written once and never modified.
//!
//! Where nodes must agree on a flow's backend, the segment is spread: a [`maglev`] table, which isn't stored here but
//! computed when it is written. It is large, so if little room is left, the backends are listed as usual. Nodes then
//! still agree while they know the same backends, but when these change, most flows move.

use std::sync::Arc;
use std::time::Instant;

use foldhash::HashMap;
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

    /// The list of these backends, for one more frontend; written now unless another frontend has the same. It isn't
    /// spread if there is no room for that, see [`List::is_spread`]. A failure changes nothing for readers, and what
    /// was allocated is released, in quarantine until `until`.
    pub(super) fn acquire(
        &mut self,
        backends: &[Backend],
        spread: bool,
        tables: &mut dyn Tables,
        until: Instant,
    ) -> Result<List, TableError> {
        if backends.is_empty() {
            return Ok(List::default());
        }
        if let Some(list) = self.share(backends, spread) {
            return Ok(list);
        }
        if spread && let Some(segment) = self.allocate_spread() {
            return self.write(backends, segment, tables, until);
        }
        if spread && let Some(list) = self.share(backends, false) {
            return Ok(list);
        }
        let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        let segment = self.segments.allocate(count).ok_or(TableError::Full { table: "slots", advice: FEWER })?;
        self.write(backends, segment, tables, until)
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

    /// Writes missing backends, and a segment.
    fn write(
        &mut self,
        backends: &[Backend],
        segment: Segment,
        tables: &mut dyn Tables,
        until: Instant,
    ) -> Result<List, TableError> {
        let mut ids = Vec::with_capacity(backends.len());
        match self.write_all(backends, segment, &mut ids, tables) {
            Ok(()) => {
                let list = List { ids: ids.into(), segment };
                self.known.insert((list.ids.clone(), list.is_spread()), segment);
                self.uses.insert(segment.base, 1);
                Ok(list)
            }
            Err(error) => {
                ids.into_iter().for_each(|id| self.ids.release(id, until));
                self.segments.release(segment, until);
                Err(error)
            }
        }
    }

    fn write_all(
        &mut self,
        backends: &[Backend],
        segment: Segment,
        ids: &mut Vec<BackendId>,
        tables: &mut dyn Tables,
    ) -> Result<(), TableError> {
        let (mut new_ids, mut new_backends) = (Vec::with_capacity(backends.len()), Vec::with_capacity(backends.len()));
        let mut full = false;
        for &backend in backends {
            let Some((id, fresh)) = self.ids.acquire(backend) else {
                full = true;
                break;
            };
            ids.push(id);
            if fresh {
                new_ids.push(id);
                new_backends.push(backend);
            }
        }
        let written = if full {
            Err(TableError::Full { table: "backends", advice: FEWER })
        } else if new_ids.is_empty() {
            Ok(())
        } else {
            tables.put_backends(&new_ids, &new_backends)
        };
        if let Err(error) = written {
            new_ids.sort_unstable();
            ids.retain(|id| new_ids.binary_search(id).is_err());
            new_ids.into_iter().for_each(|id| self.ids.forget(id));
            return Err(error);
        }
        if segment.count as usize == ids.len() {
            tables.put_slots(segment.base, ids)
        } else {
            tables.put_slots(segment.base, &self.spread_slots(ids))
        }
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
