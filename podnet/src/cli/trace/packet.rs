//! Packets to be traced: built from a description, and described in words.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytemuck::{Pod, bytes_of, pod_read_unaligned};
use podnet_common::addr::{Addr, Mac, Port, Proto};
use podnet_common::packet::{
    ETH, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Icmp, Ipv4, Ipv6, Sctp, Tcp, Udp,
};

/// IPv6 fragment header (RFC 8200, section 4.5).
const FRAGMENT_HEADER: u8 = 44;
/// IPv4 flags: don't fragment, more fragments.
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
/// A TCP header's length field, for a header without options.
const TCP_WORDS: u8 = 5 << 4;
/// PSH and URG, which the pipeline ignores.
const PSH: u8 = 8;
const URG: u8 = 32;

/// A fragment of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    /// Offset in bytes, a multiple of 8.
    pub(super) offset: u16,
    /// More fragments follow.
    pub(super) more: bool,
}

/// Type of an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IcmpType {
    pub(super) kind: u8,
    pub(super) code: u8,
    /// Identifier of an echo, otherwise the upper half of the rest of the header.
    pub(super) identifier: u16,
}

/// Description of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) proto: Proto,
    pub(super) sport: u16,
    pub(super) dport: u16,
    pub(super) tcp_flags: u8,
    pub(super) icmp: IcmpType,
    pub(super) ttl: u8,
    /// Length of the IP packet in bytes; `None`: headers only.
    pub(super) size: Option<u16>,
    /// IPv4 only.
    pub(super) dont_fragment: bool,
    pub(super) fragment: Option<Fragment>,
}

impl Description {
    /// The frame, with these MACs: destination and source.
    pub(super) fn frame(&self, [dst, src]: [Mac; 2]) -> Vec<u8> {
        let ethertype = if self.src.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let mut frame = bytes_of(&Ethernet { dst, src, ethertype }).to_vec();
        let beginning = self.fragment.is_none_or(|fragment| fragment.offset == 0);
        let headers = if self.src.is_ipv4() {
            size_of::<Ipv4>()
        } else {
            size_of::<Ipv6>() + if self.fragment.is_some() { 8 } else { 0 }
        };
        let mut content = if beginning { self.transport() } else { Vec::new() };
        let wanted = self.size.map_or(content.len(), |size| usize::from(size).saturating_sub(headers));
        content.resize(content.len().max(wanted), 0);
        if beginning {
            self.finish(&mut content);
        }
        frame.extend(self.network(content.len()));
        frame.extend(content);
        frame
    }

    /// The transport header, without checksum and length.
    fn transport(&self) -> Vec<u8> {
        let (sport, dport) = (self.sport.to_be(), self.dport.to_be());
        match self.proto {
            Proto::TCP => {
                let tcp = Tcp {
                    sport,
                    dport,
                    seq: 1u32.to_be(),
                    offset: TCP_WORDS,
                    flags: self.tcp_flags,
                    window: u16::MAX,
                    ..Tcp::default()
                };
                bytes_of(&tcp).to_vec()
            }
            Proto::UDP => bytes_of(&Udp { sport, dport, ..Udp::default() }).to_vec(),
            Proto::SCTP => {
                // With the chunk that opens an association: INIT (RFC 9260, section 3.3.2).
                let chunk = [1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
                [bytes_of(&Sctp { sport, dport, ..Sctp::default() }), chunk.as_slice()].concat()
            }
            Proto::ICMP | Proto::ICMPV6 => {
                let IcmpType { kind, code, identifier } = self.icmp;
                let [a, b] = identifier.to_be_bytes();
                bytes_of(&Icmp { kind, code, checksum: 0, rest: u32::from_ne_bytes([a, b, 0, 1]) }).to_vec()
            }
            _ => Vec::new(),
        }
    }

    /// Sets checksum and length.
    fn finish(&self, content: &mut [u8]) {
        let len = content.len();
        let at = match self.proto {
            Proto::TCP => Tcp::CHECKSUM,
            Proto::UDP => {
                content[4..6].copy_from_slice(&(len as u16).to_be_bytes());
                Udp::CHECKSUM
            }
            Proto::SCTP => {
                let checksum = crc32c(content).to_le_bytes();
                content[Sctp::CHECKSUM..Sctp::CHECKSUM + 4].copy_from_slice(&checksum);
                return;
            }
            Proto::ICMP | Proto::ICMPV6 => Icmp::CHECKSUM,
            _ => return,
        };
        // ICMP's checksum covers no addresses in IPv4.
        let pseudo = if self.proto == Proto::ICMP {
            Vec::new()
        } else {
            [octets(self.src), octets(self.dst), vec![0, self.proto.0], (len as u16).to_be_bytes().to_vec()].concat()
        };
        let checksum = match (checksum(&pseudo, content), self.proto) {
            (0, Proto::UDP) => u16::MAX,
            (checksum, _) => checksum,
        };
        content[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    /// The IP header for `content` bytes.
    fn network(&self, content: usize) -> Vec<u8> {
        /// Identification of all fragments of a packet; an arbitrary value.
        const ID: u16 = 0x1d1d;
        let fragment = self.fragment.unwrap_or(Fragment { offset: 0, more: false });
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut word = fragment.offset / 8;
                word |= if fragment.more { MORE_FRAGMENTS } else { 0 };
                word |= if self.dont_fragment { DONT_FRAGMENT } else { 0 };
                let mut header = Ipv4 {
                    version_ihl: 0x45,
                    total_len: ((size_of::<Ipv4>() + content) as u16).to_be(),
                    id: ID.to_be(),
                    fragment: word.to_be(),
                    ttl: self.ttl,
                    proto: self.proto.0,
                    src: u32::from_ne_bytes(src.octets()),
                    dst: u32::from_ne_bytes(dst.octets()),
                    ..Ipv4::default()
                };
                header.checksum = checksum(&[], bytes_of(&header)).to_be();
                bytes_of(&header).to_vec()
            }
            _ => {
                let (extension, next_header) = match self.fragment {
                    None => (Vec::new(), self.proto.0),
                    Some(_) => {
                        let word = fragment.offset & !7 | u16::from(fragment.more);
                        let [a, b] = word.to_be_bytes();
                        let [c, d] = ID.to_be_bytes();
                        (vec![self.proto.0, 0, a, b, 0, 0, c, d], FRAGMENT_HEADER)
                    }
                };
                let header = Ipv6 {
                    version_flow: 0x6000_0000u32.to_be(),
                    payload_len: ((extension.len() + content) as u16).to_be(),
                    next_header,
                    hop_limit: self.ttl,
                    src: Addr::from(self.src).0,
                    dst: Addr::from(self.dst).0,
                };
                [bytes_of(&header), &extension].concat()
            }
        }
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// Internet checksum (RFC 1071) of two parts, the first of an even length, in host byte order.
fn checksum(first: &[u8], second: &[u8]) -> u16 {
    let words = |part: &[u8]| -> u32 {
        let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]));
        part.chunks(2).map(word).sum()
    };
    let mut sum = words(first) + words(second);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC-32C (RFC 9260, appendix A), bit by bit: it is needed once per packet.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 })
    })
}

/// Parsed headers of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) proto: Proto,
    /// Source and destination, if the protocol has ports and the frame contains them.
    pub(super) ports: Option<(u16, u16)>,
    pub(super) tcp_flags: Option<u8>,
    pub(super) icmp: Option<(u8, u8, u16)>,
    pub(super) ttl: u8,
    /// Length of the IP packet in bytes.
    pub(super) len: usize,
    /// Must not be fragmented: IPv6, or IPv4 with don't-fragment bit.
    pub(super) whole_only: bool,
    pub(super) fragment: Option<Fragment>,
}

impl Summary {
    /// Parses a frame; `None` if it isn't a valid IP packet.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let ethernet: Ethernet = read(frame, 0)?;
        let mut summary = match ethernet.ethertype {
            ETHERTYPE_IPV4 => {
                let ip: Ipv4 = read(frame, ETH)?;
                let word = u16::from_be(ip.fragment);
                let fragment = Fragment { offset: (word & 0x1fff) * 8, more: word & MORE_FRAGMENTS != 0 };
                Self {
                    src: Ipv4Addr::from(ip.src.to_ne_bytes()).into(),
                    dst: Ipv4Addr::from(ip.dst.to_ne_bytes()).into(),
                    proto: Proto(ip.proto),
                    ports: None,
                    tcp_flags: None,
                    icmp: None,
                    ttl: ip.ttl,
                    len: usize::from(u16::from_be(ip.total_len)),
                    whole_only: word & DONT_FRAGMENT != 0,
                    fragment: (fragment.more || fragment.offset != 0).then_some(fragment),
                }
                .at(frame, ETH + usize::from(ip.version_ihl & 0xf) * 4)
            }
            ETHERTYPE_IPV6 => {
                let ip: Ipv6 = read(frame, ETH)?;
                let (mut next, mut at, mut fragment) = (ip.next_header, ETH + size_of::<Ipv6>(), None);
                // Hop-by-hop options, routing, destination options and fragment headers.
                while let (0 | 43 | 60 | FRAGMENT_HEADER, Some([after, len])) = (next, read::<[u8; 2]>(frame, at)) {
                    if next == FRAGMENT_HEADER {
                        let word = u16::from_be_bytes(read(frame, at + 2)?);
                        fragment = Some(Fragment { offset: word & !7, more: word & 1 != 0 });
                    }
                    at += if next == FRAGMENT_HEADER { 8 } else { (usize::from(len) + 1) * 8 };
                    next = after;
                }
                Self {
                    src: Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(ip.src)).into(),
                    dst: Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(ip.dst)).into(),
                    proto: Proto(next),
                    ports: None,
                    tcp_flags: None,
                    icmp: None,
                    ttl: ip.hop_limit,
                    len: size_of::<Ipv6>() + usize::from(u16::from_be(ip.payload_len)),
                    whole_only: true,
                    fragment,
                }
                .at(frame, at)
            }
            _ => return None,
        };
        summary.len = summary.len.min(frame.len() - ETH);
        Some(summary)
    }

    /// Parses the transport header.
    fn at(mut self, frame: &[u8], at: usize) -> Self {
        if self.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return self;
        }
        match self.proto {
            Proto::TCP | Proto::UDP | Proto::SCTP => {
                let ports: Option<[u16; 2]> = read(frame, at);
                self.ports = ports.map(|[sport, dport]| (u16::from_be(sport), u16::from_be(dport)));
                self.tcp_flags = read::<Tcp>(frame, at).filter(|_| self.proto == Proto::TCP).map(|tcp| tcp.flags);
            }
            Proto::ICMP | Proto::ICMPV6 => {
                self.icmp = read::<Icmp>(frame, at).map(|icmp| {
                    let [a, b, ..] = icmp.rest.to_ne_bytes();
                    (icmp.kind, icmp.code, u16::from_be_bytes([a, b]))
                });
            }
            _ => {}
        }
        self
    }

    /// Source address and port.
    pub(super) fn sender(&self) -> String {
        self.end(self.src, self.ports.map(|(sport, _)| sport))
    }

    /// Destination address and port.
    pub(super) fn receiver(&self) -> String {
        self.end(self.dst, self.ports.map(|(_, dport)| dport))
    }

    fn end(&self, addr: IpAddr, port: Option<u16>) -> String {
        port.map_or_else(|| addr.to_string(), |port| SocketAddr::new(addr, port).to_string())
    }

    /// The destination port, as in the tables.
    pub(super) fn dport(&self) -> Port {
        Port::new(self.ports.map_or(0, |(_, dport)| dport))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", crate::cli::output::protocol(self.proto))?;
        if let Some(flags) = self.tcp_flags {
            write!(f, " {}", flag_names(flags))?;
        }
        if let Some((kind, code, identifier)) = self.icmp {
            match icmp_name(self.proto, kind) {
                Some(name) if name.starts_with("echo") => write!(f, " {name} id {identifier}")?,
                Some(name) => write!(f, " {name} ({kind}/{code})")?,
                None => write!(f, " type {kind}/{code}")?,
            }
        }
        write!(f, " {} → {}, ttl {}, {} bytes", self.sender(), self.receiver(), self.ttl, self.len)?;
        if let Some(Fragment { offset, more }) = self.fragment {
            write!(f, ", fragment at {offset}{}", if more { " and more follow" } else { "" })?;
        }
        Ok(())
    }
}

/// Describes a frame in words.
pub(super) fn describe(frame: &[u8]) -> String {
    match (Summary::of(frame), read::<Ethernet>(frame, 0)) {
        (Some(summary), _) => summary.to_string(),
        (None, Some(ethernet)) if ethernet.ethertype == ETHERTYPE_ARP => format!("ARP, {} bytes", frame.len()),
        (None, Some(ethernet)) => {
            format!("a frame of type {:#06x}, {} bytes", u16::from_be(ethernet.ethertype), frame.len())
        }
        (None, None) => format!("no frame, {} bytes", frame.len()),
    }
}

/// Names of TCP flags.
const FLAGS: [(u8, &str); 6] =
    [(Tcp::SYN, "SYN"), (Tcp::ACK, "ACK"), (Tcp::FIN, "FIN"), (Tcp::RST, "RST"), (PSH, "PSH"), (URG, "URG")];

fn flag_names(flags: u8) -> String {
    let names: Vec<_> = FLAGS.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect();
    if names.is_empty() { "without flags".to_owned() } else { names.join(",") }
}

/// Parses comma-separated names of TCP flags.
pub(super) fn parse_flags(text: &str) -> Result<u8, String> {
    let mut flags = 0;
    for word in text.split(',').filter(|word| !word.eq_ignore_ascii_case("none")) {
        let flag = FLAGS.iter().find(|(_, name)| name.eq_ignore_ascii_case(word));
        flags |= flag.ok_or_else(|| format!("{word} is not a TCP flag: use syn, ack, fin, rst, psh, urg or none"))?.0;
    }
    Ok(flags)
}

/// Names of ICMP types, for IPv4 and IPv6.
const ICMP_NAMES: [(&str, u8, u8); 6] = [
    ("echo-request", 8, 128),
    ("echo-reply", 0, 129),
    ("unreachable", 3, 1),
    ("time-exceeded", 11, 3),
    ("parameter-problem", 12, 4),
    ("too-big", 3, 2),
];

fn icmp_name(proto: Proto, kind: u8) -> Option<&'static str> {
    let name = ICMP_NAMES.iter().find(|(_, v4, v6)| kind == if proto == Proto::ICMP { *v4 } else { *v6 });
    name.map(|(name, ..)| *name)
}

/// Parses an ICMP type: a name or number, optionally with a code.
pub(super) fn parse_icmp(text: &str, v6: bool) -> Result<IcmpType, String> {
    let (kind, code) = text.split_once(':').unwrap_or((text, "0"));
    let code = code.parse().map_err(|_| format!("{code} is not an ICMP code"))?;
    if let Some((_, four, six)) = ICMP_NAMES.iter().find(|(name, ..)| *name == kind) {
        // In IPv4, "too big" is a code of destination unreachable (RFC 1191).
        let code = if kind == "too-big" && !v6 { 4 } else { code };
        return Ok(IcmpType { kind: if v6 { *six } else { *four }, code, identifier: 0 });
    }
    let names: Vec<_> = ICMP_NAMES.iter().map(|(name, ..)| *name).collect();
    let kind = kind.parse().map_err(|_| format!("{kind} is not an ICMP type: use a number, {}", names.join(", ")))?;
    Ok(IcmpType { kind, code, identifier: 0 })
}

/// Parses the position of a fragment: `first`, or an offset in bytes, with `+` if more fragments follow.
pub(super) fn parse_fragment(text: &str) -> Result<Fragment, String> {
    if text == "first" {
        return Ok(Fragment { offset: 0, more: true });
    }
    let (number, more) = text.strip_suffix('+').map_or((text, false), |number| (number, true));
    match number.parse() {
        Ok(offset) if offset % 8 == 0 && offset <= 0xfff8 => Ok(Fragment { offset, more }),
        _ => Err(format!("{text} is not a fragment offset: use first, or a multiple of 8 in bytes")),
    }
}

fn read<T: Pod>(frame: &[u8], at: usize) -> Option<T> {
    Some(pod_read_unaligned(frame.get(at..at + size_of::<T>())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn description(v6: bool, proto: Proto) -> Description {
        let a = |four: &str, six: &str| if v6 { six } else { four }.parse().unwrap();
        Description {
            src: a("10.244.1.9", "fd00:244:1::9"),
            dst: a("10.96.0.10", "fd00:96::10"),
            proto,
            sport: 40_000,
            dport: 80,
            tcp_flags: Tcp::SYN,
            icmp: IcmpType { kind: if v6 { 128 } else { 8 }, code: 0, identifier: 7 },
            ttl: 64,
            size: None,
            dont_fragment: false,
            fragment: None,
        }
    }

    fn summary(description: &Description) -> String {
        describe(&description.frame([Mac::default(); 2]))
    }

    #[test]
    fn frames_match_their_descriptions() {
        let (tcp, udp, sctp) = (Proto::TCP, Proto::UDP, Proto::SCTP);
        assert_eq!(summary(&description(false, tcp)), "TCP SYN 10.244.1.9:40000 → 10.96.0.10:80, ttl 64, 40 bytes");
        let udp = Description { size: Some(1500), ..description(true, udp) };
        assert_eq!(summary(&udp), "UDP [fd00:244:1::9]:40000 → [fd00:96::10]:80, ttl 64, 1500 bytes");
        assert_eq!(
            summary(&description(true, sctp)),
            "SCTP [fd00:244:1::9]:40000 → [fd00:96::10]:80, ttl 64, 72 bytes"
        );
        let ping = description(false, Proto::ICMP);
        assert_eq!(summary(&ping), "ICMP echo-request id 7 10.244.1.9 → 10.96.0.10, ttl 64, 28 bytes");
        let ping = description(true, Proto::ICMPV6);
        assert_eq!(summary(&ping), "ICMPv6 echo-request id 7 fd00:244:1::9 → fd00:96::10, ttl 64, 48 bytes");
        for v6 in [false, true] {
            let first = Description { fragment: Some(parse_fragment("first").unwrap()), ..description(v6, Proto::UDP) };
            assert!(summary(&first).ends_with("fragment at 0 and more follow"), "{}", summary(&first));
            let later = Description { fragment: Some(parse_fragment("1480").unwrap()), size: Some(100), ..first };
            assert!(summary(&later).ends_with("100 bytes, fragment at 1480"), "{}", summary(&later));
        }
    }

    #[test]
    fn checksums_are_correct() {
        for v6 in [false, true] {
            let icmp = if v6 { Proto::ICMPV6 } else { Proto::ICMP };
            for proto in [Proto::TCP, Proto::UDP, icmp] {
                let frame = Description { size: Some(77), ..description(v6, proto) }.frame([Mac::default(); 2]);
                let (addresses, l4) = if v6 { (&frame[22..54], 54) } else { (&frame[26..34], 34) };
                let len = (frame.len() - l4) as u16;
                let pseudo = [addresses, &[0, proto.0], &len.to_be_bytes()].concat();
                let covered = if proto == Proto::ICMP { &[] } else { pseudo.as_slice() };
                assert_eq!(checksum(covered, &frame[l4..]), 0, "{proto:?}");
                if !v6 {
                    assert_eq!(checksum(&[], &frame[14..34]), 0, "the header's");
                }
            }
        }
        // The check value of this polynomial.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn arguments_are_parsed_or_errors_explain() {
        assert_eq!(parse_flags("syn,ACK"), Ok(Tcp::SYN | Tcp::ACK));
        assert_eq!(parse_flags("none"), Ok(0));
        assert!(parse_flags("synack").unwrap_err().contains("synack"));
        assert_eq!(parse_icmp("too-big", false), Ok(IcmpType { kind: 3, code: 4, identifier: 0 }));
        assert_eq!(parse_icmp("too-big", true), Ok(IcmpType { kind: 2, code: 0, identifier: 0 }));
        assert_eq!(parse_icmp("3:1", false), Ok(IcmpType { kind: 3, code: 1, identifier: 0 }));
        assert!(parse_icmp("ping", false).unwrap_err().contains("echo-request"));
        assert_eq!(parse_fragment("8+"), Ok(Fragment { offset: 8, more: true }));
        assert!(parse_fragment("7").is_err() && parse_fragment("last").is_err());
    }
}
