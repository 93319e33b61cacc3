//! From netlink messages to the values of a [`Snapshot`](super::snapshot::Snapshot).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use podnet_common::addr::{IfIndex, Mac};
use podnet_common::layout::MARK_DONE;

use super::snapshot::{Address, Forwarding, Framing, Hop, Link, LinkKind, LocalRoute, Neighbour, Route, Table, Vxlan};

/// Converts a link message.
pub(super) fn link(message: LinkMessage) -> Option<Link> {
    let mut link = Link {
        ifindex: IfIndex(message.header.index),
        up: message.header.flags.contains(LinkFlags::Up),
        framing: framing(message.header.link_layer_type),
        ..Link::default()
    };
    if message.header.flags.contains(LinkFlags::Loopback) {
        link.kind = LinkKind::Loopback;
    }
    let (mut lower, mut elsewhere) = (None, false);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Address(bytes) => link.mac = mac(&bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::AfSpecUnspec(families) => link.mtu6 = families.iter().find_map(mtu6),
            LinkAttribute::Controller(index) => link.controller = Some(IfIndex(index)),
            LinkAttribute::Link(index) => lower = Some(IfIndex(index)),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
                        LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
                        LinkInfo::Kind(InfoKind::Vrf) => link.kind = LinkKind::Vrf,
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(vxlan(&data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if link.kind == LinkKind::Veth && !elsewhere {
        link.peer = lower;
    }
    Some(link)
}

/// The IPv6 MTU among the per-family attributes of an interface.
fn mtu6(family: &AfSpecUnspec) -> Option<u32> {
    let AfSpecUnspec::Inet6(settings) = family else { return None };
    settings.iter().find_map(|setting| match setting {
        AfSpecInet6::DevConf(conf) => u32::try_from(conf.mtu6).ok(),
        _ => None,
    })
}

/// Whether frames have a MAC header, by the kernel's rule (`dev_is_mac_header_xmit` in linux/if_arp.h).
fn framing(layer: LinkLayerType) -> Framing {
    match layer {
        LinkLayerType::Ether | LinkLayerType::Loopback => Framing::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp => Framing::Raw,
        _ => Framing::Foreign,
    }
}

fn vxlan(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for info in data {
        match info {
            InfoVxlan::Id(id) => vxlan.vni = *id,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(addr) => vxlan.local = Some((*addr).into()),
            InfoVxlan::Local6(addr) => vxlan.local = Some((*addr).into()),
            _ => {}
        }
    }
    vxlan
}

/// Converts an address message.
pub(super) fn address(message: AddressMessage) -> Option<Address> {
    let (mut local, mut address) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(a) => local = Some(a),
            AddressAttribute::Address(a) => address = Some(a),
            _ => {}
        }
    }
    // On point-to-point links `Address` is that of the peer; IPv6 has no `Local`.
    Some(Address {
        ifindex: IfIndex(message.header.index),
        addr: local.or(address)?,
        tentative: message.header.flags.contains(AddressHeaderFlags::Tentative),
    })
}

/// Whether a rule leads the host's own sockets to [`Table::Services`].
pub(super) fn is_service_rule(message: &RuleMessage) -> bool {
    let (mut table, mut priority, mut from_host, mut mask) = (u32::from(message.header.table), 0, false, 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(id) => table = *id,
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Iifname(name) => from_host = name == "lo",
            RuleAttribute::FwMask(value) => mask = *value,
            _ => {}
        }
    }
    table == Table::SERVICES && priority == Table::SERVICES && from_host && mask == MARK_DONE
}

/// Converts a route message; `None` for other tables and for types other than unicast and unreachable. `named` gives
/// the hops of a nexthop object, or `None` if it leads nowhere.
pub(super) fn route(message: RouteMessage, named: impl Fn(u32) -> Option<Vec<Hop>>) -> Option<(Table, Route)> {
    let header = message.header;
    if !matches!(header.kind, RouteType::Unicast | RouteType::Unreachable) {
        return None;
    }
    let (mut table, mut metric, mut source) = (u32::from(header.table), 0, None);
    let mut dst = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut single, mut hops, mut mtu, mut object) = (Hop::default(), Vec::new(), None, None);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = t,
            RouteAttribute::Priority(m) => metric = m,
            RouteAttribute::Destination(a) => dst = ip(&a)?,
            RouteAttribute::PrefSource(a) => source = ip(&a),
            RouteAttribute::Metrics(metrics) => mtu = locked_mtu(&metrics),
            RouteAttribute::MultiPath(paths) => {
                for path in paths {
                    let mut hop = Hop { via: None, dev: IfIndex(path.interface_index) };
                    path.attributes.iter().for_each(|a| next_hop(&mut hop, a));
                    hops.push(hop);
                }
            }
            RouteAttribute::NhId(id) => object = Some(id),
            other => next_hop(&mut single, &other),
        }
    }
    let table = Table::of(table)?;
    match header.kind {
        // Unreachable IPv6 routes name the loopback interface.
        RouteType::Unreachable => hops.clear(),
        _ if !hops.is_empty() => {}
        _ => match object {
            // Unless the message itself has a gateway or an interface.
            Some(id) if single == Hop::default() => hops = named(id)?,
            _ => hops.push(single),
        },
    }
    let dst = IpNetwork::new(dst, header.destination_prefix_length).ok()?;
    Some((table, Route { dst, protocol: header.protocol.into(), metric, source, mtu, hops }))
}

/// The MTU among a route's metrics, if it is locked.
fn locked_mtu(metrics: &[RouteMetric]) -> Option<u32> {
    /// `RTAX_MTU` of linux/rtnetlink.h, a bit of `RTAX_LOCK`.
    const MTU: u32 = 2;
    let locked = metrics.iter().any(|metric| matches!(metric, RouteMetric::Lock(bits) if bits & 1 << MTU != 0));
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu).filter(|_| locked),
        _ => None,
    })
}

/// Converts the message of a local route; `None` for others.
pub(super) fn local_route(message: &RouteMessage) -> Option<LocalRoute> {
    if message.header.kind != RouteType::Local {
        return None;
    }
    let (mut dst, mut dev) = (None, IfIndex::default());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => dst = ip(a),
            RouteAttribute::Oif(index) => dev = IfIndex(*index),
            _ => {}
        }
    }
    Some(LocalRoute { dst: IpNetwork::new(dst?, message.header.destination_prefix_length).ok()?, dev })
}

/// Converts a neighbour message; `None` for forwarding entries of bridges.
pub(super) fn neighbour(message: NeighbourMessage) -> Option<Neighbour> {
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let (mut addr, mut lladdr) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => addr = Some(IpAddr::V4(a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => addr = Some(IpAddr::V6(a)),
            NeighbourAttribute::LinkLayerAddress(bytes) => lladdr = mac(&bytes),
            _ => {}
        }
    }
    Some(Neighbour {
        ifindex: IfIndex(message.header.ifindex),
        addr: addr?,
        mac: lladdr.filter(|_| usable),
        permanent: message.header.state == NeighbourState::Permanent,
        fresh: message.header.state == NeighbourState::Reachable,
    })
}

/// Converts an entry of a forwarding table; `None` for entries without a remote address.
pub(super) fn forwarding(message: NeighbourMessage) -> Option<Forwarding> {
    let (mut remote, mut target) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(addr) => remote = remote_address(&addr),
            NeighbourAttribute::LinkLayerAddress(bytes) => target = mac(&bytes),
            _ => {}
        }
    }
    Some(Forwarding { ifindex: IfIndex(message.header.ifindex), mac: target?, remote: remote? })
}

/// The kernel doesn't tell the address family, so the library returns some addresses as bytes.
fn remote_address(addr: &NeighbourAddress) -> Option<IpAddr> {
    match addr {
        NeighbourAddress::Inet(a) => Some((*a).into()),
        NeighbourAddress::Inet6(a) => Some((*a).into()),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(&bytes[..]).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(&bytes[..]).map(IpAddr::from)).ok()
        }
        _ => None,
    }
}

fn next_hop(hop: &mut Hop, attribute: &RouteAttribute) {
    match attribute {
        RouteAttribute::Gateway(a) => hop.via = ip(a),
        RouteAttribute::Via(RouteVia::Inet(a)) => hop.via = Some(IpAddr::V4(*a)),
        RouteAttribute::Via(RouteVia::Inet6(a)) => hop.via = Some(IpAddr::V6(*a)),
        RouteAttribute::Oif(index) => hop.dev = IfIndex(*index),
        _ => {}
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::route::RouteHeader;

    use crate::host::snapshot::Snapshot;

    #[test]
    fn routes_of_other_tables_are_ignored() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        let none = |_| None;
        assert!(route(message.clone(), none).is_some(), "a default route has no destination attribute");
        message.attributes.push(RouteAttribute::Table(1000));
        assert!(route(message, none).is_none());
    }

    #[test]
    fn a_route_without_gateway_and_interface_uses_its_nexthop_object() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes.push(RouteAttribute::NhId(7));
        let [named, own] = [5, 6].map(|dev| Hop { via: None, dev: IfIndex(dev) });
        let hops = |message: &RouteMessage, id| {
            let found = route(message.clone(), |asked| (asked == id).then(|| vec![named]));
            found.map(|(_, route)| route.hops)
        };
        assert_eq!(hops(&message, 7), Some(vec![named]));
        assert_eq!(hops(&message, 8), None, "it leads nowhere");
        message.attributes.push(RouteAttribute::Oif(6));
        assert_eq!(hops(&message, 7), Some(vec![own]));
    }

    #[test]
    fn only_a_locked_mtu_limits_a_route() {
        for (metrics, expected) in [
            (vec![RouteMetric::Mtu(1400)], None),
            (vec![RouteMetric::Lock(1 << 2), RouteMetric::Mtu(1400)], Some(1400)),
            (vec![RouteMetric::Mtu(1400), RouteMetric::Lock(1 << 3)], None),
        ] {
            assert_eq!(locked_mtu(&metrics), expected, "{metrics:?}");
        }
        let link = |mtu6| Link { mtu: 1500, mtu6, ..Link::default() };
        let mut snapshot = Snapshot { links: vec![link(None), link(Some(1500))], ..Snapshot::default() };
        assert_eq!(snapshot.narrowest(), None);
        snapshot.links.push(link(Some(1480)));
        assert_eq!(snapshot.narrowest(), Some(1480));
    }

    #[test]
    fn a_neighbour_that_failed_has_no_mac() {
        let mut message = NeighbourMessage::default();
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(10, 0, 0, 1))));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]));
        message.header.state = NeighbourState::Stale;
        assert_eq!(neighbour(message.clone()).unwrap().mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        message.header.state = NeighbourState::Failed;
        assert_eq!(neighbour(message).unwrap().mac, None);
    }
}
