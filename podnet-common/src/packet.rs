//! Packet access for the pipeline, and the protocol headers it reads and writes.
//!
//! Headers are plain data with fields in network byte order.

use bytemuck::{Pod, Zeroable};

use crate::addr::{IfIndex, Mac};

/// A frame that starts with an Ethernet header. Every access is bounds-checked: it returns `None` if it reaches beyond
/// the frame. Offsets are in bytes from the start of the frame.
pub trait Packet {
    /// Length of the frame in bytes.
    fn frame_len(&self) -> u32;

    /// Interface that the hook is attached to.
    fn ifindex(&self) -> IfIndex;

    /// Whether the frame carries a VLAN tag in its metadata (not in its bytes).
    fn tagged(&self) -> bool;

    /// Length in bytes, without the Ethernet header, of the longest packet this frame will be segmented into: on the
    /// wire, a GSO packet is several. `headers` is the length of the IP and transport headers in bytes.
    fn segment_len(&self, headers: u32) -> u32;

    /// Makes the first `n` bytes readable, or the whole frame if it is shorter.
    fn pull(&mut self, n: u32);

    /// Reloads the packet's bounds. Required between a load and a store at the same variable offset: the compiler drops
    /// the second bounds check as redundant, but the verifier needs it because the address is computed a second time.
    fn renew(&mut self);

    /// Reads a header at `offset`.
    fn load<T: Pod>(&self, offset: usize) -> Option<T>;

    /// Writes a header at `offset`.
    fn store<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()>;

    /// Updates the transport checksum field at `offset`. `pseudo` is the difference (see [`crate::checksum`]) in the
    /// pseudo header, `data` the difference in the segment itself.
    fn update_l4_checksum(&mut self, offset: usize, pseudo: u64, data: u64, udp: bool, v6: bool) -> Option<()>;

    /// Truncates or extends the frame to `len` bytes.
    fn resize(&mut self, len: u32) -> Option<()>;
}

/// EtherType of IPv4, in network byte order.
pub const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
/// EtherType of IPv6, in network byte order.
pub const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
/// EtherType of ARP, in network byte order.
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
    /// Payload length in bytes, including extension headers.
    pub payload_len: u16,
    /// Type of the next header.
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
    /// FIN: the sender has no more data.
    pub const FIN: u8 = 1;
    /// SYN: synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// RST: reset the connection.
    pub const RST: u8 = 4;
    /// ACK: the acknowledgement number is valid.
    pub const ACK: u8 = 16;
    /// Offset of the checksum in bytes.
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
    /// Length in bytes, including this header.
    pub len: u16,
    /// Checksum; zero if there is none.
    pub checksum: u16,
}

impl Udp {
    /// Offset of the checksum in bytes.
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
    /// Offset of the checksum in bytes.
    pub const CHECKSUM: usize = 8;
}

/// An ARP packet for IPv4 over Ethernet (RFC 826), after its Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Arp {
    /// Hardware and protocol type, address lengths, operation.
    pub head: [u16; 4],
    /// Sender's hardware address.
    pub sender_mac: Mac,
    /// Sender's protocol address, as two halfwords.
    pub sender_ip: [u16; 2],
}

/// First eight bytes of an ICMP or ICMPv6 message (RFC 792, RFC 4443).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: u16,
    /// Rest of the header; its meaning depends on the type.
    pub rest: u32,
}

impl Icmp {
    /// Offset of the checksum in bytes.
    pub const CHECKSUM: usize = 2;
    /// Offset of the identifier of an echo message in bytes.
    pub const IDENTIFIER: usize = 4;
}

/// Length of an Ethernet header in bytes.
pub const ETH: usize = size_of::<Ethernet>();
