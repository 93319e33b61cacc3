//! Services: frontends, their backends, who may use them, and which backend a client had last.

use bytemuck::{Pod, Zeroable};

use super::Prefix;
use super::tables::TrieKey;
use crate::addr::{Addr, Port, Proto};

/// Key of `frontends`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FrontendKey {
    /// The virtual address, or [`FrontendKey::NODE_V4`] or [`FrontendKey::NODE_V6`].
    pub addr: Addr,
    /// The service's port.
    pub port: Port,
    /// TCP, UDP or SCTP.
    pub proto: Proto,
    /// Which clients it is for: [`FrontendKey::ANY`], [`FrontendKey::OUTSIDE`] or [`FrontendKey::PEER`].
    pub scope: u8,
}

impl FrontendKey {
    /// Scope: all clients that have no entry of their own. Every frontend has this one.
    pub const ANY: u8 = 0;
    /// Scope: clients that come in by an uplink, where [`Frontend::OUTSIDE_DIFFERS`].
    pub const OUTSIDE: u8 = 1;
    /// Scope: packets that another node has sent on for direct server return ([`Frontend::DIRECT_RETURN`]). Its
    /// backends are on this node.
    pub const PEER: u8 = 2;

    /// In the place of an address: every IPv4 address of the node.
    pub const NODE_V4: Addr = Addr::v4(0);
    /// In the place of an address: every IPv6 address of the node.
    pub const NODE_V6: Addr = Addr::NONE;

    /// Key of the entry that every address of a service has beside those of its ports: it has no port, no protocol
    /// and no slots, tells a service's undefined port from an address that no service has, and whether it answers an
    /// echo request ([`Frontend::ANSWERS_ECHO`]).
    #[inline(always)]
    pub const fn address(addr: Addr) -> Self {
        Self { addr, port: Port::new(0), proto: Proto(0), scope: Self::ANY }
    }
}

/// `frontends` (hash): [`FrontendKey`] → which slots hold its backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Frontend {
    /// Identifies the service port on this node, for display and for finding its flows.
    #[cfg(not(feature = "later-layouts"))]
    pub service: u32,
    /// First index in `slots`.
    pub slot_base: u32,
    /// How many slots; 0 when there is no backend. Where nodes must agree there are more slots than backends (Maglev).
    pub slot_count: u32,
    /// [`Frontend::SNAT`] and the others.
    pub flags: u16,
    /// Zero.
    pub _pad: u16,
    /// Client affinity in seconds; 0 for none.
    pub affinity: u32,
    /// Identifies the service port on this node, for display and for finding its flows.
    #[cfg(feature = "later-layouts")]
    pub service: u32,
}

impl Frontend {
    /// The source address is always replaced by the node's.
    pub const SNAT: u16 = 1;
    /// Clients outside of the cluster may use it: any frontend but a ClusterIP's.
    pub const EXTERNAL: u16 = 2;
    /// Clients that come in by an uplink have an entry of their own, with scope [`FrontendKey::OUTSIDE`].
    pub const OUTSIDE_DIFFERS: u16 = 4;
    /// Without a backend packets are dropped, not rejected: there are endpoints, but a traffic policy leaves none here.
    pub const DROP: u16 = 8;
    /// Clients from outside keep their address also if the backend is on another node, by direct server return. Such a
    /// frontend has an entry with scope [`FrontendKey::PEER`].
    pub const DIRECT_RETURN: u16 = 16;
    /// Only clients in `source_ranges` may use it.
    pub const SOURCE_RANGES: u16 = 32;
    /// In an [address's entry](FrontendKey::address): some port of it has a backend, so it answers echo requests.
    pub const ANSWERS_ECHO: u16 = 64;
    /// It is there at the node's addresses that serve NodePorts only ([`Network::NODE_PORTS`](super::Network::NODE_PORTS)). Else, in an entry for
    /// all of the node's addresses, at every one: a hostPort.
    pub const NODE_PORT: u16 = 128;
}

/// `backends` (array): by the id that `slots` (array of `u32`) holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Backend {
    /// The endpoint's address.
    pub addr: Addr,
    /// The target port.
    pub port: Port,
    /// The protocol, for display.
    pub proto: Proto,
    /// Zero.
    pub _pad: u8,
}

/// Key of `source_ranges` (LPM trie, value `u32`, which is 1): a range of clients that may use a service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SourceRange {
    /// Length in bits: 32 for the service, 96 more for an IPv4 range, and the range's own.
    pub len: u32,
    /// The rest of the key.
    pub data: ServiceClient,
}

/// Length in bits of what stands before the client's address.
const SERVICE_BITS: u32 = 32;

impl SourceRange {
    /// A range of clients of the port with this [`Frontend::service`].
    pub fn new(service: u32, clients: Prefix) -> Self {
        Self { len: SERVICE_BITS + clients.len, data: ServiceClient::new(service, clients.addr) }
    }

    /// The clients.
    pub fn clients(&self) -> Prefix {
        Prefix { len: self.len.saturating_sub(SERVICE_BITS), addr: self.data.addr }
    }
}

impl TrieKey for SourceRange {
    type Data = ServiceClient;
}

/// A client of a service port, in the order in which an LPM trie compares.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct ServiceClient {
    /// [`Frontend::service`], and the highest bit for IPv6: else ::/0 would hold all of IPv4.
    pub service: u32,
    /// The client's address, or a range's.
    pub addr: Addr,
}

impl ServiceClient {
    /// A client of the port with this [`Frontend::service`], or a range's first one.
    #[inline(always)]
    pub const fn new(service: u32, addr: Addr) -> Self {
        Self { service: if addr.is_v4() { service } else { service | 1 << 31 }, addr }
    }
}

/// Key of `affinity` (LRU hash): which backend a client had last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct AffinityKey {
    /// The client's address.
    pub client: Addr,
    /// [`Frontend::service`].
    pub service: u32,
}

/// Value of `affinity`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Affinity {
    /// The backend's address.
    #[cfg(not(feature = "later-layouts"))]
    pub addr: Addr,
    /// The backend's port.
    pub port: Port,
    /// Zero.
    pub _pad: u16,
    /// When the client last began a flow, in [ticks](crate::time).
    pub last_used: u32,
    /// The backend's address.
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
