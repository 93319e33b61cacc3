//! Addresses, ports, protocols and interfaces as stored in tables and tuples.
//!
//! An address always has 16 bytes, with IPv4 mapped into `::ffff:0:0/96` (RFC 4291, section 2.5.5.2), so one set of
//! tables serves both families.

use core::{
    cmp::Ordering,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytemuck::{Pod, Zeroable};

/// An IPv4 or IPv6 address: 16 bytes in network byte order, IPv4 mapped. Stored as four words because programs read
/// packets in words. Ordered as IPv6 addresses are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Addr(pub [u32; 4]);

/// Third word of a mapped IPv4 address.
const MAPPED: u32 = 0xffffu32.to_be();

impl Addr {
    /// `::`, used as "no address".
    pub const NONE: Self = Self([0; 4]);

    /// `::1`.
    pub const LOOPBACK_V6: Self = Self([0, 0, 0, 1u32.to_be()]);

    /// Mapped form of an IPv4 address, given as one word in network byte order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] | self.0[1] | (self.0[2] ^ MAPPED) == 0
    }

    /// Branch-free equality: each branch adds paths for the verifier to follow.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.difference(other) == 0
    }

    /// Zero if both addresses are equal.
    #[inline(always)]
    pub(crate) const fn difference(&self, other: &Self) -> u32 {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1]) | (self.0[2] ^ other.0[2]) | (self.0[3] ^ other.0[3])
    }

    /// Whether this is a loopback address: 127.0.0.0/8 (RFC 1122, section 3.2.1.3) or ::1.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [four, ..] = self.0[3].to_ne_bytes();
        self.same(&Self::LOOPBACK_V6) || (self.is_v4() && four == 127)
    }

    /// Whether this is [`Self::NONE`].
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }
}

impl Ord for Addr {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.map(u32::from_be).cmp(&other.0.map(u32::from_be))
    }
}

impl PartialOrd for Addr {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(a: Ipv4Addr) -> Self {
        Self::v4(u32::from_ne_bytes(a.octets()))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(a: Ipv6Addr) -> Self {
        Self(bytemuck::cast(a.octets()))
    }
}

impl From<IpAddr> for Addr {
    fn from(a: IpAddr) -> Self {
        match a {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(a) => a.into(),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(a: Addr) -> Self {
        if a.is_v4() {
            Self::V4(Ipv4Addr::from(a.0[3].to_ne_bytes()))
        } else {
            Self::V6(Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(a.0)))
        }
    }
}

/// A TCP, UDP or SCTP port, or the identifier of an ICMP echo, in network byte order. Ordered by number.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Port(u16);

impl Ord for Port {
    fn cmp(&self, other: &Self) -> Ordering {
        self.get().cmp(&other.get())
    }
}

impl PartialOrd for Port {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Port {
    /// Converts from host byte order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// Converts from network byte order.
    #[inline(always)]
    pub const fn from_wire(word: u16) -> Self {
        Self(word)
    }

    /// Value in network byte order.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }

    /// Value in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// IP protocol number (IANA).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Proto(pub u8);

impl Proto {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
}

/// Index of a network interface within its network namespace; 0 means none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct IfIndex(pub u32);

/// An Ethernet address. Aligned to halfwords so that programs copy it in halfwords.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_ordered_by_number() {
        let addresses =
            ["::", "::1", "9.255.0.0", "10.0.0.1", "10.0.0.2", "10.0.1.0", "10.1.0.0", "fd00::", "fd00::1:0"];
        let addresses = addresses.map(|text| Addr::from(text.parse::<IpAddr>().unwrap()));
        assert!(addresses.is_sorted_by(|a, b| a < b), "{addresses:?}");
        assert!([0, 1, 255, 256, 8080].map(Port::new).is_sorted_by(|a, b| a < b));
    }
}
