//! Declaration of all tables: name, kind, key, value, capacity, class and layout version.
//!
//! The maps of the eBPF object, the loader, the pins and the commands are generated from
//! [`for_each_table`](crate::for_each_table), and the documentation is compared with it. To add a table, add a line
//! there and use it.

use core::marker::PhantomData;

use crate::layout::migrate::{self, Conversion, Field};

/// Map type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Program array, for tail calls.
    ProgramArray,
    /// An array.
    Array,
    /// Per-CPU array.
    PerCpuArray,
    /// Hash table, preallocated.
    Hash,
    /// Hash table that allocates entries on insertion (`BPF_F_NO_PREALLOC`). Only the daemon may insert: allocation can
    /// fail in a program, which can't sleep.
    HashNoPrealloc,
    /// Hash table that evicts the least recently used entries.
    LruHash,
    /// Trie for longest-prefix matches.
    LpmTrie,
    /// Ring buffer. The capacity is in bytes.
    Ring,
    /// The ring buffer of aya-log, which declares the map.
    Log,
}

impl Kind {
    /// Name used in documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProgramArray => "program array",
            Self::Array => "array",
            Self::PerCpuArray => "per-CPU array",
            Self::Hash => "hash",
            Self::HashNoPrealloc => "hash, memory as needed",
            Self::LruHash => "LRU hash",
            Self::LpmTrie => "LPM trie",
            Self::Ring | Self::Log => "ring buffer",
        }
    }
}

/// Lifetime of a table's contents, which also determines where it is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The layout never changes: the plugin and the dispatchers of other versions use the table.
    Frozen,
    /// Written by programs; the contents can't be derived from anything else.
    Kept,
    /// Written by the daemon, or dispensable.
    Derived,
    /// Belongs to one generation of programs; not pinned.
    Generation,
}

/// Conversion of entries of other versions to this version.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Fields of this version's key.
    pub key: &'static [Field<'static>],
    /// Fields of this version's value.
    pub value: &'static [Field<'static>],
    /// Converts an entry.
    pub convert: Conversion,
}

impl Migration {
    const fn of<K: migrate::Migrate, V: migrate::Migrate>() -> Self {
        Self { key: K::FIELDS, value: V::FIELDS, convert: migrate::entry::<K, V> }
    }
}

/// A table, independent of its key and value types.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    name: &'static str,
    map: &'static str,
    kind: Kind,
    key_size: usize,
    value_size: usize,
    capacity: usize,
    class: Class,
    version: u32,
    migration: Option<Migration>,
}

/// Names are unique.
impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Table {}

impl Table {
    /// Name in messages and pins.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Name of the map in the eBPF object.
    pub const fn map(self) -> &'static str {
        self.map
    }

    /// Map type.
    pub const fn kind(self) -> Kind {
        self.kind
    }

    /// Size of a key in bytes.
    pub const fn key_size(self) -> usize {
        self.key_size
    }

    /// Size of a value in bytes.
    pub const fn value_size(self) -> usize {
        self.value_size
    }

    /// Default number of entries; for a ring buffer, number of bytes. The configuration may change it. Arrays and
    /// [`Kind::Hash`] are allocated in full when they are created.
    pub const fn capacity(self) -> usize {
        self.capacity
    }

    /// Lifetime of the contents.
    pub const fn class(self) -> Class {
        self.class
    }

    /// Version of the layout.
    pub const fn version(self) -> u32 {
        self.version
    }

    /// Conversion from other versions. `None` if the layout never changes, or if the contents are never reused.
    pub const fn migration(self) -> Option<Migration> {
        self.migration
    }

    /// Whether the table is pinned.
    pub const fn is_pinned(self) -> bool {
        !matches!(self.class, Class::Generation)
    }
}

/// A table with keys `K` and values `V`.
#[derive(Debug)]
pub struct TableOf<K, V> {
    table: Table,
    entry: PhantomData<fn() -> (K, V)>,
}

// Not derived: derives would require `K` and `V` to be `Clone` and `Copy`, but no value of theirs is stored.
impl<K, V> Clone for TableOf<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for TableOf<K, V> {}

impl<K, V> TableOf<K, V> {
    /// The table without its key and value types.
    pub const fn table(self) -> Table {
        self.table
    }

    /// See [`Table::name`].
    pub const fn name(self) -> &'static str {
        self.table.name
    }

    /// See [`Table::map`].
    pub const fn map(self) -> &'static str {
        self.table.map
    }

    /// See [`Table::capacity`].
    pub const fn capacity(self) -> usize {
        self.table.capacity
    }
}

impl<K, V> From<TableOf<K, V>> for Table {
    fn from(table: TableOf<K, V>) -> Self {
        table.table
    }
}

/// Tables that fill up as a cluster grows. Commands and metrics show their usage.
pub const SIZED: [Table; 12] = [
    FRONTENDS.table,
    SLOTS.table,
    BACKENDS.table,
    CONNTRACK.table,
    ENDPOINTS.table,
    NODES.table,
    SOURCE_RANGES.table,
    AFFINITY.table,
    SUBJECTS.table,
    POLICY_PEERS.table,
    POLICY_BLOCKS.table,
    POLICY_RULES.table,
];

/// Calls a macro with all tables, each as `NAME: Kind<Key, Value>[capacity] Class version;`. Type names are those of
/// [`addr`](crate::addr), [`layout`](crate::layout) and [`verdict`](crate::verdict).
#[macro_export]
macro_rules! for_each_table {
    ($each:ident) => {
        $each! {
            /// Programs behind the TC dispatchers, by generation and slot.
            PROGRAMS_TC: ProgramArray<u32, u32>[(GENERATIONS * GENERATION_SLOTS) as usize] Frozen 1;
            /// Programs behind the XDP dispatchers, by generation and slot.
            PROGRAMS_XDP: ProgramArray<u32, u32>[(GENERATIONS * GENERATION_SLOTS) as usize] Frozen 1;
            /// The running generation.
            GENERATION: Array<u32, u32>[1] Frozen 1;
            /// Address of a local pod → its interface.
            ENDPOINTS: Hash<Addr, Endpoint>[4096] Frozen 1;
            /// Address of a local pod that is isolated by network policy → its rule sets.
            SUBJECTS: HashNoPrealloc<Addr, Subject>[8192] Frozen 1;
            /// Cookie of a pod's network namespace → addresses of the pod.
            SANDBOXES: Hash<u64, Sandbox>[4096] Frozen 1;
            /// Counters, by number; drop reasons follow from `verdict::COUNTERS_BASE`.
            COUNTERS: PerCpuArray<u32, u64>[$crate::verdict::COUNTERS] Frozen 1;
            /// Id of the object from which the programs of each generation, and those of the socket hooks, were loaded.
            /// Not read by programs.
            ORIGINS: Array<u32, u64>[SOCKET_ORIGIN as usize + 1] Derived 1;
            /// Time in ticks, as last read from the clock.
            CLOCK: Array<u32, u32>[1] Derived 1;
            /// Node configuration, written by the daemon.
            CONFIG: Array<u32, Config>[1] Derived 1;
            /// Service address and port → slots of its backends.
            FRONTENDS: HashNoPrealloc<FrontendKey, Frontend>[65_536] Derived 1;
            /// Backend ids, in one segment per frontend.
            SLOTS: Array<u32, u32>[2_097_152] Derived 1;
            /// Backends, by id.
            BACKENDS: Array<u32, Backend>[262_144] Derived 1;
            /// Flows: addresses and ports of a packet → how to rewrite it and where to send it. Two entries per flow.
            CONNTRACK: Hash<Tuple, CtEntry>[262_144] Kept 1;
            /// Number of `conntrack` entries per sender.
            HOLDERS: Array<u32, u32>[holders::LEN] Derived 1;
            /// Kinds of address ranges.
            NODES: LpmTrie<Prefix, Network>[65_536] Derived 1;
            /// Uplinks.
            INTERFACES: Hash<IfIndex, Interface>[1024] Derived 1;
            /// Ports for source NAT, in host byte order.
            SNAT_PORTS: Array<u32, u32>[65_536] Derived 1;
            /// Last backend of a client.
            AFFINITY: LruHash<AffinityKey, Affinity>[65_536] Kept 1;
            /// Clients that may use a service port.
            SOURCE_RANGES: LpmTrie<SourceRange, u32>[65_536] Derived 1;
            /// Interface of a local pod → its rule sets and classes in network policies.
            POLICY_PODS: Array<u32, PolicyPod>[PolicyPod::SLOTS as usize] Derived 1;
            /// Address of a pod → its class in network policies.
            POLICY_PEERS: HashNoPrealloc<Addr, u32>[131_072] Derived 1;
            /// Range of other addresses → its class in network policies.
            POLICY_BLOCKS: LpmTrie<Prefix, u32>[65_536] Derived 1;
            /// Destination port → its class in network policies.
            POLICY_PORTS: Array<u32, u32>[ProtoPort::INDEXES] Derived 2;
            /// Rule set, class of the peer, class of the port → the rules that match.
            POLICY_RULES: HashNoPrealloc<PolicyRule, PolicyVerdict>[131_072] Derived 1;
            /// Rule set and number of the rule that denies → packets. Entries are the daemon's, counts the programs'.
            POLICY_DENIALS: HashNoPrealloc<PolicyDenial, u64>[16_384] Derived 1;
            /// Ports of fragmented datagrams.
            FRAGMENTS: LruHash<FragmentKey, FragmentPorts>[8192] Kept 1;
            /// MACs of nodes that may forward packets for direct server return.
            PEERS: Hash<Peer, u32>[16_384] Derived 1;
            /// Socket and backend → the frontend that the process addressed.
            SOCK_REVERSE: LruHash<SockKey, SockPeer>[65_536] Kept 1;
            /// Reports of dropped packets.
            EVENTS: Ring<(), Event>[262_144] Derived 1;
            /// Log messages of programs, for events without a packet. The layout is that of the aya-log version in use.
            AYA_LOGS: Log<(), ()>[0] Derived 1;
            /// Records handed over between stages.
            SCRATCH: PerCpuArray<u32, $crate::pipeline::Handover>[1] Generation 1;
            /// Routing table query, which is too large for the stack.
            FIB: PerCpuArray<u32, $crate::fib::FibLookup>[1] Generation 1;
            /// Cached paths of packets without a flow, by pair of addresses.
            DIRECT_PATHS: PerCpuArray<u32, $crate::pipeline::DirectPath>[$crate::pipeline::DirectPath::SLOTS as usize] Generation 1;
            /// Cached results of routing and neighbour lookups.
            NEXT_HOPS: PerCpuArray<u32, $crate::pipeline::CachedRoute>[$crate::pipeline::CachedRoute::SLOTS as usize] Generation 1;
        }
    };
}

const fn lower<const N: usize>(name: &str) -> [u8; N] {
    let (mut bytes, mut i) = ([0; N], 0);
    while i < N {
        bytes[i] = name.as_bytes()[i].to_ascii_lowercase();
        i += 1;
    }
    bytes
}

/// Version of a layout. With the feature `later-layouts`, all tables have a different, possible next version, which
/// tests upgrade to and roll back from.
const fn version(class: Class, version: u32) -> u32 {
    if cfg!(feature = "later-layouts") && !matches!(class, Class::Frozen) { version + 1 } else { version }
}

macro_rules! migration {
    ($kind:ident Frozen $key:ty, $value:ty) => {
        None
    };
    ($kind:ident Generation $key:ty, $value:ty) => {
        None
    };
    (Ring $class:ident $key:ty, $value:ty) => {
        None
    };
    (Log $class:ident $key:ty, $value:ty) => {
        None
    };
    ($kind:ident $class:ident $key:ty, $value:ty) => {
        Some(Migration::of::<$key, $value>())
    };
}

macro_rules! declare {
    ($(
        $(#[$doc:meta])*
        $name:ident: $kind:ident<$key:ty, $value:ty>[$capacity:expr] $class:ident $version:literal;
    )*) => {
        mod declared {
            use super::{Class, Kind, Migration, PhantomData, Table, TableOf, lower, version};
            use crate::{
                addr::{Addr, IfIndex},
                layout::{
                    Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, Event, FragmentKey, FragmentPorts,
                    Frontend, FrontendKey, GENERATION_SLOTS, GENERATIONS, Interface, Network, Peer, PolicyDenial, PolicyPod, PolicyRule,
                    PolicyVerdict, Prefix, ProtoPort, SOCKET_ORIGIN, Sandbox, SockKey, SockPeer, SourceRange, Subject,
                    Tuple, holders,
                },
            };

            $(
                $(#[$doc])*
                pub const $name: TableOf<$key, $value> = {
                    const MAP: &str = stringify!($name);
                    const BYTES: [u8; MAP.len()] = lower(MAP);
                    TableOf {
                        table: Table {
                            name: match core::str::from_utf8(&BYTES) {
                                Ok(name) => name,
                                Err(_) => panic!("names are ASCII"),
                            },
                            map: MAP,
                            kind: Kind::$kind,
                            key_size: size_of::<$key>(),
                            value_size: size_of::<$value>(),
                            capacity: $capacity,
                            class: Class::$class,
                            version: version(Class::$class, $version),
                            migration: migration!($kind $class $key, $value),
                        },
                        entry: PhantomData,
                    }
                };
            )*

            /// All tables.
            pub const ALL: &[Table] = &[$($name.table),*];
        }
        pub use declared::*;
    };
}

crate::for_each_table!(declare);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{format, fs, path::Path, string::String, vec::Vec};

    use super::*;

    #[test]
    fn names_are_those_of_the_object_in_lower_case() {
        assert_eq!((SOURCE_RANGES.name(), SOURCE_RANGES.map()), ("source_ranges", "SOURCE_RANGES"));
    }

    /// Columns of the documented table that follow from the declaration: name, frozen, kind, bytes, entries.
    fn documented() -> Vec<(String, bool, String, String, String)> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/datapath.md");
        let text = fs::read_to_string(path).unwrap();
        let (_, section) = text.split_once("\n## Tables\n").unwrap();
        let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
        let mut tables = Vec::new();
        for row in rows.take_while(|line| line.starts_with('|')) {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [names, kind, _, _, bytes, entries, _] = cells[..] else { panic!("{row}") };
            let frozen = names.ends_with('†');
            for name in names.split('`').skip(1).step_by(2) {
                let entries = entries.split(" (").next().unwrap_or_default();
                tables.push((name.into(), frozen, kind.into(), bytes.into(), entries.replace(',', "")));
            }
        }
        tables
    }

    #[test]
    fn the_documentation_has_every_table() {
        let bytes = |table: &Table| match table.kind {
            Kind::Ring => format!("{}", table.value_size),
            _ if table.class == Class::Generation => String::new(),
            _ => format!("{} + {}", table.key_size, table.value_size),
        };
        let entries = |table: &Table| match table.kind {
            Kind::Ring => format!("{} KiB", table.capacity >> 10),
            _ => format!("{}", table.capacity),
        };
        let row = |table: &Table| {
            let frozen = table.class == Class::Frozen;
            (table.name.into(), frozen, table.kind.name().into(), bytes(table), entries(table))
        };
        let mut declared: Vec<_> = ALL.iter().filter(|table| table.kind != Kind::Log).map(row).collect();
        let mut documented = documented();
        declared.sort();
        documented.sort();
        assert_eq!(documented, declared);
    }
}
