//! The maps of the object, one for each table in [`for_each_table`](podnet_common::for_each_table), and counters.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
#[expect(clippy::wildcard_imports, reason = "the declaration names types of these modules")]
use podnet_common::{
    addr::*,
    layout::*,
    verdict::{Counter, Reason},
};

/// `BPF_F_NO_PREALLOC`: entries of a hash table are allocated on insertion.
const NO_PREALLOC: usize = 1;

/// Declares a map for each table, with the map type of its kind.
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
    (@HashNoPrealloc $name:ident, $key:ty, $value:ty, $capacity:expr) => {
        #[btf_map]
        pub(crate) static $name: HashMap<$key, $value, { $capacity }, NO_PREALLOC> = HashMap::new();
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
    // Declared by aya-log.
    (@Log $name:ident, $key:ty, $value:ty, $capacity:expr) => {};
}

podnet_common::for_each_table!(maps);

/// Increments a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    add(counter as u32);
}

/// Increments the drop counter of a reason.
#[inline(always)]
pub(crate) fn count_drop(reason: Reason) {
    add(podnet_common::verdict::COUNTERS_BASE + reason as u32);
}

#[inline(always)]
fn add(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a per-CPU element, and programs on one CPU don't interrupt each other here.
        unsafe { *counter += 1 };
    }
}
