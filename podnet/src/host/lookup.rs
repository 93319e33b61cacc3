//! A snapshot's routes, neighbours and addresses, arranged to be looked up: a node asks for each of the thousands of others
//! that there may be.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use podnet_common::addr::{IfIndex, Mac};

use super::snapshot::{Route, Snapshot};
use crate::prefixes::Prefixes;

/// What a snapshot says of single addresses.
#[derive(Debug)]
pub(super) struct Lookup<'a> {
    routes: Prefixes<&'a Route>,
    macs: HashMap<(IfIndex, IpAddr), Mac>,
    addresses: HashSet<IpAddr>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let mut routes = Prefixes::<&Route>::default();
        for route in &snapshot.routes {
            routes.insert(route.dst, route, |new, known| new.metric < known.metric);
        }
        let macs = snapshot.neighbours.iter().filter_map(|n| Some(((n.ifindex, n.addr), n.mac?))).collect();
        Self { routes, macs, addresses: snapshot.addresses.iter().map(|address| address.addr).collect() }
    }

    /// The route of the main table that a packet to `addr` takes: longest prefix, then lowest metric.
    pub(super) fn route_to(&self, addr: IpAddr) -> Option<&'a Route> {
        self.routes.get(addr).copied()
    }

    /// Whether an interface has this address.
    pub(super) fn has_address(&self, addr: IpAddr) -> bool {
        self.addresses.contains(&addr)
    }

    /// The MAC of a neighbour, if it is known.
    pub(super) fn mac_of(&self, dev: IfIndex, addr: IpAddr) -> Option<Mac> {
        self.macs.get(&(dev, addr)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::snapshot::Hop;

    #[test]
    fn the_most_specific_route_wins_then_the_lowest_metric() {
        let route = |dst: &str, metric, dev| Route {
            dst: dst.parse().unwrap(),
            protocol: 4,
            metric,
            source: None,
            hops: vec![Hop { via: None, dev: IfIndex(dev) }],
        };
        let snapshot = Snapshot {
            routes: vec![
                route("0.0.0.0/0", 0, 1),
                route("10.0.0.0/8", 100, 2),
                route("10.0.0.0/8", 50, 3),
                route("::/0", 0, 4),
            ],
            ..Snapshot::default()
        };
        let lookup = Lookup::new(&snapshot);
        let dev = |addr: &str| lookup.route_to(addr.parse().unwrap()).map(|r| r.hops[0].dev.0);
        assert_eq!(dev("10.1.2.3"), Some(3));
        assert_eq!(dev("11.1.2.3"), Some(1));
        assert_eq!(dev("fd00::1"), Some(4));
    }
}
