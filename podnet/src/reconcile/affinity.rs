//! Which frontends have affinity, and when clients' affinities are looked through for such as have no meaning any more.
//!
//! The programs take an affinity for granted, so one to a backend that is gone would hold its client to it. After every
//! change that may have left some, the table is looked through at once, and once more after the grace period, for
//! programs that were on their way and have refreshed one meanwhile. That takes some ten milliseconds if many clients
//! have affinities, so changes that follow each other closely share one look.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use podnet_common::layout::{Frontend, FrontendKey};
use tracing::{debug, warn};

use super::tables::{KeepAffinity, Tables};
use crate::mirror::Retry;

/// How long after a look the next one is taken at the soonest.
const SPACING: Duration = Duration::from_millis(100);

/// Affinities by [`Frontend::service`].
#[derive(Clone, Debug)]
pub(super) struct Affinities {
    grace: Duration,
    /// Frontends with affinity.
    frontends: HashMap<u32, BTreeSet<FrontendKey>>,
    /// Whose are to be looked through, and when.
    due: Vec<(Instant, u32)>,
    /// All are: after a daemon's start nobody knows what was missed.
    all: bool,
    /// Before which time none is.
    not_before: Option<Instant>,
    /// It has failed.
    retry: Option<Retry>,
}

impl Affinities {
    /// Of a daemon that has just begun.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, frontends: HashMap::new(), due: Vec::new(), all: true, not_before: None, retry: None }
    }

    /// A frontend is in the tables.
    pub(super) fn add(&mut self, key: FrontendKey, value: &Frontend) {
        if value.affinity != 0 {
            self.frontends.entry(value.service).or_default().insert(key);
        }
    }

    /// A frontend isn't, or not with that value.
    pub(super) fn remove(&mut self, key: &FrontendKey, value: &Frontend) {
        if let Some(keys) = self.frontends.get_mut(&value.service) {
            keys.remove(key);
            if keys.is_empty() {
                self.frontends.remove(&value.service);
            }
        }
    }

    /// Frontends with affinity whose clients are these.
    pub(super) fn frontends(&self, service: u32) -> impl Iterator<Item = &FrontendKey> {
        self.frontends.get(&service).into_iter().flatten()
    }

    /// A frontend has lost backends or its affinity.
    pub(super) fn demand(&mut self, service: u32, now: Instant) {
        self.due.extend([(now, service), (now + self.grace, service)]);
    }

    /// Whose are to be looked through now.
    pub(super) fn due(&self, now: Instant) -> BTreeSet<u32> {
        let due = self.due.iter().filter(|(at, _)| *at <= now && self.may_look(now)).map(|(_, service)| *service);
        let all = self.frontends.keys().filter(|_| self.all_due(now));
        due.chain(all.copied()).collect()
    }

    /// Whether all are to be looked through now, also those of services that aren't known.
    pub(super) fn all_due(&self, now: Instant) -> bool {
        self.all && self.may_look(now)
    }

    fn may_look(&self, now: Instant) -> bool {
        let retry = self.retry.as_ref().map(|retry| retry.at);
        [self.not_before, retry].into_iter().flatten().all(|at| at <= now)
    }

    /// Looks them through.
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

    /// What has failed, and why.
    pub(super) fn retry(&self) -> Option<&Retry> {
        self.retry.as_ref()
    }

    /// When there is something to do next.
    pub(super) fn next(&self) -> Option<Instant> {
        let due = self.due.iter().map(|(at, _)| *at).min();
        let due = due.max(due.and(self.not_before));
        self.retry.as_ref().map(|retry| retry.at).or(due)
    }
}
