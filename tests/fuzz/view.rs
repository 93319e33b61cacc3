//! An independent frame parser, so that the checks do not depend on the pipeline.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podnet_common::{
    addr::{Addr, Port, Proto},
    layout::Tuple,
};

use crate::frame::{crc32c, sum};

/// Headers of a packet.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub frame: &'a [u8],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// Offset of the transport header, or of the payload of a later fragment.
    pub l4: usize,
    /// Offset of the packet's end in its frame.
    pub end: usize,
    pub protocol: u8,
    pub fragment: Option<Piece>,
}

/// Fragment fields of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Not the first fragment.
    pub later: bool,
    /// As on the wire.
    pub id: u32,
}

/// Number of IPv6 extension headers that the pipeline follows.
const EXTENSION_HEADERS: usize = 6;

impl<'a> View<'a> {
    /// Parses a frame; `None` if it is not an IP packet, or its headers are truncated.
    pub fn of(frame: &'a [u8]) -> Option<Self> {
        let view = match frame.get(12..14)? {
            [8, 0] => Self::ipv4(frame, 14, frame.len())?,
            [0x86, 0xdd] => Self::ipv6(frame, frame.len())?,
            _ => return None,
        };
        let least = match view.protocol {
            _ if view.later() => 0,
            6 => 20,
            17 => 8,
            132 if view.fragment.is_none() => 12,
            _ if view.icmp() => 8,
            _ => 0,
        };
        (view.l4 + least <= view.end).then_some(view)
    }

    /// IPv4 packet that begins at `at`. `limit`: upper bound of its end.
    fn ipv4(frame: &'a [u8], at: usize, limit: usize) -> Option<Self> {
        let h: [u8; 20] = frame.get(at..at + 20)?.try_into().ok()?;
        let header = usize::from(h[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([h[2], h[3]]));
        let end = if total == 0 { limit } else { at + total };
        if h[0] >> 4 != 4 || header < 20 || end < at + header || end > limit {
            return None;
        }
        let field = u16::from_be_bytes([h[6], h[7]]);
        let id = u32::from(u16::from_ne_bytes([h[4], h[5]]));
        let piece = Piece { later: field & 0x1fff != 0, id };
        Some(Self {
            frame,
            src: Ipv4Addr::new(h[12], h[13], h[14], h[15]).into(),
            dst: Ipv4Addr::new(h[16], h[17], h[18], h[19]).into(),
            ttl: h[8],
            l4: at + header,
            end,
            protocol: h[9],
            fragment: (field & 0x3fff != 0).then_some(piece),
        })
    }

    fn ipv6(frame: &'a [u8], limit: usize) -> Option<Self> {
        let h: [u8; 40] = frame.get(14..54)?.try_into().ok()?;
        let payload = usize::from(u16::from_be_bytes([h[4], h[5]]));
        let end = if payload == 0 { limit } else { 54 + payload };
        if h[0] >> 4 != 6 || end > limit {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 16] = h[at..at + 16].try_into().expect("16 bytes");
            IpAddr::from(Ipv6Addr::from(octets))
        };
        let (mut l4, mut protocol, mut fragment) = (54, h[6], None);
        for _ in 0..EXTENSION_HEADERS {
            match protocol {
                0 | 43 | 60 => {
                    let [next, len]: [u8; 2] = frame.get(l4..l4 + 2)?.try_into().ok()?;
                    (protocol, l4) = (next, l4 + (usize::from(len) + 1) * 8);
                }
                44 => {
                    let f: [u8; 8] = frame.get(l4..l4 + 8)?.try_into().ok()?;
                    (protocol, l4) = (f[0], l4 + 8);
                    let later = f[2] != 0 || f[3] & 0xf8 != 0;
                    let piece = Piece { later, id: u32::from_ne_bytes([f[4], f[5], f[6], f[7]]) };
                    // Atomic fragments are treated as whole packets (RFC 6946).
                    fragment = (later || f[3] & 1 != 0).then_some(piece);
                    if later {
                        break;
                    }
                }
                _ => break,
            }
        }
        let later = fragment.as_ref().is_some_and(|piece: &Piece| piece.later);
        if matches!(protocol, 0 | 43 | 44 | 60) && !later {
            return None;
        }
        Some(Self { frame, src: address(8), dst: address(24), ttl: h[7], l4, end, protocol, fragment })
    }

    pub fn v6(&self) -> bool {
        self.src.is_ipv6()
    }

    pub fn later(&self) -> bool {
        self.fragment.is_some_and(|piece| piece.later)
    }

    fn icmp(&self) -> bool {
        self.protocol == if self.v6() { 58 } else { 1 }
    }

    /// Whether this is an ICMP error.
    pub fn error(&self) -> bool {
        let kind = self.frame[self.l4..].first().copied().unwrap_or(0);
        let errors: &[u8] = if self.v6() { &[1, 2, 3, 4] } else { &[3, 11, 12] };
        self.icmp() && !self.later() && errors.contains(&kind)
    }

    /// Whether this is an echo request (`true`) or reply (`false`).
    pub fn echo(&self) -> Option<bool> {
        if !self.icmp() || self.later() {
            return None;
        }
        match (self.v6(), self.frame[self.l4]) {
            (false, 8) | (true, 128) => Some(true),
            (false, 0) | (true, 129) => Some(false),
            _ => None,
        }
    }

    pub fn tcp_flags(&self) -> Option<u8> {
        (self.protocol == 6 && !self.later()).then(|| self.frame[self.l4 + 13])
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.frame[at], self.frame[at + 1]])
    }

    /// Ports of the tuple; later fragments and fragments of SCTP have none.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match (self.protocol, self.fragment) {
            (_, Some(Piece { later: true, .. })) | (132, Some(_)) => None,
            (6 | 17 | 132, _) => Some((self.word(self.l4), self.word(self.l4 + 2))),
            _ => self.echo().map(|request| {
                let identifier = self.word(self.l4 + 4);
                if request { (identifier, 0) } else { (0, identifier) }
            }),
        }
    }

    /// The key of the packet's flow.
    pub fn tuple(&self, ports: (u16, u16)) -> Tuple {
        tuple(self.src, self.dst, ports, self.protocol)
    }

    /// Offset of the transport checksum, if it is an Internet checksum.
    pub fn checksum_at(&self) -> Option<usize> {
        if self.later() {
            return None;
        }
        match self.protocol {
            6 => Some(self.l4 + 16),
            17 => Some(self.l4 + 6),
            _ if self.icmp() => Some(self.l4 + 2),
            _ => None,
        }
    }

    /// Invariant under translation: zero if all checksums are correct, and unchanged if not. `None`: the sender has
    /// computed no checksum.
    pub fn residue(&self) -> Option<u32> {
        let segment = &self.frame[self.l4..self.end];
        if self.protocol == 132 {
            let (Some(field), false) = (segment.get(8..12), self.later()) else { return Some(0) };
            let field = u32::from_le_bytes(field.try_into().expect("4 bytes"));
            return Some(crc32c(&[&segment[..8], &[0; 4], &segment[12..]].concat()) ^ field);
        }
        let Some(at) = self.checksum_at() else { return Some(0) };
        if self.protocol == 17 && self.word(at) == 0 {
            return None;
        }
        // A fragment does not contain the length of its datagram.
        let len = if self.fragment.is_some() { 0 } else { segment.len() as u16 };
        let pseudo = match (self.src, self.dst) {
            (IpAddr::V4(_), _) if self.icmp() => Vec::new(),
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            _ => unreachable!("a packet of two families"),
        };
        let rest = if pseudo.is_empty() { Vec::new() } else { [&[0, self.protocol], &len.to_be_bytes()[..]].concat() };
        Some(u32::from(sum(&[&pseudo, &rest, segment].concat())))
    }

    /// Same, for the IPv4 header.
    pub fn header_residue(&self) -> u16 {
        if self.v6() { 0 } else { sum(&self.frame[14..self.l4]) }
    }

    /// The quotation of an ICMP error, as far as it may be a packet of a service.
    pub fn quoted(&self) -> Option<Quoted> {
        let at = self.l4 + 8;
        let (src, dst, protocol, l4) = if self.v6() {
            let h = self.frame[..self.end].get(at..at + 40)?;
            let address = |at: usize| <[u8; 16]>::try_from(&h[at..at + 16]).map(Ipv6Addr::from).ok();
            let fragment = match h[6] {
                44 => Some(self.frame[..self.end].get(at + 40..at + 48)?),
                _ => None,
            };
            let (protocol, l4) = fragment.map_or((h[6], at + 40), |header| (header[0], at + 48));
            if fragment.is_some_and(|header| u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0) {
                return None;
            }
            (address(8)?.into(), address(24)?.into(), protocol, l4)
        } else {
            let h = self.frame[..self.end].get(at..at + 20)?;
            let address = |at: usize| <[u8; 4]>::try_from(&h[at..at + 4]).map(Ipv4Addr::from).ok();
            let header = usize::from(h[0] & 0xf) * 4;
            let later = u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0;
            if header < 20 || later {
                return None;
            }
            (IpAddr::from(address(12)?), address(16)?.into(), h[9], at + header)
        };
        let beginning = self.frame[..self.end].get(l4..l4 + 8)?;
        let word = |at: usize| u16::from_be_bytes([beginning[at], beginning[at + 1]]);
        let ports = match (protocol, beginning[0]) {
            (6 | 17 | 132, _) => (word(0), word(2)),
            (1, 8) | (58, 128) => (word(4), 0),
            (1, 0) | (58, 129) => (0, word(4)),
            _ => return None,
        };
        if (protocol == 58) != self.v6() && (protocol == 1 || protocol == 58) {
            return None;
        }
        Some(Quoted { tuple: tuple(src, dst, ports, protocol), l4 })
    }

    /// Whether an IPv6 packet has an IPv4-mapped address.
    pub fn mapped(&self) -> bool {
        let mapped = |a: IpAddr| matches!(a, IpAddr::V6(a) if a.to_ipv4_mapped().is_some());
        mapped(self.src) || mapped(self.dst)
    }
}

/// A quoted packet.
#[derive(Clone, Debug)]
pub struct Quoted {
    pub tuple: Tuple,
    /// Offset of its transport header in the quoting frame.
    pub l4: usize,
}

/// A flow's key.
pub fn tuple(src: IpAddr, dst: IpAddr, (sport, dport): (u16, u16), protocol: u8) -> Tuple {
    Tuple {
        src: Addr::from(src),
        dst: Addr::from(dst),
        sport: Port::new(sport),
        dport: Port::new(dport),
        proto: Proto(protocol),
        _pad: [0; 3],
    }
}
