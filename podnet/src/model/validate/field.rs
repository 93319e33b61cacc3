//! Checks of single fields.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{LeftOut, Protocol};

/// What a field's check gives.
pub(super) type Checked<T> = Result<T, Wrong>;

/// What is wrong with an element of an object.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Path of the field.
    pub(super) field: String,
    pub(super) reason: String,
}

pub(super) fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Checked<T> {
    Err(Wrong { field: field.into(), reason: reason.into() })
}

/// An element that can be used; one that can't is left out.
pub(super) fn usable<T>(element: Checked<T>, left_out: &mut LeftOut) -> Option<T> {
    match element {
        Ok(element) => Some(element),
        Err(Wrong { field, reason }) => {
            left_out.add(|| format!("{field}: {reason}"));
            None
        }
    }
}

/// As many elements of a list as an object may have.
pub(super) fn at_most<T>(most: usize, field: &str, mut list: Vec<T>, left_out: &mut LeftOut) -> Vec<T> {
    let beyond = list.len().saturating_sub(most);
    left_out.add_many(beyond, || format!("{field}: the last {beyond} are ignored: at most {most} are allowed"));
    list.truncate(most);
    list
}

/// An address as kube-proxy reads it: IPv4's numbers are decimal with leading zeros too, which API servers took for long
/// (KEP-4858).
pub(super) fn ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let bytes: Vec<u8> = text.split('.').map(decimal).collect::<Option<_>>()?;
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

/// A number in digits alone.
fn decimal(text: &str) -> Option<u8> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// An address that can be a service's, an endpoint's or a node's.
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

/// A range of addresses, as kube-proxy reads it: bits after the prefix are no part of it, though they may be set, as
/// API servers took for long (KEP-4858).
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

/// A range that services' addresses can come from.
///
/// # Errors
/// What is wrong with it.
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
