//! The podnet daemon and its command line: Kubernetes objects in, tables of the datapath out.
//!
//! From top to bottom: a [`source`] gives objects of the [`model`]; [`select`] makes [`frontend`]s of them, the seam
//! between Kubernetes and the datapath; [`compile`] and [`reconcile`] bring the tables of the [`datapath`] into line.
//! [`control`] holds these together, [`host`] is the node's own network, [`health`] answers those who ask how the node is,
//! [`metrics`] those who want figures, [`install`] puts the plugin where runtimes look for it, and [`daemon`] is the loop
//! around everything.

mod async_fd;
mod backoff;
pub mod cli;
pub mod compile;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod frontend;
pub mod guard;
pub mod health;
pub mod host;
mod http;
pub mod install;
pub mod metrics;
pub mod mirror;
pub mod model;
mod prefixes;
pub mod reconcile;
pub mod room;
pub mod select;
pub mod source;
pub mod status;
mod yaml;
