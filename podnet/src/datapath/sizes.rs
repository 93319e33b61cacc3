//! Capacities of the tables that the configuration sizes.

use podnet_common::tables::{BACKENDS, CONNTRACK, FRONTENDS, SLOTS, SOURCE_RANGES, Table};

/// Configured capacities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Entries of `conntrack`. An existing table keeps its own capacity.
    pub conntrack: u32,
    /// Entries of `frontends`. The capacities of the tables behind it are in a fixed proportion to this.
    pub frontends: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { conntrack: CONNTRACK.capacity() as u32, frontends: FRONTENDS.capacity() as u32 }
    }
}

/// The service tables.
const OF_SERVICES: [Table; 4] = [FRONTENDS.table(), SLOTS.table(), BACKENDS.table(), SOURCE_RANGES.table()];

impl Sizes {
    /// The tables sized by the configuration, with their capacities in entries.
    pub(super) fn tables(self) -> impl Iterator<Item = (Table, u32)> {
        [(CONNTRACK.table(), self.conntrack)].into_iter().chain(self.of_services())
    }

    /// The service tables, with their capacities in entries.
    pub(super) fn of_services(self) -> impl Iterator<Item = (Table, u32)> {
        let entries = move |table: Table| self.frontends * (table.capacity() / FRONTENDS.capacity()) as u32;
        OF_SERVICES.into_iter().map(move |table| (table, entries(table)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_declared_ones() {
        for (table, entries) in Sizes::default().tables() {
            assert_eq!(entries as usize, table.capacity(), "{}", table.name());
        }
    }
}
