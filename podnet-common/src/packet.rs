//! A packet as the pipeline sees it, and the headers that it reads from one.
//!
//! Headers are plain data whose fields hold words as they are on the wire; accessors convert.

use bytemuck::{Pod, Zeroable};

use crate::addr::{IfIndex, Mac};

/// A frame that starts with its Ethernet header. Every access is checked; offsets are in bytes from the frame's start.
pub trait Packet {
    /// Length of the frame in bytes.
    fn frame_len(&self) -> u32;

    /// The interface that the hook is attached to.
    fn ifindex(&self) -> IfIndex;

    /// Whether the frame belongs to a VLAN whose tag is not among its bytes.
    fn tagged(&self) -> bool;

    /// Length in bytes, without the Ethernet header, of the longest packet that this frame will be cut into: the kernel
    /// joins segments (GSO), and the wire sees them apart. `headers` is the length of the IP and TCP or UDP headers.
    fn segment_len(&self, headers: u32) -> u32;

    /// Makes the first `n` bytes (or all, if there are fewer) readable.
    fn pull(&mut self, n: u32);

    /// Has the bounds looked up again. To be called between reading and writing at an offset that isn't constant: the
    /// compiler would leave the second check out, since it equals the first, and the kernel's verifier, for which the
    /// address is computed anew, would miss it.
    fn renew(&mut self);

    /// Reads a header.
    fn load<T: Pod>(&self, offset: usize) -> Option<T>;

    /// Writes a header.
    fn store<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()>;

    /// Updates the TCP or UDP checksum field at `offset`: `pseudo` is the difference (see [`crate::checksum`]) of what
    /// the pseudo header covers, `data` that of the segment's own bytes.
    fn update_l4_checksum(&mut self, offset: usize, pseudo: u64, data: u64, udp: bool, v6: bool) -> Option<()>;

    /// Cuts or extends the frame to `len` bytes.
    fn resize(&mut self, len: u32) -> Option<()>;
}

/// EtherType of IPv4, as on the wire.
pub const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
/// EtherType of IPv6, as on the wire.
pub const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
/// EtherType of ARP, as on the wire.
pub const ETHERTYPE_ARP: u16 = 0x0806u16.to_be();

/// An Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// EtherType.
    pub ethertype: u16,
}

/// An IPv4 header without options (RFC 791).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Ipv4 {
    /// Version and header length in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Total length in bytes.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub proto: u8,
    /// Header checksum.
    pub checksum: u16,
    /// Source.
    pub src: u32,
    /// Destination.
    pub dst: u32,
}

/// An IPv6 header (RFC 8200).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_flow: u32,
    /// Length in bytes of what follows this header.
    pub payload_len: u16,
    /// Protocol of what follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: [u32; 4],
    /// Destination.
    pub dst: [u32; 4],
}

/// A TCP header without options (RFC 9293).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Tcp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Header length in words, in the high four bits.
    pub offset: u8,
    /// Flags: see the constants.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Checksum.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

impl Tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
    /// Where the checksum is.
    pub const CHECKSUM: usize = 16;
}

/// A UDP header (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Udp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Length in bytes with this header.
    pub len: u16,
    /// Checksum; zero for none.
    pub checksum: u16,
}

impl Udp {
    /// Where the checksum is.
    pub const CHECKSUM: usize = 6;
}

/// An SCTP common header (RFC 9260, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Sctp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Verification tag.
    pub tag: u32,
    /// CRC-32C of the packet, little-endian.
    pub checksum: u32,
}

impl Sctp {
    /// Where the checksum is.
    pub const CHECKSUM: usize = 8;
}

/// An ARP packet for IPv4 over Ethernet (RFC 826), after its Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Arp {
    /// Hardware and protocol type, lengths, operation.
    pub head: [u16; 4],
    /// Sender's hardware address.
    pub sender_mac: Mac,
    /// Sender's protocol address, two halfwords.
    pub sender_ip: [u16; 2],
}

/// The head of an ICMP or ICMPv6 error (RFC 792, RFC 4443).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: u16,
    /// The rest of the header.
    pub rest: u32,
}

impl Icmp {
    /// Where the checksum is.
    pub const CHECKSUM: usize = 2;
    /// Where an echo's identifier is.
    pub const IDENTIFIER: usize = 4;
}

/// Length of an Ethernet header in bytes.
pub const ETH: usize = size_of::<Ethernet>();
