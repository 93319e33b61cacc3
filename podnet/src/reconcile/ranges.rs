//! The table of source ranges. Its entries belong to service ports, and thus to one or more frontends.
//!
//! A range is written before the first frontend that needs it, and removed when no frontend needs it any more. So no
//! frontend refuses a client whose range hasn't been written yet.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use podnet_common::layout::{FrontendKey, Prefix, ServiceClient, SourceRange};
use tracing::warn;

use super::tables::Tables;
use crate::mirror::{Mirror, Retry, TableError};

/// Contents of the table.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    mirror: Mirror<SourceRange, ()>,
    /// Number of frontends that use each range. Unused ranges are marked for removal.
    uses: BTreeMap<SourceRange, u32>,
}

/// Table entries of a service port's ranges.
pub(super) fn of_service(service: u32, ranges: &[Prefix]) -> Box<[SourceRange]> {
    ranges.iter().map(|range| SourceRange::new(service, *range)).collect()
}

/// Adopted ranges, by [`ServiceClient::service`].
pub(super) type Found = HashMap<u32, Vec<SourceRange>>;

impl Ranges {
    /// Adopts the contents of the table.
    pub(super) fn adopt(tables: &dyn Tables) -> Result<(Self, Found), TableError> {
        let mut found = Found::new();
        let there = tables.source_ranges()?;
        there.iter().for_each(|range| found.entry(range.data.service).or_default().push(*range));
        let mirror = Mirror::adopt(there.into_iter().map(|range| (range, ())));
        found.values_mut().for_each(|ranges| ranges.sort_unstable());
        Ok((Self { mirror, uses: BTreeMap::new() }, found))
    }

    /// Counts an adopted frontend as a user of its service port's ranges, of the frontend's family.
    pub(super) fn adopt_frontend(&mut self, key: &FrontendKey, service: u32, found: &Found) -> Box<[SourceRange]> {
        let own = found.get(&ServiceClient::new(service, key.addr).service);
        let own: Box<[_]> = own.map_or(&[][..], Vec::as_slice).into();
        own.iter().for_each(|range| self.add_use(*range));
        own
    }

    fn add_use(&mut self, range: SourceRange) {
        *self.uses.entry(range).or_default() += 1;
        self.mirror.claim(&range);
        self.mirror.done(&range);
    }

    /// Adds a user; writes missing ranges. On failure no user is added.
    pub(super) fn acquire(&mut self, ranges: &[SourceRange], tables: &mut dyn Tables) -> Result<(), TableError> {
        for (i, range) in ranges.iter().enumerate() {
            if self.mirror.get(range).is_none() {
                if let Err(error) = tables.put_source_range(range) {
                    self.release(&ranges[..i]);
                    return Err(error);
                }
                self.mirror.put(*range, ());
            }
            self.add_use(*range);
        }
        Ok(())
    }

    /// Removes a user. [`Self::sweep`] removes unused ranges.
    pub(super) fn release(&mut self, ranges: &[SourceRange]) {
        for range in ranges {
            if let Some(uses) = self.uses.get_mut(range) {
                *uses = uses.saturating_sub(1);
                if *uses == 0 {
                    self.uses.remove(range);
                    self.mirror.mark([*range]);
                }
            }
        }
    }

    /// Removes unused ranges.
    pub(super) fn sweep(&mut self, tables: &mut dyn Tables, now: Instant) {
        for range in self.mirror.take_due(true, now) {
            if self.uses.contains_key(&range) || self.mirror.get(&range).is_none() {
                continue;
            }
            match tables.delete_source_range(&range) {
                Ok(()) => {
                    self.mirror.delete(&range);
                    self.mirror.done(&range);
                }
                Err(error) => {
                    warn!("{error}; retrying");
                    self.mirror.failed(range, &error, false, now);
                }
            }
        }
    }

    /// The next retry of a failed removal.
    pub(super) fn retry(&self) -> Option<&Retry> {
        self.mirror.retries().map(|(_, retry)| retry).min_by_key(|retry| retry.at)
    }

    /// Number of ranges.
    pub(super) fn len(&self) -> usize {
        self.mirror.len()
    }
}
