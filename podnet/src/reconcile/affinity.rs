//! Which frontends have affinity, and when to prune stale client affinities.
//!
//! The programs don't check affinities, so one to a backend that is gone would keep its client there. After each change
//! that may have left stale ones, the table is pruned immediately, and again after the grace period, since programs in
//! flight may have refreshed an affinity in between. With many clients a pass takes some ten milliseconds, so changes
//! in quick succession share one.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use podnet_common::layout::{Frontend, FrontendKey};
use tracing::{debug, warn};

use super::tables::{KeepAffinity, Tables};
use crate::mirror::Retry;

/// Minimum time between two passes.
const SPACING: Duration = Duration::from_millis(100);

/// Affinities, by [`Frontend::service`].
#[derive(Clone, Debug)]
pub(super) struct Affinities {
    grace: Duration,
    /// Frontends with affinity.
    frontends: HashMap<u32, BTreeSet<FrontendKey>>,
    /// Whose affinities are to be pruned, and when.
    due: Vec<(Instant, u32)>,
    /// Prune all: at start it is unknown what was missed.
    all: bool,
    /// Earliest time of the next pass.
    not_before: Option<Instant>,
    /// The last pass has failed.
    retry: Option<Retry>,
}

impl Affinities {
    /// State at the start of a daemon.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, frontends: HashMap::new(), due: Vec::new(), all: true, not_before: None, retry: None }
    }

    /// A frontend was written.
    pub(super) fn add(&mut self, key: FrontendKey, value: &Frontend) {
        if value.affinity != 0 {
            self.frontends.entry(value.service).or_default().insert(key);
        }
    }

    /// A frontend was removed, or its value replaced.
    pub(super) fn remove(&mut self, key: &FrontendKey, value: &Frontend) {
        if let Some(keys) = self.frontends.get_mut(&value.service) {
            keys.remove(key);
            if keys.is_empty() {
                self.frontends.remove(&value.service);
            }
        }
    }

    /// Frontends that share the affinities of this value of [`Frontend::service`].
    pub(super) fn frontends(&self, service: u32) -> impl Iterator<Item = &FrontendKey> {
        self.frontends.get(&service).into_iter().flatten()
    }

    /// A frontend has lost backends or its affinity.
    pub(super) fn demand(&mut self, service: u32, now: Instant) {
        self.due.extend([(now, service), (now + self.grace, service)]);
    }

    /// Whose affinities are to be pruned now.
    pub(super) fn due(&self, now: Instant) -> BTreeSet<u32> {
        let due = self.due.iter().filter(|(at, _)| *at <= now && self.may_look(now)).map(|(_, service)| *service);
        let all = self.frontends.keys().filter(|_| self.all_due(now));
        due.chain(all.copied()).collect()
    }

    /// Whether all affinities are to be pruned now, including those of unknown services.
    pub(super) fn all_due(&self, now: Instant) -> bool {
        self.all && self.may_look(now)
    }

    fn may_look(&self, now: Instant) -> bool {
        let retry = self.retry.as_ref().map(|retry| retry.at);
        [self.not_before, retry].into_iter().flatten().all(|at| at <= now)
    }

    /// Prunes the affinities.
    pub(super) fn prune(&mut self, keep: &KeepAffinity<'_>, tables: &mut dyn Tables, now: Instant) {
        match tables.prune_affinity(keep) {
            Ok(removed) => {
                debug!(removed, "pruned affinities");
                self.due.retain(|(at, _)| *at > now);
                self.all = false;
                self.not_before = Some(now + SPACING);
                self.retry = None;
            }
            Err(error) => {
                warn!("{error}; retrying");
                self.retry = Some(Retry::after(self.retry.as_ref(), &error, now));
            }
        }
    }

    /// The last failure, if it is still to be retried.
    pub(super) fn retry(&self) -> Option<&Retry> {
        self.retry.as_ref()
    }

    /// When the next pass is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let due = self.due.iter().map(|(at, _)| *at).min();
        let due = due.max(due.and(self.not_before));
        self.retry.as_ref().map(|retry| retry.at).or(due)
    }
}
