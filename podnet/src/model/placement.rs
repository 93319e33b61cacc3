//! Locations of endpoints, and the clients that they are meant for.
//!
//! A cluster has many endpoints, but few placements: endpoints on the same node with the same hints share one value.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Minimum number of shared values before unused ones are collected.
const SWEEP_MIN: usize = 1024;

/// Location of an endpoint, and the clients that it is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    /// Its node.
    pub node: Option<Box<str>>,
    /// Its zone.
    pub zone: Option<Box<str>>,
    /// Zones whose clients should use it; empty: no hint.
    pub for_zones: Box<[Box<str>]>,
    /// Nodes whose clients should use it; empty: no hint.
    pub for_nodes: Box<[Box<str>]>,
}

/// The shared values.
struct Shared {
    values: HashSet<Arc<Placement>>,
    /// Number of values at which unused ones are collected next.
    sweep_at: usize,
}

static SHARED: LazyLock<Mutex<Shared>> =
    LazyLock::new(|| Mutex::new(Shared { values: HashSet::new(), sweep_at: SWEEP_MIN }));

impl Placement {
    /// The shared value of this placement.
    pub fn share(self) -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shared.values.get(&self) {
            return known.clone();
        }
        if shared.values.len() >= shared.sweep_at {
            shared.values.retain(|value| Arc::strong_count(value) > 1);
            shared.sweep_at = SWEEP_MIN.max(2 * shared.values.len());
        }
        let new = Arc::new(self);
        shared.values.insert(new.clone());
        new
    }

    /// Whether it is on the node with this name.
    pub fn is_on(&self, node: &str) -> bool {
        self.node.as_deref() == Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_placements_are_shared_and_unused_ones_collected() {
        let at = |i: usize| Placement { node: Some(format!("placement-{i}").into()), ..Placement::default() }.share();
        let first = at(0);
        assert!(Arc::ptr_eq(&first, &at(0)) && first.is_on("placement-0"));
        for i in 1..3 * SWEEP_MIN {
            at(i);
        }
        assert!(SHARED.lock().unwrap().values.len() < 2 * SWEEP_MIN);
        assert!(Arc::ptr_eq(&first, &at(0)), "it is still in use");
    }
}
