//! Which interfaces lead out of the node: those with one of the node's addresses, those with a default route, or those
//! that the configuration names.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podnet_common::addr::{IfIndex, Mac};

use super::podnet0;
use super::snapshot::{Link, LinkKind, Snapshot};
use super::{ROUTE_PROTOCOL, tunnel};

/// `RTPROT_RA`: routes that the kernel or a daemon made from router advertisements.
const PROTOCOL_RA: u8 = 9;

/// An interface that leads out of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: IfIndex,
    /// Its Ethernet address; `None` for a device without (a tunnel).
    pub mac: Option<Mac>,
    /// MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it is a veth, on which native XDP costs its peer the TCP segmentation offload.
    pub veth: bool,
    /// Whether it is a bridge or a port of one, so that bridged packets may meet iptables.
    pub bridged: bool,
    /// Whether routes of this interface come from router advertisements.
    pub router_advertisements: bool,
}

/// The uplinks that there are, and the configured ones that are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// Those found, by index.
    pub found: Vec<Uplink>,
    /// Names from the configuration that no interface has.
    pub missing: Vec<String>,
    /// Names of the pods' host-side interfaces, which need settings too.
    pub host_ends: Vec<String>,
    /// Interfaces that are none of these, nor podnet's own, nor the loopback interface.
    pub others: Vec<IfIndex>,
    /// The loopback interface.
    pub loopback: IfIndex,
    /// Whether there is a tunnel.
    pub tunnel: bool,
    /// The node's own addresses: all that its interfaces have, but loopback and link-local IPv6 ones and those of pods'
    /// interfaces.
    pub addresses: BTreeSet<IpAddr>,
}

impl Uplinks {
    /// The smallest MTU of the uplinks, which a pod's packets must fit.
    pub fn mtu(&self) -> Option<u32> {
        self.found.iter().map(|u| u.mtu).min()
    }
}

/// Finds the uplinks.
///
/// With `names` these and no others; without, the interfaces that carry one of `node_addresses` or a default route.
/// A node address on the loopback interface (as BGP-routed hosts have it) counts for nothing there: the default routes
/// tell where packets go.
pub fn find(snapshot: &Snapshot, node_addresses: &[IpAddr], names: &[String]) -> Uplinks {
    let chosen: BTreeSet<IfIndex> = if names.is_empty() {
        let addressed = snapshot.addresses.iter().filter(|a| node_addresses.contains(&a.addr)).map(|a| a.ifindex);
        let default = snapshot.routes.iter().filter(|r| r.dst.prefix() == 0).flat_map(|r| &r.hops).map(|h| h.dev);
        addressed.chain(default).collect()
    } else {
        names.iter().filter_map(|n| snapshot.link(n)).map(|l| l.ifindex).collect()
    };
    let found = snapshot
        .links
        .iter()
        .filter(|l| chosen.contains(&l.ifindex) && l.kind != LinkKind::Loopback && !podnets(&l.name))
        .map(|l| Uplink {
            name: l.name.clone(),
            ifindex: l.ifindex,
            mac: l.mac,
            mtu: l.mtu,
            up: l.up,
            veth: l.kind == LinkKind::Veth,
            bridged: l.kind == LinkKind::Bridge
                || l.controller
                    .and_then(|c| snapshot.link_by_index(c))
                    .is_some_and(|controller| controller.kind == LinkKind::Bridge),
            router_advertisements: snapshot
                .routes
                .iter()
                .any(|r| r.protocol == PROTOCOL_RA && r.dst.is_ipv6() && r.hops.iter().any(|hop| hop.dev == l.ifindex)),
        })
        .collect();
    let missing = names.iter().filter(|n| snapshot.link(n).is_none()).cloned().collect();
    let host_ends = snapshot.links.iter().filter(|l| l.is_host_end()).map(|l| l.name.clone()).collect();
    let is_other = |l: &&Link| !chosen.contains(&l.ifindex) && l.kind != LinkKind::Loopback && !l.is_host_end();
    let others = snapshot.links.iter().filter(is_other).filter(|l| !podnets(&l.name)).map(|l| l.ifindex).collect();
    let loopback = snapshot.links.iter().find(|l| l.kind == LinkKind::Loopback);
    let loopback = loopback.map(|l| l.ifindex).unwrap_or_default();
    let tunnel = snapshot.link(tunnel::NAME).is_some_and(|link| link.vxlan.is_some());
    Uplinks { found, missing, host_ends, others, loopback, tunnel, addresses: own_addresses(snapshot) }
}

/// Whether an interface with this name is podnet's own.
fn podnets(name: &str) -> bool {
    [podnet0::NEAR, podnet0::FAR, tunnel::NAME].contains(&name)
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
    let addresses = snapshot.addresses.iter().filter(|address| !of_podnet(address.ifindex));
    addresses.map(|address| address.addr).filter(is_global).collect()
}

/// The gateways of the host's own routes, or of its default routes only; podnet's lead to nodes, or to podnet0.
pub fn gateways(snapshot: &Snapshot, default_only: bool) -> BTreeSet<IpAddr> {
    let routes = snapshot.routes.iter().filter(|route| route.protocol != ROUTE_PROTOCOL);
    let routes = routes.filter(|route| !default_only || route.dst.prefix() == 0);
    routes.flat_map(|route| &route.hops).filter_map(|hop| hop.via).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::snapshot::{Address, Hop, Route};

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
    fn found_by_node_address_and_by_every_path_of_a_default_route() {
        let node: Vec<IpAddr> = vec!["172.30.0.1".parse().unwrap(), "10.9.9.9".parse().unwrap()];
        let uplinks = find(&snapshot(), &node, &[]);
        assert_eq!(names(&uplinks), ["eth0", "eth1", "wan"], "not lo, not the storage network");
        assert_eq!(uplinks.host_ends, ["pn0123456789a"]);
        assert_eq!((&uplinks.others[..], uplinks.loopback), (&[IfIndex(4), IfIndex(7)][..], IfIndex(1)));
        assert_eq!(uplinks.mtu(), Some(1495));
        assert!(uplinks.found[0].veth && !uplinks.found[1].veth);
        let ra: Vec<bool> = uplinks.found.iter().map(|u| u.router_advertisements).collect();
        assert_eq!(ra, [false, false, true]);
    }

    #[test]
    fn the_nodes_own_addresses_are_those_of_all_interfaces_but_podnets() {
        let mut snapshot = snapshot();
        snapshot.links.push(link(8, podnet0::NEAR, LinkKind::Veth));
        let more =
            [(1, "127.0.0.1"), (1, "::1"), (2, "fd00:30::1"), (2, "fe80::1"), (6, "169.254.1.1"), (8, "10.0.0.1")];
        snapshot.addresses.extend(more.map(|(ifindex, addr)| address(ifindex, addr)));
        let own: Vec<_> = find(&snapshot, &[], &[]).addresses.iter().map(ToString::to_string).collect();
        assert_eq!(own, ["10.9.9.9", "172.30.0.1", "192.168.7.1", "fd00:30::1"]);
    }

    #[test]
    fn names_override_what_would_be_found() {
        let wanted = ["storage".to_string(), "eth9".to_string()];
        let uplinks = find(&snapshot(), &["172.30.0.1".parse().unwrap()], &wanted);
        assert_eq!(names(&uplinks), ["storage"]);
        assert_eq!(uplinks.missing, ["eth9"]);
    }

    #[test]
    fn a_port_of_a_bridge_is_bridged_and_a_port_of_a_bond_is_not() {
        let mut snapshot = snapshot();
        snapshot.links.push(link(16, "br0", LinkKind::Bridge));
        snapshot.links.push(link(17, "bond0", LinkKind::Other));
        snapshot.links[1].controller = Some(IfIndex(16));
        snapshot.links[2].controller = Some(IfIndex(17));
        let uplinks = find(&snapshot, &["172.30.0.1".parse().unwrap()], &[]);
        let bridged: Vec<bool> = uplinks.found.iter().map(|u| u.bridged).collect();
        assert_eq!(bridged, [true, false, false]);
    }
}
