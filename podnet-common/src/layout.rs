//! The layout of every table, and its name in the pin directory.
//!
//! Keys and values are plain data without implicit padding: an uninitialised byte in a key is a miss that no verifier
//! reports. Fields named `_pad` are zero. A changed layout changes [`SCHEMA`], except for the tables of
//! [`FROZEN`], which never change: the plugin writes them, and an old plugin works with a new daemon.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, IfIndex, Mac, Port, Proto};

/// Version of all layouts here except the frozen ones; part of the pin path.
pub const SCHEMA: u32 = 2;

/// Directory, below the bpffs mount, of everything that podnet pins.
pub const PIN_ROOT: &str = "podnet";
/// Directory in [`PIN_ROOT`] of what never changes its layout: dispatchers (`from_pod` … by [`Hook::name`]),
/// `programs_tc`, `programs_xdp`, `generation`, `endpoints`, `sandboxes`, `counters`.
pub const FROZEN: &str = "hooks";

/// A hook: where a dispatcher is attached. The numbers are slots of the program arrays, and frozen.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// TC ingress of a pod's host-side veth: packets that the pod sends.
    FromPod = 0,
    /// TC egress of the same: packets to the pod that come through the host's stack.
    ToPod = 1,
    /// TC ingress of an uplink or the tunnel.
    FromUplink = 2,
    /// TC egress of an uplink or the tunnel.
    ToUplink = 3,
    /// TC ingress of podnet1, the far end of podnet0, where the host's routes to services lead.
    FromHost = 4,
    /// XDP of an uplink.
    UplinkXdp = 5,
    /// TC egress of the loopback interface: what the host's processes send to the host's own addresses.
    FromLoopback = 6,
    /// TC egress of an uplink whose frames begin with the IP header: WireGuard, TUN and other devices without Ethernet.
    ToRaw = 7,
    /// TC ingress of such an uplink. It has no stages: with a header before them its packets go on at
    /// [`Hook::FromUplink`].
    FromRaw = 80,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromUplink,
        Self::ToUplink,
        Self::FromHost,
        Self::UplinkXdp,
        Self::FromLoopback,
        Self::ToRaw,
        Self::FromRaw,
    ];

    /// The program's and the pin's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
            Self::FromHost => "from_host",
            Self::UplinkXdp => "uplink_xdp",
            Self::FromLoopback => "from_loopback",
            Self::ToRaw => "to_raw",
            Self::FromRaw => "from_raw",
        }
    }
}

/// Slots that one generation takes in a program array.
pub const GENERATION_SLOTS: u32 = 128;
/// Generations that a program array has room for: the current one and the next.
pub const GENERATIONS: u32 = 2;
/// The key of the socket hooks in `origins`, whose other keys are the generations.
pub const SOCKET_ORIGIN: u32 = GENERATIONS;

/// Mark that from_pod sets on packets that it sends out of an uplink, so that to_uplink leaves them alone.
pub const MARK_DONE: u32 = 0x0070_0000;

/// `endpoints` (hash, frozen): a local pod's address → where it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// The host-side end of the pod's veth pair.
    pub ifindex: IfIndex,
    /// The pod interface's MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// The pod interface's MAC.
    pub mac: Mac,
    /// The host end's MAC.
    pub host_mac: Mac,
    /// [`Endpoint::NO_PEER`] and reserved bits, which are zero.
    pub flags: u32,
    /// Zero.
    pub _reserved: u32,
    /// Zero.
    pub _pad: u32,
}

impl Endpoint {
    /// The endpoint has traffic shaping, so packets must pass the host end's queue.
    pub const NO_PEER: u32 = 1;
}

/// `sandboxes` (hash, frozen): cookie of a pod's network namespace → the pod's addresses, by which a socket's program
/// knows whether it would reach itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Sandbox {
    /// The pod's IPv4 address, mapped, or none.
    pub v4: Addr,
    /// The pod's IPv6 address, or none.
    pub v6: Addr,
}

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
    /// It is there at the node's addresses that serve NodePorts only ([`Network::NODE_PORTS`]). Else, in an entry for
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

/// Key of `conntrack`: a packet's addresses and ports as it arrives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// Protocol.
    pub proto: Proto,
    /// Zero.
    pub _pad: [u8; 3],
}

impl Tuple {
    /// The tuple of a packet in the other direction.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto: self.proto, _pad: [0; 3] }
    }

    /// Equality without branches: see [`Addr::same`].
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        let ports = (self.sport.wire() ^ other.sport.wire()) | (self.dport.wire() ^ other.dport.wire());
        let proto = self.proto.0 ^ other.proto.0;
        self.src.difference(&other.src) | self.dst.difference(&other.dst) | ports as u32 | proto as u32 == 0
    }
}

/// `conntrack` (hash): [`Tuple`] → how to rewrite the packet and where to send it. A flow has two entries, one for
/// each direction, and each holds all that is needed to make the other again: the other half's key is
/// [`CtEntry::reply_key`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CtEntry {
    /// When a packet was last seen, in [ticks](crate::time).
    pub last_seen: u32,
    /// The interface on which packets of this half arrive, or the complement of one by which they leave the host's stack;
    /// others are examined in full.
    pub in_ifindex: IfIndex,
    /// Where the packet goes; 0: up the host's stack.
    pub out_ifindex: IfIndex,
    /// What the way out takes, in bytes without the Ethernet header.
    pub out_mtu: u16,
    /// [`CtEntry::REPLY`] and the other flag bits.
    pub flags: u8,
    /// How it leaves: an [`Out`] as a number.
    pub out: u8,
    /// The source port after translation.
    pub sport: Port,
    /// The destination port after translation.
    pub dport: Port,
    /// Destination and source MAC for all ways but those by the stack and through the neighbour table, as the frame begins with them: in
    /// words, which are fewer to copy than bytes.
    pub macs: [u32; 3],
    /// [`crate::layout::Frontend::service`] that the flow belongs to.
    pub service: u32,
    /// The source after translation.
    pub src: Addr,
    /// The destination after translation.
    pub dst: Addr,
}

/// Two MACs as [`CtEntry::macs`].
pub fn macs(dst: Mac, src: Mac) -> [u32; 3] {
    bytemuck::cast([dst, src])
}

/// How a packet leaves the pipeline when it is forwarded.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Up the host's stack, which routes it.
    Stack = 0,
    /// Into a pod's namespace.
    Pod = 1,
    /// Out of an uplink, through the neighbour table.
    Uplink = 2,
    /// To a process of the host, as if it came from podnet0.
    Host = 3,
    /// Out of an interface, with the MACs that are in the entry.
    Link = 4,
    /// Out of an uplink to another node, which is the entry's destination but not the packet's, through the neighbour
    /// table.
    Via = 5,
    /// Into the tunnel to another node, which the first of the MACs in the entry stands for.
    Tunnel = 6,
    /// Into a pod's namespace through its host end's queue, which shapes what the pod gets.
    Queue = 7,
}

impl Out {
    /// The way with a number; up the stack where none has it.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Pod,
            2 => Self::Uplink,
            3 => Self::Host,
            4 => Self::Link,
            5 => Self::Via,
            6 => Self::Tunnel,
            7 => Self::Queue,
            _ => Self::Stack,
        }
    }
}

impl CtEntry {
    /// This half rewrites replies; its counterpart belongs to the client's direction.
    pub const REPLY: u8 = 1;
    /// A packet has been seen in both directions.
    pub const REPLIED: u8 = 2;
    /// The client has sent a FIN.
    pub const FIN_CLIENT: u8 = 4;
    /// The backend has sent a FIN.
    pub const FIN_BACKEND: u8 = 8;
    /// The connection is over: both have, or one has sent an RST.
    pub const CLOSED: u8 = Self::FIN_CLIENT | Self::FIN_BACKEND;
    /// The connection is over if an RST from outside is to be believed.
    pub const DOUBTFUL: u8 = Self::CLOSED | Self::OPENING;
    /// It isn't known yet that the client gets answers: after the backend's first packet none of its own has been seen,
    /// of TCP the third step of the handshake. Entries that were made before there was this bit are without it.
    pub const OPENING: u8 = 16;
    /// The source is rewritten.
    pub const REWRITE_SRC: u8 = 32;
    /// The destination is rewritten.
    pub const REWRITE_DST: u8 = 64;
    /// Direct server return: the packets go unchanged to the node that is [`CtEntry::dst`], and answers don't come by
    /// here, so there is no other half.
    pub const ONE_WAY: u8 = 128;

    /// Whether the connection is over, so that its tuple may begin a new one.
    #[inline(always)]
    pub const fn closed(&self) -> bool {
        self.flags & Self::CLOSED == Self::CLOSED
    }

    /// Whether it is so only if an RST from outside is to be believed.
    #[inline(always)]
    pub const fn doubtful(&self) -> bool {
        self.flags & Self::DOUBTFUL == Self::DOUBTFUL
    }

    /// Whether [`CtEntry::OPENING`] or [`CtEntry::DOUBTFUL`].
    #[inline(always)]
    pub const fn opening(&self) -> bool {
        self.flags & Self::OPENING != 0
    }

    /// Key of the flow's other half: the translated packet, reversed.
    #[inline(always)]
    pub const fn reply_key(&self, proto: Proto) -> Tuple {
        let nothing = Port::new(0);
        let mut key = Tuple { src: Addr::NONE, dst: Addr::NONE, sport: nothing, dport: nothing, proto, _pad: [0; 3] };
        self.write_reply_key(&mut key);
        key
    }

    /// Writes [`Self::reply_key`] to a tuple of the same protocol, without a copy of its own on the way: the programs'
    /// stack has no room for two.
    #[inline(always)]
    pub const fn write_reply_key(&self, key: &mut Tuple) {
        key.src = self.dst;
        key.dst = self.src;
        key.sport = self.dport;
        key.dport = self.sport;
    }
}

/// Key of `nodes` (LPM trie): a prefix of mapped addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Prefix {
    /// Length in bits of the mapped form: 96 is added to an IPv4 length.
    pub len: u32,
    /// The address.
    pub addr: Addr,
}

impl Prefix {
    /// Whether it holds an address.
    pub fn contains(&self, addr: &Addr) -> bool {
        let bits = |a: &Addr| u128::from_be_bytes(bytemuck::cast(a.0));
        self.len == 0 || (bits(&self.addr) ^ bits(addr)) >> (128 - self.len.min(128)) == 0
    }
}

/// `nodes` (LPM trie): a CIDR → what it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Network {
    /// A [`NetworkKind`] as a number.
    pub kind: u32,
    /// For [`NetworkKind::RemotePods`] and [`NetworkKind::RemoteNode`]: the node's MAC as seen here, or zeros when it
    /// isn't on a shared link and there is no tunnel.
    pub mac: Mac,
    /// [`Network::NODE_PORTS`], [`Network::TUNNEL`] and [`Network::SERVICE_ADDRESS`].
    pub flags: u16,
    /// For pods and nodes: the node's address of the same family.
    pub node: Addr,
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

/// `config` (array of one): what the daemon tells the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// This node's IPv4 address, mapped, or none.
    pub node_v4: Addr,
    /// This node's IPv6 address, or none.
    pub node_v6: Addr,
    /// Source that a pod sees when it reaches itself through a service: the first address of the pod CIDR.
    pub hairpin_v4: Addr,
    /// The same for IPv6.
    pub hairpin_v6: Addr,
    /// podnet0, the host's side of the pair.
    pub podnet0: IfIndex,
    /// podnet1, the far side, which carries the from_host program.
    pub podnet1: IfIndex,
    /// MAC of podnet0.
    pub podnet0_mac: Mac,
    /// MAC of podnet1.
    pub podnet1_mac: Mac,
    /// How many of `snat_ports` hold a port.
    pub snat_count: u32,
    /// [`Config::EXTERNAL_CLUSTER_IP`] and others.
    pub flags: u32,
    /// The main uplinks' smallest MTU in bytes, for ways whose own isn't known yet.
    pub mtu: u32,
    /// Cookie of the host's network namespace: tells host processes from pods in the socket hooks.
    pub netns_cookie: u64,
    /// The main uplinks: those with an address that the Node object has, or with a default route. XDP programs send to these
    /// only. All uplinks are in `interfaces`. Unused places are zero.
    pub uplinks: [IfIndex; UPLINKS],
    /// The tunnel to other nodes; zero: there is none.
    pub tunnel: IfIndex,
    /// What it takes, in bytes without the inner Ethernet header.
    pub tunnel_mtu: u32,
    /// This node's MAC there.
    pub tunnel_mac: Mac,
    /// The smallest MTU that some route is held to, in bytes; 0: none is, so that ways take what their interfaces take.
    pub route_mtu: u16,
}

/// UDP port at which nodes get the tunnel's packets, the one that Linux uses by default.
pub const TUNNEL_PORT: u16 = 8472;

/// How many main uplinks a node may have.
pub const UPLINKS: usize = 8;

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
    /// It is one of [`Config::uplinks`], if these are not too many.
    pub const MAIN: u32 = 2;

    /// The node's address of a family there, or none.
    #[inline(always)]
    pub const fn addr(&self, v6: bool) -> &Addr {
        if v6 { &self.v6 } else { &self.v4 }
    }
}

impl Config {
    /// Whether an interface is one of [`Config::uplinks`].
    #[inline(always)]
    pub const fn is_uplink(&self, ifindex: IfIndex) -> bool {
        let mut uplink = false;
        let mut i = 0;
        while i < self.uplinks.len() {
            uplink |= self.uplinks[i].0 == ifindex.0;
            i += 1;
        }
        uplink && ifindex.0 != 0
    }

    /// ClusterIPs may be used from outside the cluster.
    pub const EXTERNAL_CLUSTER_IP: u32 = 1;
    /// Pods reach what is outside of the cluster with the node's address.
    pub const MASQUERADE: u32 = 2;
    /// The kernel's look-up of a route tells the source address (`BPF_FIB_LOOKUP_SRC`, Linux 6.7).
    pub const ROUTE_SOURCE: u32 = 4;
    /// Sockets of pods are translated too, not only those of the host.
    pub const SOCKET_PODS: u32 = 8;
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
    pub addr: Addr,
    /// The backend's port.
    pub port: Port,
    /// Zero.
    pub _pad: u16,
    /// When the client last began a flow, in [ticks](crate::time).
    pub last_used: u32,
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

/// Key of `fragments` (LRU hash): the fragments of one packet (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification as on the wire; 16 bits of it in IPv4.
    pub id: u32,
    /// Protocol.
    pub proto: Proto,
    /// Zero.
    pub _pad: [u8; 3],
}

/// Value of `fragments`: what only the first fragment says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentPorts {
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
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

/// Key of `sock_reverse` (LRU hash): what a socket was connected or has sent to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct SockKey {
    /// The kernel's socket cookie.
    pub cookie: u64,
    /// The backend's address.
    pub addr: Addr,
    /// The backend's port.
    pub port: Port,
    /// The protocol.
    pub proto: Proto,
    /// Zero.
    pub _pad: [u8; 5],
}

/// Value of `sock_reverse`: the frontend that the program meant; zeros if it meant several that lead to this backend, which
/// are then told apart per packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SockPeer {
    /// The frontend's address.
    pub addr: Addr,
    /// The frontend's port.
    pub port: Port,
    /// Zero.
    pub _pad: [u8; 6],
}

/// `scratch` (per-CPU array of one): a flow in the making.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Scratch {
    /// The tuple of the packet at hand.
    pub tuple: Tuple,
    /// Entry of the packet at hand.
    pub entry: CtEntry,
    /// Entry of the other direction.
    pub reply: CtEntry,
    /// Key of the other direction.
    pub key: Tuple,
    /// Key of the flow that an entry in the way belongs to.
    pub owner: Tuple,
    /// Hash of the client's tuple.
    pub hash: u32,
    /// Whether the source port must be one of those for source NAT: 1, or else 0.
    pub from_range: u32,
    /// How many source ports have been tried.
    pub tries: u32,
    /// By what the ports of an SCTP packet have changed: old XOR new, as they lie in memory.
    pub change: u32,
    /// How many bytes of that packet follow its ports.
    pub after: u32,
    /// What an error says that is sent to the sender: the MTU in bytes, or 0 if its lifetime was over.
    pub mtu: u32,
    /// Who the flow's entries are counted for: a place in [`holders`].
    pub holder: u32,
    /// How many of `snat_ports` the flow may draw from, the first ones.
    pub ports: u32,
}

/// Places in `holders` (array of `u32`): how many entries of `conntrack` everybody holds by whom flows were begun. A place may be
/// shared by several. The daemon counts anew with each sweep what the programs have counted since the last.
pub mod holders {
    use crate::addr::{Addr, IfIndex};

    /// How many places pods have, and outside clients.
    const PLACES: u32 = 32_768;
    /// All entries.
    pub const ALL: u32 = 2 * PLACES;
    /// Those of all outside clients.
    pub const OUTSIDE: u32 = ALL + 1;
    /// No count, but how many entries `conntrack` has room for; 0: that isn't known yet.
    pub const ROOM: u32 = ALL + 2;
    /// How many places there are.
    pub const LEN: usize = ROOM as usize + 1;

    /// The place of what comes in by an interface of this node: a pod's, or that of the host's processes.
    #[inline(always)]
    pub const fn of_interface(ifindex: IfIndex) -> u32 {
        ifindex.0 % PLACES
    }

    /// The place of an outside client.
    #[inline(always)]
    pub const fn of_client(addr: &Addr) -> u32 {
        let [a, b, c, d] = addr.0;
        PLACES + crate::pipeline::mix(a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d) % PLACES
    }

    /// Whether a place is an outside client's.
    #[inline(always)]
    pub const fn is_outside(place: u32) -> bool {
        place >= PLACES && place < ALL
    }
}

/// What `events` (ring buffer) carries: one dropped packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    /// Where it arrived.
    pub ifindex: IfIndex,
    /// A [`crate::verdict::Reason`] as a number.
    pub reason: u16,
    /// A [`Hook`] as a number.
    pub hook: u16,
    /// Length of the frame in bytes.
    pub len: u32,
    /// The frame's first bytes; zeros where it is shorter.
    pub head: [u8; EVENT_HEAD],
}

/// How much of a dropped packet an [`Event`] carries: Ethernet, IPv6 and TCP headers.
pub const EVENT_HEAD: usize = 76;

const _: () = {
    assert!(size_of::<Endpoint>() == 32);
    assert!(size_of::<FrontendKey>() == 20);
    assert!(size_of::<Frontend>() == 20);
    assert!(size_of::<Backend>() == 20);
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<CtEntry>() == 68);
    assert!(size_of::<Network>() == 28);
    assert!(size_of::<Config>() == 152);
    assert!(size_of::<Interface>() == 40);
    assert!(size_of::<Sandbox>() == 32);
    assert!(size_of::<AffinityKey>() == 20);
    assert!(size_of::<Affinity>() == 24);
    assert!(size_of::<SourceRange>() == 24);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentPorts>() == 4);
    assert!(size_of::<Peer>() == 8);
    assert!(size_of::<SockKey>() == 32);
    assert!(size_of::<SockPeer>() == 24);
    assert!(size_of::<Event>() == 96);
};

/// Maximum entries of each table; those of `conntrack`, `frontends` and what is behind it are defaults. Arrays and preallocated
/// hashes take their memory at load, tries and `frontends` as they are needed.
pub mod capacity {
    /// `endpoints`.
    pub const ENDPOINTS: usize = 4096;
    /// `frontends`.
    pub const FRONTENDS: usize = 65_536;
    /// `sandboxes`.
    pub const SANDBOXES: usize = 4096;
    /// `slots`.
    pub const SLOTS: usize = 2_097_152;
    /// `backends`.
    pub const BACKENDS: usize = 262_144;
    /// `conntrack`: two entries a flow.
    pub const CONNTRACK: usize = 262_144;
    /// `nodes`.
    pub const NODES: usize = 65_536;
    /// `interfaces`.
    pub const INTERFACES: usize = 1024;
    /// `snat_ports` (array of `u32`): the ports for source NAT, in host byte order.
    pub const SNAT_PORTS: usize = 65_536;
    /// `affinity`.
    pub const AFFINITY: usize = 65_536;
    /// `source_ranges`.
    pub const SOURCE_RANGES: usize = 65_536;
    /// `fragments`.
    pub const FRAGMENTS: usize = 8192;
    /// `peers`.
    pub const PEERS: usize = 16_384;
    /// `sock_reverse`.
    pub const SOCK_REVERSE: usize = 65_536;
    /// `events`, in bytes.
    pub const EVENTS: usize = 262_144;
}
