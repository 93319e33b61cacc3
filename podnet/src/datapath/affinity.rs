//! Collection of expired client affinities. Expired entries do no harm, since the programs check the time themselves;
//! but they occupy an LRU table and show up in commands.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use podnet_common::{
    layout::{Affinity, AffinityKey, Frontend, FrontendKey},
    time,
};

use super::batch;

/// A scan of the table, to be run on any thread.
#[derive(Debug)]
pub struct Expiry {
    /// `affinity`.
    pub affinity: OwnedFd,
    /// `frontends`, which hold the affinity timeouts.
    pub frontends: OwnedFd,
    /// Current time in ticks.
    pub now: u32,
}

impl Expiry {
    /// Removes expired entries. Returns how many were removed, and how many are left.
    pub fn run(&self) -> io::Result<(usize, usize)> {
        let mut all = Vec::new();
        batch::for_each(self.affinity.as_fd(), |key: &AffinityKey, value: &Affinity| all.push((*key, *value)))?;
        if all.is_empty() {
            return Ok((0, 0));
        }
        let mut seconds: HashMap<u32, u32> = HashMap::new();
        batch::for_each(self.frontends.as_fd(), |_: &FrontendKey, frontend: &Frontend| {
            let longest = seconds.entry(frontend.service).or_default();
            *longest = frontend.affinity.max(*longest);
        })?;
        let seen = all.len();
        all.retain(|(key, value)| is_over(value, seconds.get(&key.service).copied(), self.now));
        let over: Vec<_> = all.into_iter().map(|(key, _)| key).collect();
        let removed = batch::delete(self.affinity.as_fd(), &over)?;
        Ok((removed, seen.saturating_sub(removed)))
    }
}

/// Whether an affinity has expired. Entries of services unknown here are left to reconciliation, which knows why.
fn is_over(affinity: &Affinity, seconds: Option<u32>, now: u32) -> bool {
    let Some(seconds) = seconds else { return false };
    let silent = now.wrapping_sub(affinity.last_used) as i32;
    silent > 0 && silent as u32 > time::ticks_of_seconds(seconds.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_ends_after_its_services_time() {
        let limit = time::ticks_of_seconds(600);
        let now = 1_000_000;
        for (last_used, seconds, over) in [
            (now - limit, Some(600), false),
            (now - limit - 1, Some(600), true),
            (now - limit - 1, Some(601 * 2), false),
            (now + 1, Some(600), false),
            (0, None, false),
            (now - 1, Some(0), true),
        ] {
            let affinity = Affinity { last_used, ..Affinity::default() };
            assert_eq!(is_over(&affinity, seconds, now), over, "{last_used} {seconds:?}");
        }
    }
}
