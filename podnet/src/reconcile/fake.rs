//! Tables in memory that behave like the kernel's and can fail on command.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use podnet_common::layout::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange, tables};

use super::tables::{KeepAffinity, Tables};
use crate::compile::{BackendId, Segment};
use crate::mirror::TableError;
use crate::room::Room;

/// The tables.
#[derive(Clone, Debug)]
pub struct FakeTables {
    /// `frontends`.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `slots`.
    pub slots: Vec<BackendId>,
    /// `backends`.
    pub backends: Vec<Backend>,
    /// `source_ranges`.
    pub source_ranges: BTreeSet<SourceRange>,
    /// `affinity`.
    pub affinity: BTreeMap<AffinityKey, Affinity>,
    /// How many frontends there is room for.
    pub frontends_max: usize,
    /// How many source ranges there is room for.
    pub source_ranges_max: usize,
    /// Writes that succeed before the next one fails, again and again: 3 lets every fourth fail. None: all succeed.
    pub fail_every: Option<u32>,
    /// How many writes have been tried.
    pub writes: u32,
}

impl FakeTables {
    /// Empty tables with this room.
    pub fn new(frontends_max: usize, slots: usize, backends: usize) -> Self {
        Self {
            frontends: BTreeMap::new(),
            slots: vec![BackendId::default(); slots],
            backends: vec![Backend::default(); backends],
            source_ranges: BTreeSet::new(),
            affinity: BTreeMap::new(),
            frontends_max,
            source_ranges_max: tables::SOURCE_RANGES.capacity(),
            fail_every: None,
            writes: 0,
        }
    }

    /// What a reader finds who has read this frontend: its backends, an unwritten one included.
    pub fn resolve(&self, frontend: &Frontend) -> Vec<Backend> {
        let (base, count) = (frontend.slot_base as usize, frontend.slot_count as usize);
        self.slots[base..base + count].iter().map(|id| self.backends[id.0 as usize]).collect()
    }

    fn write(&mut self, table: &'static str, operation: &'static str) -> Result<(), TableError> {
        self.writes += 1;
        match self.fail_every {
            Some(every) if self.writes.is_multiple_of(every + 1) => {
                Err(TableError::Io { table, operation, source: io::Error::from_raw_os_error(libc::EBUSY) })
            }
            _ => Ok(()),
        }
    }
}

impl Tables for FakeTables {
    fn capacity(&self) -> Room {
        let lengths = [self.frontends_max, self.slots.len(), self.backends.len(), self.source_ranges_max];
        let [frontends, slots, backends, source_ranges] = lengths.map(|length| length as u32);
        Room::of_tables(frontends, slots, backends, source_ranges)
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, TableError> {
        Ok(self.frontends.iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn slots(&self, segment: Segment) -> Result<Vec<BackendId>, TableError> {
        let (base, count) = (segment.base as usize, segment.count as usize);
        Ok(self.slots[base..base + count].to_vec())
    }

    fn backends(&self, first: BackendId, count: u32) -> Result<Vec<Backend>, TableError> {
        Ok(self.backends[first.0 as usize..][..count as usize].to_vec())
    }

    fn put_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), TableError> {
        self.write("frontends", "writing an entry")?;
        if self.frontends.len() >= self.frontends_max && !self.frontends.contains_key(key) {
            return Err(TableError::FRONTENDS_FULL);
        }
        self.frontends.insert(*key, *value);
        Ok(())
    }

    fn delete_frontend(&mut self, key: &FrontendKey) -> Result<(), TableError> {
        self.write("frontends", "deleting an entry")?;
        self.frontends.remove(key);
        Ok(())
    }

    fn put_slots(&mut self, base: u32, ids: &[BackendId]) -> Result<(), TableError> {
        let base = base as usize;
        let failed = self.write("slots", "writing entries");
        // A failure may come after some of them have been written.
        let written = if failed.is_ok() { ids.len() } else { ids.len() / 2 };
        self.slots[base..base + written].copy_from_slice(&ids[..written]);
        failed
    }

    fn put_backend(&mut self, id: BackendId, backend: &Backend) -> Result<(), TableError> {
        self.write("backends", "writing an entry")?;
        self.backends[id.0 as usize] = *backend;
        Ok(())
    }

    fn source_ranges(&self) -> Result<Vec<SourceRange>, TableError> {
        Ok(self.source_ranges.iter().copied().collect())
    }

    fn put_source_range(&mut self, range: &SourceRange) -> Result<(), TableError> {
        self.write("source_ranges", "writing an entry")?;
        if self.source_ranges.len() >= self.source_ranges_max && !self.source_ranges.contains(range) {
            return Err(TableError::SOURCE_RANGES_FULL);
        }
        self.source_ranges.insert(*range);
        Ok(())
    }

    fn delete_source_range(&mut self, range: &SourceRange) -> Result<(), TableError> {
        self.write("source_ranges", "deleting an entry")?;
        self.source_ranges.remove(range);
        Ok(())
    }

    fn prune_affinity(&mut self, keep: &KeepAffinity<'_>) -> Result<usize, TableError> {
        let before = self.affinity.len();
        let failed = self.write("affinity", "pruning");
        // A failure may come after some of them are gone.
        let mut left = if failed.is_ok() { before } else { before / 2 };
        self.affinity.retain(|key, value| {
            let gone = left > 0 && !keep(key, value);
            left = left.saturating_sub(1);
            !gone
        });
        failed.map(|()| before - self.affinity.len())
    }
}
