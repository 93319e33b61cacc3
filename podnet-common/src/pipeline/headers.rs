//! Parsed headers in the form in which stages hand them over.

use bytemuck::{Pod, Zeroable};

use crate::layout::{FragmentPorts, Tuple};

use super::family::{Family, FragmentKind, Parsed, V4, V6};

/// [`Parsed`] as plain data, so that headers are parsed only once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Headers {
    /// See [`Parsed::tuple`]. For later fragments: with the ports of the first, once known.
    pub tuple: Tuple,
    /// IP header; IPv4 uses only the first words.
    ip: [u32; 10],
    l4: u32,
    headers: u32,
    id: u32,
    checksum: u16,
    /// See [`Parsed::tcp_flags`]. For SCTP: the equivalent flags, once known.
    pub tcp_flags: u8,
    fragment: u8,
    ports: u8,
    echo_request: u8,
    icmp_error: u8,
    v6: u8,
}

impl Headers {
    /// Converts parsed headers.
    #[inline(always)]
    pub fn of<F: Family>(v: &Parsed<F>) -> Self {
        let mut headers = Self {
            tuple: v.tuple,
            ip: [0; 10],
            l4: v.l4 as u32,
            headers: v.headers,
            id: v.id,
            checksum: v.checksum,
            tcp_flags: v.tcp_flags,
            fragment: v.fragment as u8,
            ports: v.ports as u8,
            echo_request: v.echo_request as u8,
            icmp_error: v.icmp_error as u8,
            v6: F::V6 as u8,
        };
        F::to_words(&v.header, &mut headers.ip);
        headers
    }

    /// Whether this is an IPv6 packet.
    #[inline(always)]
    pub fn v6(&self) -> bool {
        self.v6 != 0
    }

    /// See [`Parsed::ports`]. Also true for later fragments whose ports are known.
    #[inline(always)]
    pub fn ports(&self) -> bool {
        self.ports != 0
    }

    /// See [`Parsed::echo_request`].
    #[inline(always)]
    pub fn echo_request(&self) -> bool {
        self.echo_request != 0
    }

    /// See [`Parsed::icmp_error`].
    #[inline(always)]
    pub fn icmp_error(&self) -> bool {
        self.icmp_error != 0
    }

    /// See [`Parsed::fragment`].
    #[inline(always)]
    pub fn fragment(&self) -> FragmentKind {
        match self.fragment {
            0 => FragmentKind::Unfragmented,
            1 => FragmentKind::First,
            _ => FragmentKind::Later,
        }
    }

    /// See [`Parsed::id`].
    #[inline(always)]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// See [`Parsed::l4`]. The mask bounds the offset for the verifier.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        (self.l4 & OFFSET) as usize
    }

    /// TTL or hop limit.
    #[inline(always)]
    pub fn ttl(&self) -> u8 {
        if self.v6() { V6::ttl(&V6::from_words(&self.ip)) } else { V4::ttl(&V4::from_words(&self.ip)) }
    }

    /// Sets the ports of a later fragment.
    #[inline(always)]
    pub fn set_ports(&mut self, ports: FragmentPorts) {
        (self.tuple.sport, self.tuple.dport) = (ports.sport, ports.dport);
        self.ports = 1;
    }

    /// Converts back; `F` must be the packet's family.
    #[inline(always)]
    pub fn parsed<F: Family>(&self) -> Parsed<F> {
        Parsed {
            header: F::from_words(&self.ip),
            tuple: self.tuple,
            l4: self.l4(),
            headers: self.headers,
            checksum: self.checksum,
            tcp_flags: self.tcp_flags,
            ports: self.ports(),
            echo_request: self.echo_request(),
            fragment: self.fragment(),
            id: self.id,
            icmp_error: self.icmp_error(),
        }
    }
}

/// Bound of transport header offsets: Ethernet, IPv6 and six extension headers of 2 KiB each.
const OFFSET: u32 = 0x3fff;
