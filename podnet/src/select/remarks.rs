//! Remarks for the author of a Service.

use std::net::IpAddr;

use crate::model::{Service, ServiceType};

/// Features that a service requests but doesn't get, with advice.
pub fn remarks(service: &Service) -> Vec<String> {
    let mut remarks = Vec::new();
    if service.ignored.is_some() {
        return remarks;
    }
    if service.cluster_ips.is_empty() {
        remarks.push("no clusterIP: set spec.clusterIP, since none is allocated for manifest files".into());
    }
    for port in service.ports.iter().filter(|port| service.kind == ServiceType::NodePort && port.node_port.is_none()) {
        remarks.push(format!(
            "port {}/{} has no nodePort: set one, since none is allocated for manifest files",
            port.port, port.protocol
        ));
    }
    let family = |ip: &IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    for ip in service.load_balancer_ips.iter().chain(&service.external_ips).filter(|ip| !service.families.has(ip)) {
        remarks.push(format!("{ip} is ignored: the Service has no clusterIP of family {}", family(ip)));
    }
    let Some(ranges) = &service.source_ranges else { return remarks };
    for v4 in [true, false] {
        let closed = ranges.iter().all(|range| range.is_ipv4() != v4);
        let ips = service.load_balancer_ips.iter().filter(|ip| ip.is_ipv4() == v4 && service.families.has(ip));
        for ip in ips.filter(|_| closed) {
            remarks.push(format!("{ip} denies all clients: loadBalancerSourceRanges has no {} range", family(ip)));
        }
    }
    remarks
}
