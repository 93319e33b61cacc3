//! The network: what each range of addresses is, the uplinks, the other nodes.

use core::{fmt, net::IpAddr};

use bytemuck::{Pod, Zeroable};

use super::tables::TrieKey;
use crate::addr::{Addr, Mac};

/// Key of `nodes` (LPM trie): a prefix of mapped addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Prefix {
    /// Length in bits of the mapped form: 96 is added to an IPv4 length.
    pub len: u32,
    /// The address.
    pub addr: Addr,
}

/// How much longer a mapped IPv4 prefix is than the prefix itself, in bits.
const MAPPED_BITS: u32 = 96;

impl Prefix {
    /// The prefix of an address with a length in bits of the address's own family.
    pub fn new(addr: IpAddr, len: u8) -> Self {
        Self { len: u32::from(len) + if addr.is_ipv4() { MAPPED_BITS } else { 0 }, addr: addr.into() }
    }

    /// The length in bits of the address's own family.
    pub fn own_len(&self) -> u32 {
        if self.addr.is_v4() { self.len.saturating_sub(MAPPED_BITS) } else { self.len }
    }

    /// Whether it holds an address.
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

/// `nodes` (LPM trie): a CIDR → what it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Network {
    /// A [`NetworkKind`] as a number.
    #[cfg(not(feature = "later-layouts"))]
    pub kind: u32,
    /// For [`NetworkKind::RemotePods`] and [`NetworkKind::RemoteNode`]: the node's MAC as seen here, or zeros when it
    /// isn't on a shared link and there is no tunnel.
    pub mac: Mac,
    /// [`Network::NODE_PORTS`], [`Network::TUNNEL`] and [`Network::SERVICE_ADDRESS`].
    pub flags: u16,
    /// For pods and nodes: the node's address of the same family.
    pub node: Addr,
    /// A [`NetworkKind`] as a number.
    #[cfg(feature = "later-layouts")]
    pub kind: u32,
}

impl Network {
    /// This address of a node serves NodePorts.
    pub const NODE_PORTS: u16 = 1;
    /// What pods exchange with these pods, or with this node, goes through the tunnel, where the node has
    /// [`Network::mac`].
    pub const TUNNEL: u16 = 2;
    /// Some service has this address (a /32 or /128) at some ports. All else there is as if it had not, so the kind is that
    /// of the range around it.
    pub const SERVICE_ADDRESS: u16 = 4;
}

/// What a CIDR of the cluster is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// Outside of the cluster: IPv4 as a whole, which is nothing by being in ::/0 as mapped addresses are, and external
    /// addresses of services.
    Nothing = 0,
    /// Pods of this node.
    LocalPods = 1,
    /// Pods of another node.
    RemotePods = 2,
    /// Service addresses.
    Services = 3,
    /// An address of this node itself (a /32 or /128).
    LocalNode = 4,
    /// An address of another node (a /32 or /128).
    RemoteNode = 5,
    /// What pods reach with their own address, though it isn't the cluster's.
    NonMasquerade = 7,
}

/// `interfaces` (hash): index of an uplink, an interface that leads out of the node → what programs have to know of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Interface {
    /// The IPv4 address with which the node speaks there, mapped, or none.
    pub v4: Addr,
    /// The same for IPv6.
    pub v6: Addr,
    /// Its MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// [`Interface::RAW`] and [`Interface::MAIN`].
    pub flags: u32,
}

impl Interface {
    /// Its frames begin with the IP header.
    pub const RAW: u32 = 1;
    /// It is one of [`Config::uplinks`](super::Config::uplinks), if these are not too many.
    pub const MAIN: u32 = 2;

    /// The node's address of a family there, or none.
    #[inline(always)]
    pub const fn addr(&self, v6: bool) -> &Addr {
        if v6 { &self.v6 } else { &self.v4 }
    }
}

/// Key of `peers` (hash, value `u32`, which is 1): the MAC of another node, which may send on packets for direct
/// server return.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Peer {
    /// The MAC.
    pub mac: Mac,
    /// Zero.
    pub _pad: [u8; 2],
}

/// UDP port at which nodes get the tunnel's packets, the one that Linux uses by default.
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
