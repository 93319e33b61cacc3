//! The trait through which reconciliation accesses the tables: the pinned maps in the daemon,
//! [`MemoryTables`](crate::datapath::memory::MemoryTables) in tests.

use podnet_common::layout::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange};

use crate::compile::{BackendId, Segment};
use crate::entry_counts::EntryCounts;
use crate::mirror::TableError;

/// Remedies for each full table.
pub(super) const FEWER: &str = "raise frontendsMax in the daemon's configuration, or remove services or endpoints";

impl TableError {
    /// Error for a frontend that doesn't fit, by which implementations can distinguish it from other errors.
    pub const FRONTENDS_FULL: Self = Self::Full { table: "frontends", advice: FEWER };

    /// The same for a source range.
    pub const SOURCE_RANGES_FULL: Self = Self::Full {
        table: "source_ranges",
        advice: "raise frontendsMax in the daemon's configuration, or use fewer, larger ranges",
    };
}

/// Whether a client's affinity is still valid.
pub type KeepAffinity<'a> = dyn Fn(&AffinityKey, &Affinity) -> bool + 'a;

/// The tables. A failed operation has no effect unless stated otherwise; each is visible to readers when it returns.
pub trait Tables {
    /// Sizes of the tables, in entries.
    fn capacity(&self) -> EntryCounts;

    /// All frontends.
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, TableError>;

    /// The ids in a segment, which is within the table.
    fn slots(&self, segment: Segment) -> Result<Vec<BackendId>, TableError>;

    /// `count` backends from an id on, all within the table.
    fn backends(&self, first: BackendId, count: u32) -> Result<Vec<Backend>, TableError>;

    /// Writes a frontend.
    fn put_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), TableError>;

    /// Writes frontends in this order until one fails. Returns the number of those that were written.
    fn put_frontends(&mut self, entries: &[(FrontendKey, Frontend)]) -> usize {
        entries.iter().take_while(|(key, value)| self.put_frontend(key, value).is_ok()).count()
    }

    /// Removes a frontend; a missing one is no error.
    fn delete_frontend(&mut self, key: &FrontendKey) -> Result<(), TableError>;

    /// Writes the ids of slots, equally many. After a failure, any of them may have been written; no frontend refers to
    /// them yet.
    fn put_slots(&mut self, slots: &[u32], ids: &[BackendId]) -> Result<(), TableError>;

    /// Writes the backends of new ids, equally many. After a failure, any of them may have been written; no slot
    /// refers to them yet.
    fn put_backends(&mut self, ids: &[BackendId], backends: &[Backend]) -> Result<(), TableError>;

    /// All source ranges.
    fn source_ranges(&self) -> Result<Vec<SourceRange>, TableError>;

    /// Writes a source range.
    fn put_source_range(&mut self, range: &SourceRange) -> Result<(), TableError>;

    /// Removes a source range; a missing one is no error.
    fn delete_source_range(&mut self, range: &SourceRange) -> Result<(), TableError>;

    /// Removes the affinities for which `keep` is false, and returns their number. After a failure, some may be gone.
    fn prune_affinity(&mut self, keep: &KeepAffinity<'_>) -> Result<usize, TableError>;
}
