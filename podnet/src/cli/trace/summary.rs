//! Captured or traced frames: their headers parsed, and in words.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytemuck::{Pod, pod_read_unaligned};
use podnet_common::addr::{Port, Proto};
use podnet_common::packet::{ETH, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Icmp, Ipv4, Ipv6, Tcp};

use super::fields::{DONT_FRAGMENT, FRAGMENT_HEADER, Fragment, MORE_FRAGMENTS, flag_names, icmp_name};

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

fn read<T: Pod>(frame: &[u8], at: usize) -> Option<T> {
    Some(pod_read_unaligned(frame.get(at..at + size_of::<T>())?))
}
