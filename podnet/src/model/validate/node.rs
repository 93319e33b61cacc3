//! Nodes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Checked, address, cidr, refuse};
use crate::model::{Node, raw};

/// What the cluster autoscaler taints a node with before it removes it.
const REMOVAL_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node.
pub(super) fn check(raw: raw::Manifest) -> Checked<Node> {
    let pod_cidrs = pod_cidrs(&raw.spec)?;
    let leaving =
        raw.metadata.deletion_timestamp.is_some() || raw.spec.taints.iter().any(|taint| taint.key == REMOVAL_TAINT);
    Ok(Node {
        internal_ips: addresses(&raw.status, "InternalIP")?,
        external_ips: addresses(&raw.status, "ExternalIP")?,
        pod_cidrs,
        zone: raw.metadata.labels.zone.filter(|zone| !zone.is_empty()),
        leaving,
    })
}

fn addresses(status: &raw::Status, kind: &str) -> Checked<Vec<IpAddr>> {
    let of_kind = status.addresses.iter().enumerate().filter(|(_, raw)| raw.kind == kind);
    of_kind.map(|(i, raw)| address(|| format!("status.addresses[{i}].address"), &raw.address)).collect()
}

fn pod_cidrs(spec: &raw::Spec) -> Checked<Vec<IpNetwork>> {
    let listed = spec.pod_cidrs.iter().enumerate().map(|(i, text)| (format!("spec.podCIDRs[{i}]"), text));
    let single = Some(("spec.podCIDR".to_owned(), &spec.pod_cidr));
    let single = single.filter(|(_, text)| spec.pod_cidrs.is_empty() && !text.is_empty());
    let mut pod_cidrs: Vec<IpNetwork> = Vec::new();
    for (field, text) in listed.chain(single) {
        let cidr = cidr(|| field.clone(), text)?;
        if cidr.prefix() == 0 {
            return refuse(field, format!("`{text}` is every address"));
        }
        if cidr.ip() != cidr.network() {
            return refuse(field, format!("`{text}` has bits set after its prefix"));
        }
        if pod_cidrs.iter().any(|other| other.is_ipv4() == cidr.is_ipv4()) {
            return refuse(field, format!("{cidr} is the second of its family: one for each is allowed"));
        }
        pod_cidrs.push(cidr);
    }
    Ok(pod_cidrs)
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
        for (rest, field) in [
            ("spec: {podCIDRs: [10.244.1.1/24]}", "spec.podCIDRs[0]"),
            ("spec: {podCIDRs: [10.244.1.0]}", "spec.podCIDRs[0]"),
            ("spec: {podCIDRs: [10.244.1.0/24, 10.244.2.0/24]}", "spec.podCIDRs[1]"),
            ("spec: {podCIDR: x}", "spec.podCIDR"),
            ("status: {addresses: [{type: InternalIP, address: n1}]}", "status.addresses[0].address"),
        ] {
            assert_eq!(node(rest).expect_err(rest).field, field);
        }
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
