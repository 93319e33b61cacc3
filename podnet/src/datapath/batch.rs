//! What aya doesn't offer for large maps. Reading, writing and emptying them by batches (`BPF_MAP_LOOKUP_BATCH` and others,
//! Linux 5.6): one system call for thousands of entries instead of one or two for each.

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
/// Only if there is no such entry (`BPF_NOEXIST`).
const NEW: u64 = 1;

/// Entries a call.
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
    // SAFETY: the attribute is of that command's shape, and its pointers are the callers' live buffers, of its count.
    unsafe { bpf(command, attr) }.map(drop)
}

/// Calls `visit` with every entry of a hash map, an array or a trie. Entries that come and go meanwhile may be missed
/// or seen.
pub fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
    let (mut keys, mut values) = (vec![K::zeroed(); CHUNK], vec![V::zeroed(); CHUNK]);
    let visit = |keys: &[u8], values: &[u8]| {
        let (keys, values): (&[K], &[V]) = (bytemuck::cast_slice(keys), bytemuck::cast_slice(values));
        keys.iter().zip(values).for_each(|(key, value)| visit(key, value));
    };
    chunks(map, bytemuck::cast_slice_mut(&mut keys), bytemuck::cast_slice_mut(&mut values), visit)
}

/// The same where the sizes of keys and values are known at run time only.
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

/// Calls `visit` with entries by the chunk: their keys, and their values. A bucket's entries come together, so there must
/// be room for the fullest one.
fn chunks(
    map: BorrowedFd<'_>,
    keys: &mut [u8],
    values: &mut [u8],
    mut visit: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let (key, value) = (keys.len() / CHUNK, values.len() / CHUNK);
    // Where to go on: a number in a hash map, the last key in others.
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

/// Values of an array, `count` from `base` on; fewer where the array ends.
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
        // The array ends before the batch does.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    values.truncate(attr.count as usize);
    Ok(values)
}

/// Writes entries, in the place of those that are there. There are as many values as keys.
pub fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    debug_assert_eq!(keys.len(), values.len());
    let count = keys.len().min(values.len());
    update_bytes(map, count, bytemuck::cast_slice(keys), bytemuck::cast_slice(values))
}

/// The same where the sizes of keys and values are known at run time only.
pub fn update_bytes(map: BorrowedFd<'_>, count: usize, keys: &[u8], values: &[u8]) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: count as u32,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::zeroed()
    };
    call(BPF_MAP_UPDATE_BATCH, &mut attr)
}

/// Deletes entries; that some are gone already is fine. Returns how many were deleted.
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
            // The kernel stops at the first that is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) && done < rest.len() => rest = &rest[done + 1..],
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

/// What commands for one entry take of `union bpf_attr`.
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
    // SAFETY: these commands take these attributes, and their pointers are to live values of the map's sizes.
    unsafe { bpf(command, &mut attr) }.map(drop)
}

/// Reads an entry; `None` if there is none. Of a trie it is that of the longest prefix which holds the key.
pub fn look_up<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::zeroed();
    match entry(BPF_MAP_LOOKUP_ELEM, map, bytemuck::bytes_of(key), bytemuck::bytes_of_mut(&mut value), 0) {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes an entry unless there is one.
pub fn insert_bytes(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    match entry(BPF_MAP_UPDATE_ELEM, map, key, &mut value.to_vec(), NEW) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// The value of an entry, which has this size; `None` if there is none.
pub fn look_up_bytes(map: BorrowedFd<'_>, key: &[u8], size: usize) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; size];
    match entry(BPF_MAP_LOOKUP_ELEM, map, key, &mut value, 0) {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
