//! Services.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::field::{Checked, Wrong, address, at_most, cidr, ip, port_number, protocol, refuse, usable};
use crate::model::{
    Families, Ignored, LeftOut, Protocol, SOURCE_IP_ANNOTATION, Service, ServicePort, ServiceType, SourceIp,
    TrafficPolicy, limits, raw,
};

/// Default duration of client affinity in seconds (pkg/apis/core/types.go).
const AFFINITY_DEFAULT: u32 = 10_800;
/// Maximum duration of client affinity in seconds.
const AFFINITY_MAX: u32 = 86_400;

/// Validates a Service. Fields that don't apply to its type are dropped, as the API server clears them when a service
/// changes its type. Invalid elements are left out and named.
pub(super) fn check(raw: raw::Manifest) -> Checked<Service> {
    let raw::Manifest { metadata, mut spec, status, .. } = raw;
    let mut left_out = LeftOut::default();
    let uid = metadata.uid.unwrap_or_default().into_boxed_str();
    let kind = service_type(&spec.kind)?;
    let source_ip = metadata.annotations.source_ip.as_deref();
    let source_ip = source_ip.and_then(|value| usable(self::source_ip(value), &mut left_out));
    let headless = spec.cluster_ip == "None" || spec.cluster_ips.first().is_some_and(|ip| ip == "None");
    let ignored = if kind == ServiceType::ExternalName {
        Some(Ignored::ExternalName)
    } else if headless || metadata.labels.has(raw::Labels::HEADLESS) {
        Some(Ignored::Headless)
    } else {
        metadata.labels.has(raw::Labels::SERVICE_PROXY_NAME).then_some(Ignored::OtherProxy)
    };
    if kind == ServiceType::ExternalName || headless {
        return Ok(Service { uid, kind, ignored, source_ip, left_out, ..Service::default() });
    }
    let has_node_ports = matches!(kind, ServiceType::NodePort | ServiceType::LoadBalancer);
    let has_load_balancer = kind == ServiceType::LoadBalancer;
    let families = families(&spec, &mut left_out);
    let cluster_ips = cluster_ips(&spec, &mut left_out)?;
    let external_policy = policy("spec.externalTrafficPolicy", &spec.external_traffic_policy)?;
    let mut if_balanced = LeftOut::default();
    let balanced = if has_load_balancer { &mut left_out } else { &mut if_balanced };
    let source_ranges = source_ranges(&spec.load_balancer_source_ranges, balanced);
    let load_balancer_ips = load_balancer_ips(&status.load_balancer, balanced);
    let health_check_port =
        usable(optional_port("spec.healthCheckNodePort", spec.health_check_node_port), balanced).flatten();
    Ok(Service {
        uid,
        ignored,
        kind,
        families,
        cluster_ips,
        ports: service_ports(std::mem::take(&mut spec.ports), has_node_ports, &mut left_out)?,
        load_balancer_ips: if has_load_balancer { load_balancer_ips } else { Vec::new() },
        external_ips: external_ips(&spec.external_ips, &mut left_out),
        source_ranges: source_ranges.filter(|_| has_load_balancer),
        internal_policy: policy("spec.internalTrafficPolicy", &spec.internal_traffic_policy)?,
        external_policy,
        affinity: affinity(&spec)?,
        health_check_port: health_check_port.filter(|_| has_load_balancer && external_policy == TrafficPolicy::Local),
        source_ip,
        left_out,
    })
}

fn service_type(text: &str) -> Checked<ServiceType> {
    match text {
        "" | "ClusterIP" => Ok(ServiceType::ClusterIp),
        "NodePort" => Ok(ServiceType::NodePort),
        "LoadBalancer" => Ok(ServiceType::LoadBalancer),
        "ExternalName" => Ok(ServiceType::ExternalName),
        other => {
            refuse("spec.type", format!("`{other}` is not one of ClusterIP, NodePort, LoadBalancer, ExternalName"))
        }
    }
}

fn policy(field: &str, text: &str) -> Checked<TrafficPolicy> {
    match text {
        "" | "Cluster" => Ok(TrafficPolicy::Cluster),
        "Local" => Ok(TrafficPolicy::Local),
        other => refuse(field, format!("`{other}` is not one of Cluster, Local")),
    }
}

fn affinity(spec: &raw::Spec) -> Checked<u32> {
    match spec.session_affinity.as_str() {
        "" | "None" => Ok(0),
        "ClientIP" => match spec.session_affinity_config.client_ip.timeout_seconds {
            None => Ok(AFFINITY_DEFAULT),
            Some(seconds) => match u32::try_from(seconds) {
                Ok(seconds @ 1..=AFFINITY_MAX) => Ok(seconds),
                _ => refuse(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    format!("{seconds} is not between 1 and {AFFINITY_MAX}"),
                ),
            },
        },
        other => refuse("spec.sessionAffinity", format!("`{other}` is not one of None, ClientIP")),
    }
}

/// Families of its ClusterIPs, including invalid ones, so that its other addresses don't add a family that the service
/// doesn't have.
fn families(spec: &raw::Spec, left_out: &mut LeftOut) -> Families {
    let mut families = Families::default();
    for (i, name) in spec.ip_families.iter().enumerate() {
        match name.as_str() {
            "IPv4" => families.v4 = true,
            "IPv6" => families.v6 = true,
            other => left_out.add(|| format!("spec.ipFamilies[{i}]: `{other}` is not one of IPv4, IPv6")),
        }
    }
    let cluster_ips = spec.cluster_ips.iter().chain(Some(&spec.cluster_ip)).filter_map(|text| ip(text));
    let cluster_ips: Vec<IpAddr> = cluster_ips.collect();
    if !cluster_ips.is_empty() {
        let (v4, v6) = (cluster_ips.iter().any(IpAddr::is_ipv4), cluster_ips.iter().any(IpAddr::is_ipv6));
        families = Families { v4, v6 };
    } else if spec.ip_families.is_empty() {
        families = Families { v4: true, v6: true };
    }
    families
}

/// The addresses that the nodes have to serve. An element may be a host name instead, and a load balancer that works as
/// a proxy must see its clients' packets itself (KEP-1860).
fn load_balancer_ips(raw: &raw::LoadBalancer, left_out: &mut LeftOut) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (i, ingress) in raw.ingress.iter().enumerate().filter(|(_, ingress)| !ingress.ip.is_empty()) {
        let field = format!("status.loadBalancer.ingress[{i}]");
        match ingress.ip_mode.as_str() {
            "" | "VIP" => ips.extend(usable(address(|| format!("{field}.ip"), &ingress.ip), left_out)),
            "Proxy" => {}
            other => left_out.add(|| format!("{field}.ipMode: `{other}` is not one of VIP, Proxy")),
        }
    }
    at_most(limits::ADDRESSES, "status.loadBalancer.ingress", distinct(ips), left_out)
}

fn external_ips(raw: &[String], left_out: &mut LeftOut) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (i, text) in raw.iter().enumerate() {
        ips.extend(usable(address(|| format!("spec.externalIPs[{i}]"), text), left_out));
    }
    at_most(limits::ADDRESSES, "spec.externalIPs", distinct(ips), left_out)
}

/// Source ranges, where the API server admits white space. An invalid range admits no clients, and if all are invalid,
/// no client is admitted.
fn source_ranges(raw: &[String], left_out: &mut LeftOut) -> Option<Vec<IpNetwork>> {
    let mut ranges = Vec::new();
    for (i, text) in raw.iter().enumerate() {
        ranges.extend(usable(cidr(|| format!("spec.loadBalancerSourceRanges[{i}]"), text.trim()), left_out));
    }
    let ranges = at_most(limits::SOURCE_RANGES, "spec.loadBalancerSourceRanges", distinct(ranges), left_out);
    (!raw.is_empty()).then_some(ranges)
}

/// Removes duplicates, keeping the order.
fn distinct<T: Copy + Eq + Hash>(mut list: Vec<T>) -> Vec<T> {
    let mut seen = HashSet::with_capacity(list.len());
    list.retain(|element| seen.insert(*element));
    list
}

fn optional_port(field: &str, number: Option<i64>) -> Checked<Option<u16>> {
    number.filter(|number| *number != 0).map(|number| port_number(|| field.into(), number)).transpose()
}

fn source_ip(value: &str) -> Checked<SourceIp> {
    match value {
        "auto" => Ok(SourceIp::Auto),
        "preserve" => Ok(SourceIp::Preserve),
        "snat" => Ok(SourceIp::Snat),
        other => refuse(
            "metadata.annotations",
            format!("{SOURCE_IP_ANNOTATION}: `{other}` is not one of auto, preserve, snat"),
        ),
    }
}

fn cluster_ips(spec: &raw::Spec, left_out: &mut LeftOut) -> Checked<Vec<IpAddr>> {
    if let Some(first) = spec.cluster_ips.first().filter(|ip| !spec.cluster_ip.is_empty() && spec.cluster_ip != **ip) {
        let reason = format!("`{first}` differs from clusterIP `{}`, which must be the first", spec.cluster_ip);
        return refuse("spec.clusterIPs[0]", reason);
    }
    let single = Some(&spec.cluster_ip).filter(|ip| spec.cluster_ips.is_empty() && !ip.is_empty());
    let listed = spec.cluster_ips.iter().enumerate().map(|(i, text)| (Some(i), text));
    let mut ips: Vec<IpAddr> = Vec::new();
    for (i, text) in listed.chain(single.map(|text| (None, text))) {
        let field = || i.map_or_else(|| "spec.clusterIP".into(), |i| format!("spec.clusterIPs[{i}]"));
        // Never admitted by any API server, and the service's address would be unknown.
        if self::ip(text).is_none() {
            return refuse(field(), format!("`{text}` is not an IP address"));
        }
        let Some(ip) = usable(address(field, text), left_out) else { continue };
        if ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            left_out.add(|| format!("{}: {ip} is the second of its family: one for each is allowed", field()));
        } else {
            ips.push(ip);
        }
    }
    Ok(ips)
}

/// Names and numbers of earlier ports.
#[derive(Default)]
struct Taken {
    names: HashSet<String>,
    ports: HashSet<(u16, Protocol)>,
    node_ports: HashSet<(u16, Protocol)>,
}

fn service_ports(raw: Vec<raw::Port>, has_node_ports: bool, left_out: &mut LeftOut) -> Checked<Vec<ServicePort>> {
    if raw.is_empty() {
        return refuse("spec.ports", "is empty: a service needs a port unless it is headless");
    }
    let (several, mut taken) = (raw.len() > 1, Taken::default());
    let mut ports = Vec::with_capacity(raw.len().min(limits::PORTS));
    let mut first_mistake = None;
    for (i, raw) in at_most(limits::PORTS, "spec.ports", raw, left_out).into_iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        let node_port = if has_node_ports { raw.node_port } else { None };
        match service_port(&field, raw, several, &mut taken) {
            Ok(port) => {
                let node_port = usable(self::node_port(&field, node_port, port.protocol, &mut taken), left_out);
                ports.push(ServicePort { node_port: node_port.flatten(), ..port });
            }
            Err(Wrong { field, reason }) => {
                left_out.add(|| format!("{field}: {reason}"));
                first_mistake.get_or_insert(Wrong { field, reason });
            }
        }
    }
    match first_mistake {
        Some(mistake) if ports.is_empty() => Err(mistake),
        _ => Ok(ports),
    }
}

/// Validates a port, except its NodePort.
fn service_port(field: &str, raw: raw::Port, several: bool, taken: &mut Taken) -> Checked<ServicePort> {
    let Some(number) = raw.port else { return refuse(format!("{field}.port"), "is missing") };
    let port = port_number(|| format!("{field}.port"), number)?;
    let protocol = protocol(field, &raw.protocol)?;
    if several && raw.name.is_empty() {
        return refuse(format!("{field}.name"), "is missing: several ports need names");
    }
    if !taken.names.insert(raw.name.clone()) {
        return refuse(format!("{field}.name"), format!("`{}` is already the name of another port", raw.name));
    }
    if !taken.ports.insert((port, protocol)) {
        return refuse(format!("{field}.port"), format!("duplicate {port}/{protocol}"));
    }
    Ok(ServicePort { name: raw.name, port, node_port: None, protocol })
}

fn node_port(field: &str, number: Option<i64>, protocol: Protocol, taken: &mut Taken) -> Checked<Option<u16>> {
    let field = format!("{field}.nodePort");
    let port = optional_port(&field, number)?;
    match port.filter(|number| !taken.node_ports.insert((*number, protocol))) {
        Some(number) => refuse(field, format!("duplicate {number}/{protocol}")),
        None => Ok(port),
    }
}

#[cfg(test)]
mod tests;
