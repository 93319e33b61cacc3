//! Indexes of a snapshot's routes, neighbours and addresses: the daemon looks them up for each of possibly thousands of
//! nodes.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use podnet_common::addr::{IfIndex, Mac};

use super::snapshot::{Framing, Route, Snapshot};
use crate::prefixes::Prefixes;

/// Indexes of a snapshot by address.
#[derive(Debug)]
pub(super) struct Lookup<'a> {
    routes: Prefixes<&'a Route>,
    macs: HashMap<(IfIndex, IpAddr), Mac>,
    addresses: HashSet<IpAddr>,
    by_link: HashMap<IfIndex, Vec<IpAddr>>,
    /// Interfaces whose frames have no Ethernet header.
    without_ethernet: HashSet<IfIndex>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let mut routes = Prefixes::<&Route>::default();
        for route in &snapshot.routes {
            routes.insert(route.dst, route, |new, known| new.metric < known.metric);
        }
        let macs = snapshot.neighbours.iter().filter_map(|n| Some(((n.ifindex, n.addr), n.mac?))).collect();
        let mut by_link: HashMap<_, Vec<_>> = HashMap::new();
        for address in snapshot.addresses.iter().filter(|address| !address.tentative) {
            by_link.entry(address.ifindex).or_default().push(address.addr);
        }
        let addresses = snapshot.addresses.iter().map(|address| address.addr).collect();
        let without_ethernet = snapshot.links.iter().filter(|link| link.framing != Framing::Ethernet);
        let without_ethernet = without_ethernet.map(|link| link.ifindex).collect();
        Self { routes, macs, addresses, by_link, without_ethernet }
    }

    /// Whether machines on an interface's link reach each other by Ethernet addresses. A tunnel such as WireGuard
    /// delivers only packets to the addresses that it has been told.
    pub(super) fn has_ethernet(&self, dev: IfIndex) -> bool {
        !self.without_ethernet.contains(&dev)
    }

    /// Source address of packets to `addr` by the main table: the preferred source of the route, else one of
    /// `preferred` that the route's interface has, else the first address of the family on that interface.
    pub(super) fn source_to(&self, addr: IpAddr, preferred: &[IpAddr]) -> Option<IpAddr> {
        let route = self.route_to(addr)?;
        let there = || self.by_link.get(&route.hops.first()?.dev);
        let of_family = |there: &&IpAddr| there.is_ipv4() == addr.is_ipv4() && !is_link_local(there);
        let chosen =
            || preferred.iter().filter(of_family).find(|own| there().is_some_and(|t| t.contains(own))).copied();
        route.source.or_else(chosen).or_else(|| there()?.iter().find(of_family).copied())
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

/// Whether an address is link-local (RFC 4291, section 2.5.6).
pub(super) fn is_link_local(addr: &IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
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
            mtu: None,
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
