//! Batch operations on large maps, which aya doesn't offer (`BPF_MAP_LOOKUP_BATCH` and others, Linux 5.6): one system
//! call reads, writes or deletes thousands of entries, instead of one or two calls for each.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use bytemuck::{Pod, Zeroable};
use podnet_cni::datapath::bpf;

/// `enum bpf_cmd` of linux/bpf.h.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
/// Fail if the entry exists (`BPF_NOEXIST`).
const NEW: u64 = 1;

/// Entries per call.
const CHUNK: usize = 8192;

/// `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn call(command: libc::c_int, attr: &mut BatchAttr) -> io::Result<()> {
    // SAFETY: the attribute has the layout of the command, and its pointers are live buffers of the callers with room
    // for `count` entries.
    unsafe { bpf(command, attr) }.map(drop)
}

/// Calls `visit` with every entry of a hash map, an array or a trie. Entries added or removed meanwhile may be missed
/// or seen.
pub fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
    let (mut keys, mut values) = (vec![K::zeroed(); CHUNK], vec![V::zeroed(); CHUNK]);
    let visit = |keys: &[u8], values: &[u8]| {
        let (keys, values): (&[K], &[V]) = (bytemuck::cast_slice(keys), bytemuck::cast_slice(values));
        keys.iter().zip(values).for_each(|(key, value)| visit(key, value));
    };
    chunks(map, bytemuck::cast_slice_mut(&mut keys), bytemuck::cast_slice_mut(&mut values), visit)
}

/// The same for keys and values whose sizes are known at run time only.
pub fn for_each_bytes(
    map: BorrowedFd<'_>,
    (key, value): (usize, usize),
    mut visit: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let (mut keys, mut values) = (vec![0; key * CHUNK], vec![0; value * CHUNK]);
    chunks(map, &mut keys, &mut values, |keys, values| {
        keys.chunks_exact(key).zip(values.chunks_exact(value)).for_each(|(key, value)| visit(key, value));
    })
}

/// Calls `visit` with chunks of entries: their keys, and their values. The entries of a hash bucket come in one
/// chunk, so a chunk must have room for the fullest bucket.
fn chunks(
    map: BorrowedFd<'_>,
    keys: &mut [u8],
    values: &mut [u8],
    mut visit: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let (key, value) = (keys.len() / CHUNK, values.len() / CHUNK);
    // Position of the next call: a number for hash maps, the last key for others.
    let (mut position, mut next) = (vec![0u8; key.max(4)], vec![0u8; key.max(4)]);
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { position.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: CHUNK as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::zeroed()
        };
        let last = match call(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = attr.count as usize;
        visit(&keys[..count * key], &values[..count * value]);
        if last {
            return Ok(());
        }
        std::mem::swap(&mut position, &mut next);
        first = false;
    }
}

/// Values of an array, `count` from `base` on; fewer at the end of the array.
pub fn range<V: Pod>(map: BorrowedFd<'_>, base: u32, count: u32) -> io::Result<Vec<V>> {
    let mut keys = vec![0u32; count as usize];
    let mut values = vec![V::zeroed(); count as usize];
    let (before, mut next) = (base.wrapping_sub(1), 0u32);
    let mut attr = BatchAttr {
        in_batch: if base == 0 { 0 } else { std::ptr::from_ref(&before) as u64 },
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::zeroed()
    };
    match call(BPF_MAP_LOOKUP_BATCH, &mut attr) {
        // End of the array before the end of the batch.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    values.truncate(attr.count as usize);
    Ok(values)
}

/// Writes entries, replacing existing ones. `keys` and `values` are equally long.
pub fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    debug_assert_eq!(keys.len(), values.len());
    let count = keys.len().min(values.len());
    update_bytes(map, count, bytemuck::cast_slice(keys), bytemuck::cast_slice(values))
}

/// The same until one is refused. Returns the number of entries that were written.
pub fn update_first<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> usize {
    debug_assert_eq!(keys.len(), values.len());
    let count = keys.len().min(values.len());
    match update_counted(map, count, bytemuck::cast_slice(keys), bytemuck::cast_slice(values)) {
        (_, Ok(())) => count,
        // A call that fails before the first entry leaves the number as it was.
        (written, Err(_)) if written < count => written,
        _ => 0,
    }
}

/// [`update`] for keys and values whose sizes are known at run time only.
pub fn update_bytes(map: BorrowedFd<'_>, count: usize, keys: &[u8], values: &[u8]) -> io::Result<()> {
    update_counted(map, count, keys, values).1
}

/// Returns also the number of entries as the kernel has left it.
fn update_counted(map: BorrowedFd<'_>, count: usize, keys: &[u8], values: &[u8]) -> (usize, io::Result<()>) {
    if count == 0 {
        return (0, Ok(()));
    }
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: count as u32,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::zeroed()
    };
    let result = call(BPF_MAP_UPDATE_BATCH, &mut attr);
    (attr.count as usize, result)
}

/// Deletes entries; missing ones are skipped. Returns how many were deleted.
pub fn delete<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<usize> {
    let (mut rest, mut deleted) = (keys, 0);
    while !rest.is_empty() {
        let mut attr = BatchAttr {
            keys: rest.as_ptr() as u64,
            count: rest.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::zeroed()
        };
        let result = call(BPF_MAP_DELETE_BATCH, &mut attr);
        let done = (attr.count as usize).min(rest.len());
        deleted += done;
        match result {
            Ok(()) => return Ok(deleted),
            // The kernel stops at the first missing entry.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) && done < rest.len() => rest = &rest[done + 1..],
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

/// Part of `union bpf_attr` for commands on one entry.
#[repr(C)]
struct EntryAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn entry(command: libc::c_int, map: BorrowedFd<'_>, key: &[u8], value: &mut [u8], flags: u64) -> io::Result<()> {
    let (key, value) = (key.as_ptr() as u64, value.as_mut_ptr() as u64);
    let mut attr = EntryAttr { map_fd: map.as_raw_fd() as u32, _pad: 0, key, value, flags };
    // SAFETY: these commands take these attributes, and the pointers refer to live values of the map's sizes.
    unsafe { bpf(command, &mut attr) }.map(drop)
}

/// Reads an entry; `None` if it doesn't exist. For a trie, the entry of the longest matching prefix.
pub fn look_up<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::zeroed();
    match entry(BPF_MAP_LOOKUP_ELEM, map, bytemuck::bytes_of(key), bytemuck::bytes_of_mut(&mut value), 0) {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes an entry unless it exists.
pub fn insert_bytes(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    match entry(BPF_MAP_UPDATE_ELEM, map, key, &mut value.to_vec(), NEW) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// Value of an entry, `size` bytes long; `None` if the entry doesn't exist.
pub fn look_up_bytes(map: BorrowedFd<'_>, key: &[u8], size: usize) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; size];
    match entry(BPF_MAP_LOOKUP_ELEM, map, key, &mut value, 0) {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
