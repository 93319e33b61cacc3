//! The CNI plugin of podnet, and the library for attachments that it shares with the daemon.
//!
//! A call parses its environment ([`mod@env`]) and network configuration ([`config`]), runs one of the [`commands`],
//! and prints a [`result`] or an [`error`]. An attachment consists of a record in the [`store`], a veth pair
//! ([`wiring`], over [`netlink`] and [`netns`]) and, with the eBPF datapath, two programs on its host end and entries
//! in two tables ([`datapath`]). ADD creates them in that order, [`teardown`] removes them in reverse order, and
//! [`repair`] compares all three, so that whatever a crash leaves behind can be found from its record and undone.
//!
//! The plugin needs no running daemon: all that it must know about the node is in the file that the daemon publishes
//! ([`node_info`]).

mod address_log;
pub mod alloc;
pub mod bandwidth;
pub mod call_log;
pub mod commands;
pub mod config;
pub mod datapath;
mod entries;
pub mod env;
pub mod error;
pub mod files;
pub mod id;
pub mod mac;
pub mod netlink;
pub mod netns;
pub mod node_info;
pub mod ownership;
pub mod record;
pub mod repair;
pub mod result;
pub mod store;
mod sysctl;
pub mod teardown;
pub mod text;
pub mod version;
pub mod wiring;
