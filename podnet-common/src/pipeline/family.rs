//! Differences between IPv4 and IPv6: parsing and rewriting headers. Everything else in the pipeline is independent of
//! the family.

use core::mem::offset_of;

use bytemuck::Pod;

use super::answer;
use crate::{
    addr::{Addr, Port, Proto},
    checksum,
    layout::Tuple,
    packet::{ETH, Icmp, Ipv4, Ipv6, Packet, Sctp, Tcp, Udp},
};

/// Maximum number of IPv6 extension headers. RFC 8200, section 4.1 expects at most six in a sensible packet; packets
/// with more are treated as malformed.
const EXTENSION_HEADERS: usize = 6;

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
    /// Protocol of a quoted packet and offset of its transport header after the start of the IP header. `None` if the
    /// protocol is not tracked or if the transport header is not in the quoted fragment.
    fn quoted_transport(header: &Self::Header) -> Option<(Proto, usize)>;

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

impl Family for V4 {
    type Header = Ipv4;
    const V6: bool = false;
    const ICMP: Proto = Proto::ICMP;

    // Destination unreachable, time exceeded, parameter problem (RFC 792). Source quench and redirects are not
    // translated.
    #[inline(always)]
    fn control(kind: u8) -> Control {
        match kind {
            3 | 11 | 12 => Control::Error,
            8 => Control::EchoRequest,
            0 => Control::EchoReply,
            _ => Control::Other,
        }
    }

    const ECHO_REPLY: u8 = 0;
    const UNREACHABLE: [u8; 2] = [3, 3];
    const TOO_BIG: [u8; 2] = [3, 4];
    const EXCEEDED: [u8; 2] = [11, 0];

    // The MTU is in the lower half (RFC 1191, section 4).
    #[inline(always)]
    fn too_big(mtu: u32) -> u32 {
        mtu.to_be()
    }

    #[inline(always)]
    fn quoted_transport(h: &Ipv4) -> Option<(Proto, usize)> {
        let len = (h.version_ihl & 0xf) as usize * 4;
        let first = u16::from_be(h.fragment) & 0x1fff == 0;
        (is_tracked::<Self>(h.proto) && len >= 20 && first).then_some((Proto(h.proto), len))
    }

    #[inline(always)]
    fn locate<P: Packet>(p: &P, h: &Ipv4) -> Option<Layer3> {
        let ihl = (h.version_ihl & 0xf) as usize * 4;
        let total = u16::from_be(h.total_len) as usize;
        // GSO packets may exceed the field's range; it is then zero (BIG TCP).
        let contradiction = total != 0 && (total < ihl || total + ETH > p.frame_len() as usize);
        if h.version_ihl >> 4 != 4 || ihl < 20 || contradiction {
            return None;
        }
        // More-fragments flag and fragment offset (RFC 791, section 3.1).
        let field = u16::from_be(h.fragment);
        let fragment = FragmentKind::new(field & 0x2000 != 0, field & 0x1fff != 0);
        Some(Layer3 { l4: ETH + ihl, proto: h.proto, fragment, id: h.id as u32 })
    }

    #[inline(always)]
    fn src(h: &Ipv4) -> Addr {
        Addr::v4(h.src)
    }

    #[inline(always)]
    fn dst(h: &Ipv4) -> Addr {
        Addr::v4(h.dst)
    }

    #[inline(always)]
    fn ttl(h: &Ipv4) -> u8 {
        h.ttl
    }

    #[inline(always)]
    fn set_ttl(h: &mut Ipv4, ttl: u8) {
        let old = u16::from_ne_bytes([h.ttl, h.proto]) as u32;
        let new = u16::from_ne_bytes([ttl, h.proto]) as u32;
        h.ttl = ttl;
        h.checksum = checksum::apply(h.checksum, checksum::difference(old, new));
    }

    #[inline(always)]
    fn dont_fragment(h: &Ipv4) -> bool {
        h.fragment & 0x4000u16.to_be() != 0
    }

    #[inline(always)]
    fn end(h: &Ipv4, frame_len: u32) -> u32 {
        let total = u16::from_be(h.total_len) as u32;
        if total == 0 { frame_len } else { ETH as u32 + total }
    }

    #[inline(always)]
    fn set_src(h: &mut Ipv4, addr: &Addr) -> u64 {
        let difference = checksum::difference(h.src, addr.0[3]);
        h.src = addr.0[3];
        difference
    }

    #[inline(always)]
    fn set_dst(h: &mut Ipv4, addr: &Addr) -> u64 {
        let difference = checksum::difference(h.dst, addr.0[3]);
        h.dst = addr.0[3];
        difference
    }

    #[inline(always)]
    fn update_checksum(h: &mut Ipv4, difference: u64) {
        h.checksum = checksum::apply(h.checksum, difference);
    }

    #[inline(always)]
    fn mapped(_: &Addr) -> bool {
        false
    }

    #[inline(always)]
    fn write<P: Packet>(p: &mut P, h: &Ipv4, src: bool, dst: bool) -> Option<()> {
        let [high, low] = h.checksum.to_ne_bytes();
        p.store(ETH + offset_of!(Ipv4, ttl), &u32::from_ne_bytes([h.ttl, h.proto, high, low]))?;
        if src {
            p.store(ETH + offset_of!(Ipv4, src), &h.src)?;
        }
        if dst {
            p.store(ETH + offset_of!(Ipv4, dst), &h.dst)?;
        }
        Some(())
    }

    #[inline(always)]
    fn answer(h: &Ipv4, proto: Proto, len: u16) -> Ipv4 {
        let mut answer = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_len: (20 + len).to_be(),
            id: 0,
            fragment: 0x4000u16.to_be(),
            ttl: 64,
            proto: proto.0,
            checksum: 0,
            src: h.dst,
            dst: h.src,
        };
        answer.checksum = !checksum::fold16(Self::sum(&answer));
        answer
    }

    #[inline(always)]
    fn quote(h: &Ipv4, _: Proto) -> Ipv4 {
        Ipv4 { version_ihl: 0x45, ..*h }
    }

    #[inline(always)]
    fn sum(h: &Ipv4) -> u64 {
        answer::sum(&bytemuck::cast::<Ipv4, [u32; 5]>(*h))
    }

    #[inline(always)]
    fn to_words(h: &Ipv4, words: &mut [u32; 10]) {
        [words[0], words[1], words[2], words[3], words[4]] = bytemuck::cast(*h);
    }

    #[inline(always)]
    fn from_words(words: &[u32; 10]) -> Ipv4 {
        let [a, b, c, d, e, ..] = *words;
        bytemuck::cast([a, b, c, d, e])
    }
}

impl Family for V6 {
    type Header = Ipv6;
    const V6: bool = true;
    const ICMP: Proto = Proto::ICMPV6;

    // All types below 128 are errors (RFC 4443, section 2.1). The defined ones are destination unreachable, packet too
    // big, time exceeded and parameter problem.
    #[inline(always)]
    fn control(kind: u8) -> Control {
        match kind {
            1..=4 => Control::Error,
            128 => Control::EchoRequest,
            129 => Control::EchoReply,
            _ => Control::Other,
        }
    }

    const ECHO_REPLY: u8 = 129;
    const UNREACHABLE: [u8; 2] = [1, 4];
    const TOO_BIG: [u8; 2] = [2, 0];
    const EXCEEDED: [u8; 2] = [3, 0];

    #[inline(always)]
    fn too_big(mtu: u32) -> u32 {
        mtu.to_be()
    }

    #[inline(always)]
    fn quoted_transport(h: &Ipv6) -> Option<(Proto, usize)> {
        is_tracked::<Self>(h.next_header).then_some((Proto(h.next_header), size_of::<Ipv6>()))
    }

    #[inline(always)]
    fn locate<P: Packet>(p: &P, h: &Ipv6) -> Option<Layer3> {
        let total = u16::from_be(h.payload_len) as usize + 40;
        if (h.version_flow & 0xf0u32) != 0x60 || total + ETH > p.frame_len() as usize {
            return None;
        }
        let mut found = Layer3 { l4: ETH + 40, proto: h.next_header, fragment: FragmentKind::Unfragmented, id: 0 };
        let mut i = 0;
        while i < EXTENSION_HEADERS {
            match found.proto {
                // Hop-by-hop options, routing, destination options (RFC 8200, section 4).
                0 | 43 | 60 => {
                    let [next, len] = p.load::<[u8; 2]>(found.l4)?;
                    found.proto = next;
                    found.l4 += (len as usize + 1) * 8;
                }
                44 => {
                    let [head, id]: [u32; 2] = p.load(found.l4)?;
                    let [next, _, high, low] = head.to_ne_bytes();
                    found.proto = next;
                    found.id = id;
                    found.l4 += 8;
                    // An atomic fragment (RFC 6946) is not fragmented.
                    found.fragment = FragmentKind::new(low & 1 != 0, high != 0 || low & 0xf8 != 0);
                    // Only the first fragment contains further headers.
                    if found.fragment == FragmentKind::Later {
                        break;
                    }
                }
                _ => break,
            }
            i += 1;
        }
        // A longer chain hides the protocol, on which decisions depend.
        let unfinished = matches!(found.proto, 0 | 43 | 44 | 60) && found.fragment != FragmentKind::Later;
        (!unfinished).then_some(found)
    }

    #[inline(always)]
    fn src(h: &Ipv6) -> Addr {
        Addr(h.src)
    }

    #[inline(always)]
    fn dst(h: &Ipv6) -> Addr {
        Addr(h.dst)
    }

    #[inline(always)]
    fn ttl(h: &Ipv6) -> u8 {
        h.hop_limit
    }

    #[inline(always)]
    fn set_ttl(h: &mut Ipv6, ttl: u8) {
        h.hop_limit = ttl;
    }

    #[inline(always)]
    fn dont_fragment(_: &Ipv6) -> bool {
        true
    }

    #[inline(always)]
    fn end(h: &Ipv6, frame_len: u32) -> u32 {
        let payload = u16::from_be(h.payload_len) as u32;
        if payload == 0 { frame_len } else { ETH as u32 + 40 + payload }
    }

    #[inline(always)]
    fn set_src(h: &mut Ipv6, addr: &Addr) -> u64 {
        let difference = checksum::difference4(h.src, addr.0);
        h.src = addr.0;
        difference
    }

    #[inline(always)]
    fn set_dst(h: &mut Ipv6, addr: &Addr) -> u64 {
        let difference = checksum::difference4(h.dst, addr.0);
        h.dst = addr.0;
        difference
    }

    #[inline(always)]
    fn update_checksum(_: &mut Ipv6, _: u64) {}

    #[inline(always)]
    fn mapped(addr: &Addr) -> bool {
        addr.is_v4()
    }

    #[inline(always)]
    fn write<P: Packet>(p: &mut P, h: &Ipv6, src: bool, dst: bool) -> Option<()> {
        p.store(ETH + offset_of!(Ipv6, hop_limit), &h.hop_limit)?;
        if src {
            p.store(ETH + offset_of!(Ipv6, src), &h.src)?;
        }
        if dst {
            p.store(ETH + offset_of!(Ipv6, dst), &h.dst)?;
        }
        Some(())
    }

    #[inline(always)]
    fn answer(h: &Ipv6, proto: Proto, len: u16) -> Ipv6 {
        Ipv6 {
            version_flow: 0x6000_0000u32.to_be(),
            payload_len: len.to_be(),
            next_header: proto.0,
            hop_limit: 64,
            src: h.dst,
            dst: h.src,
        }
    }

    #[inline(always)]
    fn quote(h: &Ipv6, proto: Proto) -> Ipv6 {
        Ipv6 { next_header: proto.0, ..*h }
    }

    #[inline(always)]
    fn sum(h: &Ipv6) -> u64 {
        answer::sum(&bytemuck::cast::<Ipv6, [u32; 10]>(*h))
    }

    #[inline(always)]
    fn to_words(h: &Ipv6, words: &mut [u32; 10]) {
        *words = bytemuck::cast(*h);
    }

    #[inline(always)]
    fn from_words(words: &[u32; 10]) -> Ipv6 {
        bytemuck::cast(*words)
    }
}

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
