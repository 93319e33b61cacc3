//! How large the tables are that the configuration sizes.

use podnet_common::layout::tables::{BACKENDS, CONNTRACK, FRONTENDS, SLOTS, SOURCE_RANGES, Table};

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Entries of `conntrack`. A table that is there keeps its own.
    pub conntrack: u32,
    /// Entries of `frontends`, to which those of the tables behind it are in a fixed proportion.
    pub frontends: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { conntrack: CONNTRACK.capacity() as u32, frontends: FRONTENDS.capacity() as u32 }
    }
}

/// The tables of services.
const OF_SERVICES: [Table; 4] = [FRONTENDS.table(), SLOTS.table(), BACKENDS.table(), SOURCE_RANGES.table()];

impl Sizes {
    /// The tables that the configuration sizes, with their numbers of entries.
    pub(super) fn tables(self) -> impl Iterator<Item = (Table, u32)> {
        [(CONNTRACK.table(), self.conntrack)].into_iter().chain(self.of_services())
    }

    /// The tables of services.
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
