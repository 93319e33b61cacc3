//! A claim of a Node: an address or a pod CIDR.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;

/// An address or range that a Node claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    Address(IpAddr),
    Pods(IpNetwork),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Pods(range) => range.fmt(f),
        }
    }
}

impl FromStr for Claim {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.contains('/') {
            true => text.parse().map(Self::Pods).map_err(drop),
            false => text.parse().map(Self::Address).map_err(drop),
        }
    }
}
