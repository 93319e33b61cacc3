//! Limits a service to its share of the tables.
//!
//! Frontends are admitted in a fixed order, and the first one without room is refused, with all that follow: so which
//! ones are refused depends on the service and its share only.

use std::net::{IpAddr, SocketAddr};

use foldhash::HashSet;

use super::places::Policies;
use super::selection::Beyond;
use crate::entry_counts::{Bound, EntryCounts, Share};
use crate::frontend::{Frontend, FrontendAddr, FrontendKind};
use crate::model::{Protocol, TrafficPolicy};

/// Maximum number of endpoints of a service that are examined, counting those of each port separately: the capacity of
/// `backends`. Examining more would only cost time.
const EXAMINED_MAX: usize = podnet_common::tables::BACKENDS.capacity();

/// Which lists of a port and family have been counted: frontends with the same list share it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    cluster: bool,
    local: bool,
    here: bool,
    ranges: bool,
    /// Whether there was room for the Maglev table; `None` before one is needed.
    spread: Option<bool>,
}

/// Entries that a service takes so far.
pub(super) struct Meter {
    share: Share,
    takes: EntryCounts,
    addresses: HashSet<IpAddr>,
    backends: HashSet<(SocketAddr, Protocol)>,
    examined: usize,
    /// The bound that the next frontend exceeds.
    full: Option<Bound>,
    beyond: Option<Beyond>,
    /// Slots of a Maglev table.
    spread: u32,
    /// Lists that lack a Maglev table for want of room.
    unspread: usize,
}

impl Meter {
    pub(super) fn new(share: Share, spread: u32) -> Self {
        Self {
            spread,
            unspread: 0,
            share,
            takes: EntryCounts::default(),
            addresses: HashSet::default(),
            backends: HashSet::default(),
            examined: 0,
            full: None,
            beyond: None,
        }
    }

    /// Counts examined endpoints.
    pub(super) fn examine(&mut self, endpoints: usize) {
        self.examined += endpoints;
        if self.examined > EXAMINED_MAX {
            self.full = Some(self.share.of_backends());
        }
    }

    /// Whether all further frontends are refused.
    pub(super) fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Counts a refused frontend.
    pub(super) fn refuse(&mut self, key: FrontendAddr) {
        if let Some(bound) = self.full {
            self.beyond.get_or_insert(Beyond { bound, first: key, count: 0 }).count += 1;
        }
    }

    /// Admits and counts a frontend, if there is room for it.
    pub(super) fn admit(&mut self, counted: &mut Counted, policies: Policies, frontend: &mut Frontend) -> bool {
        if self.is_full() {
            self.refuse(frontend.key);
            return false;
        }
        let (mut lists, mut then) = (Vec::<&[SocketAddr]>::new(), *counted);
        let inside = Some((policies.inside, &frontend.backends));
        for (policy, backends) in inside.into_iter().chain(policies.outside.zip(frontend.outside.as_ref())) {
            let seen = match policy {
                TrafficPolicy::Cluster => &mut then.cluster,
                TrafficPolicy::Local => &mut then.local,
            };
            lists.extend((!std::mem::replace(seen, true)).then_some(&backends.list[..]));
        }
        if let Some(here) = &frontend.here {
            lists.extend((!std::mem::replace(&mut then.here, true)).then_some(&here[..]));
        }
        let ip = frontend.key.socket.ip();
        let address = frontend.kind != FrontendKind::NodePort && !self.addresses.contains(&ip);
        let others = u32::from(frontend.outside.is_some()) + u32::from(frontend.here.is_some());
        let most = lists.iter().map(|list| list.len()).sum();
        let mut backends = HashSet::with_capacity_and_hasher(most, Default::default());
        for at in lists.iter().copied().flatten().map(|at| (*at, frontend.key.protocol)) {
            if !self.backends.contains(&at) {
                backends.insert(at);
            }
        }
        // Frontends with affinity have source ranges per group of clients: `ServiceId::with_affinity`.
        let groups = if frontend.affinity == 0 { 1 } else { 1 + others };
        let ranges = frontend.source_ranges.as_ref().filter(|_| !std::mem::replace(&mut then.ranges, true));
        let takes = self.takes.plus(EntryCounts {
            frontends: 1 + others + u32::from(address),
            slots: lists.iter().map(|list| count(list.len())).sum(),
            backends: count(backends.len()),
            source_ranges: ranges.map_or(0, |ranges| count(ranges.len()).saturating_mul(groups)),
            spread: 0,
        });
        if let Some(bound) = self.share.exceeded_by(takes) {
            self.full = Some(bound);
            self.refuse(frontend.key);
            return false;
        }
        self.takes = takes;
        if frontend.here.is_some() && !frontend.backends.list.is_empty() {
            frontend.spread = *then.spread.get_or_insert_with(|| {
                let slots = self.takes.spread.saturating_add(self.spread);
                let fits = slots <= self.share.limit().spread;
                self.takes.spread = if fits { slots } else { self.takes.spread };
                self.unspread += usize::from(!fits);
                fits
            });
        }
        self.backends.extend(backends);
        self.addresses.extend(address.then_some(ip));
        *counted = then;
        true
    }

    /// Entries that all admitted frontends take.
    pub(super) fn takes(&self) -> EntryCounts {
        self.takes
    }

    /// Number of lists that lack a Maglev table for want of room.
    pub(super) fn unspread(&self) -> usize {
        self.unspread
    }

    /// The refused frontends.
    pub(super) fn beyond(&self) -> Option<Beyond> {
        self.beyond
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
