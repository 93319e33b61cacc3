//! Packets to be traced, built from a description.

use std::net::IpAddr;

use bytemuck::bytes_of;
use podnet_common::addr::{Addr, Mac, Proto};
use podnet_common::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Icmp, Ipv4, Ipv6, Sctp, Tcp, Udp};

use super::fields::{DONT_FRAGMENT, FRAGMENT_HEADER, Fragment, IcmpType, MORE_FRAGMENTS};

/// A TCP header's length field, for a header without options.
const TCP_WORDS: u8 = 5 << 4;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::trace::{fields::parse_fragment, summary::describe};

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
}
