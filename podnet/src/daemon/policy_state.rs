//! Progress of network policies: what has been written and published, and which flows are evaluated again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use podnet_cni::node_info::Policed;
use podnet_common::addr::Addr;

use crate::control::Control;

/// Progress of network policies.
#[derive(Debug, Default)]
pub(super) struct PolicyState {
    /// The tables have been written since the sources were synced.
    pub(super) synced: bool,
    /// Why the tables could not be written.
    pub(super) problem: Option<String>,
    /// The pods that start closed, as published for the plugin.
    pub(super) published: Policed,
    /// How many more sweeps evaluate the flows of subjects again.
    sweeps: u8,
    /// Whether the last sweep evaluated them.
    evaluating: bool,
    /// When pods became subjects last.
    new_subjects: Option<Instant>,
}

/// Number of sweeps after a change that evaluate existing flows. A flow may begin under the old policies while the
/// first one runs.
const SWEEPS: u8 = 2;

/// How long pods count as new subjects. An answer that takes longer begins a flow of its own.
const NEW: Duration = Duration::from_secs(30);

impl PolicyState {
    /// Has the next sweeps evaluate the flows of subjects again.
    pub(super) fn evaluate_again(&mut self) {
        self.sweeps = SWEEPS;
    }

    /// Schedules the evaluation again that a failed sweep has not done.
    pub(super) fn sweep_failed(&mut self) {
        if self.evaluating {
            self.evaluate_again();
        }
    }

    /// Has another sweep look at the flows. A packet that was being forwarded may have undone what this one has denied.
    pub(super) fn flows_denied(&mut self) {
        self.sweeps = self.sweeps.max(1);
    }

    /// Notes that pods become subjects.
    pub(super) fn note_new_subjects(&mut self, now: Instant) {
        self.new_subjects = Some(now);
    }

    /// Whether pods have become subjects lately.
    pub(super) fn has_new_subjects(&self, now: Instant) -> bool {
        self.new_subjects.is_some_and(|since| now.duration_since(since) < NEW)
    }

    /// The pods whose flows the next sweep evaluates again.
    pub(super) fn take_evaluated(&mut self, control: &Control) -> HashSet<Addr> {
        self.evaluating = self.sweeps > 0;
        if !self.evaluating {
            return HashSet::new();
        }
        self.sweeps -= 1;
        control.policies().subjects().collect()
    }
}
