//! From the shape of an object to its meaning. The rules are those of the Kubernetes API server
//! (pkg/apis/core/validation, pkg/apis/discovery/validation), since files don't pass through one.
//!
//! An element of a list that can't be used is left out and named, and the rest of the object counts: API servers have let
//! in what later ones refuse, and such objects live on. What an object says once, such as its type, has to be right, and so
//! have a Service's ClusterIPs and one of its ports, or nobody can tell what the object should be.

mod endpoints;
mod node;
mod service;
mod service_cidr;

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{Invalid, Kind, LeftOut, Object, ObjectKey, ObjectName, raw};
use crate::frontend::Protocol;

/// Longest name of an object (RFC 1123 subdomain).
const NAME_MAX: usize = 253;

/// What a field's check gives.
type Checked<T> = Result<T, Wrong>;

/// What is wrong with an element of an object.
#[derive(Debug)]
struct Wrong {
    /// Path of the field.
    field: String,
    reason: String,
}

impl Kind {
    /// The kind that group, version and kind mean; none if podnet doesn't read it.
    ///
    /// # Errors
    /// A reason, for an object that has no kind or an EndpointSlice of a version that is no longer served.
    pub fn of(api_version: &str, kind: &str) -> Result<Option<Self>, String> {
        match (api_version, kind) {
            (_, "") => Err("has no kind: this is not a Kubernetes object".into()),
            ("", _) => Err("has no apiVersion: this is not a Kubernetes object".into()),
            ("v1", "Service") => Ok(Some(Self::Service)),
            ("v1", "Node") => Ok(Some(Self::Node)),
            ("discovery.k8s.io/v1", "EndpointSlice") => Ok(Some(Self::EndpointSlice)),
            ("networking.k8s.io/v1", "ServiceCIDR") => Ok(Some(Self::ServiceCidr)),
            (other, "EndpointSlice") if other.starts_with("discovery.k8s.io/") => {
                Err(format!("is {other}, which podnet doesn't read: use discovery.k8s.io/v1"))
            }
            _ => Ok(None),
        }
    }
}

impl ObjectKey {
    /// Kind and name, with the namespace that an object without one has.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = match (kind, namespace) {
            (Kind::Node | Kind::ServiceCidr, _) => "",
            (_, "") => "default",
            (_, given) => given,
        };
        Self { kind, name: ObjectName { namespace: namespace.into(), name: name.into() } }
    }
}

impl Object {
    /// Checks an object of a known kind.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn new(kind: Kind, raw: raw::Manifest) -> Result<(ObjectKey, Self), Invalid> {
        let key = ObjectKey::new(kind, &raw.metadata.namespace, &raw.metadata.name);
        let object = check_name(&key.name).and_then(|()| match kind {
            Kind::Service => service::check(raw).map(|s| Self::Service(Arc::new(s))),
            Kind::EndpointSlice => endpoints::check(raw).map(|s| Self::EndpointSlice(Arc::new(s))),
            Kind::Node => node::check(raw).map(|n| Self::Node(Arc::new(n))),
            Kind::ServiceCidr => service_cidr::check(raw).map(|s| Self::ServiceCidr(Arc::new(s))),
        });
        match object {
            Ok(object) => Ok((key, object)),
            Err(Wrong { field, reason }) => Err(Invalid { object: key.to_string(), field, reason }),
        }
    }
}

fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Checked<T> {
    Err(Wrong { field: field.into(), reason: reason.into() })
}

/// An element that can be used; one that can't is left out.
fn usable<T>(element: Checked<T>, left_out: &mut LeftOut) -> Option<T> {
    match element {
        Ok(element) => Some(element),
        Err(Wrong { field, reason }) => {
            left_out.add(|| format!("{field}: {reason}"));
            None
        }
    }
}

/// As many elements of a list as an object may have.
fn at_most<T>(most: usize, field: &str, mut list: Vec<T>, left_out: &mut LeftOut) -> Vec<T> {
    let beyond = list.len().saturating_sub(most);
    left_out.add_many(beyond, || format!("{field}: the last {beyond} are left out: at most {most} are allowed"));
    list.truncate(most);
    list
}

fn check_name(name: &ObjectName) -> Checked<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    for (field, text) in [("metadata.name", &name.name), ("metadata.namespace", &name.namespace)] {
        if text.len() > NAME_MAX || !text.chars().all(allowed) {
            return refuse(field, format!("`{text}` is not a name: use up to {NAME_MAX} of a-z, 0-9, - and ."));
        }
    }
    if name.name.is_empty() { refuse("metadata.name", "is missing") } else { Ok(()) }
}

/// An address as kube-proxy reads it: IPv4's numbers are decimal with leading zeros too, which API servers took for long
/// (KEP-4858).
fn ip(text: &str) -> Option<IpAddr> {
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
fn address(field: impl FnOnce() -> String, text: &str) -> Checked<IpAddr> {
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
        return refuse(field(), format!("{ip} is reserved: it can't be reached through the cluster"));
    }
    Ok(ip)
}

/// A range of addresses, as kube-proxy reads it: bits after the prefix are no part of it, though they may be set, as
/// API servers took for long (KEP-4858).
fn cidr(field: impl FnOnce() -> String, text: &str) -> Checked<IpNetwork> {
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
        return Err(format!("{cidr} can't hold services"));
    }
    Ok(cidr)
}

fn port_number(field: impl FnOnce() -> String, number: i64) -> Checked<u16> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => refuse(field(), format!("{number} is not between 1 and 65535")),
    }
}

fn protocol(field: &str, text: &str) -> Checked<Protocol> {
    match text {
        "" | "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => refuse(format!("{field}.protocol"), format!("`{other}` is none of TCP, UDP, SCTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any object in YAML.
    pub(super) fn parse(yaml: &str) -> Result<(ObjectKey, Object), Invalid> {
        let raw: raw::Manifest = serde_saphyr::from_str(yaml).unwrap();
        let kind = Kind::of(&raw.api_version, &raw.kind).unwrap().unwrap();
        Object::new(kind, raw)
    }

    #[test]
    fn kinds() {
        assert_eq!(Kind::of("v1", "Service"), Ok(Some(Kind::Service)));
        assert_eq!(Kind::of("serving.knative.dev/v1", "Service"), Ok(None));
        assert_eq!(Kind::of("apps/v1", "Deployment"), Ok(None));
        assert!(Kind::of("discovery.k8s.io/v1beta1", "EndpointSlice").unwrap_err().contains("v1"));
        assert!(Kind::of("", "Service").is_err() && Kind::of("v1", "").is_err());
    }

    #[test]
    fn names_are_checked() {
        let error = parse("{apiVersion: v1, kind: Node, metadata: {name: a/b}}").unwrap_err();
        assert_eq!(error.field, "metadata.name");
        let error = parse("{apiVersion: v1, kind: Node}").unwrap_err();
        assert_eq!(error.reason, "is missing");
    }
}
