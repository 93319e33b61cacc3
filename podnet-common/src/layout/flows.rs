//! Flows: the connection table, and which packet a fragment belongs to.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, IfIndex, Mac, Port, Proto};

/// Key of `conntrack`: a packet's addresses and ports as it arrives.
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
    #[cfg(not(feature = "later-layouts"))]
    pub last_seen: u32,
    /// Says nothing.
    #[cfg(feature = "later-layouts")]
    pub later: u32,
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
    /// When a packet was last seen, in [ticks](crate::time).
    #[cfg(feature = "later-layouts")]
    pub last_seen: u32,
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

    /// The flow's other half, made from this one, which belongs to packets with `tuple`. Where packets of the other half
    /// come in, and how they leave, isn't known from this one.
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
