//! Origins of the running programs. A generation, or programs at the socket hooks, that come from the same object and
//! use the same tables as those of a new daemon needn't be loaded again.

use std::{
    hash::{DefaultHasher, Hasher as _},
    path::PathBuf,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError, MapInfo},
};

use podnet_common::tables::ORIGINS;

use super::load_error::LoadError;

/// No known origin: there are no programs, or they are just being replaced.
const NOWHERE: u64 = 0;

/// The table `origins`, and the fingerprint of this daemon's object and tables.
pub struct Origins {
    table: Array<MapData, u64>,
    fingerprint: u64,
}

impl Origins {
    /// Takes the table out of the loaded object.
    pub(super) fn open(ebpf: &mut Ebpf, fingerprint: u64) -> Result<Self, LoadError> {
        let map = ebpf.take_map(ORIGINS.map()).ok_or_else(|| LoadError::Missing(ORIGINS.name().into()))?;
        Ok(Self { table: map.try_into().map_err(failed)?, fingerprint })
    }

    /// Whether the programs with these ids, currently in place, are those recorded by a daemon with this object.
    pub(super) fn is_ours(&self, which: u32, ids: &[u32]) -> Result<bool, LoadError> {
        Ok(self.table.get(&which, 0).map_err(failed)? == self.mark(ids))
    }

    /// Replaces programs by those of this daemon's object, and records the ids of the new ones. If the daemon dies in
    /// between, the programs have no known origin.
    pub(super) fn note_after<E: From<LoadError>>(
        &mut self,
        which: u32,
        replace: impl FnOnce() -> Result<Vec<u32>, E>,
    ) -> Result<(), E> {
        self.table.set(which, NOWHERE, 0).map_err(failed)?;
        let mark = self.mark(&replace()?);
        Ok(self.table.set(which, mark, 0).map_err(failed)?)
    }

    /// Fingerprint of the origin together with the programs' ids, since a daemon that doesn't know this table may
    /// replace programs.
    fn mark(&self, ids: &[u32]) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.fingerprint);
        ids.iter().for_each(|id| hasher.write_u32(*id));
        hasher.finish().max(NOWHERE + 1)
    }
}

/// Fingerprint of an object, the version that loads it, and the tables with these pins.
pub(super) fn fingerprint(object: &[u8], tables: impl Iterator<Item = PathBuf>) -> Result<u64, LoadError> {
    let mut hasher = DefaultHasher::new();
    hasher.write(env!("CARGO_PKG_VERSION").as_bytes());
    hasher.write(object);
    for path in tables {
        hasher.write_u32(MapInfo::from_pin(path).map_err(failed)?.id());
    }
    Ok(hasher.finish())
}

fn failed(source: MapError) -> LoadError {
    LoadError::Map { name: ORIGINS.name(), source }
}
