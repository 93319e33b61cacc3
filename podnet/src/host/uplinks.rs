//! Uplinks, the interfaces that lead out of the node: all except pods' and podnet's own interfaces and the loopback
//! interface, or those named in the configuration.
//!
//! Only one interface on a packet's path has hooks: the one with the addresses and routes. Ports of bridges and bonds
//! have none. Packets of a VLAN pass the interface below it with their tag, and that interface's hooks ignore tagged
//! packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podnet_common::addr::{Addr, IfIndex};
use podnet_common::layout::Interface;

use super::lookup::is_link_local;
use super::names::{FAR, NEAR, ROUTE_PROTOCOL, TUNNEL};
use super::snapshot::{Address, Framing, Link, LinkKind, LocalRoute, Route, Snapshot};

/// `RTPROT_RA`: routes made by the kernel or a daemon from router advertisements.
const PROTOCOL_RA: u8 = 9;

/// An interface that leads out of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: IfIndex,
    /// MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether it carries the cluster's traffic: it has one of the addresses of the Node object or a default route, or
    /// is named in the configuration.
    pub main: bool,
    /// Whether its frames begin with the IP header.
    pub raw: bool,
    /// Whether it is a veth, on which native XDP costs its peer the TCP segmentation offload.
    pub veth: bool,
    /// Whether it is a bridge or a port of one, so that bridged packets may meet iptables.
    pub bridged: bool,
    /// Whether routes of this interface come from router advertisements.
    pub router_advertisements: bool,
    /// The addresses that the node uses there, one for each family that the interface has.
    pub addresses: Vec<IpAddr>,
}

/// The uplinks found, and the configured ones that are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// Those found, by index.
    pub found: Vec<Uplink>,
    /// Configured names without an interface.
    pub missing: Vec<String>,
    /// Names of interfaces that would be uplinks if podnet supported their framing.
    pub foreign: Vec<String>,
    /// Names of pods' host ends, which need settings too.
    pub host_ends: Vec<String>,
    /// All other interfaces, except podnet's own and the loopback interface.
    pub others: Vec<IfIndex>,
    /// The loopback interface.
    pub loopback: IfIndex,
    /// Whether the tunnel exists.
    pub tunnel: bool,
    /// The node's own addresses: all addresses of its interfaces and of local routes, except loopback and link-local
    /// IPv6 ones and those of podnet's and pods' interfaces.
    pub addresses: BTreeSet<IpAddr>,
}

impl Uplinks {
    /// The uplinks that carry the cluster's traffic.
    pub fn main(&self) -> impl Iterator<Item = &Uplink> {
        self.found.iter().filter(|uplink| uplink.main)
    }

    /// The smallest MTU of the main uplinks, in bytes, which pods' packets must fit.
    pub fn mtu(&self) -> Option<u32> {
        self.main().map(|u| u.mtu).min()
    }

    /// The content of the table `interfaces`.
    pub fn table(&self) -> BTreeMap<IfIndex, Interface> {
        let entry = |uplink: &Uplink| {
            let of = |v4: bool| uplink.addresses.iter().find(|a| a.is_ipv4() == v4).map_or(Addr::NONE, |a| (*a).into());
            let flags = [(uplink.raw, Interface::RAW), (uplink.main, Interface::MAIN)];
            let flags = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum();
            (uplink.ifindex, Interface { v4: of(true), v6: of(false), mtu: uplink.mtu, flags })
        };
        self.found.iter().map(entry).collect()
    }
}

/// Finds the uplinks.
///
/// With `names`, exactly these. A node address on the loopback interface (as on BGP-routed hosts) doesn't make it an
/// uplink: then the default routes determine the main uplinks.
pub fn find(snapshot: &Snapshot, node_addresses: &[IpAddr], names: &[String]) -> Uplinks {
    let named: BTreeSet<IfIndex> = names.iter().filter_map(|n| snapshot.link(n)).map(|l| l.ifindex).collect();
    let addressed = snapshot.addresses.iter().filter(|a| node_addresses.contains(&a.addr)).map(|a| a.ifindex);
    let default = default_routes(snapshot).flat_map(|r| &r.hops).map(|h| h.dev);
    let main: BTreeSet<IfIndex> = if names.is_empty() { addressed.chain(default).collect() } else { named.clone() };
    let others = |l: &&Link| l.kind != LinkKind::Loopback && !l.is_host_end() && !podnets(&l.name);
    let outside = |l: &&Link| {
        let chosen = if names.is_empty() { !hands_on(snapshot, l) } else { named.contains(&l.ifindex) };
        chosen && others(l)
    };
    let (readable, foreign): (Vec<_>, Vec<_>) =
        snapshot.links.iter().filter(outside).partition(|l| l.framing != Framing::Foreign);
    let found: Vec<Uplink> = readable
        .into_iter()
        .map(|l| Uplink {
            name: l.name.clone(),
            ifindex: l.ifindex,
            mtu: l.mtu,
            main: main.contains(&l.ifindex),
            raw: l.framing == Framing::Raw,
            veth: l.kind == LinkKind::Veth,
            bridged: l.kind == LinkKind::Bridge || controller(snapshot, l) == Some(LinkKind::Bridge),
            router_advertisements: snapshot
                .routes
                .iter()
                .any(|r| r.protocol == PROTOCOL_RA && r.dst.is_ipv6() && r.hops.iter().any(|hop| hop.dev == l.ifindex)),
            addresses: [true, false].iter().filter_map(|v4| speaks_with(snapshot, l, node_addresses, *v4)).collect(),
        })
        .collect();
    let missing = names.iter().filter(|n| snapshot.link(n).is_none()).cloned().collect();
    // Devices of buses and radios have no addresses.
    let has_address = |l: &&&Link| snapshot.addresses.iter().any(|address| address.ifindex == l.ifindex);
    let foreign = foreign.iter().filter(has_address).map(|l| l.name.clone()).collect();
    let host_ends = snapshot.links.iter().filter(|l| l.is_host_end()).map(|l| l.name.clone()).collect();
    let is_found = |l: &&Link| found.iter().any(|uplink| uplink.ifindex == l.ifindex);
    let others = snapshot.links.iter().filter(others).filter(|l| !is_found(l)).map(|l| l.ifindex).collect();
    let loopback = snapshot.links.iter().find(|l| l.kind == LinkKind::Loopback);
    let loopback = loopback.map(|l| l.ifindex).unwrap_or_default();
    let tunnel = snapshot.link(TUNNEL).is_some_and(|link| link.vxlan.is_some());
    Uplinks { found, missing, foreign, host_ends, others, loopback, tunnel, addresses: own_addresses(snapshot) }
}

fn default_routes(snapshot: &Snapshot) -> impl Iterator<Item = &Route> {
    snapshot.routes.iter().filter(|r| r.dst.prefix() == 0)
}

/// Whether packets that an interface receives pass to another one, as those of ports of a bridge or a bond do. Ports of
/// a VRF keep theirs, and the VRF itself has none.
fn hands_on(snapshot: &Snapshot, link: &Link) -> bool {
    link.kind == LinkKind::Vrf || controller(snapshot, link).is_some_and(|kind| kind != LinkKind::Vrf)
}

/// The kind of the device that a link is a port of; the default kind if it is in another namespace.
fn controller(snapshot: &Snapshot, link: &Link) -> Option<LinkKind> {
    link.controller.map(|c| snapshot.link_by_index(c).map(|controller| controller.kind).unwrap_or_default())
}

/// The address of a family that the node uses on a link: one of the Node object; else the preferred source of a default
/// route there; else the first that isn't link-local.
fn speaks_with(snapshot: &Snapshot, link: &Link, node_addresses: &[IpAddr], v4: bool) -> Option<IpAddr> {
    let there = || {
        let usable = |a: &&Address| a.ifindex == link.ifindex && a.addr.is_ipv4() == v4 && !a.tentative;
        snapshot.addresses.iter().filter(usable).map(|a| a.addr)
    };
    let preferred = || {
        let routes = default_routes(snapshot).filter(|r| r.hops.iter().any(|hop| hop.dev == link.ifindex));
        routes.filter_map(|r| r.source).find(|source| source.is_ipv4() == v4)
    };
    let nodes = there().find(|addr| node_addresses.contains(addr));
    nodes.or_else(preferred).or_else(|| there().find(|addr| !is_link_local(addr)))
}

/// Whether an interface with this name is podnet's own.
fn podnets(name: &str) -> bool {
    [NEAR, FAR, TUNNEL].contains(&name)
}

/// See [`Uplinks::addresses`].
pub fn own_addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let of_podnet = |ifindex: IfIndex| {
        let link = snapshot.link_by_index(ifindex);
        link.is_some_and(|link| link.is_host_end() || podnets(&link.name))
    };
    let is_global = |addr: &IpAddr| match addr {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
    };
    let (podnets, others): (Vec<&Address>, Vec<&Address>) =
        snapshot.addresses.iter().partition(|address| of_podnet(address.ifindex));
    // The kernel may report such a route on the loopback interface.
    let podnets: BTreeSet<IpAddr> = podnets.into_iter().map(|address| address.addr).collect();
    let single = |route: &&LocalRoute| route.dst.prefix() == if route.dst.is_ipv4() { 32 } else { 128 };
    let local = snapshot.local_routes.iter().filter(single).filter(|route| !of_podnet(route.dev));
    let local = local.map(|route| route.dst.network()).filter(|addr| !podnets.contains(addr));
    others.into_iter().map(|address| address.addr).chain(local).filter(is_global).collect()
}

/// Gateways of the host's own routes, or of its default routes only. Podnet's routes, to nodes or podnet0, don't count.
pub fn gateways(snapshot: &Snapshot, default_only: bool) -> BTreeSet<IpAddr> {
    let routes = snapshot.routes.iter().filter(|route| route.protocol != ROUTE_PROTOCOL);
    let routes = routes.filter(|route| !default_only || route.dst.prefix() == 0);
    routes.flat_map(|route| &route.hops).filter_map(|hop| hop.via).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::snapshot::Hop;

    fn link(ifindex: u32, name: &str, kind: LinkKind) -> Link {
        Link { name: name.into(), ifindex: IfIndex(ifindex), kind, mtu: 1500 - ifindex, up: true, ..Link::default() }
    }

    fn address(ifindex: u32, addr: &str) -> Address {
        Address { ifindex: IfIndex(ifindex), addr: addr.parse().unwrap(), tentative: false }
    }

    #[test]
    fn gateways_are_those_of_the_hosts_own_routes() {
        let via = |dst: &str, gateway: &str, protocol| Route {
            hops: vec![Hop { via: Some(gateway.parse().unwrap()), dev: IfIndex(2) }],
            ..route(dst, protocol, &[])
        };
        let routes = vec![
            via("0.0.0.0/0", "192.0.2.254", 3),
            via("::/0", "2001:db8::fe", 9),
            via("10.9.0.0/16", "192.0.2.253", 4),
            via("10.244.2.0/24", "192.0.2.2", ROUTE_PROTOCOL),
            route("10.0.0.0/8", 2, &[2]),
        ];
        let snapshot = Snapshot { routes, ..Snapshot::default() };
        let found =
            |default_only| gateways(&snapshot, default_only).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found(false), ["192.0.2.253", "192.0.2.254", "2001:db8::fe"]);
        assert_eq!(found(true), ["192.0.2.254", "2001:db8::fe"]);
    }

    fn route(dst: &str, protocol: u8, devs: &[u32]) -> Route {
        let hops = devs.iter().map(|d| Hop { via: None, dev: IfIndex(*d) }).collect();
        Route { dst: dst.parse().unwrap(), protocol, metric: 0, source: None, mtu: None, hops }
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            links: vec![
                link(1, "lo", LinkKind::Loopback),
                link(2, "eth0", LinkKind::Veth),
                link(3, "eth1", LinkKind::Other),
                link(4, "storage", LinkKind::Other),
                link(5, "wan", LinkKind::Other),
                link(6, "pn0123456789a", LinkKind::Veth),
                link(7, "pnic0", LinkKind::Other),
            ],
            addresses: vec![address(1, "10.9.9.9"), address(2, "172.30.0.1"), address(4, "192.168.7.1")],
            routes: vec![
                route("0.0.0.0/0", 4, &[3, 5]),
                route("::/0", PROTOCOL_RA, &[5]),
                route("192.168.7.0/24", 2, &[4]),
            ],
            ..Snapshot::default()
        }
    }

    fn names(uplinks: &Uplinks) -> Vec<&str> {
        uplinks.found.iter().map(|u| u.name.as_str()).collect()
    }

    #[test]
    fn all_are_found_and_the_main_ones_by_node_address_and_by_every_path_of_a_default_route() {
        let node: Vec<IpAddr> = vec!["172.30.0.1".parse().unwrap(), "10.9.9.9".parse().unwrap()];
        let uplinks = find(&snapshot(), &node, &[]);
        assert_eq!(names(&uplinks), ["eth0", "eth1", "storage", "wan", "pnic0"], "not lo, no pod's");
        assert_eq!(uplinks.main().map(|u| &u.name[..]).collect::<Vec<_>>(), ["eth0", "eth1", "wan"]);
        assert_eq!(uplinks.host_ends, ["pn0123456789a"]);
        assert_eq!((&uplinks.others[..], uplinks.loopback), (&[][..], IfIndex(1)));
        assert_eq!(uplinks.mtu(), Some(1495), "the main ones' smallest");
        assert!(uplinks.found[0].veth && !uplinks.found[1].veth);
        let ra: Vec<bool> = uplinks.found.iter().map(|u| u.router_advertisements).collect();
        assert_eq!(ra, [false, false, false, true, false]);
    }

    #[test]
    fn the_nodes_own_addresses_are_those_of_all_interfaces_but_podnets() {
        let mut snapshot = snapshot();
        snapshot.links.push(link(8, NEAR, LinkKind::Veth));
        let more =
            [(1, "127.0.0.1"), (1, "::1"), (2, "fd00:30::1"), (2, "fe80::1"), (6, "169.254.1.1"), (8, "10.0.0.1")];
        snapshot.addresses.extend(more.map(|(ifindex, addr)| address(ifindex, addr)));
        // Local routes: one made by a guest agent, a whole range (which sockets may use), and addresses of podnet's
        // interfaces.
        let routes = [(2, "203.0.113.10/32"), (1, "198.51.100.0/24"), (1, "10.0.0.1/32"), (6, "169.254.1.1/32")];
        snapshot.local_routes =
            routes.map(|(dev, dst)| LocalRoute { dst: dst.parse().unwrap(), dev: IfIndex(dev) }).into();
        let own: Vec<_> = find(&snapshot, &[], &[]).addresses.iter().map(ToString::to_string).collect();
        assert_eq!(own, ["10.9.9.9", "172.30.0.1", "192.168.7.1", "203.0.113.10", "fd00:30::1"]);
    }

    #[test]
    fn names_override_what_would_be_found() {
        let wanted = ["storage".to_string(), "eth9".to_string()];
        let uplinks = find(&snapshot(), &["172.30.0.1".parse().unwrap()], &wanted);
        assert_eq!(names(&uplinks), ["storage"]);
        assert_eq!(uplinks.missing, ["eth9"]);
        assert_eq!(uplinks.others, [2, 3, 5, 7].map(IfIndex));
        assert!(uplinks.found[0].main);
    }

    #[test]
    fn a_packet_meets_the_hooks_of_one_interface() {
        let mut snapshot = snapshot();
        for (ifindex, name, kind) in
            [(16, "br0", LinkKind::Bridge), (17, "bond0", LinkKind::Other), (18, "vrf0", LinkKind::Vrf)]
        {
            snapshot.links.push(link(ifindex, name, kind));
        }
        for (at, controller) in [(1, 16), (2, 17), (3, 18)] {
            snapshot.links[at].controller = Some(IfIndex(controller));
        }
        snapshot.links[6].framing = Framing::Raw;
        snapshot.links.push(Link { framing: Framing::Foreign, ..link(19, "ib0", LinkKind::Other) });
        snapshot.links.push(Link { framing: Framing::Foreign, ..link(20, "can0", LinkKind::Other) });
        snapshot.addresses.push(address(19, "10.7.7.7"));
        let uplinks = find(&snapshot, &["172.30.0.1".parse().unwrap()], &[]);
        assert_eq!(names(&uplinks), ["storage", "wan", "pnic0", "br0", "bond0"], "a port of a VRF keeps its packets");
        assert_eq!(uplinks.found.iter().map(|u| u.raw).collect::<Vec<_>>(), [false, false, true, false, false]);
        assert_eq!(uplinks.foreign, ["ib0"]);
        assert_eq!(uplinks.others, [2, 3, 18, 19, 20].map(IfIndex));
    }

    #[test]
    fn the_address_of_an_interface_is_the_nodes_or_the_routes_or_the_first() {
        let mut snapshot = snapshot();
        let more = [(2, "fe80::1"), (2, "fd00:30::9"), (2, "fd00:30::1"), (4, "192.168.7.2"), (5, "10.5.5.1")];
        snapshot.addresses.extend(more.map(|(ifindex, addr)| address(ifindex, addr)));
        snapshot.addresses.push(Address { tentative: true, ..address(4, "fd00:7::1") });
        snapshot.routes[0].source = Some("10.9.9.9".parse().unwrap());
        let table = find(&snapshot, &["fd00:30::1".parse().unwrap()], &[]).table();
        let shown = |ifindex: u32| {
            let Interface { v4, v6, mtu, flags } = table[&IfIndex(ifindex)];
            (IpAddr::from(v4).to_string(), IpAddr::from(v6).to_string(), mtu, flags)
        };
        let none = || "::".to_owned();
        assert_eq!(shown(2), ("172.30.0.1".into(), "fd00:30::1".into(), 1498, Interface::MAIN));
        assert_eq!(shown(4), ("192.168.7.1".into(), none(), 1496, 0));
        assert_eq!(shown(5), ("10.9.9.9".into(), none(), 1495, Interface::MAIN), "as the route says");
        assert_eq!(shown(7), (none(), none(), 1493, 0));
    }

    #[test]
    fn a_port_of_a_bridge_is_bridged_and_a_port_of_a_bond_is_not() {
        let mut snapshot = snapshot();
        snapshot.links.push(link(16, "br0", LinkKind::Bridge));
        snapshot.links.push(link(17, "bond0", LinkKind::Other));
        snapshot.links[1].controller = Some(IfIndex(16));
        snapshot.links[2].controller = Some(IfIndex(17));
        let names = snapshot.links[1..4].iter().map(|l| l.name.clone()).collect::<Vec<_>>();
        let uplinks = find(&snapshot, &[], &names);
        let bridged = uplinks.found.iter().filter(|u| u.bridged).map(|u| &u.name[..]).collect::<Vec<_>>();
        assert_eq!(bridged, ["eth0"]);
    }
}
