//! Allocation in the table `slots`: contiguous segments, best fit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

/// A range of slots; an empty one has base 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Segment {
    /// The first slot.
    pub base: u32,
    /// Number of slots.
    pub count: u32,
}

/// Which slots are free.
#[derive(Clone, Debug)]
pub struct Segments {
    capacity: u32,
    /// Number of free slots.
    free: u32,
    /// Free ranges, never adjacent to each other: base → count.
    by_base: BTreeMap<u32, u32>,
    /// The same: (count, base).
    by_count: BTreeSet<(u32, u32)>,
    /// In the order in which their quarantine ends.
    resting: VecDeque<(Instant, Segment)>,
}

impl Segments {
    /// For a table with `capacity` entries.
    pub fn new(capacity: u32) -> Self {
        let mut segments =
            Self { capacity, free: 0, by_base: BTreeMap::new(), by_count: BTreeSet::new(), resting: VecDeque::new() };
        segments.add(0, capacity);
        segments
    }

    /// Adopts a segment found in the tables. Refuses one that isn't entirely free.
    pub fn adopt(&mut self, segment: Segment) -> bool {
        let Segment { base, count } = segment;
        if count == 0 {
            return true;
        }
        let Some((&free_base, &free_count)) = self.by_base.range(..=base).next_back() else { return false };
        let (end, free_end) = (u64::from(base) + u64::from(count), free_base + free_count);
        if end > u64::from(free_end) {
            return false;
        }
        self.take(free_base, free_count);
        self.add(free_base, base - free_base);
        self.add(base + count, free_end - (base + count));
        true
    }

    /// Allocates a segment of `count` slots; `None` if there is no such range.
    pub fn allocate(&mut self, count: u32) -> Option<Segment> {
        if count == 0 {
            return Some(Segment::default());
        }
        let &(free_count, base) = self.by_count.range((count, 0)..).next()?;
        self.take(base, free_count);
        self.add(base + count, free_count - count);
        Some(Segment { base, count })
    }

    /// Releases a segment into quarantine until `until`, which must not be before earlier ones.
    pub fn release(&mut self, segment: Segment, until: Instant) {
        if segment.count != 0 {
            self.resting.push_back((until, segment));
        }
    }

    /// Frees the segments whose quarantine has ended.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(_, Segment { mut base, mut count })) = self.resting.front().filter(|(until, _)| *until <= now)
        {
            self.resting.pop_front();
            if let Some((&before, &length)) = self.by_base.range(..base).next_back()
                && before + length == base
            {
                self.take(before, length);
                (base, count) = (before, count + length);
            }
            if let Some(&length) = self.by_base.get(&(base + count)) {
                self.take(base + count, length);
                count += length;
            }
            self.add(base, count);
        }
    }

    fn add(&mut self, base: u32, count: u32) {
        if count != 0 {
            self.free += count;
            self.by_base.insert(base, count);
            self.by_count.insert((count, base));
        }
    }

    fn take(&mut self, base: u32, count: u32) {
        self.free -= count;
        self.by_base.remove(&base);
        self.by_count.remove(&(count, base));
    }

    /// Number of slots.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Number of slots in use or in quarantine.
    pub fn taken(&self) -> u32 {
        self.capacity - self.free
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn smallest_sufficient_range_is_allocated() {
        let now = Instant::now();
        let mut segments = Segments::new(100);
        assert!(segments.adopt(Segment { base: 10, count: 10 }) && segments.adopt(Segment { base: 25, count: 5 }));
        assert!(!segments.adopt(Segment { base: 15, count: 1 }), "taken");
        assert!(!segments.adopt(Segment { base: 24, count: 2 }), "half taken");
        assert!(
            !segments.adopt(Segment { base: 99, count: 2 }) && !segments.adopt(Segment { base: 1, count: u32::MAX })
        );
        assert_eq!(segments.allocate(5), Some(Segment { base: 20, count: 5 }));
        assert_eq!(segments.allocate(5), Some(Segment { base: 0, count: 5 }));
        assert_eq!(segments.allocate(71), None);
        segments.release(Segment { base: 25, count: 5 }, now);
        segments.expire(now);
        assert_eq!(segments.allocate(75), Some(Segment { base: 25, count: 75 }), "joined with what follows");
    }

    proptest! {
        /// Segments never overlap, stay in quarantine for their time, and in the end all slots are one free range.
        #[test]
        fn segments_never_overlap_and_no_slot_is_lost(steps in prop::collection::vec((0u32..40, any::<prop::sample::Index>()), 1..200)) {
            let start = Instant::now();
            let mut segments = Segments::new(256);
            let mut used: Vec<Segment> = Vec::new();
            let mut resting: Vec<(u64, Segment)> = Vec::new();
            for (time, (count, pick)) in (0u64..).zip(steps) {
                let now = start + Duration::from_secs(time);
                segments.expire(now);
                resting.retain(|(until, _)| *until > time);
                if count < 20 && !used.is_empty() {
                    let segment = used.swap_remove(pick.index(used.len()));
                    segments.release(segment, now + Duration::from_secs(5));
                    resting.push((time + 5, segment));
                } else if let Some(new) = segments.allocate(count) {
                    prop_assert_eq!(new.count, count);
                    for other in used.iter().chain(resting.iter().map(|(_, s)| s)).filter(|s| s.count != 0 && count != 0) {
                        prop_assert!(new.base + new.count <= other.base || other.base + other.count <= new.base);
                    }
                    used.push(new);
                }
                let taken: u32 = used.iter().chain(resting.iter().map(|(_, s)| s)).map(|s| s.count).sum();
                prop_assert_eq!(segments.taken(), taken);
            }
            let end = start + Duration::from_secs(1000);
            for segment in used {
                segments.release(segment, end);
            }
            segments.expire(end);
            prop_assert_eq!(segments.allocate(256), Some(Segment { base: 0, count: 256 }));
        }
    }
}
