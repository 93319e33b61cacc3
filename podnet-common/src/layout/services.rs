//! Services: frontends, backends, source ranges and client affinity.

use bytemuck::{Pod, Zeroable};

use super::Prefix;
use super::TrieKey;
use crate::addr::{Addr, Port, Proto};

/// Key of `frontends`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FrontendKey {
    /// Service address, or [`FrontendKey::NODE_V4`] or [`FrontendKey::NODE_V6`].
    pub addr: Addr,
    /// Service port.
    pub port: Port,
    /// TCP, UDP or SCTP.
    pub proto: Proto,
    /// Clients that the entry applies to: [`FrontendKey::ANY`], [`FrontendKey::OUTSIDE`] or [`FrontendKey::PEER`].
    pub scope: u8,
}

impl FrontendKey {
    /// Scope: all clients without a more specific entry. Every frontend has an entry with this scope.
    pub const ANY: u8 = 0;
    /// Scope: clients that arrive by an uplink, if the frontend has [`Frontend::OUTSIDE_DIFFERS`].
    pub const OUTSIDE: u8 = 1;
    /// Scope: packets forwarded by another node for direct server return ([`Frontend::DIRECT_RETURN`]). All backends
    /// are on this node.
    pub const PEER: u8 = 2;

    /// Address wildcard: all IPv4 addresses of the node.
    pub const NODE_V4: Addr = Addr::v4(0);
    /// Address wildcard: all IPv6 addresses of the node.
    pub const NODE_V6: Addr = Addr::NONE;

    /// Key of the entry that every service address has in addition to those of its ports, without port, protocol and
    /// slots. It distinguishes an undefined port of a service from an address that belongs to no service, and says
    /// whether the address answers echo requests ([`Frontend::ANSWERS_ECHO`]).
    #[inline(always)]
    pub const fn address(addr: Addr) -> Self {
        Self { addr, port: Port::new(0), proto: Proto(0), scope: Self::ANY }
    }
}

/// Value of `frontends` (hash, key [`FrontendKey`]): the backends of a service port and how to reach them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Frontend {
    /// Id of the service port on this node, for display and for finding its flows.
    #[cfg(not(feature = "later-layouts"))]
    pub service: u32,
    /// First index in `slots`.
    pub slot_base: u32,
    /// Number of slots; 0 if there is no backend. With Maglev, where all nodes must choose the same backend, there are
    /// more slots than backends.
    pub slot_count: u32,
    /// Flag bits: [`Frontend::SNAT`] and the other constants.
    pub flags: u16,
    /// Zero.
    pub _pad: u16,
    /// Client affinity in seconds; 0 for none.
    pub affinity: u32,
    /// Id of the service port on this node, for display and for finding its flows.
    #[cfg(feature = "later-layouts")]
    pub service: u32,
}

impl Frontend {
    /// The source address is always replaced with the node's.
    pub const SNAT: u16 = 1;
    /// Clients outside the cluster may use the frontend. Set for all but ClusterIPs.
    pub const EXTERNAL: u16 = 2;
    /// Clients that arrive by an uplink have an entry of their own, with scope [`FrontendKey::OUTSIDE`].
    pub const OUTSIDE_DIFFERS: u16 = 4;
    /// Without a backend, packets are dropped and not rejected: the service has endpoints, but a traffic policy leaves
    /// none on this node.
    pub const DROP: u16 = 8;
    /// Direct server return: the source addresses of clients outside the cluster are preserved even if the backend is
    /// on another node. Such a frontend has an entry with scope [`FrontendKey::PEER`].
    pub const DIRECT_RETURN: u16 = 16;
    /// Only clients in `source_ranges` may use the frontend.
    pub const SOURCE_RANGES: u16 = 32;
    /// In an [address entry](FrontendKey::address): at least one port of the address has a backend, so the address
    /// answers echo requests.
    pub const ANSWERS_ECHO: u16 = 64;
    /// In a wildcard entry: the frontend exists only at node addresses that serve NodePorts
    /// ([`Network::NODE_PORTS`](super::Network::NODE_PORTS)). Without this flag, a wildcard entry is a hostPort, which
    /// exists at every address of the node.
    pub const NODE_PORT: u16 = 128;
}

/// Value of `backends` (array, indexed by the backend ids stored in `slots`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Backend {
    /// Address of the endpoint.
    pub addr: Addr,
    /// The target port.
    pub port: Port,
    /// Protocol, for display.
    pub proto: Proto,
    /// Zero.
    pub _pad: u8,
}

/// Key of `source_ranges` (LPM trie, value `u32`, always 1): a range of clients that may use a service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SourceRange {
    /// Prefix length in bits: 32 for the service, 96 more for an IPv4 range, plus the length of the range itself.
    pub len: u32,
    /// Service and client address.
    pub data: ServiceClient,
}

/// Number of bits in front of the client's address.
const SERVICE_BITS: u32 = 32;

impl SourceRange {
    /// Range of clients of the service port with this [`Frontend::service`].
    pub fn new(service: u32, clients: Prefix) -> Self {
        Self { len: SERVICE_BITS + clients.len, data: ServiceClient::new(service, clients.addr) }
    }

    /// Range of clients, without the service.
    pub fn clients(&self) -> Prefix {
        Prefix { len: self.len.saturating_sub(SERVICE_BITS), addr: self.data.addr }
    }
}

impl TrieKey for SourceRange {
    type Data = ServiceClient;
}

/// A client of a service port, in the order in which an LPM trie compares bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct ServiceClient {
    /// [`Frontend::service`], with the highest bit set for IPv6: otherwise ::/0 would contain all of IPv4.
    pub service: u32,
    /// Address of the client, or first address of a range.
    pub addr: Addr,
}

impl ServiceClient {
    /// Client, or first client of a range, of the service port with this [`Frontend::service`].
    #[inline(always)]
    pub const fn new(service: u32, addr: Addr) -> Self {
        Self { service: if addr.is_v4() { service } else { service | 1 << 31 }, addr }
    }
}

/// Key of `affinity` (LRU hash): a client of a service port with `sessionAffinity: ClientIP`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct AffinityKey {
    /// Address of the client.
    pub client: Addr,
    /// [`Frontend::service`].
    pub service: u32,
}

/// Value of `affinity`: the client's last backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Affinity {
    /// Address of the backend.
    #[cfg(not(feature = "later-layouts"))]
    pub addr: Addr,
    /// Port of the backend.
    pub port: Port,
    /// Zero.
    pub _pad: u16,
    /// Time at which the client last began a flow, in [ticks](crate::time).
    pub last_used: u32,
    /// Address of the backend.
    #[cfg(feature = "later-layouts")]
    pub addr: Addr,
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 20);
    assert!(size_of::<Frontend>() == 20);
    assert!(size_of::<Backend>() == 20);
    assert!(size_of::<SourceRange>() == 24);
    assert!(size_of::<AffinityKey>() == 20);
    assert!(size_of::<Affinity>() == 24);
};
