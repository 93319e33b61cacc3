//! Every table, declared once: its name, kind, key, value, capacity, class and the version of its layout.
//!
//! The object's maps, the loader, the pins, the commands and the documentation all follow [`for_each_table`](crate::for_each_table). A new table
//! is a line there, and its use.

use core::marker::PhantomData;

use super::migrate::{self, Conversion, Field};

/// How the kernel keeps a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Programs, for tail calls.
    ProgramArray,
    /// An array.
    Array,
    /// An array with a value for each CPU.
    PerCpuArray,
    /// A hash table whose memory is taken when it is made.
    Hash,
    /// A hash table whose entries take memory as they come. Only the daemon may add any: a program that can't sleep may
    /// get none.
    HashAsNeeded,
    /// A hash table that makes room by removing what was used least recently.
    LruHash,
    /// A trie for the longest prefix that matches.
    LpmTrie,
    /// A ring buffer. Its capacity is in bytes.
    Ring,
    /// aya-log's, which also declares it.
    Log,
}

impl Kind {
    /// As documents call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProgramArray => "program array",
            Self::Array => "array",
            Self::PerCpuArray => "per-CPU array",
            Self::Hash => "hash",
            Self::HashAsNeeded => "hash, memory as needed",
            Self::LruHash => "LRU hash",
            Self::LpmTrie => "LPM trie",
            Self::Ring | Self::Log => "ring buffer",
        }
    }
}

/// How long a table's content has to live, and where it is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The layout never changes: the plugin and the dispatchers of other versions use it.
    Frozen,
    /// Programs write it, and nothing else knows what it holds.
    Kept,
    /// The daemon writes it, or can do without what it holds.
    Derived,
    /// It belongs to one generation of programs, and has no pin.
    Generation,
}

/// How entries of other versions become entries of this one.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// This version's keys.
    pub key: &'static [Field<'static>],
    /// This version's values.
    pub value: &'static [Field<'static>],
    /// Converts an entry.
    pub convert: Conversion,
}

impl Migration {
    const fn of<K: migrate::Migrate, V: migrate::Migrate>() -> Self {
        Self { key: K::FIELDS, value: V::FIELDS, convert: migrate::entry::<K, V> }
    }
}

/// A table, whatever it holds.
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

/// There is one table of a name.
impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Table {}

impl Table {
    /// Its name, in messages and pins.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Its name in the object.
    pub const fn map(self) -> &'static str {
        self.map
    }

    /// How the kernel keeps it.
    pub const fn kind(self) -> Kind {
        self.kind
    }

    /// The size of a key in bytes.
    pub const fn key_size(self) -> usize {
        self.key_size
    }

    /// The size of a value in bytes.
    pub const fn value_size(self) -> usize {
        self.value_size
    }

    /// How many entries it has room for unless the configuration says otherwise; of a ring buffer, how many bytes. Arrays
    /// and [`Kind::Hash`] take their memory when they are made.
    pub const fn capacity(self) -> usize {
        self.capacity
    }

    /// How long what it holds has to live.
    pub const fn class(self) -> Class {
        self.class
    }

    /// The version of its layout.
    pub const fn version(self) -> u32 {
        self.version
    }

    /// How entries of other versions become this one's. `None`: they don't, since the layout never changes, or what the
    /// table holds is never used again.
    pub const fn migration(self) -> Option<Migration> {
        self.migration
    }

    /// Whether it is pinned.
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

// Not derived: that would ask for keys and values that can be copied, though there are none in here.
impl<K, V> Clone for TableOf<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for TableOf<K, V> {}

impl<K, V> TableOf<K, V> {
    /// The table, whatever it holds.
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

/// The tables that fill as a cluster grows: commands and metrics show how full they are.
pub const SIZED: [Table; 8] = [
    FRONTENDS.table,
    SLOTS.table,
    BACKENDS.table,
    CONNTRACK.table,
    ENDPOINTS.table,
    NODES.table,
    SOURCE_RANGES.table,
    AFFINITY.table,
];

/// The key of a [`Kind::LpmTrie`]: a length in bits, and what has this length at most.
pub trait TrieKey {
    /// What follows the length.
    type Data;
}

/// Calls a macro with all tables, each as `NAME: Kind<Key, Value>[capacity] Class version;`. The names of types are those
/// of [`addr`](crate::addr), [`layout`](crate::layout) and [`verdict`](crate::verdict).
#[macro_export]
macro_rules! for_each_table {
    ($each:ident) => {
        $each! {
            /// The programs behind the dispatchers at TC, by generation and slot.
            PROGRAMS_TC: ProgramArray<u32, u32>[(GENERATIONS * GENERATION_SLOTS) as usize] Frozen 1;
            /// The same at XDP.
            PROGRAMS_XDP: ProgramArray<u32, u32>[(GENERATIONS * GENERATION_SLOTS) as usize] Frozen 1;
            /// Which generation runs.
            GENERATION: Array<u32, u32>[1] Frozen 1;
            /// A local pod's address → where it is.
            ENDPOINTS: Hash<Addr, Endpoint>[4096] Frozen 1;
            /// The cookie of a pod's network namespace → the pod's addresses.
            SANDBOXES: Hash<u64, Sandbox>[4096] Frozen 1;
            /// How often, by the number of a counter, or of a drop reason after these.
            COUNTERS: PerCpuArray<u32, u64>[$crate::verdict::COUNTERS] Frozen 1;
            /// Which object the programs of each generation come from, and those at the sockets. No program reads it.
            ORIGINS: Array<u32, u64>[SOCKET_ORIGIN as usize + 1] Derived 1;
            /// Time in ticks, as it was last read.
            CLOCK: Array<u32, u32>[1] Derived 1;
            /// What the daemon tells the programs of the node.
            CONFIG: Array<u32, Config>[1] Derived 1;
            /// A service's address and port → which slots hold its backends.
            FRONTENDS: HashAsNeeded<FrontendKey, Frontend>[65_536] Derived 1;
            /// The ids of backends, by frontend.
            SLOTS: Array<u32, u32>[2_097_152] Derived 1;
            /// Backends, by id.
            BACKENDS: Array<u32, Backend>[262_144] Derived 1;
            /// Flows: a packet's addresses and ports → how to rewrite it and where to send it. Two entries a flow.
            CONNTRACK: Hash<Tuple, CtEntry>[262_144] Kept 1;
            /// How many entries of `conntrack` everybody holds.
            HOLDERS: Array<u32, u32>[holders::LEN] Derived 1;
            /// What each range of addresses is.
            NODES: LpmTrie<Prefix, Network>[65_536] Derived 1;
            /// The uplinks.
            INTERFACES: Hash<IfIndex, Interface>[1024] Derived 1;
            /// The ports for source NAT, in host byte order.
            SNAT_PORTS: Array<u32, u32>[65_536] Derived 1;
            /// Which backend a client had last.
            AFFINITY: LruHash<AffinityKey, Affinity>[65_536] Kept 1;
            /// Which clients may use a service port.
            SOURCE_RANGES: LpmTrie<SourceRange, u32>[65_536] Derived 1;
            /// What only the first fragment of a packet says.
            FRAGMENTS: LruHash<FragmentKey, FragmentPorts>[8192] Kept 1;
            /// MACs of nodes that may send on packets for direct server return.
            PEERS: Hash<Peer, u32>[16_384] Derived 1;
            /// What a socket was connected or has sent to → which frontend the program meant.
            SOCK_REVERSE: LruHash<SockKey, SockPeer>[65_536] Kept 1;
            /// Reports of dropped packets.
            EVENTS: Ring<(), Event>[262_144] Derived 1;
            /// What the programs log themselves, where there is no packet that an event could carry. Its layout is that of
            /// the version of aya-log.
            AYA_LOGS: Log<(), ()>[0] Derived 1;
            /// What programs hand over to each other.
            SCRATCH: PerCpuArray<u32, $crate::pipeline::Handover>[1] Generation 1;
/// A question to the routing table: more than the stack has room for.
            FIB: PerCpuArray<u32, $crate::fib::FibLookup>[1] Generation 1;
            /// How packets between two addresses leave that belong to no flow.
            DIRECT_PATHS: PerCpuArray<u32, $crate::pipeline::DirectPath>[$crate::pipeline::DirectPath::SLOTS as usize] Generation 1;
            /// Answers of the routing and neighbour tables.
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

/// The version of a layout. With the feature `later-layouts` all have another one that could be the next, which tests
/// upgrade to and roll back from.
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
                    Frontend, FrontendKey, GENERATION_SLOTS, GENERATIONS, Interface, Network, Peer, Prefix,
                    SOCKET_ORIGIN, Sandbox, SockKey, SockPeer, SourceRange, Tuple, holders,
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

    /// The documentation's table, as far as it follows from the declaration: name, whether frozen, kind, bytes, entries.
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
