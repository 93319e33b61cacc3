//! Address families.

use std::net::IpAddr;

/// Smallest MTU in bytes at which the kernel enables IPv6 on an interface (RFC 8200, section 5).
pub(super) const IPV6_MTU_MIN: u32 = 1280;

/// The address families that a node uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// The families of these addresses.
    pub fn of(addresses: &[IpAddr]) -> Self {
        Self { v4: addresses.iter().any(IpAddr::is_ipv4), v6: addresses.iter().any(IpAddr::is_ipv6) }
    }
}
