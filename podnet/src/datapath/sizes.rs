//! How large the tables are that the configuration sizes, and tables of another size that an earlier daemon has left.
//!
//! A table's size can't be changed. So another one is made, gets what the old one holds, and takes its pin, before any program
//! knows it: nothing is written to either meanwhile, and the programs that run see the old one until they are replaced.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use bytemuck::Pod;
use podnet_common::layout::{Backend, Frontend, FrontendKey, SourceRange, capacity};

use super::{batch, loader::LoadError};

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
        Self { conntrack: capacity::CONNTRACK as u32, frontends: capacity::FRONTENDS as u32 }
    }
}

/// A table of services, by its name in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Frontends,
    Slots,
    Backends,
    SourceRanges,
}

impl Table {
    pub(super) const ALL: [Self; 4] = [Self::Frontends, Self::Slots, Self::Backends, Self::SourceRanges];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Frontends => "FRONTENDS",
            Self::Slots => "SLOTS",
            Self::Backends => "BACKENDS",
            Self::SourceRanges => "SOURCE_RANGES",
        }
    }

    /// How many entries it has where there are so many frontends.
    pub(super) const fn size(self, sizes: Sizes) -> u32 {
        let per_frontend = match self {
            Self::Frontends => 1,
            Self::Slots => capacity::SLOTS / capacity::FRONTENDS,
            Self::Backends => capacity::BACKENDS / capacity::FRONTENDS,
            Self::SourceRanges => capacity::SOURCE_RANGES / capacity::FRONTENDS,
        };
        sizes.frontends * per_frontend as u32
    }

    /// Its entries, in which unused ones of an array are missing, as far as they are asked for.
    fn read(self, from: BorrowedFd<'_>) -> io::Result<Content> {
        Ok(match self {
            Self::Frontends => Content::Frontends(entries(from, |_| true)?),
            Self::Slots => Content::Slots(entries(from, |slot| *slot != 0)?),
            Self::Backends => Content::Backends(entries(from, |backend| *backend != Backend::default())?),
            Self::SourceRanges => Content::SourceRanges(entries(from, |_| true)?),
        })
    }
}

/// What a table holds: keys, and values.
enum Content {
    Frontends((Vec<FrontendKey>, Vec<Frontend>)),
    Slots((Vec<u32>, Vec<u32>)),
    Backends((Vec<u32>, Vec<Backend>)),
    SourceRanges((Vec<SourceRange>, Vec<u32>)),
}

impl Content {
    /// The smallest table that has room for it.
    fn least(&self) -> usize {
        let beyond = |keys: &Vec<u32>| keys.iter().max().map_or(0, |last| *last as usize + 1);
        match self {
            Self::Frontends((keys, _)) => keys.len(),
            Self::SourceRanges((keys, _)) => keys.len(),
            Self::Slots((keys, _)) | Self::Backends((keys, _)) => beyond(keys),
        }
    }

    fn write(&self, to: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Frontends((keys, values)) => batch::update(to, keys, values),
            Self::Slots((keys, values)) => batch::update(to, keys, values),
            Self::Backends((keys, values)) => batch::update(to, keys, values),
            Self::SourceRanges((keys, values)) => batch::update(to, keys, values),
        }
    }
}

fn entries<K: Pod, V: Pod>(from: BorrowedFd<'_>, mut used: impl FnMut(&V) -> bool) -> io::Result<(Vec<K>, Vec<V>)> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    batch::for_each(from, |key: &K, value: &V| {
        if used(value) {
            keys.push(*key);
            values.push(*value);
        }
    })?;
    Ok((keys, values))
}

/// A table that is to be replaced by one of another size.
pub(super) struct Outgrown {
    pub(super) table: Table,
    content: Content,
}

impl Outgrown {
    /// The pinned tables that have another size than they should: none, if one of them doesn't fit into what it should be.
    pub(super) fn find(pin: impl Fn(Table) -> PathBuf, sizes: Sizes) -> Result<Vec<Self>, LoadError> {
        let mut found = Vec::new();
        for table in Table::ALL {
            let pin = pin(table);
            if !pin.exists() {
                continue;
            }
            let old = MapData::from_pin(&pin).map_err(failed(table))?;
            if old.info().map_err(failed(table))?.max_entries() != table.size(sizes) {
                found.push(Self { table, content: table.read(old.fd().as_fd()).map_err(io_failed(table))? });
            }
        }
        if let Some(full) = found.iter().find(|old| old.content.least() > old.table.size(sizes) as usize) {
            tracing::warn!(
                table = full.table.name().to_lowercase(),
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
        let table = self.table;
        let new = match ebpf.map_mut(table.name()) {
            Some(Map::HashMap(data) | Map::Array(data) | Map::LpmTrie(data)) => data,
            _ => return Err(LoadError::Missing(table.name().to_owned())),
        };
        self.content.write(new.fd().as_fd()).map_err(io_failed(table))?;
        let unpinned =
            |source: Box<dyn std::error::Error + Send + Sync>| LoadError::Pin { path: pin.to_owned(), source };
        // The BPF file system has no dots in names.
        let temporary = pin.with_file_name(format!("{}_new", table.name().to_lowercase()));
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
    fn the_defaults_are_the_objects_own() {
        let sizes = Table::ALL.map(|table| table.size(Sizes::default()) as usize);
        let own = [capacity::FRONTENDS, capacity::SLOTS, capacity::BACKENDS, capacity::SOURCE_RANGES];
        assert_eq!(sizes, own);
    }

    #[test]
    fn an_array_needs_room_for_its_last_entry_and_others_for_their_number() {
        assert_eq!(Content::Slots((vec![3, 900], vec![1, 2])).least(), 901);
        assert_eq!(Content::Backends((vec![], vec![])).least(), 0);
        assert_eq!(Content::SourceRanges((vec![SourceRange::default(); 3], vec![1; 3])).least(), 3);
    }
}
