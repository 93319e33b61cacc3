//! When packets were last dropped for reasons that concern the operator. The kernel's counters only ever grow: without
//! a time, a warning would never end, even after its cause is gone.

use std::collections::BTreeMap;

use podnet_common::verdict::COUNTERS_BASE;

use crate::status::{ALARMING, DropStatus, UnixTime};

/// By reason: the count at the last observation, and the time of the last increase.
#[derive(Debug)]
pub(super) struct Drops(BTreeMap<String, DropStatus>);

impl Drops {
    /// Starts with the observations of an earlier daemon.
    pub(super) fn adopt(seen: BTreeMap<String, DropStatus>) -> Self {
        Self(seen)
    }

    /// Records the kernel's counters. Drops present at the very first observation may be old.
    pub(super) fn observe(&mut self, counters: &[u64], now: UnixTime) {
        for reason in ALARMING {
            let packets = counters.get((COUNTERS_BASE + reason as u32) as usize).copied().unwrap_or_default();
            let last = match self.0.get(reason.name()) {
                // Counters restart from zero when the pins are recreated.
                Some(seen) if packets > seen.packets => Some(now),
                Some(seen) => seen.last.filter(|_| packets == seen.packets),
                None => None,
            };
            self.0.insert(reason.name().to_owned(), DropStatus { packets, last });
        }
    }

    /// For the status; excludes reasons that have never occurred.
    pub(super) fn seen(&self) -> BTreeMap<String, DropStatus> {
        self.0.iter().filter(|(_, drop)| drop.packets > 0).map(|(reason, drop)| (reason.clone(), *drop)).collect()
    }
}

#[cfg(test)]
mod tests {
    use podnet_common::verdict::{COUNTERS, Reason};

    use super::*;

    #[test]
    fn time_is_that_of_the_last_observed_increase() {
        let mut counters = [0; COUNTERS];
        let full = (COUNTERS_BASE + Reason::ConntrackFull as u32) as usize;
        counters[full] = 5;
        let mut drops = Drops::adopt(BTreeMap::new());
        let mut look = |drops: &mut Drops, packets, at| {
            counters[full] = packets;
            drops.observe(&counters, UnixTime(at));
            drops.seen().get("conntrack_full").map(|drop| (drop.packets, drop.last))
        };
        assert_eq!(look(&mut drops, 5, 10), Some((5, None)), "since when is unknown");
        assert_eq!(look(&mut drops, 6, 20), Some((6, Some(UnixTime(20)))));
        assert_eq!(look(&mut drops, 6, 30), Some((6, Some(UnixTime(20)))));
        let mut next = Drops::adopt(drops.seen());
        assert_eq!(look(&mut next, 6, 40), Some((6, Some(UnixTime(20)))), "a restart forgets nothing");
        assert_eq!(look(&mut next, 1, 50), Some((1, None)), "the counters have been reset");
        assert_eq!(look(&mut next, 0, 60), None);
    }
}
