//! The requests of a batch, each with a description for error messages.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podnet_common::addr::{IfIndex, Mac};

use super::values::Route;

/// The scope of an IPv4 address. For IPv6 the kernel derives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Global: it may be chosen as source address.
    Global,
    /// Host: it is local, but never chosen as source address.
    Host,
}

/// One request of a batch.
#[derive(Debug)]
pub struct Op {
    pub(super) what: String,
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
    /// Errnos that count as success.
    pub(super) tolerated: &'static [i32],
}

impl Op {
    pub(super) fn new(what: String, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { what, message, flags, tolerated: &[] }
    }

    /// Creates a veth pair whose peer is created in another namespace, under its final name.
    pub fn create_veth(host: (&str, Mac), peer: (&str, Mac), peer_netns: BorrowedFd<'_>, mtu: u32) -> Self {
        let end = |(name, mac): (&str, Mac)| {
            let mut end = LinkMessage::default();
            end.attributes.push(LinkAttribute::IfName(name.to_owned()));
            end.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
            end.attributes.push(LinkAttribute::Mtu(mtu));
            end
        };
        let mut inside = end(peer);
        inside.attributes.push(LinkAttribute::NetNsFd(peer_netns.as_raw_fd()));
        let mut link = end(host);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
        ]));
        Self::new(
            format!("create the veth pair {} and {}", host.0, peer.0),
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Gets a link by name.
    pub fn get_link(name: &str) -> Self {
        Self::new(format!("find the link {name}"), RouteNetlinkMessage::GetLink(named(name)), 0)
    }

    /// Gets a link by index. The kernel updates the link's carrier state before it answers.
    pub fn get_link_index(index: IfIndex) -> Self {
        Self::new(format!("find link {}", index.0), RouteNetlinkMessage::GetLink(indexed(index)), 0)
    }

    /// Brings a link up.
    pub fn up(index: IfIndex) -> Self {
        let mut link = indexed(index);
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        Self::new(format!("set link {} up", index.0), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Takes a link down.
    pub fn down(index: IfIndex) -> Self {
        let mut link = indexed(index);
        link.header.change_mask = LinkFlags::Up;
        Self::new(format!("set link {} down", index.0), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Renames a link. Before Linux 6.2 it has to be down (EBUSY).
    pub fn set_name(index: IfIndex, name: &str) -> Self {
        let mut link = indexed(index);
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Self::new(format!("rename link {} to {name}", index.0), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Sets a link's MAC.
    pub fn set_mac(index: IfIndex, mac: Mac) -> Self {
        let mut link = indexed(index);
        link.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        Self::new(format!("set the MAC of link {}", index.0), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Sets a link's MTU in bytes.
    pub fn set_mtu(index: IfIndex, mtu: u32) -> Self {
        let mut link = indexed(index);
        link.attributes.push(LinkAttribute::Mtu(mtu));
        Self::new(format!("set the MTU of link {}", index.0), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Removes a link from the bridge, bond or other device of which it is a port.
    pub fn no_controller(index: IfIndex) -> Self {
        let mut link = indexed(index);
        link.attributes.push(LinkAttribute::Controller(0));
        Self::new(format!("detach link {} from its bridge or bond", index.0), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Sets a link's alias.
    pub fn set_alias(index: IfIndex, alias: &str) -> Self {
        let mut link = indexed(index);
        link.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        Self::new(format!("set the alias of link {}", index.0), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Disables the generation of IPv6 addresses for a link. No error if IPv6 is disabled.
    pub fn no_generated_addresses(name: &str) -> Self {
        let mut link = named(name);
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
        let mut op = Self::new(format!("disable address generation on {name}"), RouteNetlinkMessage::SetLink(link), 0);
        op.tolerated = &[libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
        op
    }

    /// Deletes a link by index, so that a new one of the same name is not affected; it need not exist.
    pub fn delete_link_index(index: IfIndex) -> Self {
        let message = RouteNetlinkMessage::DelLink(indexed(index));
        let mut op = Self::new(format!("delete link {}", index.0), message, 0);
        op.tolerated = &[libc::ENODEV];
        op
    }

    /// Adds an address without duplicate address detection, so that it is usable at once.
    pub fn add_address(index: IfIndex, address: IpNetwork, scope: Scope) -> Self {
        let mut message = AddressMessage::default();
        message.header.family = family(address.ip());
        message.header.prefix_len = address.prefix();
        message.header.scope = match scope {
            Scope::Global => AddressScope::Universe,
            Scope::Host => AddressScope::Host,
        };
        message.header.index = index.0;
        message.attributes.push(AddressAttribute::Address(address.ip()));
        if address.is_ipv4() {
            message.attributes.push(AddressAttribute::Local(address.ip()));
        } else {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        let what = format!("add address {address} to link {}", index.0);
        Self::new(what, RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Adds a permanent neighbour.
    pub fn add_neighbour(index: IfIndex, ip: IpAddr, mac: Mac) -> Self {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = index.0;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(NeighbourAttribute::Destination(neighbour(ip)));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let what = format!("add neighbour {ip} on link {}", index.0);
        Self::new(what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Gets a neighbour of a link.
    pub fn get_neighbour(index: IfIndex, ip: IpAddr) -> Self {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = index.0;
        message.attributes.push(NeighbourAttribute::Destination(neighbour(ip)));
        let what = format!("find neighbour {ip} on link {}", index.0);
        Self::new(what, RouteNetlinkMessage::GetNeighbour(message), 0)
    }

    /// Adds a route to the main table, replacing one with the same destination.
    pub fn add_route(route: &Route) -> Self {
        Self { flags: NLM_F_CREATE | NLM_F_REPLACE, ..Self::add_new_route(route) }
    }

    /// Adds a route to the main table; EEXIST if there is one with the same destination.
    pub fn add_new_route(route: &Route) -> Self {
        let mut message = RouteMessage::default();
        let some_ip = route.destination.map(|d| d.ip()).or(route.gateway);
        message.header.address_family = some_ip.map_or(AddressFamily::Inet, family);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = RouteScope::Link;
        message.attributes.push(RouteAttribute::Oif(route.oif.0));
        if let Some(destination) = route.destination {
            message.header.destination_prefix_length = destination.prefix();
            message.attributes.push(RouteAttribute::Destination(destination.network().into()));
        }
        if let Some(source) = route.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if let Some(gateway) = route.gateway {
            message.header.scope = RouteScope::Universe;
            // The gateway is not in any subnet of the pod.
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        let to = route.destination.map_or("default route".to_owned(), |d| format!("route to {d}"));
        let what = format!("add the {to} via link {}", route.oif.0);
        Self::new(what, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Looks up the route to an address.
    pub fn get_route(ip: IpAddr) -> Self {
        let mut message = RouteMessage::default();
        message.header.address_family = family(ip);
        message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(ip.into()));
        Self::new(format!("find the route to {ip}"), RouteNetlinkMessage::GetRoute(message), 0)
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn neighbour(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

fn indexed(index: IfIndex) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index.0;
    link
}
