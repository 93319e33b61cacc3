//! Kubernetes objects in the form of `kubectl get -o yaml`, with the fields that podnet reads.

use std::net::IpAddr;

use podnet::model::SOURCE_IP_ANNOTATION;
use serde_json::{Value, json};

use super::Endpoint;
use crate::traffic::Family;

/// Objects as a text of YAML documents.
pub fn yaml<'a>(objects: impl IntoIterator<Item = &'a Value>) -> String {
    let text = |object| serde_saphyr::to_string(object).expect("JSON values can be written as YAML");
    objects.into_iter().map(text).collect::<Vec<_>>().join("---\n")
}

/// A Node object.
pub fn node(name: &str, pod_cidrs: &[String], addrs: &[IpAddr]) -> Value {
    let addrs: Vec<_> = addrs.iter().map(|addr| json!({"type": "InternalIP", "address": addr})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDRs": pod_cidrs},
        "status": {"addresses": addrs},
    })
}

/// One port of a Service or EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port<'a> {
    /// The name that associates a slice's port with the service's.
    pub name: &'a str,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'a str,
    /// Port number: of the service in a Service, of the pods in an EndpointSlice.
    pub number: u16,
}

/// A ClusterIP Service without selector, as text; `source_ip` is the annotation.
pub fn service(name: &str, cluster_ips: &[IpAddr], ports: &[Port<'_>], target: u16, source_ip: Option<&str>) -> String {
    let mut object = service_object(name, cluster_ips, ports, target);
    annotate(&mut object, source_ip);
    yaml([&object])
}

/// EndpointSlices of a service as text, with ready endpoints: one per family with endpoints.
pub fn endpoint_slices(service: &str, ports: &[Port<'_>], endpoints: &[IpAddr]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|ip| Endpoint::at(&[*ip])).collect();
    yaml(&slice_objects(service, ports, &endpoints, usize::MAX))
}

/// Adds the annotation for the source address, unless it is the default.
pub(super) fn annotate(service: &mut Value, source_ip: Option<&str>) {
    if let Some(mode) = source_ip {
        service["metadata"]["annotations"][SOURCE_IP_ANNOTATION] = json!(mode);
    }
}

/// A ClusterIP Service without selector, whose pods listen on `target`.
pub(super) fn service_object(name: &str, cluster_ips: &[IpAddr], ports: &[Port<'_>], target: u16) -> Value {
    let families: Vec<_> = cluster_ips.iter().map(|ip| Family::of(*ip).name()).collect();
    let ports: Vec<_> = ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.number, "targetPort": target}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ips.first(),
            "clusterIPs": cluster_ips,
            "ipFamilies": families,
            "ipFamilyPolicy": if families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "ports": ports,
        },
    })
}

/// EndpointSlices of a service: one per family and target port, with at most `most` endpoints each.
pub(super) fn slice_objects(service: &str, ports: &[Port<'_>], endpoints: &[Endpoint], most: usize) -> Vec<Value> {
    let mut slices = Vec::new();
    let mut targets: Vec<_> = endpoints.iter().map(Endpoint::own_target).collect();
    targets.sort_unstable();
    targets.dedup();
    for family in Family::ALL {
        for target in &targets {
            let ports: Vec<_> = ports
                .iter()
                .map(|port| {
                    let number = target.unwrap_or(port.number);
                    json!({"name": port.name, "protocol": port.protocol, "port": number})
                })
                .collect();
            let alike = endpoints.iter().filter(|endpoint| endpoint.own_target() == *target);
            let objects: Vec<_> = alike.flat_map(|endpoint| endpoint.objects(family)).collect();
            for chunk in objects.chunks(most) {
                slices.push(json!({
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": format!("{service}-{}", slices.len()),
                        "namespace": "default",
                        "labels": {"kubernetes.io/service-name": service},
                    },
                    "addressType": family.name(),
                    "ports": ports,
                    "endpoints": chunk,
                }));
            }
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(ip: &str) -> Endpoint {
        Endpoint::at(&[ip.parse().unwrap()])
    }

    #[test]
    fn slices_are_split_by_family_target_and_size() {
        let port = [Port { name: "http", protocol: "TCP", number: 8080 }];
        let endpoints =
            [endpoint("10.244.1.2"), endpoint("10.244.1.3"), endpoint("fd00::2"), endpoint("10.244.1.4").target(9090)];
        let text = |most| yaml(&slice_objects("web", &port, &endpoints, most));
        assert_eq!(text(100).matches("kind: EndpointSlice").count(), 3, "{}", text(100));
        assert_eq!(text(1).matches("kind: EndpointSlice").count(), 4);
        assert!(text(100).contains("name: web-2") && text(100).contains("addressType: IPv6"));
        assert_eq!(endpoint_slices("web", &port, &[]), "");
    }

    #[test]
    fn service_lists_its_families_in_order() {
        let ips = ["fd00:96::1".parse().unwrap(), "10.96.0.1".parse().unwrap()];
        let object = service_object("web", &ips, &[Port { name: "http", protocol: "TCP", number: 80 }], 8080);
        assert_eq!(object["spec"]["clusterIP"], "fd00:96::1");
        assert_eq!(object["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
    }

    #[test]
    fn yaml_round_trips() {
        let objects = [node("n", &["10.0.0.0/24".into()], &["fd00::1".parse().unwrap()]), json!({"a": ["1", true]})];
        let read: Vec<Value> =
            yaml(&objects).split("---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
        assert_eq!(read, objects);
    }
}
