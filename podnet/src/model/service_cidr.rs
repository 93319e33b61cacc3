//! ServiceCIDRs.

use ipnetwork::IpNetwork;

use super::left_out::LeftOut;

/// A ServiceCIDR (KEP-1880).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Ranges that services' addresses come from.
    pub cidrs: Vec<IpNetwork>,
    /// What of it can't be used.
    pub left_out: LeftOut,
}
