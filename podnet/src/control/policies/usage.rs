//! Number of entries in the tables of network policy.

use podnet_common::tables::{POLICY_BLOCKS, POLICY_PEERS, POLICY_RULES, SUBJECTS, Table};

use super::NetworkPolicies;

impl NetworkPolicies {
    /// Number of entries of each table that fills up with policies and pods.
    pub fn usage(&self) -> [(Table, usize); 4] {
        [
            (SUBJECTS.table(), self.subjects.len()),
            (POLICY_PEERS.table(), self.peers.len()),
            (POLICY_BLOCKS.table(), self.blocks.len()),
            (POLICY_RULES.table(), self.rules.len()),
        ]
    }
}
