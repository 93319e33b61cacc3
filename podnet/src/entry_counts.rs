//! Numbers of entries in the service tables: those that a service takes, and those that it may take.

use serde::{Deserialize, Serialize};

/// Number of entries per table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryCounts {
    /// In `frontends`, including entries of whole addresses.
    pub frontends: u32,
    /// In `slots`, except those that Maglev tables take beyond a plain list.
    pub slots: u32,
    /// In `backends`.
    pub backends: u32,
    /// In `source_ranges`.
    pub source_ranges: u32,
    /// Also in `slots`, for Maglev tables, by which all nodes choose the same backend. They may take three quarters of
    /// `slots`; a frontend without one has a plain list.
    pub spread: u32,
}

/// Names of the tables, in the order of [`EntryCounts::counts`].
pub const TABLES: [&str; 5] = ["frontends", "slots", "backends", "source_ranges", "slots"];

/// Index of `backends` in [`TABLES`].
pub const BACKENDS: usize = 2;

/// Entries of each table that a Service may take in any case, if the table is that large.
const LEAST: u32 = 256;

impl EntryCounts {
    /// More than the capacity of any table.
    pub const MAX: Self = Self::of_counts([u32::MAX; 5]);

    /// The counts, in the order of [`TABLES`].
    pub const fn counts(self) -> [u32; 5] {
        [self.frontends, self.slots, self.backends, self.source_ranges, self.spread]
    }

    /// The inverse of [`Self::counts`].
    pub const fn of_counts([frontends, slots, backends, source_ranges, spread]: [u32; 5]) -> Self {
        Self { frontends, slots, backends, source_ranges, spread }
    }

    /// Capacities of all tables.
    pub const fn of_tables(frontends: u32, slots: u32, backends: u32, source_ranges: u32) -> Self {
        Self { frontends, slots, backends, source_ranges, spread: slots / 4 * 3 }
    }

    /// Entries that a Service may take of tables with these capacities: a sixteenth, and more of small tables.
    pub fn of_service(self) -> Self {
        Self::of_counts(self.counts().map(|size| (size / 16).max(size.min(LEAST))))
    }

    /// The same with another count for the table with this index in [`TABLES`].
    pub fn with(self, table: usize, count: u32) -> Self {
        let mut counts = self.counts();
        counts[table] = count;
        Self::of_counts(counts)
    }

    /// The minimum per table.
    pub fn min(self, other: Self) -> Self {
        let (a, b) = (self.counts(), other.counts());
        Self::of_counts(std::array::from_fn(|i| a[i].min(b[i])))
    }

    /// The sum per table.
    pub fn plus(self, other: Self) -> Self {
        let (a, b) = (self.counts(), other.counts());
        Self::of_counts(std::array::from_fn(|i| a[i].saturating_add(b[i])))
    }
}

/// The share of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Independent of other services.
    of_service: EntryCounts,
    /// Currently.
    limit: EntryCounts,
}

/// Bound of a share for one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The table's name.
    pub table: &'static str,
    /// Maximum number of entries.
    pub most: u32,
    /// Whether this is below the bound for any Service, since all services together ask for more entries than there
    /// are.
    pub scarce: bool,
}

impl Share {
    /// The share of any Service.
    pub const fn new(of_service: EntryCounts) -> Self {
        Self { of_service, limit: of_service }
    }

    /// The same, currently limited to this.
    pub fn within(self, limit: Option<EntryCounts>) -> Self {
        Self { limit: limit.map_or(self.limit, |limit| self.limit.min(limit)), ..self }
    }

    /// Entries that may currently be taken.
    pub const fn limit(self) -> EntryCounts {
        self.limit
    }

    /// The first bound exceeded by these entries.
    pub fn exceeded_by(self, takes: EntryCounts) -> Option<Bound> {
        let takes = takes.counts();
        (0..TABLES.len())
            .map(|i| (takes[i], self.bound(i)))
            .find(|(takes, bound)| *takes > bound.most)
            .map(|found| found.1)
    }

    /// The bound of the table `backends`.
    pub fn of_backends(self) -> Bound {
        self.bound(BACKENDS)
    }

    fn bound(self, table: usize) -> Bound {
        let (most, always) = (self.limit.counts()[table], self.of_service.counts()[table]);
        Bound { table: TABLES[table], most, scarce: most < always }
    }
}
