//! The tables as maps, all that [`for_each_table`](podnet_common::for_each_table) declares.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
#[expect(clippy::wildcard_imports, reason = "the declaration names types of these modules")]
use podnet_common::{
    addr::*,
    layout::{tables::TrieKey, *},
    verdict::{Counter, Reason},
};

/// Flag of hash tables whose entries take memory as they come (`BPF_F_NO_PREALLOC`).
const AS_NEEDED: usize = 1;

/// A map for each table, of the type that its kind has here.
macro_rules! maps {
    ($(
        $(#[$doc:meta])*
        $name:ident: $kind:ident<$key:ty, $value:ty>[$capacity:expr] $class:ident $version:literal;
    )*) => {
        $(maps!(@$kind $name, $key, $value, $capacity);)*
    };
    (@ProgramArray $name:ident, $key:ty, $value:ty, $capacity:expr) => {
        #[btf_map]
        pub(crate) static $name: ProgramArray<{ $capacity }> = ProgramArray::new();
    };
    (@Array $name:ident, $key:ty, $value:ty, $capacity:expr) => {
        #[btf_map]
        pub(crate) static $name: Array<$value, { $capacity }> = Array::new();
    };
    (@PerCpuArray $name:ident, $key:ty, $value:ty, $capacity:expr) => {
        #[btf_map]
        pub(crate) static $name: PerCpuArray<$value, { $capacity }> = PerCpuArray::new();
    };
    (@Hash $name:ident, $key:ty, $value:ty, $capacity:expr) => {
        #[btf_map]
        pub(crate) static $name: HashMap<$key, $value, { $capacity }> = HashMap::new();
    };
    (@HashAsNeeded $name:ident, $key:ty, $value:ty, $capacity:expr) => {
        #[btf_map]
        pub(crate) static $name: HashMap<$key, $value, { $capacity }, AS_NEEDED> = HashMap::new();
    };
    (@LruHash $name:ident, $key:ty, $value:ty, $capacity:expr) => {
        #[btf_map]
        pub(crate) static $name: LruHashMap<$key, $value, { $capacity }> = LruHashMap::new();
    };
    (@LpmTrie $name:ident, $key:ty, $value:ty, $capacity:expr) => {
        #[btf_map]
        pub(crate) static $name: LpmTrie<<$key as TrieKey>::Data, $value, { $capacity }> = LpmTrie::new();
    };
    (@Ring $name:ident, $key:ty, $value:ty, $capacity:expr) => {
        #[btf_map]
        pub(crate) static $name: RingBuf<$value, { $capacity }> = RingBuf::new();
    };
    // aya-log declares its own.
    (@Log $name:ident, $key:ty, $value:ty, $capacity:expr) => {};
}

podnet_common::for_each_table!(maps);

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    add(counter as u32);
}

/// Counts a drop.
#[inline(always)]
pub(crate) fn count_drop(reason: Reason) {
    add(podnet_common::verdict::COUNTERS_BASE + reason as u32);
}

#[inline(always)]
fn add(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a per-CPU slot, and programs of one CPU don't interrupt each other here.
        unsafe { *counter += 1 };
    }
}
