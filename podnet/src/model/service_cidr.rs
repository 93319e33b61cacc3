//! ServiceCIDRs.

use ipnetwork::IpNetwork;

use super::left_out::LeftOut;

/// A ServiceCIDR (KEP-1880).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Ranges of services' addresses.
    pub cidrs: Vec<IpNetwork>,
    /// Elements that are left out as invalid.
    pub left_out: LeftOut,
}
