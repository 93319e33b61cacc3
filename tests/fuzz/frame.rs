//! Frames built from parts, with correct checksums, so that an incorrect checksum in the output is the pipeline's
//! fault.

use std::net::IpAddr;

/// Content of the IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
    },
    /// `checksum`: whether the sender has computed one.
    Udp {
        sport: u16,
        dport: u16,
        checksum: bool,
    },
    Sctp {
        sport: u16,
        dport: u16,
    },
    Echo {
        request: bool,
        identifier: u16,
    },
    /// ICMP error or other control message, with its quotation.
    Control {
        kind: u8,
        code: u8,
        rest: u32,
        quoted: Vec<u8>,
    },
    /// Any other protocol.
    Other(u8),
}

/// Fragment of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// In units of 8 bytes. Only the first fragment (offset 0) has the transport header.
    pub offset: u16,
    pub more: bool,
    pub id: u32,
}

#[derive(Clone, Debug)]
pub struct Frame {
    pub macs: [[u8; 6]; 2],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// Number of IPv4 option words (4 bytes), or of IPv6 destination option headers (8 bytes).
    pub extra: usize,
    pub fragment: Option<Fragment>,
    /// Don't-fragment bit of IPv4.
    pub whole_only: bool,
    pub transport: Transport,
    pub payload: usize,
    /// Number of padding bytes behind the packet, as Ethernet adds to short frames.
    pub trailer: usize,
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

impl Frame {
    pub fn new(src: IpAddr, dst: IpAddr, transport: Transport) -> Self {
        Self {
            macs: [[2; 6], [2; 6]],
            src,
            dst,
            ttl: 64,
            extra: 0,
            fragment: None,
            whole_only: true,
            transport,
            payload: 12,
            trailer: 0,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let ip = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.ipv4(src.octets(), dst.octets()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.ipv6(src.octets(), dst.octets()),
            _ => panic!("a packet of two families"),
        };
        let ethertype = if self.src.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
        [&self.macs.concat()[..], &ethertype, &ip, &vec![0xee; self.trailer]].concat()
    }

    fn ipv4(&self, src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
        let (protocol, segment) = self.segment(&[src, dst].concat());
        let header = 20 + 4 * self.extra;
        let (mut fragment, mut id) = (if self.whole_only { 0x4000 } else { 0 }, 1);
        if let Some(f) = self.fragment {
            fragment = if f.more { 0x2000 } else { 0 } | (f.offset & 0x1fff);
            id = f.id as u16;
        }
        let mut packet = vec![0x40 | (header / 4) as u8, 0];
        packet.extend(((header + segment.len()) as u16).to_be_bytes());
        packet.extend([id.to_be_bytes(), fragment.to_be_bytes(), [self.ttl, protocol], [0; 2]].concat());
        packet.extend([src, dst].concat());
        // No-operation option, one byte each.
        packet.extend(vec![1; 4 * self.extra]);
        let sum = !sum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        [packet, segment].concat()
    }

    fn ipv6(&self, src: [u8; 16], dst: [u8; 16]) -> Vec<u8> {
        let (mut next, segment) = self.segment(&[src, dst].concat());
        let mut chain = Vec::new();
        if let Some(f) = self.fragment {
            let place = f.offset << 3 | u16::from(f.more);
            chain = [&[next, 0][..], &place.to_be_bytes(), &f.id.to_be_bytes()].concat();
            next = 44;
        }
        for _ in 0..self.extra {
            // Six bytes of padding.
            chain = [vec![next, 0, 1, 4, 0, 0, 0, 0], chain].concat();
            next = 60;
        }
        let len = ((chain.len() + segment.len()) as u16).to_be_bytes();
        [&[0x60, 0, 0, 0][..], &len, &[next, self.ttl], &src, &dst, &chain, &segment].concat()
    }

    /// Protocol number, and the bytes behind the IP header.
    fn segment(&self, addresses: &[u8]) -> (u8, Vec<u8>) {
        let v4 = self.src.is_ipv4();
        let payload = vec![b'x'; self.payload];
        let ports = |sport: u16, dport: u16| [sport.to_be_bytes(), dport.to_be_bytes()].concat();
        let icmp = |head: [u8; 4], rest: &[u8]| [&head[..], rest].concat();
        let (protocol, mut segment, checksum) = match &self.transport {
            Transport::Tcp { sport, dport, flags } => {
                let numbers = [0, 0, 4, 0, 0, 0, 8, 0, 0x50, *flags, 0xff, 0, 0, 0, 0, 0];
                (6, [&ports(*sport, *dport)[..], &numbers].concat(), Some(16))
            }
            Transport::Udp { sport, dport, checksum } => {
                let len = ((8 + self.payload) as u16).to_be_bytes();
                (17, [&ports(*sport, *dport)[..], &len, &[0; 2]].concat(), checksum.then_some(6))
            }
            Transport::Sctp { sport, dport } => (132, [&ports(*sport, *dport)[..], &[7; 8]].concat(), None),
            Transport::Echo { request, identifier } => {
                let kind = if v4 { [0, 8] } else { [129, 128] }[usize::from(*request)];
                let rest = [identifier.to_be_bytes(), [0, 1]].concat();
                (if v4 { 1 } else { 58 }, icmp([kind, 0, 0, 0], &rest), Some(2))
            }
            Transport::Control { kind, code, rest, quoted } => {
                let rest = [&rest.to_be_bytes()[..], quoted].concat();
                (if v4 { 1 } else { 58 }, icmp([*kind, *code, 0, 0], &rest), Some(2))
            }
            Transport::Other(protocol) => (*protocol, Vec::new(), None),
        };
        if self.fragment.is_some_and(|f| f.offset != 0) {
            return (protocol, payload);
        }
        if !matches!(self.transport, Transport::Control { .. }) {
            segment.extend(payload);
        }
        if let Some(at) = checksum {
            let mut covered = segment.clone();
            if protocol != 1 {
                covered = [addresses, &[0, protocol], &(segment.len() as u16).to_be_bytes(), &segment].concat();
            }
            let sum = match !sum(&covered) {
                0 if protocol == 17 => 0xffff,
                sum => sum,
            };
            segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        (protocol, segment)
    }
}

/// One's complement sum of 16-bit words (RFC 1071), with a single representation of zero.
pub fn sum(data: &[u8]) -> u16 {
    let words = data.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)));
    (words.sum::<u64>() % 0xffff) as u16
}

/// CRC-32C, bit by bit (RFC 9260, appendix A).
pub fn crc32c(data: &[u8]) -> u32 {
    let next = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !data.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), next))
}
