//! Nodes.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnetwork::IpNetwork;

use super::field::{Checked, address, at_most, cidr, refuse, usable};
use crate::model::{LeftOut, Node, limits, raw};
use crate::prefixes::overlap;

/// Taint that the cluster autoscaler sets on a node before it removes it.
const REMOVAL_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Widest valid pod CIDR of a node. Even the ranges of whole clusters are narrower.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 32;

/// Addresses that no pod can have: this network, loopback, link-local, multicast and reserved addresses (RFC 6890), and
/// IPv4-mapped IPv6 addresses.
static RESERVED: LazyLock<Vec<IpNetwork>> = LazyLock::new(|| {
    let ranges = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/64", "fe80::/10", "ff00::/8"];
    ranges.iter().filter_map(|range| range.parse().ok()).collect()
});

/// Validates a Node. Invalid addresses and ranges are left out.
pub(super) fn check(raw: raw::Manifest) -> Checked<Node> {
    let mut left_out = LeftOut::default();
    let leaving =
        raw.metadata.deletion_timestamp.is_some() || raw.spec.taints.iter().any(|taint| taint.key == REMOVAL_TAINT);
    Ok(Node {
        uid: raw.metadata.uid.unwrap_or_default().into_boxed_str(),
        internal_ips: addresses(&raw.status, "InternalIP", &mut left_out),
        external_ips: addresses(&raw.status, "ExternalIP", &mut left_out),
        pod_cidrs: pod_cidrs(&raw.spec, &mut left_out),
        created: raw.metadata.creation_timestamp.unwrap_or_default().into_boxed_str(),
        control_plane: raw.metadata.labels.has(raw::Labels::CONTROL_PLANE),
        zone: raw.metadata.labels.get(raw::Labels::ZONE).filter(|zone| !zone.is_empty()).map(Into::into),
        labels: raw.metadata.labels.complete(),
        leaving,
        left_out,
    })
}

fn addresses(status: &raw::Status, kind: &str, left_out: &mut LeftOut) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (i, raw) in status.addresses.iter().enumerate().filter(|(_, raw)| raw.kind == kind) {
        ips.extend(usable(address(|| format!("status.addresses[{i}].address"), &raw.address), left_out));
    }
    at_most(limits::NODE_ADDRESSES, &format!("status.addresses of type {kind}"), ips, left_out)
}

fn pod_cidrs(spec: &raw::Spec, left_out: &mut LeftOut) -> Vec<IpNetwork> {
    let listed = spec.pod_cidrs.iter().enumerate().map(|(i, text)| (format!("spec.podCIDRs[{i}]"), text));
    let single = Some(("spec.podCIDR".to_owned(), &spec.pod_cidr));
    let single = single.filter(|(_, text)| spec.pod_cidrs.is_empty() && !text.is_empty());
    let mut pod_cidrs: Vec<IpNetwork> = Vec::new();
    for (field, text) in listed.chain(single) {
        pod_cidrs.extend(usable(pod_cidr(field, text, &pod_cidrs), left_out));
    }
    pod_cidrs
}

fn pod_cidr(field: String, text: &str, others: &[IpNetwork]) -> Checked<IpNetwork> {
    let cidr = cidr(|| field.clone(), text)?;
    let widest = if cidr.is_ipv4() { WIDEST_V4 } else { WIDEST_V6 };
    if cidr.prefix() < widest {
        return refuse(field, format!("{cidr} is too wide for one node: /{widest} is the widest that is allowed"));
    }
    if let Some(reserved) = RESERVED.iter().find(|reserved| overlap(&cidr, reserved)) {
        return refuse(field, format!("{cidr} overlaps {reserved}, which is reserved"));
    }
    if others.iter().any(|other| other.is_ipv4() == cidr.is_ipv4()) {
        return refuse(field, format!("{cidr} is the second of its family: one for each is allowed"));
    }
    Ok(cidr)
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use crate::model::Object;

    #[test]
    fn nodes() {
        let node = |rest: &str| parse(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: n1}}, {rest}}}"));
        let addresses = "[{type: Hostname, address: n1}, {type: InternalIP, address: 172.30.0.1}, \
                         {type: InternalIP, address: 'fd00:30::1'}]";
        let spec = "{podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:244:1::/64']}";
        let (key, object) = node(&format!("spec: {spec}, status: {{addresses: {addresses}}}")).unwrap();
        assert_eq!(key.to_string(), "Node n1");
        let Object::Node(read) = object else { panic!("{object:?}") };
        assert_eq!((read.internal_ips.len(), read.pod_cidrs.len()), (2, 2));
        let Object::Node(single) = node("spec: {podCIDR: 10.244.1.0/24}").unwrap().1 else { panic!() };
        assert_eq!((single.pod_cidrs.len(), single.zone.as_deref()), (1, None));
        // KEP-4858: parsed as by other components.
        let Object::Node(read) = node("spec: {podCIDRs: [010.244.1.1/24]}").unwrap().1 else { panic!() };
        assert_eq!(read.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
        let Object::Node(read) = node("spec: {podCIDRs: [10.244.1.0/24, 10.244.2.0/24]}").unwrap().1 else { panic!() };
        assert_eq!((read.pod_cidrs.len(), read.left_out.lines().count()), (1, 1), "the second of its family");
        for (rest, field) in [
            ("spec: {podCIDRs: [10.244.1.0]}", "spec.podCIDRs[0]"),
            ("spec: {podCIDR: x}", "spec.podCIDR"),
            ("status: {addresses: [{type: InternalIP, address: n1}]}", "status.addresses[0].address"),
            ("spec: {podCIDR: 0.0.0.0/0}", "spec.podCIDR"),
            ("spec: {podCIDR: 0.0.0.0/1}", "spec.podCIDR"),
            ("spec: {podCIDR: 128.0.0.0/1}", "spec.podCIDR"),
            ("spec: {podCIDR: 8.0.0.0/7}", "spec.podCIDR"),
            ("spec: {podCIDR: 127.1.0.0/16}", "spec.podCIDR"),
            ("spec: {podCIDR: 169.254.1.0/24}", "spec.podCIDR"),
            ("spec: {podCIDR: 239.0.0.0/24}", "spec.podCIDR"),
            ("spec: {podCIDR: '2000::/3'}", "spec.podCIDR"),
            ("spec: {podCIDR: '2001::/16'}", "spec.podCIDR"),
            ("spec: {podCIDR: 'fe80::/64'}", "spec.podCIDR"),
            ("spec: {podCIDR: '::/96'}", "spec.podCIDR"),
            ("status: {addresses: [{type: InternalIP, address: 127.0.0.1}]}", "status.addresses[0].address"),
            ("status: {addresses: [{type: InternalIP, address: 'ff02::1'}]}", "status.addresses[0].address"),
        ] {
            let Object::Node(read) = node(rest).unwrap().1 else { panic!() };
            let named: Vec<_> = read.left_out.lines().collect();
            assert!(named.len() == 1 && named[0].starts_with(&format!("{field}: ")), "{rest}: {named:?}");
            assert!(read.pod_cidrs.is_empty() && read.internal_ips.is_empty(), "{read:?}");
        }
    }

    #[test]
    fn a_node_has_a_few_addresses() {
        let many: Vec<_> =
            (0..1000).map(|i| format!("{{type: InternalIP, address: 10.0.{}.{}}}", i / 250, i % 250 + 1)).collect();
        let yaml = format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n1}}, status: {{addresses: [{}]}}}}",
            many.join(", ")
        );
        let Object::Node(node) = parse(&yaml).unwrap().1 else { panic!() };
        assert_eq!((node.internal_ips.len(), node.left_out.lines().count()), (16, 1));
    }

    /// KEP-3836, pkg/proxy/healthcheck NodeEligible; well-known label topology.kubernetes.io/zone.
    #[test]
    fn zone_addresses_and_departure() {
        let taint = "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule, value: '1'}]}";
        for (metadata, rest, zone, leaving) in [
            ("labels: {topology.kubernetes.io/zone: a}", "spec: {}", Some("a"), false),
            ("labels: {topology.kubernetes.io/zone: ''}", "spec: null", None, false),
            ("deletionTimestamp: null", "spec: {taints: [{key: node.kubernetes.io/not-ready}]}", None, false),
            ("deletionTimestamp: null", taint, None, true),
            ("deletionTimestamp: 2026-01-01T00:00:00Z", "spec: {}", None, true),
        ] {
            let yaml = format!("{{apiVersion: v1, kind: Node, metadata: {{name: n1, {metadata}}}, {rest}}}");
            let Object::Node(node) = parse(&yaml).unwrap().1 else { panic!("{yaml}") };
            assert_eq!((node.zone.as_deref(), node.leaving), (zone, leaving), "{yaml}");
        }
        let yaml = "{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: ExternalIP, \
                    address: 192.0.2.1}, {type: ExternalDNS, address: n1.example}, {type: InternalIP, address: 10.0.0.1}]}}";
        let Object::Node(node) = parse(yaml).unwrap().1 else { panic!() };
        assert_eq!((node.internal_ips.len(), node.external_ips.len()), (1, 1));
    }
}
