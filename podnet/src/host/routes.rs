//! Routes to the pods of other nodes: each node's pod CIDRs through its address of the same family, where that address
//! is on a shared link. Nodes behind a router need an overlay, which podnet doesn't have yet: they are reported.
//!
//! Podnet's routes are known by their protocol number, [`ROUTE_PROTOCOL`], and those of this module by having a gateway
//! that isn't on podnet0; others are never changed or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podnet_common::addr::{IfIndex, Mac};

use super::snapshot::{Route, Snapshot};
use super::{HostError, ROUTE_PROTOCOL, podnet0};

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteNode {
    /// The Node object's name.
    pub name: String,
    /// Its addresses (InternalIP); the first of each family counts.
    pub addresses: Vec<IpAddr>,
    /// Its pods' CIDRs.
    pub pod_cidrs: Vec<IpNetwork>,
}

/// A route over a next hop, as podnet makes them. All addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destination.
    pub dst: IpNetwork,
    /// The next hop, on the link.
    pub via: IpAddr,
    /// The interface.
    pub dev: IfIndex,
    /// Preferred source.
    pub source: Option<IpAddr>,
}

impl RouteSpec {
    /// Reads a route back; `None` for a route without a gateway or with several.
    fn of(route: &Route) -> Option<Self> {
        match route.hops[..] {
            [hop] => Some(Self { dst: route.dst, via: hop.via?, dev: hop.dev, source: route.source }),
            _ => None,
        }
    }
}

/// A change of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteStep {
    /// Make it; fails if someone else has a route to the same destination.
    Add(RouteSpec),
    /// Replace podnet's own route to the same destination.
    Replace(RouteSpec),
    /// Remove it.
    Remove(RouteSpec),
}

impl fmt::Display for RouteStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, spec) = match self {
            Self::Add(spec) => ("add", spec),
            Self::Replace(spec) => ("replace", spec),
            Self::Remove(spec) => ("remove", spec),
        };
        write!(f, "{verb} the route to {} via {}", spec.dst, spec.via)
    }
}

/// Steps from the routes that podnet has to those that it should have: additions and replacements by destination, then
/// removals.
pub(super) fn reconcile<'a>(ours: impl Iterator<Item = &'a Route>, desired: &[RouteSpec]) -> Vec<RouteStep> {
    let actual: BTreeMap<IpNetwork, RouteSpec> = ours.filter_map(RouteSpec::of).map(|r| (r.dst, r)).collect();
    let desired: BTreeMap<IpNetwork, RouteSpec> = desired.iter().map(|r| (r.dst, *r)).collect();
    let made = desired.values().filter_map(|want| match actual.get(&want.dst) {
        None => Some(RouteStep::Add(*want)),
        Some(have) if have != want => Some(RouteStep::Replace(*want)),
        Some(_) => None,
    });
    let gone = actual.values().filter(|have| !desired.contains_key(&have.dst)).map(|have| RouteStep::Remove(*have));
    made.chain(gone).collect()
}

/// How packets for one pod CIDR of another node leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeHop {
    /// The node's name.
    pub node: String,
    /// The pod CIDR.
    pub cidr: IpNetwork,
    /// The node's address.
    pub via: IpAddr,
    /// The uplink.
    pub dev: IfIndex,
    /// The node's MAC on that link, once it is known; a change of neighbours tells when to look again.
    pub mac: Option<Mac>,
}

/// An address of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The node's name.
    pub node: String,
    /// The address.
    pub addr: IpAddr,
    /// The interface whose link it is on; `None`: it is behind a router, or there is no way.
    pub dev: Option<IfIndex>,
    /// The node's MAC on that link, once it is known.
    pub mac: Option<Mac>,
}

/// A pod CIDR of another node that there is no way to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// The node's name.
    pub node: String,
    /// The pod CIDR.
    pub cidr: IpNetwork,
    /// Why, and what to do.
    pub reason: String,
}

/// What [`super::Host::sync_node_routes`] has done and found.
#[derive(Debug, Default)]
pub struct NodeRoutes {
    /// Every reachable pod CIDR.
    pub hops: Vec<NodeHop>,
    /// All addresses of the nodes but those that are this node's own too.
    pub addresses: Vec<NodeAddress>,
    /// The others.
    pub unreachable: Vec<Unreachable>,
    /// How many routes were added, replaced or removed.
    pub changed: usize,
    /// Changes that failed.
    pub errors: Vec<HostError>,
}

/// What to do, and what will be the result if all of it succeeds.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<RouteStep>,
    pub(super) result: NodeRoutes,
}

/// Plans the routes to other nodes' pods.
pub(super) fn plan(snapshot: &Snapshot, nodes: &[RemoteNode], sources: &[IpAddr]) -> Plan {
    let mut plan = Plan::default();
    let mut desired = Vec::new();
    let mut taken = BTreeSet::new();
    for node in nodes {
        for &addr in node.addresses.iter().filter(|addr| !snapshot.has_address(**addr)) {
            let dev = snapshot.on_link(addr);
            let mac = dev.and_then(|dev| snapshot.mac_of(dev, addr));
            plan.result.addresses.push(NodeAddress { node: node.name.clone(), addr, dev, mac });
        }
        for &cidr in &node.pod_cidrs {
            let hop = if taken.insert(cidr) {
                next_hop(snapshot, node, cidr)
            } else {
                Err(format!("another node has the pod CIDR {cidr} too: correct spec.podCIDRs of one of them"))
            };
            match hop {
                Ok((via, dev)) => {
                    let source = sources.iter().copied().find(|a| a.is_ipv4() == cidr.is_ipv4());
                    desired.push(RouteSpec { dst: cidr, via, dev, source });
                    let mac = snapshot.mac_of(dev, via);
                    plan.result.hops.push(NodeHop { node: node.name.clone(), cidr, via, dev, mac });
                }
                Err(reason) => plan.result.unreachable.push(Unreachable { node: node.name.clone(), cidr, reason }),
            }
        }
    }
    let podnet0 = snapshot.link(podnet0::NEAR).map(|l| l.ifindex);
    let ours = snapshot
        .routes
        .iter()
        .filter(|r| r.protocol == ROUTE_PROTOCOL && r.hops[0].via.is_some() && Some(r.hops[0].dev) != podnet0);
    plan.steps = reconcile(ours, &desired);
    plan
}

/// The node's address of the CIDR's family and the interface whose link it is on, or why there is none.
fn next_hop(snapshot: &Snapshot, node: &RemoteNode, cidr: IpNetwork) -> Result<(IpAddr, IfIndex), String> {
    let family = if cidr.is_ipv4() { "IPv4" } else { "IPv6" };
    let via = node.addresses.iter().copied().find(|a| a.is_ipv4() == cidr.is_ipv4()).ok_or_else(|| {
        format!("the node has no {family} address: add one as InternalIP to its Node object, or drop the CIDR")
    })?;
    if snapshot.has_address(via) {
        return Err(format!("its address {via} is this node's own: correct the InternalIP of one of the Node objects"));
    }
    let route = snapshot.route_to(via).ok_or_else(|| format!("there is no route to its address {via}"))?;
    match route.hops[..] {
        [hop] => match hop.via {
            None => Ok((via, hop.dev)),
            Some(router) => Err(format!(
                "its address {via} is behind the router {router}, not on a link of this node: podnet has no overlay \
                 yet, so put the nodes on one link, or have the router carry {cidr} to {via}"
            )),
        },
        _ => Err(format!("there are several paths to its address {via}: a route on one link is needed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::snapshot::{Address, Hop, Link, Neighbour};

    fn route(dst: &str, protocol: u8, via: Option<&str>, dev: u32) -> Route {
        let hops = vec![Hop { via: via.map(|v| v.parse().unwrap()), dev: IfIndex(dev) }];
        Route { dst: dst.parse().unwrap(), protocol, metric: 0, source: None, hops }
    }

    fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> RemoteNode {
        RemoteNode {
            name: name.into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        }
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            links: vec![Link { name: podnet0::NEAR.into(), ifindex: IfIndex(9), ..Link::default() }],
            addresses: vec![Address { ifindex: IfIndex(2), addr: "172.30.0.1".parse().unwrap(), tentative: false }],
            routes: vec![
                route("0.0.0.0/0", 4, Some("172.30.0.254"), 2),
                route("172.30.0.0/24", 2, None, 2),
                route("fd00:30::/64", 2, None, 2),
            ],
            neighbours: vec![Neighbour {
                ifindex: IfIndex(2),
                addr: "172.30.0.2".parse().unwrap(),
                mac: Some(Mac([2, 0, 0, 0, 0, 2])),
                permanent: false,
            }],
        }
    }

    fn steps(plan: &Plan) -> Vec<String> {
        plan.steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_families_go_through_the_address_of_their_own() {
        let nodes = [node("b", &["172.30.0.2", "fd00:30::2"], &["10.244.2.0/24", "fd00:244:2::/64"])];
        let plan = plan(&snapshot(), &nodes, &["172.30.0.1".parse().unwrap()]);
        assert_eq!(
            steps(&plan),
            ["add the route to 10.244.2.0/24 via 172.30.0.2", "add the route to fd00:244:2::/64 via fd00:30::2"]
        );
        let macs: Vec<_> = plan.result.hops.iter().map(|h| h.mac).collect();
        assert_eq!(macs, [Some(Mac([2, 0, 0, 0, 0, 2])), None]);
        assert!(plan.result.unreachable.is_empty());
    }

    #[test]
    fn what_is_there_stays_and_what_has_left_goes() {
        let mut snapshot = snapshot();
        snapshot.routes.extend([
            route("10.244.2.0/24", ROUTE_PROTOCOL, Some("172.30.0.2"), 2),
            route("10.244.3.0/24", ROUTE_PROTOCOL, Some("172.30.0.3"), 2),
            route("10.244.4.0/24", ROUTE_PROTOCOL, Some("172.30.0.4"), 2),
            // Not this module's: a pod's route, podnet0's, an operator's.
            route("10.244.1.5/32", ROUTE_PROTOCOL, None, 12),
            route("10.96.0.0/16", ROUTE_PROTOCOL, Some("169.254.1.2"), 9),
            route("10.244.7.0/24", 4, Some("172.30.0.7"), 2),
        ]);
        let nodes = [node("b", &["172.30.0.2"], &["10.244.2.0/24"]), node("c", &["172.30.0.33"], &["10.244.3.0/24"])];
        assert_eq!(
            steps(&plan(&snapshot, &nodes, &[])),
            ["replace the route to 10.244.3.0/24 via 172.30.0.33", "remove the route to 10.244.4.0/24 via 172.30.0.4"]
        );
    }

    #[test]
    fn what_cannot_be_reached_is_told_with_its_reason() {
        let nodes = [
            node("far", &["10.7.0.2"], &["10.244.2.0/24"]),
            node("v4only", &["172.30.0.3"], &["fd00:244:3::/64"]),
            node("self", &["172.30.0.1"], &["10.244.4.0/24"]),
            node("thief", &["172.30.0.5"], &["10.244.2.0/24"]),
        ];
        let plan = plan(&snapshot(), &nodes, &[]);
        assert!(plan.steps.is_empty() && plan.result.hops.is_empty());
        let reasons: Vec<_> = plan.result.unreachable.iter().map(|u| (u.node.as_str(), u.reason.as_str())).collect();
        let expected =
            [("far", "router 172.30.0.254"), ("v4only", "no IPv6"), ("self", "own"), ("thief", "another node")];
        for ((node, reason), (expected_node, part)) in reasons.iter().zip(expected) {
            assert_eq!(*node, expected_node);
            assert!(reason.contains(part), "{node}: {reason}");
        }
        assert_eq!(reasons.len(), expected.len());
    }

    #[test]
    fn several_paths_are_no_shared_link() {
        let mut snapshot = snapshot();
        snapshot.routes[1].hops.push(Hop { via: None, dev: IfIndex(3) });
        let plan = plan(&snapshot, &[node("b", &["172.30.0.2"], &["10.244.2.0/24"])], &[]);
        assert!(plan.result.unreachable[0].reason.contains("several paths"));
    }
}
