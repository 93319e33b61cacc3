//! Batches of writes to a table of the kernel.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

use bytemuck::{Pod, Zeroable};
use podnet::datapath::batch;
use podnet_cni::datapath::bpf;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_TYPE_HASH: u32 = 1;
const CAPACITY: u32 = 4;

/// `struct { … } /* anonymous struct used by BPF_MAP_CREATE */` of `union bpf_attr`, up to the flags.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[test]
fn a_full_table_takes_the_first_entries_of_a_batch() {
    let mut attr =
        Create { map_type: BPF_MAP_TYPE_HASH, key_size: 4, value_size: 4, max_entries: CAPACITY, map_flags: 0 };
    // SAFETY: the attributes are those of the command, without pointers.
    let created = unsafe { bpf(BPF_MAP_CREATE, &mut attr) }.expect("these tests create maps: run them as root (sudo)");
    // SAFETY: a new descriptor, which nothing else owns.
    let map = unsafe { OwnedFd::from_raw_fd(created) };
    let entries = || {
        let mut entries = BTreeMap::new();
        batch::for_each(map.as_fd(), |key: &u32, value: &u32| _ = entries.insert(*key, *value)).unwrap();
        entries
    };
    let keys: Vec<u32> = (0..CAPACITY + 2).collect();
    let write = |keys: &[u32], value: u32| {
        let values = vec![value; keys.len()];
        batch::update_first(map.as_fd(), keys, &values)
    };
    assert_eq!(write(&[], 7), 0);
    assert_eq!(write(&keys, 7), CAPACITY as usize);
    assert_eq!(entries(), (0..CAPACITY).map(|key| (key, 7)).collect());
    // Replacements need no room.
    assert_eq!(write(&[0, 3, 1], 8), 3);
    assert_eq!(write(&[2, 9, 0], 9), 1);
    assert_eq!(entries(), BTreeMap::from([(0, 8), (1, 8), (2, 9), (3, 8)]));
    // What isn't a table takes nothing.
    assert_eq!(batch::update_first(File::open("/dev/null").unwrap().as_fd(), &keys, &keys), 0);
}
