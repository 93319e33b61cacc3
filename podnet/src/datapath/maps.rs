//! Maps of the loaded object, by their declarations.

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use podnet_common::tables::Table;

use super::error::Error;

fn take_map(ebpf: &mut Ebpf, table: Table) -> Result<Map, Error> {
    ebpf.take_map(table.map()).ok_or(Error::Missing(table.name()))
}

/// Takes a table out of the loaded object.
pub(super) fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, table: impl Into<Table>) -> Result<M, Error> {
    let table = table.into();
    shaped(table, take_map(ebpf, table)?)
}

/// The same for batch operations, which don't depend on the map type.
pub(super) fn take_data(ebpf: &mut Ebpf, table: impl Into<Table>) -> Result<MapData, Error> {
    let table = table.into();
    match take_map(ebpf, table)? {
        Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) | Map::LpmTrie(data) => Ok(data),
        _ => Err(Error::Missing(table.name())),
    }
}

/// A table of the loaded object, if its map type supports batch operations.
pub(super) fn data_mut(ebpf: &mut Ebpf, table: Table) -> Option<&mut MapData> {
    match ebpf.map_mut(table.map())? {
        Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) | Map::LpmTrie(data) => Some(data),
        _ => None,
    }
}

pub(super) fn shaped<M: TryFrom<Map, Error = MapError>>(table: impl Into<Table>, map: Map) -> Result<M, Error> {
    M::try_from(map).map_err(|source| Error::Shape { name: table.into().name(), source })
}

/// Capacity of a table in entries.
pub(super) fn size(table: impl Into<Table>, data: &MapData) -> Result<u32, Error> {
    data.info().map(|info| info.max_entries()).map_err(|source| Error::Shape { name: table.into().name(), source })
}
