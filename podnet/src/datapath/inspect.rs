//! The datapath's tables as commands read them.
//!
//! Commands read what is pinned, so they work while the daemon is down, and they only read. The implementation over
//! the pins is [`super::view`]'s; tests use [`super::memory`].

use std::path::PathBuf;

use podnet_cni::text::chain;
use podnet_common::addr::{Addr, IfIndex};
use podnet_common::layout::{
    Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, Frontend, FrontendKey, Hook, Interface, Network, Prefix,
    SourceRange, Tuple, tables::Table,
};
use thiserror::Error;

/// Why a table could not be read.
#[derive(Debug, Error)]
pub enum ViewError {
    /// There are no pins.
    #[error(
        "podnet's tables are not pinned under {}: start the daemon with `podnet daemon --config FILE`, or pass \
         --bpffs if its BPF file system is mounted elsewhere", directory.display()
    )]
    NotPinned {
        /// Where they were looked for.
        directory: PathBuf,
    },
    /// Opening or reading failed.
    #[error("cannot read the table {table}: {}; run this as root", chain(.source.as_ref()))]
    Table {
        /// Its name.
        table: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The routing table could not be asked.
    #[error("cannot look up routes: {0}; run this as root")]
    Routes(#[source] std::io::Error),
    /// The kernel could not be asked what is attached.
    #[error("cannot find out where {hook} is attached: {}; run this as root", chain(.source.as_ref()))]
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

    /// `count` slots from `base` on: ids of backends.
    fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, ViewError>;

    /// A backend.
    fn backend(&self, id: u32) -> Result<Backend, ViewError>;

    /// All entries of `endpoints`, in any order.
    fn endpoints(&self) -> Result<Vec<(Addr, Endpoint)>, ViewError>;

    /// Calls `visit` with every entry of `conntrack`. Those that come and go meanwhile may be missed or seen.
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

    /// What the programs know of the node.
    fn config(&self) -> Result<Config, ViewError>;

    /// Number of the generation of programs that runs.
    fn generation(&self) -> Result<u32, ViewError>;

    /// How many entries a table has room for.
    fn capacity(&self, table: Table) -> Result<u32, ViewError>;

    /// Whether a hook's program is attached to an interface of this namespace.
    fn attached(&self, hook: Hook, ifindex: IfIndex) -> Result<bool, ViewError>;

    /// Whether the socket hooks are attached.
    fn sockets_attached(&self) -> bool;
}
