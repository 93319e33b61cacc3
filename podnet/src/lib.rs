//! The podnet daemon and its command line: from Kubernetes objects to the tables of the datapath.
//!
//! From top to bottom: a [`source`] provides objects of the [`model`]; [`select`] turns them into [`frontend`]s, the
//! interface between Kubernetes and the datapath; [`compile`] and [`reconcile`] make the tables of the [`datapath`]
//! match. [`policy`] turns network policies into tables. [`control`] connects these, [`host`] sets up the node's own
//! network, [`health`] serves health checks and [`metrics`] metrics, [`install`] installs the plugin for the container
//! runtime, and [`daemon`] is the event loop. [`guard`] has the addresses and ports that no object may take, [`mirror`]
//! the desired and the actual contents of a table, [`status`] the daemon's report, and [`socket`] the requests of
//! commands to the running daemon.

mod async_fd;
mod backoff;
pub mod cli;
pub mod compile;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod entry_counts;
pub mod frontend;
pub mod guard;
pub mod health;
mod heap;
pub mod host;
mod http;
pub mod install;
mod limit;
pub mod metrics;
pub mod mirror;
pub mod model;
pub mod policy;
mod prefixes;
pub mod reconcile;
pub mod select;
pub mod socket;
pub mod source;
pub mod status;
mod yaml;
