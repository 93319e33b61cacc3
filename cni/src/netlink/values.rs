//! Links, routes and addresses as plain values.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podnet_common::addr::{IfIndex, Mac};

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: IfIndex,
    /// Its name.
    pub name: String,
    /// Its alias; empty if it has none.
    pub alias: String,
    /// Its MAC; zero if it is not Ethernet.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has a carrier. A veth has one while both ends are up.
    pub carrier: bool,
    /// The bridge, bond or other device of which it is a port.
    pub controller: Option<IfIndex>,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destination; `None` for a default route.
    pub destination: Option<IpNetwork>,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Its outgoing interface.
    pub oif: IfIndex,
    /// The preferred source address for the host's own packets, if the route specifies one or the kernel has chosen
    /// one.
    pub source: Option<IpAddr>,
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub link: IfIndex,
    /// The address with its prefix.
    pub network: IpNetwork,
    /// Whether its scope is global, so that it may be a source address towards other hosts.
    pub global: bool,
}
