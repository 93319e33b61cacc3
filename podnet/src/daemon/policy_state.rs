//! Progress of network policies: what has been written and published, and which flows are judged again.

use std::collections::HashSet;

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
    /// How many more sweeps judge the flows of subjects again.
    sweeps: u8,
}

/// Number of sweeps after a change that judge existing flows. A flow may begin under the old policies while the first
/// one runs.
const SWEEPS: u8 = 2;

impl PolicyState {
    /// Has the next sweeps judge the flows of subjects again.
    pub(super) fn judge_again(&mut self) {
        self.sweeps = SWEEPS;
    }

    /// The pods whose flows the next sweep judges again.
    pub(super) fn take_judged(&mut self, control: &Control) -> HashSet<Addr> {
        if self.sweeps == 0 {
            return HashSet::new();
        }
        self.sweeps -= 1;
        control.policies().subjects().collect()
    }
}
