//! Read access to the datapath's tables, for commands.
//!
//! Commands read the pinned tables, so they work while the daemon is down, and they only read. [`super::view`]
//! implements the access over the pins, [`super::memory`] in memory for tests.

use std::path::PathBuf;

use podnet_cni::text::refusal;
use podnet_common::addr::{Addr, IfIndex};
use podnet_common::{
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, Frontend, FrontendKey, Hook, Interface, Network,
        Prefix, SourceRange, Tuple,
    },
    tables::Table,
};
use thiserror::Error;

/// Why a table could not be read.
#[derive(Debug, Error)]
pub enum ViewError {
    /// The tables are not pinned.
    #[error(
        "podnet's tables are not pinned under {}: start the daemon with `podnet daemon --config FILE`, or pass \
         --bpffs if its BPF file system is mounted elsewhere", directory.display()
    )]
    NotPinned {
        /// Where the pins were expected.
        directory: PathBuf,
    },
    /// A table could not be opened or read.
    #[error("cannot read the table {table}: {}", refusal(.source.as_ref()))]
    Table {
        /// Its name.
        table: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel's routing table could not be read.
    #[error("cannot look up routes: {}", refusal(.0))]
    Routes(#[source] std::io::Error),
    /// The attachment of a hook could not be read.
    #[error("cannot find out where {hook} is attached: {}", refusal(.source.as_ref()))]
    Hook {
        /// The hook's name.
        hook: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Read access to the tables.
pub trait View {
    /// All entries of `frontends`, in any order.
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, ViewError>;

    /// `count` slots from `base` on: backend ids.
    fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, ViewError>;

    /// A backend.
    fn backend(&self, id: u32) -> Result<Backend, ViewError>;

    /// All entries of `endpoints`, in any order.
    fn endpoints(&self) -> Result<Vec<(Addr, Endpoint)>, ViewError>;

    /// Calls `visit` with every entry of `conntrack`. Entries added or removed meanwhile may be missed or seen.
    fn conntrack(&self, visit: &mut dyn FnMut(&Tuple, &CtEntry)) -> Result<(), ViewError>;

    /// All entries of `nodes`, in any order.
    fn networks(&self) -> Result<Vec<(Prefix, Network)>, ViewError>;

    /// All entries of `interfaces`, in any order.
    fn interfaces(&self) -> Result<Vec<(IfIndex, Interface)>, ViewError>;

    /// All entries of `source_ranges`, in any order.
    fn source_ranges(&self) -> Result<Vec<SourceRange>, ViewError>;

    /// All entries of `affinity`, in any order.
    fn affinity(&self) -> Result<Vec<(AffinityKey, Affinity)>, ViewError>;

    /// The source ports that source NAT may use.
    fn snat_ports(&self) -> Result<Vec<u16>, ViewError>;

    /// `counters` by number, each summed over the CPUs.
    fn counters(&self) -> Result<Vec<u64>, ViewError>;

    /// The programs' configuration of the node.
    fn config(&self) -> Result<Config, ViewError>;

    /// Number of the running generation of programs.
    fn generation(&self) -> Result<u32, ViewError>;

    /// Number of entries of a hash table or a trie.
    fn count(&self, table: Table) -> Result<u64, ViewError>;

    /// Capacity of a table in entries.
    fn capacity(&self, table: Table) -> Result<u32, ViewError>;

    /// Whether a hook's program is attached to an interface of this namespace.
    fn attached(&self, hook: Hook, ifindex: IfIndex) -> Result<bool, ViewError>;

    /// Whether the socket hooks are attached.
    fn sockets_attached(&self) -> bool;
}
