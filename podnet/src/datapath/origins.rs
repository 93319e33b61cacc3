//! Where the programs come from that run: a generation, or what is at the sockets, that comes from the same object and uses
//! the same tables as a new daemon's needn't be loaded again.

use std::{
    hash::{DefaultHasher, Hasher as _},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError, MapInfo},
};

use super::loader::LoadError;

/// What stands for programs that come from nowhere: there are none, or they are just being replaced.
const NOWHERE: u64 = 0;

/// The table `origins`, and what stands for this daemon's object in it.
pub struct Origins {
    table: Array<MapData, u64>,
    ours: u64,
}

impl Origins {
    /// Takes the table out of the loaded object.
    pub(super) fn open(ebpf: &mut Ebpf, ours: u64) -> Result<Self, LoadError> {
        let map = ebpf.take_map("ORIGINS").ok_or_else(|| LoadError::Missing("ORIGINS".into()))?;
        Ok(Self { table: map.try_into().map_err(failed)?, ours })
    }

    /// Whether these programs come from this daemon's object.
    pub(super) fn is_ours(&self, programs: u32) -> Result<bool, LoadError> {
        Ok(self.table.get(&programs, 0).map_err(failed)? == self.ours)
    }

    /// Replaces programs by those of this daemon's object. Whoever dies in between leaves programs from nowhere.
    pub(super) fn note_after<E: From<LoadError>>(
        &mut self,
        programs: u32,
        replace: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.table.set(programs, NOWHERE, 0).map_err(failed)?;
        replace()?;
        Ok(self.table.set(programs, self.ours, 0).map_err(failed)?)
    }
}

/// What stands for an object and the tables with these pins. It is the same only for the same object, tables and build.
pub(super) fn fingerprint<'a>(object: &[u8], tables: impl Iterator<Item = &'a Path>) -> Result<u64, LoadError> {
    let mut hasher = DefaultHasher::new();
    hasher.write(object);
    for path in tables {
        hasher.write_u32(MapInfo::from_pin(path).map_err(failed)?.id());
    }
    Ok(hasher.finish().max(NOWHERE + 1))
}

fn failed(source: MapError) -> LoadError {
    LoadError::Map { name: "origins", source }
}
