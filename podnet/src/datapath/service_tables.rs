//! The pinned maps as reconciliation sees them.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap as _, LpmTrie, MapData, lpm_trie::Key},
};
use podnet_cni::datapath::Plain;
use podnet_common::{
    layout::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, ServiceClient, SourceRange},
    tables,
};

use super::{
    batch,
    error::Error,
    maps::{size, take, take_data},
    table_error::{errno, failed, gone_is_fine, refused},
};
use crate::{
    compile::{BackendId, Segment},
    entry_counts::EntryCounts,
    mirror::TableError,
    reconcile::{KeepAffinity, Tables},
};

/// Value of a range in `source_ranges`.
const MAY_USE: u32 = 1;

/// The service tables.
pub struct ServiceTables {
    frontends: HashMap<MapData, Plain<FrontendKey>, Plain<Frontend>>,
    slots: MapData,
    backends: Array<MapData, Plain<Backend>>,
    source_ranges: LpmTrie<MapData, Plain<ServiceClient>, u32>,
    affinity: MapData,
    capacity: EntryCounts,
}

impl ServiceTables {
    /// Takes them out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let (slots, affinity) = (take_data(ebpf, tables::SLOTS)?, take_data(ebpf, tables::AFFINITY)?);
        let frontends: HashMap<_, _, _> = take(ebpf, tables::FRONTENDS)?;
        let backends: Array<_, _> = take(ebpf, tables::BACKENDS)?;
        let source_ranges: LpmTrie<_, _, _> = take(ebpf, tables::SOURCE_RANGES)?;
        let capacity = EntryCounts::of_tables(
            size(tables::FRONTENDS, frontends.map())?,
            size(tables::SLOTS, &slots)?,
            backends.len(),
            size(tables::SOURCE_RANGES, source_ranges.map())?,
        );
        Ok(Self { frontends, slots, backends, source_ranges, affinity, capacity })
    }

    /// Descriptors of `affinity` and `frontends`, for other threads.
    pub(super) fn affinity_and_frontends(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let affinity = self.affinity.fd().as_fd().try_clone_to_owned()?;
        Ok((affinity, self.frontends_fd().try_clone_to_owned()?))
    }

    fn frontends_fd(&self) -> BorrowedFd<'_> {
        self.frontends.map().fd().as_fd()
    }
}

impl Tables for ServiceTables {
    fn capacity(&self) -> EntryCounts {
        self.capacity
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, TableError> {
        let mut frontends = Vec::new();
        let visit = |key: &FrontendKey, value: &Frontend| frontends.push((*key, *value));
        batch::for_each(self.frontends_fd(), visit).map_err(refused("frontends", "list"))?;
        Ok(frontends)
    }

    fn slots(&self, segment: Segment) -> Result<Vec<BackendId>, TableError> {
        batch::range(self.slots.fd().as_fd(), segment.base, segment.count).map_err(refused("slots", "read"))
    }

    fn backends(&self, first: BackendId, count: u32) -> Result<Vec<Backend>, TableError> {
        let table = self.backends.map().fd().as_fd();
        batch::range(table, first.0, count).map_err(refused("backends", "read"))
    }

    fn put_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), TableError> {
        self.frontends.insert(Plain(*key), Plain(*value), 0).map_err(|error| match errno(&error) {
            Some(libc::E2BIG | libc::ENOMEM) => TableError::FRONTENDS_FULL,
            _ => failed("frontends", "write to")(error),
        })
    }

    fn put_frontends(&mut self, entries: &[(FrontendKey, Frontend)]) -> usize {
        let (keys, values): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        batch::update_first(self.frontends_fd(), &keys, &values)
    }

    fn delete_frontend(&mut self, key: &FrontendKey) -> Result<(), TableError> {
        gone_is_fine(self.frontends.remove(&Plain(*key))).map_err(failed("frontends", "delete from"))
    }

    fn put_slots(&mut self, slots: &[u32], ids: &[BackendId]) -> Result<(), TableError> {
        batch::update(self.slots.fd().as_fd(), slots, ids).map_err(refused("slots", "write to"))
    }

    fn put_backends(&mut self, ids: &[BackendId], backends: &[Backend]) -> Result<(), TableError> {
        let table = self.backends.map().fd().as_fd();
        batch::update(table, ids, backends).map_err(refused("backends", "write to"))
    }

    fn source_ranges(&self) -> Result<Vec<SourceRange>, TableError> {
        let range = |key: Key<Plain<ServiceClient>>| SourceRange { len: key.prefix_len(), data: key.data().0 };
        let ranges = self.source_ranges.keys().map(|key| key.map(range));
        ranges.collect::<Result<_, _>>().map_err(failed("source_ranges", "list"))
    }

    fn put_source_range(&mut self, range: &SourceRange) -> Result<(), TableError> {
        let key = Key::new(range.len, Plain(range.data));
        self.source_ranges.insert(&key, MAY_USE, 0).map_err(|error| match errno(&error) {
            Some(libc::ENOSPC | libc::ENOMEM) => TableError::SOURCE_RANGES_FULL,
            _ => failed("source_ranges", "write to")(error),
        })
    }

    fn delete_source_range(&mut self, range: &SourceRange) -> Result<(), TableError> {
        let key = Key::new(range.len, Plain(range.data));
        gone_is_fine(self.source_ranges.remove(&key)).map_err(failed("source_ranges", "delete from"))
    }

    fn prune_affinity(&mut self, keep: &KeepAffinity<'_>) -> Result<usize, TableError> {
        let table = self.affinity.fd().as_fd();
        let mut over = Vec::new();
        batch::for_each(table, |key: &AffinityKey, value: &Affinity| {
            if !keep(key, value) {
                over.push(*key);
            }
        })
        .map_err(refused("affinity", "list"))?;
        batch::delete(table, &over).map_err(refused("affinity", "delete from"))
    }
}
