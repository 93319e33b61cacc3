//! The layout of every table, by subject; [`tables`] declares the tables themselves.
//!
//! Keys and values are plain data without implicit padding: an uninitialised byte in a key is a miss that no verifier
//! reports. Fields named `_pad` are zero. A changed layout is another version of its table, and [`migrate`] makes its
//! entries from those of others. Tables of [`Class::Frozen`](tables::Class::Frozen) never change: the plugin writes them,
//! and an old plugin works with a new daemon.

mod config;
mod endpoints;
mod events;
mod flows;
pub mod holders;
mod hooks;
pub mod migrate;
mod network;
mod services;
mod sockets;
pub mod tables;

pub use config::*;
pub use endpoints::*;
pub use events::*;
pub use flows::*;
pub use hooks::*;
pub use network::*;
pub use services::*;
pub use sockets::*;

/// Directory, below the bpffs mount, of everything that podnet pins.
pub const PIN_ROOT: &str = "podnet";
/// Directory in [`PIN_ROOT`] of what never changes its layout: dispatchers (`from_pod` … by [`Hook::name`]) and the
/// frozen tables.
pub const FROZEN: &str = "hooks";
/// Directory in [`PIN_ROOT`] of the tables with the first version of their layout. It is older than these versions: so a
/// daemon that knows of none finds its tables there.
pub const FIRST_TABLES: &str = "v2";
/// Directory in [`PIN_ROOT`] of the tables with later versions: `<table>_v<version>`.
pub const LATER_TABLES: &str = "tables";
