//! Validation of single fields.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{LeftOut, Protocol};

/// Result of a field's validation.
pub(super) type Checked<T> = Result<T, Wrong>;

/// A problem with an element of an object.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Path of the field.
    pub(super) field: String,
    pub(super) reason: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

pub(super) fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Checked<T> {
    Err(Wrong { field: field.into(), reason: reason.into() })
}

/// A valid element; an invalid one is left out.
pub(super) fn usable<T>(element: Checked<T>, left_out: &mut LeftOut) -> Option<T> {
    match element {
        Ok(element) => Some(element),
        Err(wrong) => {
            left_out.add(|| wrong.to_string());
            None
        }
    }
}

/// The elements of a list up to an object's limit.
pub(super) fn at_most<T>(most: usize, field: &str, mut list: Vec<T>, left_out: &mut LeftOut) -> Vec<T> {
    let beyond = list.len().saturating_sub(most);
    left_out.add_many(beyond, || format!("{field}: the last {beyond} are ignored: at most {most} are allowed"));
    list.truncate(most);
    list
}

/// Parses an address as kube-proxy does: the numbers of an IPv4 address are decimal even with leading zeros, which API
/// servers admitted for a long time (KEP-4858).
pub(super) fn ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let bytes: Vec<u8> = text.split('.').map(decimal).collect::<Option<_>>()?;
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

/// A number of digits only.
fn decimal(text: &str) -> Option<u8> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Validates an address of a service, an endpoint or a node.
pub(super) fn address(field: impl FnOnce() -> String, text: &str) -> Checked<IpAddr> {
    let Some(ip) = ip(text) else {
        return refuse(field(), format!("`{text}` is not an IP address"));
    };
    let (mapped, link_local) = match ip {
        IpAddr::V4(v4) => (false, v4.is_link_local() || v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.to_ipv4_mapped().is_some(), v6.is_unicast_link_local()),
    };
    if mapped {
        return refuse(field(), format!("{ip} is an IPv4 address in IPv6 form: write it as IPv4"));
    }
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local {
        return refuse(field(), format!("{ip} is reserved: it cannot be reached through the cluster"));
    }
    Ok(ip)
}

/// Parses a range of addresses as kube-proxy does: bits after the prefix are ignored, though they may be set, since API
/// servers admitted them for a long time (KEP-4858).
pub(super) fn cidr(field: impl FnOnce() -> String, text: &str) -> Checked<IpNetwork> {
    let range = text.split_once('/').and_then(|(address, prefix)| {
        let given = IpNetwork::new(ip(address)?, decimal(prefix)?).ok()?;
        IpNetwork::new(given.network(), given.prefix()).ok()
    });
    match range {
        Some(IpNetwork::V6(v6)) if v6.ip().to_ipv4_mapped().is_some() => {
            refuse(field(), format!("`{text}` is an IPv4 range in IPv6 form: write it as IPv4"))
        }
        Some(range) => Ok(range),
        None => refuse(field(), format!("`{text}` is not a CIDR such as 10.244.1.0/24 or fd00:244:1::/64")),
    }
}

/// Validates a range of services' addresses.
///
/// # Errors
/// Why the range is invalid.
pub fn service_range(cidr: IpNetwork) -> Result<IpNetwork, String> {
    if cidr.ip() != cidr.network() {
        let network = IpNetwork::new(cidr.network(), cidr.prefix()).map_or_else(|e| e.to_string(), |n| n.to_string());
        return Err(format!("{cidr} has bits set after its prefix: write {network}"));
    }
    if cidr.prefix() == if cidr.is_ipv4() { 32 } else { 128 } {
        return Err(format!("{cidr} is a single address: give a range such as 10.96.0.0/16"));
    }
    if cidr.prefix() == 0 || cidr.ip().is_multicast() || cidr.ip().is_loopback() {
        return Err(format!("{cidr} is not usable for services"));
    }
    Ok(cidr)
}

pub(super) fn port_number(field: impl FnOnce() -> String, number: i64) -> Checked<u16> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => refuse(field(), format!("{number} is not between 1 and 65535")),
    }
}

pub(super) fn protocol(field: &str, text: &str) -> Checked<Protocol> {
    match text {
        "" | "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => refuse(format!("{field}.protocol"), format!("`{other}` is not one of TCP, UDP, SCTP")),
    }
}
