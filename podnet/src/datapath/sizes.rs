//! How large the tables are that the configuration sizes, and tables of another size that an earlier daemon has left.
//!
//! A table's size can't be changed. So another one is made, gets what the old one holds, and takes its pin, before any program
//! knows it: nothing is written to either meanwhile, and the programs that run see the old one until they are replaced.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{MapData, MapError},
};
use podnet_cni::datapath::PinDir;
use podnet_common::layout::tables::{BACKENDS, CONNTRACK, FRONTENDS, Kind, SLOTS, SOURCE_RANGES, Table};

use super::{batch, data_mut, loader::LoadError};

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

    fn of_services(self) -> impl Iterator<Item = (Table, u32)> {
        let entries = move |table: Table| self.frontends * (table.capacity() / FRONTENDS.capacity()) as u32;
        OF_SERVICES.into_iter().map(move |table| (table, entries(table)))
    }
}

/// What a table holds: keys and values, one after the other.
#[derive(Default)]
struct Content {
    count: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Content {
    /// Of an array those entries that are in use, which aren't zeros.
    fn read(table: Table, from: BorrowedFd<'_>) -> io::Result<Self> {
        let (mut content, array) = (Self::default(), table.kind() == Kind::Array);
        batch::for_each_bytes(from, (table.key_size(), table.value_size()), |key, value| {
            if !array || value.iter().any(|byte| *byte != 0) {
                content.add(key, value);
            }
        })?;
        Ok(content)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.count += 1;
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
    }

    /// The smallest table of a kind that has room for it.
    fn least(&self, kind: Kind) -> usize {
        let index = |key: &[u8]| key.try_into().map_or(0, u32::from_ne_bytes) as usize;
        match kind {
            Kind::Array => self.keys.chunks_exact(size_of::<u32>()).map(|key| index(key) + 1).max().unwrap_or(0),
            _ => self.count,
        }
    }
}

/// A table that is to be replaced by one of another size.
pub(super) struct Outgrown {
    pub(super) table: Table,
    content: Content,
}

impl Outgrown {
    /// The pinned tables that have another size than they should: none, if one of them doesn't fit into what it should be.
    pub(super) fn find(pins: &PinDir, sizes: Sizes) -> Result<Vec<Self>, LoadError> {
        let (mut found, mut full) = (Vec::new(), None);
        for (table, entries) in sizes.of_services() {
            let pin = pins.table(table);
            if !pin.exists() {
                continue;
            }
            let old = MapData::from_pin(&pin).map_err(failed(table))?;
            if old.info().map_err(failed(table))?.max_entries() != entries {
                let content = Content::read(table, old.fd().as_fd()).map_err(io_failed(table))?;
                if content.least(table.kind()) > entries as usize {
                    full = full.or(Some(table));
                }
                found.push(Self { table, content });
            }
        }
        if let Some(full) = full {
            tracing::warn!(
                table = full.name(),
                "the tables of services keep their sizes: what this one holds doesn't fit into a smaller frontendsMax"
            );
            return Ok(Vec::new());
        }
        if !found.is_empty() {
            tracing::info!(frontends = sizes.frontends, "the tables of services get another size");
        }
        Ok(found)
    }

    /// Fills the new table and gives it the pin of the old one.
    pub(super) fn replace(&self, ebpf: &mut Ebpf, pin: &Path) -> Result<(), LoadError> {
        let (table, content) = (self.table, &self.content);
        let new = data_mut(ebpf, table).ok_or_else(|| LoadError::Missing(table.name().to_owned()))?;
        batch::update_bytes(new.fd().as_fd(), content.count, &content.keys, &content.values)
            .map_err(io_failed(table))?;
        let unpinned =
            |source: Box<dyn std::error::Error + Send + Sync>| LoadError::Pin { path: pin.to_owned(), source };
        // The BPF file system has no dots in names.
        let temporary = pin.with_file_name(format!("{}_new", table.name()));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unpinned(Box::new(error))),
            _ => {}
        }
        new.pin(&temporary).map_err(|error| unpinned(Box::new(error)))?;
        fs::rename(&temporary, pin).map_err(|error| unpinned(Box::new(error)))
    }
}

fn failed(table: Table) -> impl Fn(MapError) -> LoadError {
    move |source| LoadError::Map { name: table.name(), source }
}

fn io_failed(table: Table) -> impl Fn(io::Error) -> LoadError {
    move |source| LoadError::Map { name: table.name(), source: MapError::IoError(source) }
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

    #[test]
    fn an_array_needs_room_for_its_last_entry_and_others_for_their_number() {
        let mut content = Content::default();
        assert_eq!(content.least(Kind::Array), 0);
        content.add(&900u32.to_ne_bytes(), &[1]);
        content.add(&3u32.to_ne_bytes(), &[1]);
        assert_eq!((content.least(Kind::Array), content.least(Kind::LpmTrie)), (901, 2));
    }
}
