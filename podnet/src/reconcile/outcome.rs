//! What a round of reconciliation has done, and what is left.

use std::fmt;
use std::time::Instant;

use podnet_common::layout::{Backend, FrontendKey};

use crate::compile::show;

/// Outcome of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Frontends that were written or deleted.
    pub changed: usize,
    /// Frontends whose write or deletion failed.
    pub failed: usize,
    /// What still differs from the desired state because something failed; mostly frontends.
    pub pending: usize,
    /// How many of these are missing or wrong in the tables; the others lack only their spreading.
    pub unwritten: usize,
    /// When the next action is due.
    pub next_retry: Option<Instant>,
    /// Backends that UDP frontends have lost. Flows to those that are no longer serving must end immediately.
    pub removed: Vec<Removed>,
}

/// Backends that a frontend has lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The frontend, which may still exist.
    pub key: FrontendKey,
    /// The backends that it has lost.
    pub backends: Vec<Backend>,
}

/// Table entries in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of `frontends`.
    pub frontends: usize,
    /// Of `slots`.
    pub slots: u32,
    /// Of `backends`.
    pub backends: usize,
    /// Of `source_ranges`.
    pub source_ranges: usize,
}

/// Work that has failed and will be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending<'a> {
    /// Writing or deleting a frontend.
    Frontend(&'a FrontendKey),
    /// Removing unused entries from a table.
    Table(&'static str),
}

impl fmt::Display for Pending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend(key) => write!(f, "{}", show(key)),
            Self::Table(name) => write!(f, "the table `{name}`"),
        }
    }
}
