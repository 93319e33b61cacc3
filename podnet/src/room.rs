//! How much of the service tables something takes, or may take.

use serde::{Deserialize, Serialize};

/// Entries of each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Room {
    /// Of `frontends`, with the entries of addresses.
    pub frontends: u32,
    /// Of `slots`, without what Maglev tables take beyond a plain list.
    pub slots: u32,
    /// Of `backends`.
    pub backends: u32,
    /// Of `source_ranges`.
    pub source_ranges: u32,
    /// Of `slots` too, in tables by which nodes choose alike. They may have three quarters; without one, a frontend has a
    /// plain list.
    pub spread: u32,
}

/// The tables' names, in the order of [`Room::counts`].
pub const TABLES: [&str; 5] = ["frontends", "slots", "backends", "source_ranges", "slots"];

/// The place of `backends` in [`TABLES`].
pub const BACKENDS: usize = 2;

/// What a Service may take in any case.
const LEAST: u32 = 256;

impl Room {
    /// More than any table has.
    pub const MAX: Self = Self::of_counts([u32::MAX; 5]);

    /// The counts, in the order of [`TABLES`].
    pub const fn counts(self) -> [u32; 5] {
        [self.frontends, self.slots, self.backends, self.source_ranges, self.spread]
    }

    /// The reverse.
    pub const fn of_counts([frontends, slots, backends, source_ranges, spread]: [u32; 5]) -> Self {
        Self { frontends, slots, backends, source_ranges, spread }
    }

    /// Tables of this size.
    pub const fn of_tables(frontends: u32, slots: u32, backends: u32, source_ranges: u32) -> Self {
        Self { frontends, slots, backends, source_ranges, spread: slots / 4 * 3 }
    }

    /// What a Service may take of tables of this size: a sixteenth, of small tables more.
    pub fn of_service(self) -> Self {
        Self::of_counts(self.counts().map(|size| (size / 16).max(size.min(LEAST))))
    }

    /// The same, but for the table of this place in [`TABLES`].
    pub fn with(self, table: usize, count: u32) -> Self {
        let mut counts = self.counts();
        counts[table] = count;
        Self::of_counts(counts)
    }

    /// The smaller of both, table by table.
    pub fn min(self, other: Self) -> Self {
        let (a, b) = (self.counts(), other.counts());
        Self::of_counts(std::array::from_fn(|i| a[i].min(b[i])))
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        let (a, b) = (self.counts(), other.counts());
        Self::of_counts(std::array::from_fn(|i| a[i].saturating_add(b[i])))
    }
}

/// What one service may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Whatever others take.
    of_service: Room,
    /// At present.
    room: Room,
}

/// What a share allows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The table's name.
    pub table: &'static str,
    /// So many entries.
    pub most: u32,
    /// It isn't what any Service may have, but what this one gets while all together ask for more than there is.
    pub scarce: bool,
}

impl Share {
    /// What any Service may take.
    pub const fn new(of_service: Room) -> Self {
        Self { of_service, room: of_service }
    }

    /// No more than this at present.
    pub fn within(self, limit: Option<Room>) -> Self {
        Self { room: limit.map_or(self.room, |limit| self.room.min(limit)), ..self }
    }

    /// What may be taken at present.
    pub const fn room(self) -> Room {
        self.room
    }

    /// The first bound that something goes beyond.
    pub fn exceeded_by(self, takes: Room) -> Option<Bound> {
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
        let (most, always) = (self.room.counts()[table], self.of_service.counts()[table]);
        Bound { table: TABLES[table], most, scarce: most < always }
    }
}
