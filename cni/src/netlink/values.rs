//! What the kernel has, as plain values.

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
    /// Its MAC, if it has an Ethernet one.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has a carrier: for a veth, whether both ends are up.
    pub carrier: bool,
    /// The bridge, bond or other device that it is a port of.
    pub controller: Option<IfIndex>,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to; none for a default route.
    pub destination: Option<IpNetwork>,
    /// By which gateway.
    pub gateway: Option<IpAddr>,
    /// Out of which interface.
    pub oif: IfIndex,
    /// The source address of what the host itself sends there, if the route names one or has chosen one.
    pub source: Option<IpAddr>,
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub link: IfIndex,
    /// The address with its prefix.
    pub network: IpNetwork,
    /// Whether it is valid everywhere, so that it may be a source address towards others.
    pub global: bool,
}
