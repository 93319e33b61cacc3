//! Keys and values of all tables, by subject. The tables themselves are declared in [`tables`](crate::tables).
//!
//! All layouts are plain data without implicit padding: an uninitialised byte in a key causes a lookup miss that no
//! verifier reports. Fields named `_pad` are zero. A changed layout is a new version of its table, and [`migrate`]
//! converts entries of other versions. Tables of [`Class::Frozen`](crate::tables::Class::Frozen) never change: the
//! plugin writes them, and an old plugin must work with a new daemon.

mod config;
mod endpoints;
mod events;
mod flows;
pub mod holders;
mod hooks;
pub mod migrate;
mod network;
mod policy;
mod services;
mod sockets;
mod trie;

pub use config::*;
pub use endpoints::*;
pub use events::*;
pub use flows::*;
pub use hooks::*;
pub use network::*;
pub use policy::*;
pub use services::*;
pub use sockets::*;
pub use trie::*;

/// Directory for all of podnet's pins, relative to the mount point of bpffs.
pub const PIN_ROOT: &str = "podnet";
/// Directory in [`PIN_ROOT`] for pins whose layout never changes: dispatchers (`from_pod` and so on, see
/// [`Hook::name`]) and frozen tables.
pub const FROZEN: &str = "hooks";
/// Directory in [`PIN_ROOT`] for tables with version 1 of their layout. The name predates versions per table: daemons
/// from before these versions look for their tables here.
pub const FIRST_TABLES: &str = "v2";
/// Directory in [`PIN_ROOT`] for tables with later versions: `<table>_v<version>`.
pub const LATER_TABLES: &str = "tables";
