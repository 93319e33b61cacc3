//! The table `policy_pods`: what `subjects` and `policy_peers` contain for the addresses of a pod, by its interface.
//!
//! It saves the programs four lookups by address. A missing pod is looked up there, so it costs time only. But an entry
//! must not contradict these tables: see [`PolicyPods::keep`].

use std::collections::BTreeMap;

use podnet_common::addr::Addr;
use podnet_common::layout::{PolicyPod, Subject};

use super::attached::{Attached, BY_THE_PLUGIN};
use crate::mirror::{Entries, First, Mirror, TableError};

/// Entries by slot.
pub(super) type Slots = BTreeMap<u32, PolicyPod>;

/// The table as written so far.
#[derive(Debug, Default)]
pub(super) struct PolicyPods(Mirror<u32, PolicyPod>);

impl PolicyPods {
    /// Removes all entries but those that stay as they are. To be called before `subjects` and `policy_peers` change.
    pub fn keep(&mut self, wanted: &Slots, table: &mut impl Entries<u32, PolicyPod>) -> Result<(), TableError> {
        let kept = self.0.iter().filter(|(slot, pod)| wanted.get(slot) == Some(pod));
        let kept = kept.map(|(slot, pod)| (*slot, *pod)).collect();
        self.0.sync(&kept, First::Delete, table)
    }

    /// Makes the table contain these entries.
    pub fn sync(&mut self, wanted: &Slots, table: &mut impl Entries<u32, PolicyPod>) -> Result<(), TableError> {
        self.0.sync(wanted, First::Delete, table)
    }
}

/// The entries of these pods, by slot; of those with the same slot, one. A pod has none if its addresses have different
/// rule sets, or if the plugin may have written them.
pub fn policy_pods<'a>(
    attached: impl Iterator<Item = &'a Attached>,
    subjects: &BTreeMap<Addr, Subject>,
    peers: &BTreeMap<Addr, u32>,
) -> BTreeMap<u32, PolicyPod> {
    let entry = |Attached { ips, link, .. }: &Attached| {
        let addrs = ips.iter().map(|ip| Addr::from(*ip));
        let sets = |addr: &Addr| subjects.get(addr).copied().unwrap_or_default();
        if addrs.clone().any(|addr| BY_THE_PLUGIN.contains(&sets(&addr))) {
            return None;
        }
        Some((PolicyPod::slot(*link), PolicyPod::of(*link, addrs, sets, |addr| peers.get(addr).copied())?))
    };
    attached.filter_map(entry).collect()
}
