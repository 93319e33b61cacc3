//! The network as the programs know it: address ranges, uplinks, other nodes.

use core::{fmt, net::IpAddr};

use bytemuck::{Pod, Zeroable};

use super::TrieKey;
use crate::addr::{Addr, Mac};

/// Key of `nodes` (LPM trie): a prefix of addresses with IPv4 mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Prefix {
    /// Prefix length in bits of the mapped form: 96 more than an IPv4 prefix length.
    pub len: u32,
    /// Network address.
    pub addr: Addr,
}

/// Number of bits by which a mapped IPv4 prefix is longer than the IPv4 prefix.
const MAPPED_BITS: u32 = 96;

impl Prefix {
    /// Prefix of `addr` with `len` bits, counted within the address's own family.
    pub fn new(addr: IpAddr, len: u8) -> Self {
        Self { len: u32::from(len) + if addr.is_ipv4() { MAPPED_BITS } else { 0 }, addr: addr.into() }
    }

    /// Length in bits within the address's own family.
    pub fn own_len(&self) -> u32 {
        if self.addr.is_v4() { self.len.saturating_sub(MAPPED_BITS) } else { self.len }
    }

    /// Whether the prefix contains an address.
    pub fn contains(&self, addr: &Addr) -> bool {
        let bits = |a: &Addr| u128::from_be_bytes(bytemuck::cast(a.0));
        self.len == 0 || (bits(&self.addr) ^ bits(addr)) >> (128 - self.len.min(128)) == 0
    }
}

impl TrieKey for Prefix {
    type Data = Addr;
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", IpAddr::from(self.addr), self.own_len())
    }
}

/// Value of `nodes` (LPM trie, key [`Prefix`]): the kind of an address range and how to reach it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Network {
    /// A [`NetworkKind`] as a number.
    #[cfg(not(feature = "later-layouts"))]
    pub kind: u32,
    /// For [`NetworkKind::RemotePods`] and [`NetworkKind::RemoteNode`]: MAC of the node as seen from here. Zeros if the
    /// node is not on a shared link and there is no tunnel.
    pub mac: Mac,
    /// Flag bits: [`Network::NODE_PORTS`], [`Network::TUNNEL`] and [`Network::SERVICE_ADDRESS`].
    pub flags: u16,
    /// For pods and nodes: address of the node, of the same family.
    pub node: Addr,
    /// A [`NetworkKind`] as a number.
    #[cfg(feature = "later-layouts")]
    pub kind: u32,
}

impl Network {
    /// This address of a node serves NodePorts.
    pub const NODE_PORTS: u16 = 1;
    /// Traffic between this node's pods and these pods (or this node) goes through the tunnel, where the MAC of the
    /// remote node is [`Network::mac`].
    pub const TUNNEL: u16 = 2;
    /// A service has this address (a /32 or /128) at some ports. Everything else at the address is treated as if no
    /// service had it, so the kind is that of the surrounding range.
    pub const SERVICE_ADDRESS: u16 = 4;
}

/// Kind of an address range.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// Outside the cluster. Covers all of IPv4, which as mapped addresses would otherwise match ::/0, and external
    /// addresses of services.
    Nothing = 0,
    /// Pods on this node.
    LocalPods = 1,
    /// Pods on another node.
    RemotePods = 2,
    /// Service addresses.
    Services = 3,
    /// An address of this node itself (a /32 or /128).
    LocalNode = 4,
    /// An address of another node (a /32 or /128).
    RemoteNode = 5,
    /// A range outside the cluster that pods reach with their own address.
    NonMasquerade = 7,
}

/// Value of `interfaces` (hash, key `IfIndex`): an uplink, that is, an interface that leads out of the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Interface {
    /// The node's IPv4 source address on this interface, mapped, or none.
    pub v4: Addr,
    /// The node's IPv6 source address on this interface, or none.
    pub v6: Addr,
    /// MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Flag bits: [`Interface::RAW`] and [`Interface::MAIN`].
    pub flags: u32,
}

impl Interface {
    /// Frames start with the IP header.
    pub const RAW: u32 = 1;
    /// A main uplink: listed in [`Config::uplinks`](super::Config::uplinks), unless that array is too small.
    pub const MAIN: u32 = 2;

    /// The node's source address on this interface for a family, or none.
    #[inline(always)]
    pub const fn addr(&self, v6: bool) -> &Addr {
        if v6 { &self.v6 } else { &self.v4 }
    }
}

/// Key of `peers` (hash, value `u32`, always 1): the MAC of another node, which may forward packets to this one for
/// direct server return.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Peer {
    /// The MAC.
    pub mac: Mac,
    /// Zero.
    pub _pad: [u8; 2],
}

/// UDP port of the tunnel: the default VXLAN port of Linux.
pub const TUNNEL_PORT: u16 = 8472;

const _: () = {
    assert!(size_of::<Network>() == 28);
    assert!(size_of::<Interface>() == 40);
    assert!(size_of::<Peer>() == 8);
};

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString as _;

    use super::*;

    #[test]
    fn a_prefix_has_the_length_of_its_family() {
        for (addr, len, bits, text) in [
            ("10.244.1.0", 24, 120, "10.244.1.0/24"),
            ("0.0.0.0", 0, 96, "0.0.0.0/0"),
            ("fd00:244::", 64, 64, "fd00:244::/64"),
            ("::", 0, 0, "::/0"),
        ] {
            let prefix = Prefix::new(addr.parse().unwrap(), len);
            assert_eq!((prefix.len, prefix.to_string()), (bits, text.to_string()));
        }
    }
}
