//! Routes to the pods of other nodes: each node's pod CIDRs through its address of the same family, where that address
//! is on a shared link, or through the tunnel. Unreachable ones are reported.
//!
//! This node's own pod CIDRs have unreachable routes, below the pods' own routes: packets for a deleted pod would
//! otherwise leave by the default route, and come back from a router that has a route to these CIDRs.
//!
//! Podnet's routes are identified by their protocol number, [`ROUTE_PROTOCOL`], and those of this module by having a
//! gateway that isn't on podnet0, or neither gateway nor interface; other routes are never changed or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podnet_common::addr::{IfIndex, Mac};

use super::error::HostError;
use super::lookup::Lookup;
use super::names::{NEAR, ROUTE_PROTOCOL};
use super::snapshot::{Hop, Route, Snapshot, Table};
use super::tunnel::{self, Peer, Tunnel};
use crate::config::Routing;

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteNode {
    /// The Node object's name.
    pub name: String,
    /// Its addresses (InternalIP). Routes lead to the first of each family, the tunnel to the first of all.
    pub addresses: Vec<IpAddr>,
    /// Its pods' CIDRs.
    pub pod_cidrs: Vec<IpNetwork>,
}

/// The other nodes, and the parameters for reaching them.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeNetwork<'a> {
    /// This node's name.
    pub name: &'a str,
    /// This node's addresses: the first of a family is the source of packets that the host sends, the first of all is
    /// the one at which it receives the tunnel's packets.
    pub addresses: &'a [IpAddr],
    /// Smallest MTU of the uplinks, in bytes.
    pub mtu: u32,
    /// The routing mode.
    pub routing: Routing,
    /// The pod CIDRs of this node.
    pub pod_cidrs: &'a [IpNetwork],
    /// The other nodes.
    pub nodes: &'a [RemoteNode],
}

/// A route made by podnet. All addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Its table.
    pub table: Table,
    /// Destination.
    pub dst: IpNetwork,
    /// Its next hop; `None`: unreachable, with an ICMP error to the sender.
    pub to: Option<NextHop>,
    /// Preferred source.
    pub source: Option<IpAddr>,
}

/// A next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Its address, on the link.
    pub via: IpAddr,
    /// The interface.
    pub dev: IfIndex,
}

impl RouteSpec {
    /// Converts an existing route; `None` for a route to an interface itself, or with several next hops.
    fn of(table: Table, route: &Route) -> Option<Self> {
        let to = match route.hops[..] {
            [] => None,
            [hop] => Some(NextHop { via: hop.via?, dev: hop.dev }),
            _ => return None,
        };
        Some(Self { table, dst: route.dst, to, source: route.source })
    }

    /// Key shared by a route and its replacement: unreachable routes have a metric of their own.
    fn key(&self) -> (IpNetwork, bool) {
        (self.dst, self.to.is_none())
    }
}

/// A change of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteStep {
    /// Add it; fails if another program has a route to the same destination.
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
        match spec.to {
            Some(NextHop { via, .. }) => write!(f, "{verb} the route to {} via {via}", spec.dst),
            None => write!(f, "{verb} the unreachable route to {}", spec.dst),
        }
    }
}

/// Steps from podnet's actual routes in a table to the desired ones: additions and replacements by destination, then
/// removals.
pub(super) fn reconcile<'a>(
    table: Table,
    ours: impl Iterator<Item = &'a Route>,
    desired: &[RouteSpec],
) -> Vec<RouteStep> {
    let ours = ours.filter_map(|route| RouteSpec::of(table, route));
    let actual: BTreeMap<_, RouteSpec> = ours.map(|r| (r.key(), r)).collect();
    let desired: BTreeMap<_, RouteSpec> = desired.iter().map(|r| (r.key(), *r)).collect();
    let made = desired.values().filter_map(|want| match actual.get(&want.key()) {
        None => Some(RouteStep::Add(*want)),
        Some(have) if have != want => Some(RouteStep::Replace(*want)),
        Some(_) => None,
    });
    let gone = actual.values().filter(|have| !desired.contains_key(&have.key())).map(|have| RouteStep::Remove(*have));
    made.chain(gone).collect()
}

/// Route to one pod CIDR of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeHop {
    /// The node's name.
    pub node: String,
    /// The pod CIDR.
    pub cidr: IpNetwork,
    /// The node's address.
    pub via: IpAddr,
    /// The uplink, or the tunnel.
    pub dev: IfIndex,
    /// The node's MAC on that link, once known; a change of neighbours is the time to look again.
    pub mac: Option<Mac>,
    /// Whether it is the tunnel.
    pub tunnel: bool,
}

/// An address of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The node's name.
    pub node: String,
    /// The address.
    pub addr: IpAddr,
    /// The interface whose link it is on, or the tunnel; `None`: it is behind a router, or unreachable.
    pub dev: Option<IfIndex>,
    /// The node's MAC on that link, once known.
    pub mac: Option<Mac>,
    /// Whether pods reach it through the tunnel.
    pub tunnel: bool,
}

/// An unreachable pod CIDR of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// The node's name.
    pub node: String,
    /// The pod CIDR.
    pub cidr: IpNetwork,
    /// The reason, and advice.
    pub reason: String,
}

/// Result of [`super::Host::sync_node_routes`].
#[derive(Debug, Default)]
pub struct NodeRoutes {
    /// Every reachable pod CIDR.
    pub hops: Vec<NodeHop>,
    /// All addresses of the nodes, except those that are also this node's own.
    pub addresses: Vec<NodeAddress>,
    /// Unreachable pod CIDRs.
    pub unreachable: Vec<Unreachable>,
    /// The tunnel, if some nodes need it.
    pub tunnel: Option<Tunnel>,
    /// Number of routes added, replaced or removed.
    pub changed: usize,
    /// Changes that failed.
    pub errors: Vec<HostError>,
}

/// Planned steps, and the result if all of them succeed.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<RouteStep>,
    pub(super) result: NodeRoutes,
}

/// Path to an address of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// On the link of this interface.
    Link(IfIndex),
    /// Through the tunnel.
    Tunnel,
}

/// The nodes that the tunnel has to reach. If two have the same MAC there, one gets the packets of both, which is
/// reported.
pub(super) fn tunnel_peers(snapshot: &Snapshot, network: &NodeNetwork<'_>) -> (BTreeMap<Mac, Peer>, Vec<HostError>) {
    let lookup = Lookup::new(snapshot);
    let (mut peers, mut errors) = (BTreeMap::new(), Vec::new());
    for node in network.nodes {
        let Ok(remote) = underlay(&lookup, network, node) else { continue };
        let mac = tunnel::mac_of(&node.name);
        let through: Vec<_> =
            node.addresses.iter().filter(|a| way(&lookup, network, node, **a) == Ok(Way::Tunnel)).collect();
        if through.is_empty() {
            continue;
        }
        let gateways = through.into_iter().map(|address| tunnel::gateway(*address, mac)).collect();
        if mac == tunnel::mac_of(network.name) || peers.insert(mac, Peer { remote, gateways }).is_some() {
            errors.push(HostError::SameMac { node: node.name.clone() });
        }
    }
    (peers, errors)
}

/// Plans the routes to other nodes' pods, and for this node's. Without a tunnel, nodes that need it are unreachable.
pub(super) fn plan(snapshot: &Snapshot, network: &NodeNetwork<'_>, tunnel: Option<Tunnel>) -> Plan {
    let lookup = Lookup::new(snapshot);
    let mut plan = Plan::default();
    let nowhere = |dst: &IpNetwork| RouteSpec { table: Table::Main, dst: *dst, to: None, source: None };
    // A kernel without a family has no routes of that family.
    let has_family = |cidr: &&IpNetwork| network.addresses.iter().any(|own| own.is_ipv4() == cidr.is_ipv4());
    let mut desired: Vec<_> = network.pod_cidrs.iter().filter(has_family).map(nowhere).collect();
    let mut taken = BTreeSet::new();
    for node in network.nodes {
        let tunnel_mac = tunnel::mac_of(&node.name);
        for &addr in node.addresses.iter().filter(|addr| !lookup.has_address(**addr)) {
            let (dev, mac, through) = match (way(&lookup, network, node, addr), tunnel) {
                (Ok(Way::Link(dev)), _) => (Some(dev), lookup.mac_of(dev, addr), false),
                (Ok(Way::Tunnel), Some(tunnel)) => (Some(tunnel.ifindex), Some(tunnel_mac), true),
                _ => (None, None, false),
            };
            plan.result.addresses.push(NodeAddress { node: node.name.clone(), addr, dev, mac, tunnel: through });
        }
        for &cidr in &node.pod_cidrs {
            let hop = if taken.insert(cidr) {
                next_hop(&lookup, network, node, cidr)
            } else {
                Err(format!("another node has the same pod CIDR {cidr}: correct spec.podCIDRs of one of them"))
            };
            let source = network.addresses.iter().copied().find(|a| a.is_ipv4() == cidr.is_ipv4());
            let hop = match (hop, tunnel) {
                (Ok((via, Way::Link(dev))), _) => {
                    let to = NextHop { via, dev };
                    desired.push(RouteSpec { table: Table::Main, dst: cidr, to: Some(to), source });
                    Ok((via, dev, lookup.mac_of(dev, via), false))
                }
                (Ok((via, Way::Tunnel)), Some(Tunnel { ifindex: dev, .. })) => {
                    let to = NextHop { via: tunnel::gateway(via, tunnel_mac), dev };
                    desired.push(RouteSpec { table: Table::Main, dst: cidr, to: Some(to), source });
                    Ok((via, dev, Some(tunnel_mac), true))
                }
                (Ok(_), None) => Err(format!("the tunnel {} is missing", tunnel::NAME)),
                (Err(reason), _) => Err(reason),
            };
            let node = node.name.clone();
            match hop {
                Ok((via, dev, mac, tunnel)) => plan.result.hops.push(NodeHop { node, cidr, via, dev, mac, tunnel }),
                Err(reason) => plan.result.unreachable.push(Unreachable { node, cidr, reason }),
            }
        }
    }
    let podnet0 = snapshot.link(NEAR).map(|l| l.ifindex);
    let here = |hop: &Hop| hop.via.is_some() && Some(hop.dev) != podnet0;
    let ours = snapshot.routes.iter().filter(|r| r.protocol == ROUTE_PROTOCOL && r.hops.iter().all(here));
    plan.steps = reconcile(Table::Main, ours, &desired);
    plan.result.tunnel = tunnel;
    plan
}

/// The node's address of the CIDR's family and the path to it, or why there is none.
fn next_hop(
    lookup: &Lookup<'_>,
    network: &NodeNetwork<'_>,
    node: &RemoteNode,
    cidr: IpNetwork,
) -> Result<(IpAddr, Way), String> {
    let via = node.addresses.iter().copied().find(|a| a.is_ipv4() == cidr.is_ipv4()).ok_or_else(|| {
        let family = family(cidr.is_ipv4());
        format!("the node has no {family} address: add one as InternalIP to its Node object, or remove its CIDR {cidr}")
    })?;
    Ok((via, way(lookup, network, node, via)?))
}

/// Path to an address of another node, or why there is none.
fn way(lookup: &Lookup<'_>, network: &NodeNetwork<'_>, node: &RemoteNode, addr: IpAddr) -> Result<Way, String> {
    if network.routing != Routing::Vxlan {
        match (on_link(lookup, addr), network.routing) {
            (Ok(dev), Routing::Direct) => return Ok(Way::Link(dev)),
            (Ok(dev), _) if lookup.has_ethernet(dev) => return Ok(Way::Link(dev)),
            (Err(reason), Routing::Direct) => return Err(reason),
            (Ok(_) | Err(_), _) => {}
        }
    }
    if !network.addresses.iter().any(|own| own.is_ipv4() == addr.is_ipv4()) {
        let family = family(addr.is_ipv4());
        return Err(format!("this node's Node object has no {family} InternalIP for the return path: add one"));
    }
    underlay(lookup, network, node).map(|_| Way::Tunnel)
}

/// The interface on whose link an address is, or why there is none.
fn on_link(lookup: &Lookup<'_>, addr: IpAddr) -> Result<IfIndex, String> {
    let route = route_to(lookup, addr)?;
    match route.hops[..] {
        [hop] => match hop.via {
            None => Ok(hop.dev),
            Some(router) => Err(format!(
                "its address {addr} is behind the router {router}, not on a link of this node: set `routing: auto`, or \
                 put the nodes on one link"
            )),
        },
        _ => Err(format!("the route to its address {addr} has several next hops: make it a route over one link")),
    }
}

/// The address at which a node receives the tunnel's packets: its first, which must be of the same family as this
/// node's first.
fn underlay(lookup: &Lookup<'_>, network: &NodeNetwork<'_>, node: &RemoteNode) -> Result<IpAddr, String> {
    let own = network.addresses.first().ok_or("this node's Node object has no InternalIP, which the tunnel needs")?;
    let remote = node.addresses.first().copied().filter(|a| a.is_ipv4() == own.is_ipv4()).ok_or_else(|| {
        let family = family(own.is_ipv4());
        format!(
            "the first InternalIP of its Node object, the tunnel's remote end, is not an {family} address like this \
             node's"
        )
    })?;
    route_to(lookup, remote).map(|_| remote)
}

fn route_to<'a>(lookup: &Lookup<'a>, addr: IpAddr) -> Result<&'a Route, String> {
    if lookup.has_address(addr) {
        return Err(format!(
            "its address {addr} is this node's own: correct the InternalIP of one of the Node objects"
        ));
    }
    let route = lookup.route_to(addr).ok_or_else(|| format!("there is no route to its address {addr}"))?;
    if route.hops.is_empty() {
        let dst = route.dst;
        return Err(format!(
            "its address {addr} is in {dst}, which is this node's pod CIDR or has an unreachable route"
        ));
    }
    Ok(route)
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests;
