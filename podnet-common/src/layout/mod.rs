//! The layout of every table, by subject; [`tables`] declares the tables themselves.
//!
//! Keys and values are plain data without implicit padding: an uninitialised byte in a key is a miss that no verifier
//! reports. Fields named `_pad` are zero. A changed layout changes [`SCHEMA`], except for tables of
//! [`Class::Frozen`](tables::Class::Frozen), which never change: the plugin writes them, and an old plugin works with a
//! new daemon.

mod config;
mod endpoints;
mod events;
mod flows;
pub mod holders;
mod hooks;
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

/// Version of all layouts here except the frozen ones; part of the pin path.
pub const SCHEMA: u32 = 2;

/// Directory, below the bpffs mount, of everything that podnet pins.
pub const PIN_ROOT: &str = "podnet";
/// Directory in [`PIN_ROOT`] of what never changes its layout: dispatchers (`from_pod` … by [`Hook::name`]) and the
/// frozen tables.
pub const FROZEN: &str = "hooks";
