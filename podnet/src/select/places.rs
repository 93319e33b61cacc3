//! Addresses and ports of a service's frontends, and their traffic policies, independent of endpoints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use foldhash::HashSet;

use super::settings::Settings;
use crate::frontend::{FrontendKind, SourceMode};
use crate::guard::Guard;
use crate::model::{Service, ServicePort, SourceIp, TrafficPolicy};

/// Traffic policies for the clients of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policies {
    /// For this node's pods and processes, and for clients from outside unless `outside` is set.
    pub(super) inside: TrafficPolicy,
    /// For clients that arrive by an uplink.
    pub(super) outside: Option<TrafficPolicy>,
}

/// Source address that a service's backends see.
pub(super) fn source(service: &Service, settings: &Settings) -> SourceMode {
    match service.source_ip.unwrap_or(settings.source_ip) {
        SourceIp::Auto => SourceMode::Auto,
        SourceIp::Preserve => SourceMode::Preserve,
        SourceIp::Snat => SourceMode::Snat,
    }
}

/// Kinds and addresses of a service's frontends except NodePorts, without duplicates. Left out are families that the
/// service doesn't have, since it can have no endpoints for them, and a load balancer with such addresses reaches the
/// service in another way; and addresses that no service may have.
pub(super) fn addresses(service: &Service, guard: &Guard) -> Vec<(FrontendKind, IpAddr)> {
    let mut seen = HashSet::default();
    all_addresses(service)
        .filter(|(kind, ip)| service.families.has(ip) && guard.address(*kind, *ip).is_none() && seen.insert(*ip))
        .collect()
}

pub(crate) fn all_addresses(service: &Service) -> impl Iterator<Item = (FrontendKind, IpAddr)> {
    (service.cluster_ips.iter().map(|ip| (FrontendKind::ClusterIp, *ip)))
        .chain(service.load_balancer_ips.iter().map(|ip| (FrontendKind::LoadBalancer, *ip)))
        .chain(service.external_ips.iter().map(|ip| (FrontendKind::ExternalIp, *ip)))
}

/// Kinds and addresses of a port's frontends, except ports that the node needs for itself.
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

/// internalTrafficPolicy applies to ClusterIPs and externalTrafficPolicy to all other frontends, where it binds only
/// clients from outside: those on the node itself have already reached their destination node and get any endpoint
/// (KEP-2086, KEP-1669; pkg/proxy UsesClusterEndpoints).
pub(super) fn policies(service: &Service, kind: FrontendKind) -> Policies {
    match (kind, service.external_policy) {
        (FrontendKind::ClusterIp, _) => Policies { inside: service.internal_policy, outside: None },
        (_, TrafficPolicy::Cluster) => Policies { inside: TrafficPolicy::Cluster, outside: None },
        (_, TrafficPolicy::Local) => Policies { inside: TrafficPolicy::Cluster, outside: Some(TrafficPolicy::Local) },
    }
}

/// A service with source ranges admits only clients in these: if none is of the frontend's family, it admits no
/// clients.
pub(super) fn source_ranges(service: &Service, kind: FrontendKind, ip: &IpAddr) -> Option<Vec<ipnetwork::IpNetwork>> {
    let ranges = service.source_ranges.as_ref().filter(|_| kind == FrontendKind::LoadBalancer)?;
    Some(ranges.iter().filter(|range| range.is_ipv4() == ip.is_ipv4()).copied().collect())
}
