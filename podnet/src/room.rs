//! How much of the service tables something takes, or may take.

/// Entries of each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

    /// The first table of which this is more than there is.
    pub fn exceeds(self, room: Self) -> Option<&'static str> {
        let (takes, room) = (self.counts(), room.counts());
        (0..TABLES.len()).find(|i| takes[*i] > room[*i]).map(|i| TABLES[i])
    }
}
