//! Differences between IPv4 and IPv6: parsing and rewriting headers. Everything else in the pipeline is independent of
//! the family. The trait's implementations have a file each.

mod v4;
mod v6;

use bytemuck::Pod;

use crate::{
    addr::{Addr, Port, Proto},
    layout::Tuple,
    packet::{ETH, Icmp, Packet, Sctp, Tcp, Udp},
};

/// Network and transport headers of a packet, as read.
pub(super) struct Parsed<F: Family> {
    /// IP header.
    pub header: F::Header,
    /// Addresses, ports (zero if there are none) and protocol.
    pub tuple: Tuple,
    /// Offset of the transport header in the frame, in bytes.
    pub l4: usize,
    /// Length of the IP and transport headers in bytes.
    pub headers: u32,
    /// Transport checksum in the packet.
    pub checksum: u16,
    /// TCP flags; zero for other protocols.
    pub tcp_flags: u8,
    /// Whether the tuple has ports: TCP, UDP, SCTP and ICMP echo, with the exceptions in [`parse`].
    pub ports: bool,
    /// Whether the packet is an ICMP echo request.
    pub echo_request: bool,
    /// Kind of fragment.
    pub fragment: FragmentKind,
    /// Identification of a fragmented datagram, in network byte order.
    pub id: u32,
    /// Whether the packet is an ICMP error, which quotes another packet.
    pub icmp_error: bool,
}

/// Kind of fragment that a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FragmentKind {
    /// Not fragmented.
    Unfragmented = 0,
    /// First fragment, which has the transport header.
    First = 1,
    /// Any other fragment.
    Later = 2,
}

impl FragmentKind {
    /// From the more-fragments flag and whether the fragment offset is non-zero.
    #[inline(always)]
    fn new(more: bool, later: bool) -> Self {
        match (more, later) {
            (_, true) => Self::Later,
            (true, false) => Self::First,
            (false, false) => Self::Unfragmented,
        }
    }
}

/// Kinds of ICMP messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    /// Error, quoting another packet.
    Error,
    /// Echo request.
    EchoRequest,
    /// Echo reply.
    EchoReply,
    /// Any other message.
    Other,
}

/// Location of the transport header, and fragmentation.
pub(super) struct Layer3 {
    pub l4: usize,
    pub proto: u8,
    pub fragment: FragmentKind,
    pub id: u32,
}

/// An IP version.
pub(super) trait Family {
    /// IP header without options and extension headers.
    type Header: Pod;
    /// Whether this is IPv6.
    const V6: bool;
    /// Protocol number of ICMP for this family.
    const ICMP: Proto;

    /// Kind of an ICMP message, by its type.
    fn control(kind: u8) -> Control;
    /// ICMP types, and codes of errors: echo reply, port unreachable, packet too big, TTL or hop limit exceeded.
    const ECHO_REPLY: u8;
    const UNREACHABLE: [u8; 2];
    const TOO_BIG: [u8; 2];
    const EXCEEDED: [u8; 2];
    /// Second word of a packet-too-big error, in network byte order. `mtu` in bytes.
    fn too_big(mtu: u32) -> u32;
    /// Protocol of a quoted packet, whose IP header is at the offset `at`, and offset of its transport header after the
    /// start of the IP header. `None` if the protocol is not tracked or if the transport header is not in the quoted
    /// fragment.
    fn quoted_transport<P: Packet>(p: &P, at: usize, header: &Self::Header) -> Option<(Proto, usize)>;

    /// Finds the transport header. `None` if the packet is truncated or inconsistent.
    fn locate<P: Packet>(p: &P, header: &Self::Header) -> Option<Layer3>;
    fn src(header: &Self::Header) -> Addr;
    fn dst(header: &Self::Header) -> Addr;
    /// TTL or hop limit.
    fn ttl(header: &Self::Header) -> u8;
    /// Sets the TTL or hop limit.
    fn set_ttl(header: &mut Self::Header, ttl: u8);
    /// Decrements the TTL or hop limit.
    #[inline(always)]
    fn decrement_ttl(header: &mut Self::Header) {
        Self::set_ttl(header, Self::ttl(header).wrapping_sub(1));
    }
    /// Whether routers may not fragment the packet.
    fn dont_fragment(header: &Self::Header) -> bool;
    /// Offset of the end of the packet in its frame, which may be padded.
    fn end(header: &Self::Header, frame_len: u32) -> u32;
    /// Replaces the source address. Returns the difference for checksums.
    fn set_src(header: &mut Self::Header, addr: &Addr) -> u64;
    /// Replaces the destination address. Returns the difference for checksums.
    fn set_dst(header: &mut Self::Header, addr: &Addr) -> u64;
    /// Updates the header checksum, if there is one, for a difference of the addresses.
    fn update_checksum(header: &mut Self::Header, difference: u64);
    /// Whether an address is invalid on the wire: a mapped address in IPv6.
    fn mapped(addr: &Addr) -> bool;
    /// Writes the header's mutable fields to the packet: TTL and checksum, source if `src`, destination if `dst`.
    fn write<P: Packet>(p: &mut P, header: &Self::Header, src: bool, dst: bool) -> Option<()>;
    /// Header of an answer: source and destination exchanged, no options, `len` bytes of payload.
    fn answer(header: &Self::Header, proto: Proto, len: u16) -> Self::Header;
    /// Header as quoted in an ICMP error: without options and extension headers.
    fn quote(header: &Self::Header, proto: Proto) -> Self::Header;
    /// Sum of the header's words, for checksums.
    fn sum(header: &Self::Header) -> u64;
    /// Stores the header in words.
    fn to_words(header: &Self::Header, words: &mut [u32; 10]);
    /// Restores a header from words.
    fn from_words(words: &[u32; 10]) -> Self::Header;
}

/// IPv4.
pub(super) struct V4;
/// IPv6.
pub(super) struct V6;

/// Whether flows of a protocol are tracked.
#[inline(always)]
fn is_tracked<F: Family>(proto: u8) -> bool {
    proto == Proto::TCP.0 || proto == Proto::UDP.0 || proto == Proto::SCTP.0 || proto == F::ICMP.0
}

/// Ports that represent an ICMP echo in tuples: the identifier is the port of the requesting side; the other side has
/// none.
#[inline(always)]
pub(super) fn echo_ports(identifier: u16, request: bool) -> (Port, Port) {
    let (asking, other) = (Port::from_wire(identifier), Port::new(0));
    if request { (asking, other) } else { (other, asking) }
}

/// Parses the headers of a packet. `None` if they are truncated or inconsistent. Later fragments have no ports; neither
/// have fragments of SCTP, whose checksum can't be updated without the rest of the packet.
#[inline(always)]
pub(super) fn parse<F: Family, P: Packet>(p: &P) -> Option<Parsed<F>> {
    let header: F::Header = p.load(ETH)?;
    let l3 = F::locate(p, &header)?;
    let proto = Proto(l3.proto);
    let mut parsed = Parsed {
        header,
        tuple: Tuple { src: F::src(&header), dst: F::dst(&header), proto, ..Tuple::default() },
        l4: l3.l4,
        headers: (l3.l4 - ETH) as u32,
        checksum: 0,
        tcp_flags: 0,
        ports: false,
        echo_request: false,
        fragment: l3.fragment,
        id: l3.id,
        icmp_error: false,
    };
    // Padding after the packet is not part of a header.
    let room = (F::end(&header, p.frame_len()) as usize).checked_sub(l3.l4)?;
    if l3.fragment == FragmentKind::Later {
        return Some(parsed);
    }
    if proto == Proto::TCP {
        let tcp: Tcp = load_within(p, l3.l4, room)?;
        parsed.tuple.sport = Port::from_wire(tcp.sport);
        parsed.tuple.dport = Port::from_wire(tcp.dport);
        parsed.headers += (tcp.offset >> 4) as u32 * 4;
        parsed.checksum = tcp.checksum;
        parsed.tcp_flags = tcp.flags;
        parsed.ports = true;
    } else if proto == Proto::UDP {
        let udp: Udp = load_within(p, l3.l4, room)?;
        parsed.tuple.sport = Port::from_wire(udp.sport);
        parsed.tuple.dport = Port::from_wire(udp.dport);
        parsed.headers += size_of::<Udp>() as u32;
        parsed.checksum = udp.checksum;
        parsed.ports = true;
    } else if proto == F::ICMP {
        let icmp: Icmp = load_within(p, l3.l4, room)?;
        let control = F::control(icmp.kind);
        parsed.icmp_error = control == Control::Error;
        parsed.echo_request = control == Control::EchoRequest;
        if parsed.echo_request || control == Control::EchoReply {
            let [high, low, ..] = icmp.rest.to_ne_bytes();
            let identifier = u16::from_ne_bytes([high, low]);
            (parsed.tuple.sport, parsed.tuple.dport) = echo_ports(identifier, parsed.echo_request);
            parsed.ports = true;
        }
    } else if proto == Proto::SCTP && l3.fragment == FragmentKind::Unfragmented {
        let sctp: Sctp = load_within(p, l3.l4, room)?;
        parsed.tuple.sport = Port::from_wire(sctp.sport);
        parsed.tuple.dport = Port::from_wire(sctp.dport);
        parsed.ports = true;
    }
    Some(parsed)
}

/// Reads a header if `room`, the number of bytes left in the packet, is sufficient.
#[inline(always)]
fn load_within<P: Packet, T: Pod>(p: &P, offset: usize, room: usize) -> Option<T> {
    if room < size_of::<T>() { None } else { p.load(offset) }
}
