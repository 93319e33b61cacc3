//! Address families.

use std::net::IpAddr;

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
