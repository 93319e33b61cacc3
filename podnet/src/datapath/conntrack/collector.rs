//! The event loop's account of sweeps.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    Swept,
    way::{Stale, Way},
};
use crate::datapath::holders::Hurry;

/// How long replies of a backend that is gone are still expected.
pub(super) const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// One sweep at a time, and which paths the last one has seen.
#[derive(Debug, Default)]
pub struct Collector {
    running: bool,
    /// Another sweep is needed.
    due: bool,
    ways: HashSet<Way>,
    /// Stale paths among them, and since when they have been known to be stale.
    stale: HashMap<Way, Instant>,
    /// Holders with shorter timeouts.
    hurry: Hurry,
}

impl Collector {
    /// Requests a sweep, now or as soon as the running one has ended.
    pub fn demand(&mut self) {
        self.due = true;
    }

    /// Whether a sweep has to begin, and if so, its stale paths and the pressure. `leads` tells whether a path still
    /// leads to a backend.
    pub fn begin(&mut self, leads: impl Fn(&Way) -> bool, now: Instant) -> Option<(Stale, Hurry)> {
        if self.running || !self.due {
            return None;
        }
        (self.running, self.due) = (true, false);
        let known = std::mem::take(&mut self.stale);
        let stale = self.ways.iter().filter(|way| !leads(way));
        self.stale = stale.map(|way| (*way, known.get(way).copied().unwrap_or(now))).collect();
        let stale = self.stale.iter().map(|(way, since)| (*way, now.duration_since(*since) >= LAST_ANSWERS)).collect();
        Some((stale, self.hurry.clone()))
    }

    /// Whether sweeps are to follow more closely, since a holder has too many entries.
    pub fn hurries(&self) -> bool {
        self.hurry != Hurry::default()
    }

    /// Whether the table is nearly full.
    pub fn is_nearly_full(&self) -> bool {
        self.hurry.concerns_all()
    }

    /// Ends a sweep. `None`: it has failed.
    pub fn end(&mut self, swept: Option<Swept>, leads: impl Fn(&Way) -> bool) {
        self.running = false;
        let Some(Swept { ways, hurry, .. }) = swept else { return };
        self.hurry = hurry;
        self.due |= ways.iter().any(|way| !self.stale.contains_key(way) && !leads(way));
        self.ways = ways;
    }
}
