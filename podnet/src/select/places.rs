//! Where a service's frontends are, and by which policies, whatever endpoints there are.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::settings::Settings;
use crate::frontend::{FrontendKind, SourceMode};
use crate::guard::Guard;
use crate::model::{Service, ServicePort, SourceIp, TrafficPolicy};

/// Whose endpoints the clients of a frontend get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policies {
    /// This node's pods and processes, and those from outside unless `outside` is there.
    pub(super) inside: TrafficPolicy,
    /// Those who come in by an uplink.
    pub(super) outside: Option<TrafficPolicy>,
}

/// Which source address a service's backends see.
pub(super) fn source(service: &Service, settings: &Settings) -> SourceMode {
    match service.source_ip.unwrap_or(settings.source_ip) {
        SourceIp::Auto => SourceMode::Auto,
        SourceIp::Preserve => SourceMode::Preserve,
        SourceIp::Snat => SourceMode::Snat,
    }
}

/// Kind and address of a service's frontends but NodePorts, each address once. Those of families that the service doesn't
/// have are left out: it can have no endpoints for them, and a load balancer that has them reaches the service in another
/// way. So are those that no service may have.
pub(super) fn addresses(service: &Service, guard: &Guard) -> Vec<(FrontendKind, IpAddr)> {
    let mut seen = HashSet::new();
    all_addresses(service)
        .filter(|(kind, ip)| service.families.has(ip) && guard.address(*kind, *ip).is_none() && seen.insert(*ip))
        .collect()
}

pub(crate) fn all_addresses(service: &Service) -> impl Iterator<Item = (FrontendKind, IpAddr)> {
    (service.cluster_ips.iter().map(|ip| (FrontendKind::ClusterIp, *ip)))
        .chain(service.load_balancer_ips.iter().map(|ip| (FrontendKind::LoadBalancer, *ip)))
        .chain(service.external_ips.iter().map(|ip| (FrontendKind::ExternalIp, *ip)))
}

/// Kind and place of a port's frontends, but for ports that a node needs for itself.
pub(super) fn places<'a>(
    addresses: &'a [(FrontendKind, IpAddr)],
    service: &'a Service,
    port: &'a ServicePort,
    guard: &'a Guard,
) -> impl Iterator<Item = (FrontendKind, SocketAddr)> + use<'a> {
    let all = all_places(addresses.iter().copied(), service, port);
    all.filter(|(kind, at)| guard.port(*kind, *at, port.protocol).is_none())
}

pub(crate) fn all_places<'a>(
    addresses: impl Iterator<Item = (FrontendKind, IpAddr)> + 'a,
    service: &'a Service,
    port: &'a ServicePort,
) -> impl Iterator<Item = (FrontendKind, SocketAddr)> + 'a {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let node_ports = any.into_iter().filter(|ip| service.families.has(ip)).filter_map(|ip| {
        let number = port.node_port?;
        Some((FrontendKind::NodePort, SocketAddr::new(ip, number)))
    });
    addresses.map(|(kind, ip)| (kind, SocketAddr::new(ip, port.port))).chain(node_ports)
}

/// internalTrafficPolicy is about ClusterIPs and externalTrafficPolicy about all others, where it binds only clients
/// from outside: those on the node itself are already where they wanted to be and get any endpoint (KEP-2086, KEP-1669;
/// pkg/proxy UsesClusterEndpoints).
pub(super) fn policies(service: &Service, kind: FrontendKind) -> Policies {
    match (kind, service.external_policy) {
        (FrontendKind::ClusterIp, _) => Policies { inside: service.internal_policy, outside: None },
        (_, TrafficPolicy::Cluster) => Policies { inside: TrafficPolicy::Cluster, outside: None },
        (_, TrafficPolicy::Local) => Policies { inside: TrafficPolicy::Cluster, outside: Some(TrafficPolicy::Local) },
    }
}

/// A service with source ranges lets nobody else in: if none of them is of the frontend's family, then no one.
pub(super) fn source_ranges(service: &Service, kind: FrontendKind, ip: &IpAddr) -> Option<Vec<ipnetwork::IpNetwork>> {
    let ranges = service.source_ranges.as_ref().filter(|_| kind == FrontendKind::LoadBalancer)?;
    Some(ranges.iter().filter(|range| range.is_ipv4() == ip.is_ipv4()).copied().collect())
}
