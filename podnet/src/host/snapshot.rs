//! The state of the host's network as read by netlink, as plain values: links, addresses, routes of the main table,
//! neighbours.
//!
//! The rest of [`crate::host`] decides from these, so its decisions can be tested without a kernel. Attributes that
//! podnet doesn't need are left out.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::route::RouteHeader;
use podnet_cni::id::AttachmentId;
use podnet_cni::ownership::is_marked;
use podnet_common::addr::{IfIndex, Mac};

use super::families::Families;
use super::names::ROUTE_PROTOCOL;

/// Kind of a link, as far as podnet distinguishes kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkKind {
    /// One end of a veth pair.
    Veth,
    /// A bridge.
    Bridge,
    /// The loopback interface.
    Loopback,
    /// A routing table as a device (VRF). Packets of its ports don't pass to it.
    Vrf,
    /// Anything else.
    #[default]
    Other,
}

/// Header at the beginning of a link's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// The IP header.
    Raw,
    /// Another header.
    Foreign,
}

/// Parameters of a VXLAN device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vxlan {
    /// Its network identifier.
    pub vni: u32,
    /// Its UDP port.
    pub port: u16,
    /// Local address at which it receives packets.
    pub local: Option<IpAddr>,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its alias; empty if it has none.
    pub alias: String,
    /// Its index.
    pub ifindex: IfIndex,
    /// Its Ethernet address, if it is an Ethernet device.
    pub mac: Option<Mac>,
    /// MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// IPv6 MTU in bytes, which a router advertisement may lower; `None`: IPv6 is disabled.
    pub mtu6: Option<u32>,
    /// Its kind.
    pub kind: LinkKind,
    /// How its frames begin.
    pub framing: Framing,
    /// Whether it has been set up (administratively).
    pub up: bool,
    /// The other end, for a veth whose other end is in this namespace.
    pub peer: Option<IfIndex>,
    /// The bridge, bond or VRF that it is a port of.
    pub controller: Option<IfIndex>,
    /// For a VXLAN device.
    pub vxlan: Option<Vxlan>,
}

impl Link {
    /// Whether it is the host end of a pod's veth pair.
    pub fn is_host_end(&self) -> bool {
        self.kind == LinkKind::Veth && (AttachmentId::is_host_ifname(&self.name) || is_marked(&self.alias))
    }
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub ifindex: IfIndex,
    /// The address.
    pub addr: IpAddr,
    /// Whether duplicate address detection is still running.
    pub tentative: bool,
}

/// One next hop of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// The gateway; `None`: the destination itself is on the link.
    pub via: Option<IpAddr>,
    /// The interface.
    pub dev: IfIndex,
}

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination; length 0 for a default route.
    pub dst: IpNetwork,
    /// Its origin (`RTPROT_*`).
    pub protocol: u8,
    /// Metric; lower is preferred.
    pub metric: u32,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Locked MTU (`mtu lock`), in bytes.
    pub mtu: Option<u32>,
    /// Next hops: several for multipath, none for an unreachable route.
    pub hops: Vec<Hop>,
}

/// A local route, which makes a range the host's own. Each address of an interface has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    /// The range: usually a single address.
    pub dst: IpNetwork,
    /// The interface.
    pub dev: IfIndex,
}

/// A routing table that podnet reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// The main one.
    Main,
    /// Podnet's own, [`Table::SERVICES`]: the external addresses of services, for the host's own sockets only.
    Services,
}

impl Table {
    /// Number of the table, and priority of the rule that leads there.
    pub const SERVICES: u32 = ROUTE_PROTOCOL as u32;

    /// The kernel's number of the table.
    pub fn id(self) -> u32 {
        match self {
            Self::Main => RouteHeader::RT_TABLE_MAIN.into(),
            Self::Services => Self::SERVICES,
        }
    }

    pub(super) fn of(id: u32) -> Option<Self> {
        [Self::Main, Self::Services].into_iter().find(|table| table.id() == id)
    }
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface.
    pub ifindex: IfIndex,
    /// Its IP address.
    pub addr: IpAddr,
    /// Its Ethernet address while the entry is usable.
    pub mac: Option<Mac>,
    /// Whether the entry is permanent.
    pub permanent: bool,
    /// Whether it has been confirmed recently.
    pub fresh: bool,
}

/// An entry of a VXLAN device's forwarding table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// The device.
    pub ifindex: IfIndex,
    /// Destination in the tunnel.
    pub mac: Mac,
    /// Address of the remote host.
    pub remote: IpAddr,
}

/// The whole state at nearly one moment: the parts are read one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Interfaces, by index.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Unicast and unreachable routes of the main table.
    pub routes: Vec<Route>,
    /// Local routes of all tables.
    pub local_routes: Vec<LocalRoute>,
    /// Routes of [`Table::Services`].
    pub service_routes: Vec<Route>,
    /// Families with the rule that leads the host's own sockets to [`Table::Services`].
    pub service_rules: Families,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
}

impl Snapshot {
    /// The link with a name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.name == name)
    }

    /// The smallest MTU, in bytes, to which a route or IPv6 on an interface is limited below the interface's own MTU.
    pub fn narrowest(&self) -> Option<u32> {
        let routes = self.routes.iter().chain(&self.service_routes).filter_map(|route| route.mtu);
        let links = self.links.iter().filter_map(|link| link.mtu6.filter(|mtu| *mtu < link.mtu));
        routes.chain(links).min()
    }

    /// The link with an index.
    pub fn link_by_index(&self, ifindex: IfIndex) -> Option<&Link> {
        self.links.iter().find(|l| l.ifindex == ifindex)
    }
}
