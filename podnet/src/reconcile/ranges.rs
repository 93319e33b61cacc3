//! The table of source ranges, whose entries belong to service ports and thus to one or more frontends.
//!
//! A range is written before the first frontend that needs it, and removed when no frontend does any more. So a client
//! is never refused by a frontend whose ranges are on their way.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use podnet_common::layout::{FrontendKey, Prefix, ServiceClient, SourceRange};
use tracing::warn;

use super::tables::Tables;
use crate::mirror::{Mirror, Retry, TableError};

/// What the table holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    mirror: Mirror<SourceRange, ()>,
    /// How many frontends use each. Those that none uses are marked for removal.
    uses: BTreeMap<SourceRange, u32>,
}

/// A service port's ranges as the table has them.
pub(super) fn of_service(service: u32, ranges: &[Prefix]) -> Box<[SourceRange]> {
    ranges.iter().map(|range| SourceRange::new(service, *range)).collect()
}

/// What adoption has found, by [`ServiceClient::service`].
pub(super) type Found = HashMap<u32, Vec<SourceRange>>;

impl Ranges {
    /// Takes over what the table holds.
    pub(super) fn adopt(tables: &dyn Tables) -> Result<(Self, Found), TableError> {
        let mut found = Found::new();
        let there = tables.source_ranges()?;
        there.iter().for_each(|range| found.entry(range.data.service).or_default().push(*range));
        let mirror = Mirror::adopt(there.into_iter().map(|range| (range, ())));
        found.values_mut().for_each(|ranges| ranges.sort_unstable());
        Ok((Self { mirror, uses: BTreeMap::new() }, found))
    }

    /// Counts a frontend that was found in the tables as a user of its service port's ranges of its family.
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

    /// Adds a user, and writes those that aren't there yet. On failure there is no new user.
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

    /// Ends a use. [`Self::sweep`] removes what has none any more.
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

    /// Removes those that no frontend uses.
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

    /// What is due next of what couldn't be removed yet, and why.
    pub(super) fn retry(&self) -> Option<&Retry> {
        self.mirror.retries().map(|(_, retry)| retry).min_by_key(|retry| retry.at)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.mirror.len()
    }
}
