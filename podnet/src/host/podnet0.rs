//! podnet0 and podnet1: the veth pair through which the host's own processes reach services.
//!
//! The host routes service CIDRs to a next hop on podnet0, with the node's address as source; packets come out of
//! podnet1, where the `from_host` program translates them. Replies are injected as if received on podnet0, with the
//! service's address as source, which any reverse path filter accepts, since the route to that address leads there. The
//! hairpin addresses (the sources that pods see when they reach themselves, or host processes when they reach
//! themselves) are routed likewise, so that their replies return to the pipeline.
//!
//! External addresses of services (load balancer IPs and externalIPs) may also belong to real machines. They are routed
//! in a table of podnet's own, which a rule consults for the host's own sockets only; `from_host` sends packets that
//! aren't for a service port on by the route of the main table. So no packet that the node forwards or sends to other
//! destinations changes its route.
//!
//! The next hop belongs to no host: a permanent neighbour entry gives it podnet1's MAC, so it is never resolved by ARP.
//!
//! Packets with the node's own address as source arrive on podnet0 too (from a process that uses a NodePort of its own
//! node). Loose reverse path filtering accepts these only on an interface that has an address (Linux,
//! `__fib_validate_source`), so podnet0 has one, [`ADDRESS`], which nothing else uses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use podnet_common::addr::{IfIndex, Mac};

use super::error::HostError;
use super::families::{Families, IPV6_MTU_MIN};
use super::lookup::Lookup;
use super::names::ROUTE_PROTOCOL;
pub use super::names::{FAR, NEAR};
use super::routes::{NextHop, RouteSpec, RouteStep, reconcile};
use super::snapshot::{Link, LinkKind, Route, Snapshot, Table};

/// Address of podnet0, with link scope, so that no packet gets it as source.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 3);

/// The next hop on podnet0, per family.
pub fn next_hop(family_of: IpAddr) -> IpAddr {
    match family_of {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(169, 254, 1, 2)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2)),
    }
}

/// The hairpin address, as a range of one: the reserved address after the network address of a pod CIDR.
pub fn hairpin(pod_cidr: IpNetwork) -> IpNetwork {
    match pod_cidr.network() {
        IpAddr::V4(a) => IpNetwork::from(IpAddr::V4(Ipv4Addr::from(u32::from(a).wrapping_add(1)))),
        IpAddr::V6(a) => IpNetwork::from(IpAddr::V6(Ipv6Addr::from(u128::from(a).wrapping_add(1)))),
    }
}

/// Desired state of the pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Destinations routed there: service CIDRs and [`hairpin`] addresses.
    pub destinations: Vec<IpNetwork>,
    /// Destinations routed there for the host's own sockets only: external addresses of services. They may belong to a
    /// machine of which services use some ports only; `from_host` forwards packets to other ports.
    pub external: Vec<IpAddr>,
    /// This node's addresses. The first of a family is the source of packets to destinations of that family;
    /// destinations of a family without an address are left out.
    pub node_addresses: Vec<IpAddr>,
}

impl Wanted {
    /// The source address of packets to `destination`.
    fn source(&self, destination: IpNetwork) -> Option<IpAddr> {
        self.node_addresses.iter().copied().find(|a| a.is_ipv4() == destination.is_ipv4())
    }

    /// Source addresses: the first of each family.
    fn sources(&self) -> impl Iterator<Item = IpAddr> {
        let first = |v4| self.node_addresses.iter().copied().find(move |a| a.is_ipv4() == v4);
        [first(true), first(false)].into_iter().flatten()
    }

    /// The families of the node's addresses.
    pub fn families(&self) -> Families {
        Families::of(&self.node_addresses)
    }

    /// Routes over the pair in the main table.
    fn routes(&self, dev: IfIndex) -> Vec<RouteSpec> {
        let route = |dst: &IpNetwork| Some(over(Table::Main, *dst, dev, self.source(*dst)?));
        self.destinations.iter().filter_map(route).collect()
    }

    /// Routes for external addresses. Each has the source that the main table would choose, so that packets that aren't
    /// for a service leave as they would without the route.
    fn service_routes(&self, dev: IfIndex, snapshot: &Snapshot) -> Vec<RouteSpec> {
        let lookup = Lookup::new(snapshot);
        let route = |addr: &IpAddr| {
            let dst = IpNetwork::from(*addr);
            let source = lookup.source_to(*addr, &self.node_addresses).or_else(|| self.source(dst))?;
            Some(over(Table::Services, dst, dev, source))
        };
        self.external.iter().filter_map(route).collect()
    }

    /// The families of external addresses.
    fn external_families(&self) -> Families {
        Families::of(&self.external)
    }
}

fn over(table: Table, dst: IpNetwork, dev: IfIndex, source: IpAddr) -> RouteSpec {
    RouteSpec { table, dst, to: Some(NextHop { via: next_hop(dst.ip()), dev }), source: Some(source) }
}

/// The pair as it is after [`super::Host::ensure_podnet0`].
#[derive(Debug)]
pub struct Podnet0 {
    /// podnet0.
    pub near: IfIndex,
    /// podnet1.
    pub far: IfIndex,
    /// MAC of podnet0.
    pub near_mac: Mac,
    /// MAC of podnet1.
    pub far_mac: Mac,
    /// Whether the pair is new, so that programs have to be attached to it.
    pub created: bool,
    /// Whether anything was changed.
    pub changed: bool,
    /// Routes that can't be made (yet), with the reason. They are to be retried after a change of addresses or routes.
    pub problems: Vec<HostError>,
}

/// Links found under the pair's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pair {
    /// Neither exists.
    Missing,
    /// A veth pair.
    Right,
    /// A veth whose peer isn't the other, or whose MTU has cost it IPv6: to be deleted and created again.
    Broken(IfIndex),
}

/// Looks for the pair, which is to be used with these families. Fails if an interface of another kind has one of these
/// names.
pub(super) fn examine(snapshot: &Snapshot, families: Families) -> Result<Pair, HostError> {
    let (near, far) = (snapshot.link(NEAR), snapshot.link(FAR));
    for link in [near, far].into_iter().flatten() {
        if link.kind != LinkKind::Veth {
            return Err(HostError::ForeignLink { name: link.name.clone() });
        }
    }
    Ok(match (near, far) {
        (None, None) => Pair::Missing,
        // Without IPv6, a link has no settings of IPv6; and with a larger MTU it would get a link-local address.
        (Some(link), Some(other)) if families.v6 && link.mtu.min(other.mtu) < IPV6_MTU_MIN => {
            Pair::Broken(link.ifindex)
        }
        (Some(n), Some(f)) if n.peer == Some(f.ifindex) && f.peer == Some(n.ifindex) => Pair::Right,
        (Some(link), _) | (None, Some(link)) => Pair::Broken(link.ifindex),
    })
}

/// One change to the pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Take the link out of a bridge, bond or VRF, which would receive its packets.
    NoController { dev: IfIndex },
    /// Set the MTU.
    Mtu { dev: IfIndex, mtu: u32 },
    /// Set the link up.
    Up { dev: IfIndex },
    /// Add [`ADDRESS`].
    Address { dev: IfIndex },
    /// Add a permanent neighbour.
    Neighbour { dev: IfIndex, addr: IpAddr, mac: Mac },
    /// Change a route.
    Route(RouteStep),
    /// Add the rule that leads the host's own sockets of a family to [`Table::Services`] before the other tables.
    Rule { v4: bool },
    /// Remove this rule.
    NoRule { v4: bool },
}

impl Step {
    /// Whether this leads packets to the pair, and isn't a part of the pair itself.
    pub(super) fn is_way(&self) -> bool {
        matches!(self, Self::Route(_) | Self::Rule { .. } | Self::NoRule { .. })
    }

    /// Whether this needs IPv6.
    pub(super) fn is_of_ipv6(&self) -> bool {
        matches!(self, Self::Neighbour { addr: IpAddr::V6(_), .. })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoController { dev } => write!(f, "take interface {} out of its bridge or VRF", dev.0),
            Self::Mtu { dev, mtu } => write!(f, "set the MTU of interface {} to {mtu}", dev.0),
            Self::Up { dev } => write!(f, "set interface {} up", dev.0),
            Self::Address { dev } => write!(f, "add the address {ADDRESS} to interface {}", dev.0),
            Self::Neighbour { addr, mac, .. } => {
                write!(f, "add the permanent neighbour {addr} lladdr {mac} on {NEAR}")
            }
            Self::Route(step) => step.fmt(f),
            Self::Rule { v4 } => write!(f, "add the {} routing rule for table {}", family(*v4), Table::SERVICES),
            Self::NoRule { v4 } => write!(f, "remove the {} routing rule for table {}", family(*v4), Table::SERVICES),
        }
    }
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

/// Steps that bring the pair into line, in order, and problems that prevent some.
pub(super) fn plan(snapshot: &Snapshot, near: &Link, far: &Link, wanted: &Wanted) -> (Vec<Step>, Vec<HostError>) {
    let mtu = if wanted.families().v6 { wanted.mtu.max(IPV6_MTU_MIN) } else { wanted.mtu };
    let mut steps = Vec::new();
    for link in [near, far] {
        if link.controller.is_some() {
            steps.push(Step::NoController { dev: link.ifindex });
        }
        if link.mtu != mtu {
            steps.push(Step::Mtu { dev: link.ifindex, mtu });
        }
    }
    // The far end first: the kernel doesn't use routes over an interface without carrier.
    for link in [far, near] {
        if !link.up {
            steps.push(Step::Up { dev: link.ifindex });
        }
    }
    let has_address = snapshot.addresses.iter().any(|a| a.ifindex == near.ifindex && a.addr == ADDRESS);
    if wanted.families().v4 && !has_address {
        steps.push(Step::Address { dev: near.ifindex });
    }
    let far_mac = far.mac.unwrap_or_default();
    for source in wanted.sources() {
        let addr = next_hop(source);
        let there = snapshot.neighbours.iter().find(|n| n.ifindex == near.ifindex && n.addr == addr);
        if !there.is_some_and(|n| n.permanent && n.mac == Some(far_mac)) {
            steps.push(Step::Neighbour { dev: near.ifindex, addr, mac: far_mac });
        }
    }
    // Rules make every route look-up of the host more expensive, so they exist only while an address needs them.
    let (wanted_rules, rules) = (wanted.external_families(), snapshot.service_rules);
    for (v4, wanted, there) in [(true, wanted_rules.v4, rules.v4), (false, wanted_rules.v6, rules.v6)] {
        match (wanted, there) {
            (true, false) => steps.push(Step::Rule { v4 }),
            (false, true) => steps.push(Step::NoRule { v4 }),
            _ => {}
        }
    }
    let over = |r: &&Route| r.protocol == ROUTE_PROTOCOL && r.hops.iter().any(|hop| hop.dev == near.ifindex);
    let main = (Table::Main, &snapshot.routes, wanted.routes(near.ifindex));
    let services = (Table::Services, &snapshot.service_routes, wanted.service_routes(near.ifindex, snapshot));
    let problems: Vec<HostError> = wanted.sources().filter_map(|a| unusable(snapshot, a)).collect();
    let blocked = |spec: &RouteSpec| spec.source.is_some_and(|source| unusable(snapshot, source).is_some());
    for (table, there, wanted) in [main, services] {
        for step in reconcile(table, there.iter().filter(over), &wanted) {
            match &step {
                RouteStep::Add(spec) | RouteStep::Replace(spec) if blocked(spec) => {}
                _ => steps.push(Step::Route(step)),
            }
        }
    }
    (steps, problems)
}

/// Why an address can't be the source of a route.
fn unusable(snapshot: &Snapshot, addr: IpAddr) -> Option<HostError> {
    let there: Vec<_> = snapshot.addresses.iter().filter(|a| a.addr == addr).collect();
    if there.is_empty() {
        Some(HostError::NoSuchAddress { addr })
    } else if there.iter().all(|a| a.tentative) {
        Some(HostError::Tentative { addr })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::snapshot::{Address, Hop, Neighbour};

    const FAR_MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn link(ifindex: u32, name: &str, peer: u32, mac: Mac) -> Link {
        Link {
            name: name.into(),
            ifindex: IfIndex(ifindex),
            mac: Some(mac),
            mtu: 1500,
            kind: LinkKind::Veth,
            up: true,
            peer: Some(IfIndex(peer)),
            ..Link::default()
        }
    }

    fn wanted() -> Wanted {
        Wanted {
            mtu: 1500,
            destinations: ["10.96.0.0/16", "fd00:96::/112", "10.244.1.1/32"].map(|c| c.parse().unwrap()).to_vec(),
            external: Vec::new(),
            node_addresses: ["172.30.0.1", "fd00:30::1", "172.30.1.1"].map(|a| a.parse().unwrap()).to_vec(),
        }
    }

    fn pair() -> Snapshot {
        let address = |addr: &str| Address { ifindex: IfIndex(2), addr: addr.parse().unwrap(), tentative: false };
        Snapshot {
            links: vec![link(7, NEAR, 8, Mac([2, 0, 0, 0, 0, 8])), link(8, FAR, 7, FAR_MAC)],
            addresses: vec![address("172.30.0.1"), address("fd00:30::1")],
            ..Snapshot::default()
        }
    }

    /// The snapshot after the steps have been carried out.
    fn settled(wanted: &Wanted) -> Snapshot {
        let mut snapshot = pair();
        snapshot.addresses.push(Address { ifindex: IfIndex(7), addr: ADDRESS.into(), tentative: false });
        for route in wanted.routes(IfIndex(7)) {
            snapshot.routes.push(Route {
                dst: route.dst,
                protocol: ROUTE_PROTOCOL,
                metric: 0,
                source: route.source,
                mtu: None,
                hops: route.to.map(|to| Hop { via: Some(to.via), dev: to.dev }).into_iter().collect(),
            });
        }
        for addr in ["169.254.1.2", "fe80::2"] {
            let addr = addr.parse().unwrap();
            snapshot.neighbours.push(Neighbour {
                ifindex: IfIndex(7),
                addr,
                mac: Some(FAR_MAC),
                permanent: true,
                fresh: false,
            });
        }
        snapshot
    }

    fn steps(snapshot: &Snapshot, wanted: &Wanted) -> Vec<String> {
        let (near, far) = (snapshot.link(NEAR).unwrap(), snapshot.link(FAR).unwrap());
        plan(snapshot, near, far, wanted).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_correct_pair_is_left_untouched() {
        assert_eq!(steps(&settled(&wanted()), &wanted()), Vec::<String>::new());
    }

    #[test]
    fn a_new_pair_gets_everything_in_order() {
        let mut snapshot = pair();
        snapshot.links.iter_mut().for_each(|l| l.up = false);
        let mut wanted = wanted();
        wanted.mtu = 1400;
        assert_eq!(
            steps(&snapshot, &wanted),
            [
                "set the MTU of interface 7 to 1400",
                "set the MTU of interface 8 to 1400",
                "set interface 8 up",
                "set interface 7 up",
                "add the address 169.254.1.3 to interface 7",
                "add the permanent neighbour 169.254.1.2 lladdr 02:00:00:00:00:09 on podnet0",
                "add the permanent neighbour fe80::2 lladdr 02:00:00:00:00:09 on podnet0",
                "add the route to 10.96.0.0/16 via 169.254.1.2",
                "add the route to 10.244.1.1/32 via 169.254.1.2",
                "add the route to fd00:96::/112 via fe80::2",
            ]
        );
    }

    #[test]
    fn links_keep_room_for_ipv6_and_belong_to_no_bridge() {
        let mut snapshot = settled(&wanted());
        snapshot.links[1].controller = Some(IfIndex(3));
        let (free, v6) = ("take interface 8 out of its bridge or VRF", Families { v4: true, v6: true });
        let small = Wanted { mtu: 1000, ..wanted() };
        let mtus = ["set the MTU of interface 7 to 1280", free, "set the MTU of interface 8 to 1280"];
        assert_eq!(steps(&snapshot, &small), mtus);
        snapshot.links[0].mtu = 1279;
        assert_eq!(examine(&snapshot, v6).unwrap(), Pair::Broken(IfIndex(7)), "it has lost IPv6");
        assert_eq!(examine(&snapshot, Families { v6: false, ..v6 }).unwrap(), Pair::Right);
    }

    #[test]
    fn only_the_difference_is_changed() {
        let mut snapshot = settled(&wanted());
        snapshot.neighbours[0].mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        let mut wanted = wanted();
        wanted.destinations[0] = "10.97.0.0/16".parse().unwrap();
        assert_eq!(
            steps(&snapshot, &wanted),
            [
                "add the permanent neighbour 169.254.1.2 lladdr 02:00:00:00:00:09 on podnet0",
                "add the route to 10.97.0.0/16 via 169.254.1.2",
                "remove the route to 10.96.0.0/16 via 169.254.1.2",
            ]
        );
        let mut moved = self::wanted();
        moved.node_addresses[0] = "172.30.1.1".parse().unwrap();
        let mut snapshot = settled(&self::wanted());
        snapshot.addresses[0].addr = "172.30.1.1".parse().unwrap();
        let steps = steps(&snapshot, &moved);
        assert_eq!(steps.len(), 2, "both IPv4 routes get the new source: {steps:?}");
        assert!(steps.iter().all(|s| s.starts_with("replace the route to 10.")), "{steps:?}");
    }

    #[test]
    fn external_addresses_have_routes_in_a_table_of_their_own_while_there_are_any() {
        let mut wanted = wanted();
        wanted.external = vec!["198.51.100.7".parse().unwrap()];
        let mut snapshot = settled(&wanted);
        let hop = Hop { via: Some("172.31.0.254".parse().unwrap()), dev: IfIndex(3) };
        let default = Route {
            dst: "0.0.0.0/0".parse().unwrap(),
            protocol: 3,
            metric: 0,
            source: None,
            mtu: None,
            hops: vec![hop],
        };
        snapshot.routes.push(default);
        snapshot.addresses.push(Address { ifindex: IfIndex(3), addr: "172.31.0.9".parse().unwrap(), tentative: false });
        let (near, far) = (snapshot.link(NEAR).unwrap(), snapshot.link(FAR).unwrap());
        assert!(plan(&snapshot, near, far, &wanted).0.iter().all(Step::is_way), "a refusal leaves the pair as it is");
        let rule = "add the IPv4 routing rule for table 112";
        assert_eq!(steps(&snapshot, &wanted), [rule, "add the route to 198.51.100.7/32 via 169.254.1.2"]);
        let [route] = wanted.service_routes(IfIndex(7), &snapshot)[..] else { panic!() };
        assert_eq!(route.source, Some("172.31.0.9".parse().unwrap()), "the source of the way that the main table has");
        snapshot.service_rules.v4 = true;
        let hops = route.to.map(|to| Hop { via: Some(to.via), dev: to.dev }).into_iter().collect();
        let there =
            Route { dst: route.dst, protocol: ROUTE_PROTOCOL, metric: 0, source: route.source, mtu: None, hops };
        snapshot.service_routes.push(there);
        assert_eq!(steps(&snapshot, &wanted), Vec::<String>::new());
        wanted.external.clear();
        let gone = "remove the IPv4 routing rule for table 112";
        assert_eq!(steps(&snapshot, &wanted), [gone, "remove the route to 198.51.100.7/32 via 169.254.1.2"]);
    }

    #[test]
    fn a_tentative_address_holds_back_its_own_family_only() {
        let mut snapshot = pair();
        snapshot.addresses[1].tentative = true;
        let (near, far) = (snapshot.link(NEAR).unwrap(), snapshot.link(FAR).unwrap());
        let (steps, problems) = plan(&snapshot, near, far, &wanted());
        let routes: Vec<_> = steps.iter().filter(|s| matches!(s, Step::Route(_))).collect();
        assert_eq!(routes.len(), 2, "{routes:?}");
        assert!(matches!(&problems[..], [HostError::Tentative { .. }]), "{problems:?}");
    }

    #[test]
    fn a_foreign_interface_is_rejected_and_a_broken_pair_recreated() {
        let mut snapshot = pair();
        assert_eq!(examine(&snapshot, Families::default()).unwrap(), Pair::Right);
        snapshot.links[0].peer = Some(IfIndex(99));
        assert_eq!(examine(&snapshot, Families::default()).unwrap(), Pair::Broken(IfIndex(7)));
        snapshot.links[1].kind = LinkKind::Other;
        assert!(matches!(examine(&snapshot, Families::default()), Err(HostError::ForeignLink { name }) if name == FAR));
        assert_eq!(examine(&Snapshot::default(), Families::default()).unwrap(), Pair::Missing);
    }

    #[test]
    fn hairpin_is_the_address_after_the_network_address() {
        assert_eq!(hairpin("10.244.1.0/24".parse().unwrap()).to_string(), "10.244.1.1/32");
        assert_eq!(hairpin("fd00:244:1::/64".parse().unwrap()).to_string(), "fd00:244:1::1/128");
    }
}
