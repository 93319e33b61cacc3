//! The table of source ranges, whose entries belong to service ports and thus to one or more frontends.
//!
//! A range is written before the first frontend that needs it, and removed when no frontend does any more. So a client
//! is never refused by a frontend whose ranges are on their way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use podnet_common::layout::{FrontendKey, Prefix, ServiceClient, SourceRange};
use tracing::warn;

use super::retry::Retry;
use super::tables::{TableError, Tables};

/// What the table holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    /// How many frontends use each.
    uses: BTreeMap<SourceRange, u32>,
    /// Those that nobody uses any more.
    unused: BTreeSet<SourceRange>,
    /// The removal of unused ones has failed.
    retry: Option<Retry>,
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
        let mut ranges = Self::default();
        for range in tables.source_ranges()? {
            ranges.uses.insert(range, 0);
            found.entry(range.data.service).or_default().push(range);
        }
        ranges.unused = ranges.uses.keys().copied().collect();
        found.values_mut().for_each(|ranges| ranges.sort_unstable());
        Ok((ranges, found))
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
        self.unused.remove(&range);
    }

    /// Adds a user, and writes those that aren't there yet. On failure there is no new user.
    pub(super) fn acquire(&mut self, ranges: &[SourceRange], tables: &mut dyn Tables) -> Result<(), TableError> {
        for (i, range) in ranges.iter().enumerate() {
            if !self.uses.contains_key(range)
                && let Err(error) = tables.put_source_range(range)
            {
                self.release(&ranges[..i]);
                return Err(error);
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
                    self.unused.insert(*range);
                }
            }
        }
    }

    /// Removes those that nobody uses.
    pub(super) fn sweep(&mut self, tables: &mut dyn Tables, now: Instant) {
        if self.retry.as_ref().is_some_and(|retry| retry.at > now) {
            return;
        }
        while let Some(range) = self.unused.first().copied() {
            if let Err(error) = tables.delete_source_range(&range) {
                warn!("{error}; retrying");
                self.retry = Some(Retry::after(self.retry.as_ref(), &error, now));
                return;
            }
            self.unused.remove(&range);
            self.uses.remove(&range);
        }
        self.retry = None;
    }

    /// What couldn't be removed yet, and why.
    pub(super) fn retry(&self) -> Option<&Retry> {
        self.retry.as_ref()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.uses.len()
    }
}
