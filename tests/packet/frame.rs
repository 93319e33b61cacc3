//! Frames built from scratch with independently computed checksums, so that expected packets do not depend on the
//! pipeline.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Content of the IP packet.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Flags as on the wire.
    Tcp { sport: u16, dport: u16, flags: u8, seq: u32, ack: u32 },
    /// `checksum`: whether the sender computed one.
    Udp { sport: u16, dport: u16, checksum: bool },
    /// SCTP packet with an INIT chunk.
    Sctp { sport: u16, dport: u16 },
    /// Echo request or reply.
    Echo { id: u16, reply: bool },
    /// Any other protocol: number and payload.
    Raw(u8, Vec<u8>),
}

/// Parts of a frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub smac: [u8; 6],
    pub dmac: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// Number of IPv4 option words (4 bytes), or of IPv6 destination option headers (8 bytes).
    pub extra: usize,
    /// IPv4 fragment field, or offset and flags of the IPv6 fragment header; `None` if not a fragment.
    pub fragment: Option<u16>,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;
pub const RST: u8 = 4;

impl Frame {
    pub fn tcp(src: (IpAddr, u16), dst: (IpAddr, u16), flags: u8) -> Self {
        Self::new(src.0, dst.0, Transport::Tcp { sport: src.1, dport: dst.1, flags, seq: 1000, ack: 2000 })
    }

    pub fn udp(src: (IpAddr, u16), dst: (IpAddr, u16)) -> Self {
        Self::new(src.0, dst.0, Transport::Udp { sport: src.1, dport: dst.1, checksum: true })
    }

    pub fn new(src: IpAddr, dst: IpAddr, transport: Transport) -> Self {
        Self {
            smac: [0; 6],
            dmac: [0; 6],
            src,
            dst,
            ttl: 64,
            extra: 0,
            fragment: None,
            transport,
            payload: b"the payload!".to_vec(),
        }
    }

    pub fn macs(mut self, smac: [u8; 6], dmac: [u8; 6]) -> Self {
        (self.smac, self.dmac) = (smac, dmac);
        self
    }

    /// The expected packet after translation.
    pub fn translated(&self, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Self {
        let mut frame = self.clone();
        (frame.src, frame.dst) = (src.0, dst.0);
        match &mut frame.transport {
            Transport::Tcp { sport, dport, .. } | Transport::Udp { sport, dport, .. } => {
                (*sport, *dport) = (src.1, dst.1);
            }
            Transport::Sctp { sport, dport } => (*sport, *dport) = (src.1, dst.1),
            Transport::Echo { id, .. } => *id = src.1 | dst.1,
            Transport::Raw(..) => {}
        }
        frame
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = [self.dmac, self.smac].concat();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.ipv4(&mut frame, src, dst),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.ipv6(&mut frame, src, dst),
            _ => panic!("mixed families"),
        }
        frame
    }

    fn ipv4(&self, frame: &mut Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr) {
        let segment = self.segment(&[src.octets(), dst.octets()].concat());
        let header = 20 + 4 * self.extra;
        frame.extend([8, 0]);
        let start = frame.len();
        frame.extend([0x40 | (header / 4) as u8, 0]);
        frame.extend(((header + segment.len()) as u16).to_be_bytes());
        frame.extend([0, 1]);
        frame.extend(self.fragment.unwrap_or(0x4000).to_be_bytes());
        frame.extend([self.ttl, self.protocol(), 0, 0]);
        frame.extend(src.octets());
        frame.extend(dst.octets());
        // No-operation option, one byte each.
        frame.extend(vec![1; 4 * self.extra]);
        let sum = checksum(&frame[start..]);
        frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(segment);
    }

    fn ipv6(&self, frame: &mut Vec<u8>, src: Ipv6Addr, dst: Ipv6Addr) {
        let segment = self.segment(&[src.octets(), dst.octets()].concat());
        let mut next = self.protocol();
        let mut chain = Vec::new();
        if let Some(fragment) = self.fragment {
            chain = [vec![next, 0], fragment.to_be_bytes().to_vec(), vec![0, 0, 0, 7], chain].concat();
            next = 44;
        }
        for _ in 0..self.extra {
            // Destination options with six bytes of padding.
            chain = [vec![next, 0, 1, 4, 0, 0, 0, 0], chain].concat();
            next = 60;
        }
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(((chain.len() + segment.len()) as u16).to_be_bytes());
        frame.extend([next, self.ttl]);
        frame.extend(src.octets());
        frame.extend(dst.octets());
        frame.extend(chain);
        frame.extend(segment);
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Sctp { .. } => 132,
            Transport::Echo { .. } => {
                if self.src.is_ipv4() {
                    1
                } else {
                    58
                }
            }
            Transport::Raw(protocol, _) => protocol,
        }
    }

    fn segment(&self, addresses: &[u8]) -> Vec<u8> {
        let (mut segment, at) = match &self.transport {
            Transport::Tcp { sport, dport, flags, seq, ack } => {
                let head = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
                let numbers = [seq.to_be_bytes(), ack.to_be_bytes()].concat();
                ([head, numbers, vec![0x50, *flags, 0xff, 0, 0, 0, 0, 0]].concat(), Some(16))
            }
            Transport::Udp { sport, dport, checksum } => {
                let len = (8 + self.payload.len()) as u16;
                let head = [sport.to_be_bytes(), dport.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
                (head, checksum.then_some(6))
            }
            Transport::Sctp { sport, dport } => {
                ([sport.to_be_bytes(), dport.to_be_bytes(), [1, 2], [3, 4], [0, 0], [0, 0]].concat(), None)
            }
            Transport::Echo { id, reply } => {
                let kind = match (self.src.is_ipv4(), reply) {
                    (true, false) => 8,
                    (true, true) => 0,
                    (false, false) => 128,
                    (false, true) => 129,
                };
                ([[kind, 0], [0, 0], id.to_be_bytes(), [0, 1]].concat(), Some(2))
            }
            Transport::Raw(_, bytes) => (bytes.clone(), None),
        };
        if !matches!(self.transport, Transport::Raw(..)) {
            segment.extend(&self.payload);
        }
        if let Some(at) = at {
            let length = (segment.len() as u16).to_be_bytes();
            let pseudo = match self.transport {
                // ICMP for IPv4 has no pseudo header.
                Transport::Echo { .. } if self.src.is_ipv4() => vec![],
                _ => [addresses, &[0, self.protocol()], &length].concat(),
            };
            let sum = match checksum(&[pseudo, segment.clone()].concat()) {
                0 if at == 6 => 0xffff,
                sum => sum,
            };
            segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        if matches!(self.transport, Transport::Sctp { .. }) {
            let crc = crc32c(&segment);
            segment[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        segment
    }
}

/// Internet checksum (RFC 1071).
pub fn checksum(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC-32C (RFC 9260, appendix A).
pub fn crc32c(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}
