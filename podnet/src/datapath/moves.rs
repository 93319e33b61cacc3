//! Migration of tables that an earlier daemon has left with another size, or with the layout of another version:
//! their contents move to new tables.
//!
//! Neither size nor layout of an existing map can be changed. So a new map is created, filled from the old one, and
//! takes over the pin, all before any program uses it: running programs see the old map until they are replaced.
//! Tables that only the daemon writes are copied once, since they don't change meanwhile. Tables that programs write
//! ([`Class::Kept`]) are copied again just before the flip, so that little is left for the last two copies: one after
//! the flip, where an entry that both old and new programs have changed keeps the new programs' value, and one when
//! the socket hooks are replaced.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    hash::{BuildHasher as _, RandomState},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{MapData, MapError, MapInfo},
};
use podnet_cni::datapath::PinDir;
use podnet_common::{
    layout::migrate::Record,
    tables::{ALL, CONNTRACK, Class, Kind, Migration, Table},
};

use super::{
    batch,
    btf::{self, Shape},
    load_error::LoadError,
    maps::data_mut,
    sizes::Sizes,
};

/// Content of a table: keys and values, each concatenated.
#[derive(Default)]
struct Content {
    count: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Content {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.count += 1;
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
    }

    fn entries(&self, table: Table) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.keys.chunks_exact(table.key_size()).zip(self.values.chunks_exact(table.value_size()))
    }

    /// The smallest capacity for this content in a map of this kind.
    fn least(&self, kind: Kind) -> usize {
        let index = |key: &[u8]| key.try_into().map_or(0, u32::from_ne_bytes) as usize;
        match kind {
            Kind::Array => self.keys.chunks_exact(size_of::<u32>()).map(|key| index(key) + 1).max().unwrap_or(0),
            _ => self.count,
        }
    }
}

/// An existing table, and the conversion of its entries to this version.
struct Source {
    table: Table,
    map: MapData,
    /// Sizes of its keys and values in bytes, and its capacity in entries.
    sizes: (usize, usize),
    entries: u32,
    /// `None`: it has this version's layout already.
    conversion: Option<(Migration, Shape, Shape)>,
}

impl Source {
    /// Opens a table by the pin of one of its versions. `None` if entries of that version can't be read.
    fn open(table: Table, version: u32, pin: &Path) -> Result<Option<Self>, LoadError> {
        let map = MapData::from_pin(pin).map_err(failed(table))?;
        let info = map.info().map_err(failed(table))?;
        let (sizes, entries) = ((info.key_size() as usize, info.value_size() as usize), info.max_entries());
        let conversion = if version == table.version() {
            None
        } else {
            let Some(migration) = table.migration() else { return Ok(None) };
            let shapes = btf::shapes(map.fd().as_fd()).map_err(io_failed(table))?;
            let Some((key, value)) = shapes else {
                tracing::warn!(
                    table = table.name(),
                    version,
                    "no BTF for the layout of this version: starting with an empty table"
                );
                return Ok(None);
            };
            Some((migration, key, value))
        };
        Ok(Some(Self { table, map, sizes, entries, conversion }))
    }

    /// Its entries in this version's layout, without unused ones of an array.
    fn read(&self) -> Result<Content, LoadError> {
        let (mut content, array) = (Content::default(), self.table.kind() == Kind::Array);
        let is_used = |value: &[u8]| !array || value.iter().any(|byte| *byte != 0);
        let map = self.map.fd().as_fd();
        let read = match &self.conversion {
            None => batch::for_each_bytes(map, self.sizes, |key, value| {
                if is_used(value) {
                    content.add(key, value);
                }
            }),
            Some((migration, key_shape, value_shape)) => {
                let (key_fields, value_fields) = (key_shape.fields(), value_shape.fields());
                let (mut new_key, mut new_value) = (vec![0; self.table.key_size()], vec![0; self.table.value_size()]);
                batch::for_each_bytes(map, self.sizes, |key, value| {
                    let key = Record { fields: &key_fields, bytes: key };
                    let used = is_used(value);
                    let value = Record { fields: &value_fields, bytes: value };
                    if used && (migration.convert)(&key, &value, &mut new_key, &mut new_value) {
                        content.add(&new_key, &new_value);
                    }
                })
            }
        };
        read.map_err(io_failed(self.table))?;
        Ok(content)
    }
}

/// A table whose content moves to a new one.
struct Move {
    source: Source,
    /// Capacity of the new table in entries.
    entries: u32,
    content: Content,
    /// The new table, once it exists.
    new: Option<OwnedFd>,
    /// What has been copied: hashes of the values in this version's layout, by hashes of the keys.
    copied: HashMap<u64, u64>,
}

/// All tables whose contents move.
#[derive(Default)]
pub(super) struct Moves {
    moves: Vec<Move>,
    hasher: RandomState,
}

impl Moves {
    /// Finds pinned tables that differ from what this version needs. `live` are the ids of the tables in use by
    /// programs.
    pub(super) fn find(pins: &PinDir, live: &BTreeSet<u32>, sizes: Sizes) -> Result<Self, LoadError> {
        let mut found = Self::default();
        for table in ALL.iter().copied() {
            let Some((version, pin)) = newest(table, pins.versions(table), live)? else { continue };
            let Some(source) = Source::open(table, version, &pin)? else {
                // A table of this version that no program uses is outdated.
                remove(&pins.table(table))?;
                continue;
            };
            let sized = sizes.of_services().find(|(sized, _)| *sized == table);
            let entries = match sized {
                Some((_, entries)) => entries,
                None if version == table.version() || table == CONNTRACK.table() => source.entries,
                None => table.capacity() as u32,
            };
            if version != table.version() || entries != source.entries {
                let content = source.read()?;
                found.moves.push(Move { source, entries, content, new: None, copied: HashMap::new() });
            }
        }
        found.fit(sizes);
        Ok(found)
    }

    /// The service tables all keep their sizes if the content of one doesn't fit its configured size; other tables
    /// get at least room for their content.
    fn fit(&mut self, sizes: Sizes) {
        let of_services = |table: Table| sizes.of_services().any(|(sized, _)| sized == table);
        let full = |moved: &&Move| moved.content.least(moved.source.table.kind()) > moved.entries as usize;
        let resized = |moved: &Move| of_services(moved.source.table) && moved.entries != moved.source.entries;
        if let Some(full) = self.moves.iter().filter(|moved| of_services(moved.source.table)).find(full) {
            tracing::warn!(
                table = full.source.table.name(),
                "keeping the sizes of the service tables: the entries of this one do not fit with a smaller \
                 frontendsMax"
            );
            for moved in self.moves.iter_mut().filter(|moved| of_services(moved.source.table)) {
                moved.entries = moved.source.entries;
            }
            self.moves.retain(|moved| moved.source.conversion.is_some() || moved.entries != moved.source.entries);
        } else if self.moves.iter().any(resized) {
            tracing::info!(frontends = sizes.frontends, "resizing the service tables");
        }
        for moved in &mut self.moves {
            moved.entries = moved.entries.max(moved.content.least(moved.source.table.kind()) as u32);
            if moved.source.conversion.is_some() {
                tracing::info!(table = moved.source.table.name(), entries = moved.content.count, "migrating a table");
            }
        }
    }

    /// Capacity for a table that the object has to create as new.
    pub(super) fn entries(&self, table: Table) -> Option<u32> {
        self.moves.iter().find(|moved| moved.source.table == table).map(|moved| moved.entries)
    }

    /// Fills the new tables and moves the pins to them.
    pub(super) fn fill(&mut self, ebpf: &mut Ebpf, pins: &PinDir) -> Result<(), LoadError> {
        for moved in &mut self.moves {
            let (table, content) = (moved.source.table, std::mem::take(&mut moved.content));
            let Some(new) = data_mut(ebpf, table) else { continue };
            batch::update_bytes(new.fd().as_fd(), content.count, &content.keys, &content.values)
                .map_err(io_failed(table))?;
            pin(new, table, &pins.table(table))?;
            if table.class() == Class::Kept {
                let entries = content.entries(table);
                moved.copied = entries.map(|(k, v)| (self.hasher.hash_one(k), self.hasher.hash_one(v))).collect();
                moved.new = Some(new.fd().as_fd().try_clone_to_owned().map_err(io_failed(table))?);
            }
        }
        Ok(())
    }

    /// Copies what programs have written to the old tables since the last copy. Once the new tables are in use, their
    /// entries are overwritten only if they are unchanged copies.
    pub(super) fn follow(&mut self, in_use: bool) -> Result<(), LoadError> {
        // Copy conntrack closest to the flip: entries added in between are missing for a moment.
        let (conntrack, mut others): (Vec<_>, Vec<_>) =
            self.moves.iter_mut().partition(|moved| moved.source.table == CONNTRACK.table());
        let at = if in_use { 0 } else { others.len() };
        others.splice(at..at, conntrack);
        for Move { source, new, copied, .. } in others {
            let Some(new) = new else { continue };
            let (table, content) = (source.table, source.read()?);
            for (key, value) in content.entries(table) {
                let (known, now) = (self.hasher.hash_one(key), self.hasher.hash_one(value));
                let before = copied.insert(known, now);
                if before != Some(now) {
                    let is_copy = |there: &[u8]| before == Some(self.hasher.hash_one(there));
                    write(new.as_fd(), key, value, in_use, is_copy).map_err(io_failed(table))?;
                }
            }
        }
        Ok(())
    }

    /// Copies a last time, and removes pins that are no longer needed.
    pub(super) fn finish(self, pins: &PinDir) -> Result<(), LoadError> {
        let mut moves = self;
        moves.follow(true)?;
        let moved: Vec<_> = moves.moves.iter().map(|moved| moved.source.table).collect();
        for table in ALL.iter().copied().filter(|table| table.class() == Class::Kept && !moved.contains(table)) {
            // Other versions, of an earlier daemon that ended after the flip.
            for (version, pin) in pins.versions(table).into_iter().filter(|(version, _)| *version != table.version()) {
                let Some(source) = Source::open(table, version, &pin)? else { continue };
                let own = MapData::from_pin(pins.table(table)).map_err(failed(table))?;
                for (key, value) in source.read()?.entries(table) {
                    write(own.fd().as_fd(), key, value, true, |_| false).map_err(io_failed(table))?;
                }
            }
        }
        remove_others(pins);
        Ok(())
    }
}

/// Writes an entry. Into a table already in use, writes it only if it is missing there or still an unchanged copy.
fn write(
    table: BorrowedFd<'_>,
    key: &[u8],
    value: &[u8],
    in_use: bool,
    is_copy: impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    if !in_use {
        return batch::update_bytes(table, 1, key, value);
    }
    match batch::look_up_bytes(table, key, value.len())? {
        None => batch::insert_bytes(table, key, value),
        // A packet that changes the entry between the two calls counts like one before the flip.
        Some(there) if is_copy(&there) => batch::update_bytes(table, 1, key, value),
        Some(_) => Ok(()),
    }
}

/// The version of a table with current content: the one in use by programs; if none is in use, this version's, or the
/// latest.
fn newest(
    table: Table,
    versions: Vec<(u32, PathBuf)>,
    live: &BTreeSet<u32>,
) -> Result<Option<(u32, PathBuf)>, LoadError> {
    let mut candidates = Vec::new();
    for (version, pin) in versions {
        let id = MapInfo::from_pin(&pin).map_err(failed(table))?.id();
        // Socket hooks may still use another version when all other programs use this one.
        candidates.push(((live.contains(&id), version == table.version(), version), pin));
    }
    Ok(candidates.into_iter().max().map(|((_, _, version), pin)| (version, pin)))
}

fn pin(map: &mut MapData, table: Table, pin: &Path) -> Result<(), LoadError> {
    let unpinned = |source: Box<dyn std::error::Error + Send + Sync>| LoadError::Pin { path: pin.to_owned(), source };
    // Names in the BPF file system must not contain dots.
    let temporary = pin.with_file_name(format!("{}_new", table.name()));
    remove(&temporary)?;
    map.pin(&temporary).map_err(|error| unpinned(Box::new(error)))?;
    fs::rename(&temporary, pin).map_err(|error| unpinned(Box::new(error)))
}

fn remove(pin: &Path) -> Result<(), LoadError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LoadError::Pin { path: pin.to_owned(), source: Box::new(source) })
        }
        _ => Ok(()),
    }
}

/// Removes pins of tables that don't belong to this version.
fn remove_others(pins: &PinDir) {
    let own: BTreeSet<_> = ALL.iter().filter(|table| table.is_pinned()).map(|table| pins.table(*table)).collect();
    for directory in pins.tables() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if !own.contains(&path)
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!("cannot remove the table of another version {}: {error}", path.display());
            }
        }
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
    fn an_array_needs_room_for_its_last_entry_and_others_for_their_number() {
        let mut content = Content::default();
        assert_eq!(content.least(Kind::Array), 0);
        content.add(&900u32.to_ne_bytes(), &[1]);
        content.add(&3u32.to_ne_bytes(), &[1]);
        assert_eq!((content.least(Kind::Array), content.least(Kind::LpmTrie)), (901, 2));
    }
}
