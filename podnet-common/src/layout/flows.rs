//! Flows: connection tracking, and the ports of fragmented datagrams.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, IfIndex, Mac, Port, Proto};

/// Key of `conntrack`: addresses and ports of a packet as it arrives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Tuple {
    /// Source address.
    #[cfg(not(feature = "later-layouts"))]
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
    /// Source address.
    #[cfg(feature = "later-layouts")]
    pub src: Addr,
}

impl Tuple {
    /// Tuple of a packet in the opposite direction.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto: self.proto, _pad: [0; 3] }
    }

    /// Branch-free equality: see [`Addr::same`].
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        let ports = (self.sport.wire() ^ other.sport.wire()) | (self.dport.wire() ^ other.dport.wire());
        let proto = self.proto.0 ^ other.proto.0;
        self.src.difference(&other.src) | self.dst.difference(&other.dst) | ports as u32 | proto as u32 == 0
    }
}

/// Value of `conntrack` (hash, key [`Tuple`]): how to rewrite a packet and where to send it.
///
/// A flow has two entries, one per direction. Each contains enough to rebuild the other, whose key is
/// [`CtEntry::reply_key`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CtEntry {
    /// Time of the last packet, in [ticks](crate::time).
    #[cfg(not(feature = "later-layouts"))]
    pub last_seen: u32,
    /// Unused.
    #[cfg(feature = "later-layouts")]
    pub later: u32,
    /// Interface on which packets of this half arrive. Bitwise complement of an interface if they leave the host's
    /// stack by it. Packets from elsewhere don't take the fast path.
    pub in_ifindex: IfIndex,
    /// Egress interface; 0: the packet goes up the host's stack.
    pub out_ifindex: IfIndex,
    /// MTU of the path in bytes, without the Ethernet header.
    pub out_mtu: u16,
    /// Flag bits: [`CtEntry::REPLY`] and the other constants.
    pub flags: u8,
    /// Kind of egress: an [`Out`] as a number.
    pub out: u8,
    /// Source port after translation.
    pub sport: Port,
    /// Destination port after translation.
    pub dport: Port,
    /// Destination and source MAC, as they are at the start of the frame. Not used for egress through the stack or the
    /// neighbour table. Stored as words, which take fewer instructions to copy than bytes.
    pub macs: [u32; 3],
    /// [`Frontend::service`](super::Frontend::service) of the service port that the flow belongs to.
    pub service: u32,
    /// Source address after translation.
    pub src: Addr,
    /// Destination address after translation.
    pub dst: Addr,
    /// Time of the last packet, in [ticks](crate::time).
    #[cfg(feature = "later-layouts")]
    pub last_seen: u32,
}

/// Destination and source MAC in the format of [`CtEntry::macs`].
pub fn macs(dst: Mac, src: Mac) -> [u32; 3] {
    bytemuck::cast([dst, src])
}

/// Kind of egress: how a forwarded packet leaves the pipeline.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Up the host's stack, which routes the packet.
    Stack = 0,
    /// Directly into a pod's network namespace.
    Pod = 1,
    /// Out of an uplink, through the neighbour table.
    Uplink = 2,
    /// To a process of the host, as if received on podnet0.
    Host = 3,
    /// Out of an interface, with the MACs of the entry.
    Link = 4,
    /// Out of an uplink to another node, through the neighbour table. The entry's destination is the node; the packet's
    /// destination is unchanged.
    Via = 5,
    /// Into the tunnel, to the node identified by the destination MAC of the entry.
    Tunnel = 6,
    /// Into a pod's network namespace through the queueing discipline of its host end, which shapes the traffic.
    Queue = 7,
    /// Nowhere. Network policy now denies the flow. The entry is kept to record which end is the client.
    Denied = 8,
}

impl Out {
    /// Converts from a number; unknown numbers are [`Out::Stack`].
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
            8 => Self::Denied,
            _ => Self::Stack,
        }
    }
}

impl CtEntry {
    /// This half is for replies; the other half is for the client's packets.
    pub const REPLY: u8 = 1;
    /// Packets have been seen in both directions.
    pub const REPLIED: u8 = 2;
    /// The client has sent a FIN.
    pub const FIN_CLIENT: u8 = 4;
    /// The backend has sent a FIN.
    pub const FIN_BACKEND: u8 = 8;
    /// The connection is closed: both sides have sent a FIN, or one has sent an RST.
    pub const CLOSED: u8 = Self::FIN_CLIENT | Self::FIN_BACKEND;
    /// The connection is closed if an RST from outside is genuine, which is not certain.
    pub const DOUBTFUL: u8 = Self::CLOSED | Self::OPENING;
    /// Not established yet: there is no evidence that the client receives replies. For TCP that is the third step of
    /// the handshake, for other protocols a packet of the client after the backend's first. Not set in entries from
    /// before this bit existed.
    pub const OPENING: u8 = 16;
    /// The source address and port are rewritten.
    pub const REWRITE_SRC: u8 = 32;
    /// The destination address and port are rewritten.
    pub const REWRITE_DST: u8 = 64;
    /// Direct server return: packets are sent unchanged to the node [`CtEntry::dst`]. Replies don't pass this node, so
    /// there is no other half.
    pub const ONE_WAY: u8 = 128;

    /// Whether each packet of this half needs a lookup besides this entry: of the neighbour, or of network policy.
    #[inline(always)]
    pub const fn needs_lookup(&self) -> bool {
        self.out == Out::Via as u8 || self.out == Out::Uplink as u8 || self.out == Out::Denied as u8
    }

    /// Whether the packets of this half leave the host's stack.
    #[inline(always)]
    pub const fn leaves_stack(&self) -> bool {
        self.in_ifindex.0 > u32::MAX / 2
    }

    /// Whether the connection is closed, so its tuple may be reused.
    #[inline(always)]
    pub const fn closed(&self) -> bool {
        self.flags & Self::CLOSED == Self::CLOSED
    }

    /// Whether the connection is closed only if an RST from outside is genuine.
    #[inline(always)]
    pub const fn doubtful(&self) -> bool {
        self.flags & Self::DOUBTFUL == Self::DOUBTFUL
    }

    /// Whether the flow is [`CtEntry::OPENING`] or [`CtEntry::DOUBTFUL`].
    #[inline(always)]
    pub const fn opening(&self) -> bool {
        self.flags & Self::OPENING != 0
    }

    /// Builds the other half of the flow from this one, which belongs to packets with `tuple`. The ingress interface
    /// and the egress of the other half are unknown and left empty.
    #[inline(always)]
    pub fn reverse(&self, tuple: &Tuple) -> Self {
        let mut flags = self.flags & !(Self::REWRITE_SRC | Self::REWRITE_DST) ^ Self::REPLY;
        if self.flags & Self::REWRITE_SRC != 0 {
            flags |= Self::REWRITE_DST;
        }
        if self.flags & Self::REWRITE_DST != 0 {
            flags |= Self::REWRITE_SRC;
        }
        Self {
            last_seen: self.last_seen,
            flags,
            service: self.service,
            src: tuple.dst,
            dst: tuple.src,
            sport: tuple.dport,
            dport: tuple.sport,
            ..Self::default()
        }
    }

    /// Key of the other half: the translated tuple, reversed.
    #[inline(always)]
    pub const fn reply_key(&self, proto: Proto) -> Tuple {
        let nothing = Port::new(0);
        let mut key = Tuple { src: Addr::NONE, dst: Addr::NONE, sport: nothing, dport: nothing, proto, _pad: [0; 3] };
        self.write_reply_key(&mut key);
        key
    }

    /// Writes [`Self::reply_key`] into a tuple of the same protocol, without a temporary copy: the BPF stack has no
    /// room for two.
    #[inline(always)]
    pub const fn write_reply_key(&self, key: &mut Tuple) {
        key.src = self.dst;
        key.dst = self.src;
        key.sport = self.dport;
        key.dport = self.sport;
    }
}

/// Key of `fragments` (LRU hash): identifies the fragments of one datagram (RFC 791, section 3.2; RFC 8200, section
/// 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification in network byte order; for IPv4 only 16 bits are used.
    pub id: u32,
    /// Protocol.
    pub proto: Proto,
    /// Zero.
    pub _pad: [u8; 3],
}

/// Value of `fragments`: the ports, which only the first fragment contains.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentPorts {
    /// Source port.
    #[cfg(not(feature = "later-layouts"))]
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// Source port.
    #[cfg(feature = "later-layouts")]
    pub sport: Port,
}

const _: () = {
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<CtEntry>() == if cfg!(feature = "later-layouts") { 72 } else { 68 });
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentPorts>() == 4);
};
