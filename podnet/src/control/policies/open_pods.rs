//! The table `open_pods`: interfaces of pods that network policy doesn't isolate.
//!
//! It saves the programs looking up both ends of a flow in `subjects`. A pod without an entry is looked up there, so a
//! missing one costs time only. But one with an entry must not become a subject: see [`OpenPods::keep`].

use std::collections::{BTreeMap, BTreeSet};

use podnet_common::addr::IfIndex;
use podnet_common::layout::Subject;

use crate::mirror::{Entries, First, Mirror, TableError};

/// The table as written so far.
#[derive(Debug, Default)]
pub(super) struct OpenPods(Mirror<u32, IfIndex>);

impl OpenPods {
    /// Removes all interfaces but these. To be called before the other pods get entries in `subjects`.
    pub fn keep(&mut self, open: &BTreeSet<IfIndex>, table: &mut impl Entries<u32, IfIndex>) -> Result<(), TableError> {
        let kept = self.0.iter().filter(|(_, link)| open.contains(link)).map(|(slot, link)| (*slot, *link)).collect();
        self.0.sync(&kept, First::Delete, table)
    }

    /// Makes the table contain these interfaces; of those with the same slot, one.
    pub fn sync(&mut self, open: BTreeSet<IfIndex>, table: &mut impl Entries<u32, IfIndex>) -> Result<(), TableError> {
        let wanted: BTreeMap<_, _> = open.into_iter().map(|link| (Subject::open_slot(link), link)).collect();
        self.0.sync(&wanted, First::Delete, table)
    }
}
