//! Which endpoints each frontend of a service uses: a pure function of the service, its slices, the node and the
//! settings.
//!
//! ```text
//! Service ── its frontends ──┐
//! slices ─── candidates ─────┴─ rule (Cluster or Local) ──→ fate of each candidate ──→ frontends(), explain()
//! ```
//! What [`frontends`] chooses and what [`explain`] tells are the same judgement, so the explanation is never another
//! one than the tables'.

mod explain;
mod health;
mod remarks;
mod rule;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use explain::{Choice, Clients, Explained, ExplainedEndpoint, ExplainedFrontend, explain};
pub use health::{HealthCheck, health};
pub use remarks::remarks;
pub use rule::Fate;

use crate::frontend::{Backends, Frontend, FrontendAddr, FrontendKind, IfNone, ServicePortName, SourceMode};
use crate::model::{EndpointSlice, Node, ObjectName, Service, ServicePort, SourceIp, TrafficPolicy};
use rule::{Candidate, Rule, candidates};

/// What holds for all services on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which source address a backend sees, where the service doesn't say.
    pub source_ip: SourceIp,
    /// This node's name.
    pub node: String,
    /// The zone that it is in, if known.
    pub zone: Option<String>,
}

impl Settings {
    /// For a node whose object may not be there yet.
    pub fn new(source_ip: SourceIp, name: &str, node: Option<&Node>) -> Self {
        Self { source_ip, node: name.into(), zone: node.and_then(|node| node.zone.clone()) }
    }
}

/// Whose endpoints the clients of a frontend get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policies {
    /// This node's pods and processes, and those from outside unless `outside` is there.
    inside: TrafficPolicy,
    /// Those who come in by an uplink.
    outside: Option<TrafficPolicy>,
}

/// The frontends of a service on this node; `slices` are the service's own.
///
/// No two have the same address, port and protocol: an address that the service has in several ways counts as the
/// first of ClusterIP, load balancer's address, external IP.
pub fn frontends<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    settings: &Settings,
) -> Vec<Frontend> {
    let mut frontends = Vec::new();
    let source = source(service, settings);
    for port in service.ports.iter().filter(|_| service.ignored.is_none()) {
        // Made when they are needed: few services have both families.
        let mut views: [Option<View<'_>>; 2] = [None, None];
        for (kind, addr) in addresses(service, port) {
            let v4 = addr.is_ipv4();
            let view =
                views[usize::from(v4)].get_or_insert_with(|| View::new(candidates(port, v4, slices.clone()), settings));
            let policies = policies(service, kind);
            let sent_on = kind != FrontendKind::ClusterIp && source == SourceMode::Preserve;
            frontends.push(Frontend {
                key: FrontendAddr { socket: addr, protocol: port.protocol },
                kind,
                service: ServicePortName { service: name.clone(), port: port.name.clone() },
                source,
                affinity: service.affinity,
                source_ranges: source_ranges(service, kind, &addr.ip()),
                backends: view.backends(policies.inside),
                outside: policies.outside.map(|policy| view.backends(policy)),
                here: (sent_on && policies.outside.is_none()).then(|| view.here()),
            });
        }
    }
    frontends
}

/// Which source address a service's backends see.
fn source(service: &Service, settings: &Settings) -> SourceMode {
    match service.source_ip.unwrap_or(settings.source_ip) {
        SourceIp::Auto => SourceMode::Auto,
        SourceIp::Preserve => SourceMode::Preserve,
        SourceIp::Snat => SourceMode::Snat,
    }
}

/// Kind and place of a port's frontends. Addresses of families that the service doesn't have are left out: it can have
/// no endpoints for them, and a load balancer that has them reaches the service in another way.
fn addresses(service: &Service, port: &ServicePort) -> Vec<(FrontendKind, SocketAddr)> {
    let virtual_ips = (service.cluster_ips.iter().map(|ip| (FrontendKind::ClusterIp, *ip)))
        .chain(service.load_balancer_ips.iter().map(|ip| (FrontendKind::LoadBalancer, *ip)))
        .chain(service.external_ips.iter().map(|ip| (FrontendKind::ExternalIp, *ip)))
        .map(|(kind, ip)| (kind, SocketAddr::new(ip, port.port)));
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let node_ports = port
        .node_port
        .into_iter()
        .flat_map(|number| any.map(|ip| (FrontendKind::NodePort, SocketAddr::new(ip, number))));
    let mut addresses: Vec<(FrontendKind, SocketAddr)> = Vec::new();
    for (kind, addr) in virtual_ips.chain(node_ports).filter(|(_, addr)| service.families.has(&addr.ip())) {
        if addresses.iter().all(|(_, other)| *other != addr) {
            addresses.push((kind, addr));
        }
    }
    addresses
}

/// internalTrafficPolicy is about ClusterIPs and externalTrafficPolicy about all others, where it binds only clients
/// from outside: those on the node itself are already where they wanted to be and get any endpoint (KEP-2086, KEP-1669;
/// pkg/proxy UsesClusterEndpoints).
fn policies(service: &Service, kind: FrontendKind) -> Policies {
    match (kind, service.external_policy) {
        (FrontendKind::ClusterIp, _) => Policies { inside: service.internal_policy, outside: None },
        (_, TrafficPolicy::Cluster) => Policies { inside: TrafficPolicy::Cluster, outside: None },
        (_, TrafficPolicy::Local) => Policies { inside: TrafficPolicy::Cluster, outside: Some(TrafficPolicy::Local) },
    }
}

/// A service with source ranges lets nobody else in: if none of them is of the frontend's family, then no one.
fn source_ranges(service: &Service, kind: FrontendKind, ip: &IpAddr) -> Option<Vec<ipnetwork::IpNetwork>> {
    let restricted = kind == FrontendKind::LoadBalancer && !service.source_ranges.is_empty();
    let of_family = || service.source_ranges.iter().filter(|range| range.is_ipv4() == ip.is_ipv4());
    restricted.then(|| of_family().copied().collect())
}

/// The endpoints of one port and family as this node sees them.
struct View<'a> {
    candidates: Vec<Candidate<'a>>,
    cluster: Rule<'a>,
    local: Rule<'a>,
}

impl<'a> View<'a> {
    fn new(candidates: Vec<Candidate<'a>>, settings: &'a Settings) -> Self {
        let cluster = Rule::cluster(&candidates, settings);
        let local = Rule::local(&candidates, settings);
        Self { candidates, cluster, local }
    }

    fn rule(&self, policy: TrafficPolicy) -> &Rule<'a> {
        match policy {
            TrafficPolicy::Cluster => &self.cluster,
            TrafficPolicy::Local => &self.local,
        }
    }

    fn backends(&self, policy: TrafficPolicy) -> Backends {
        let list = self.chosen(self.rule(policy));
        // A client that is refused gives up; one that isn't answered may be sent to another node.
        let elsewhere = list.is_empty() && self.candidates.iter().any(Candidate::is_usable);
        Backends { list, if_none: if elsewhere { IfNone::Drop } else { IfNone::Reject } }
    }

    /// What another node may send on to this one. Hints don't count: they are the other node's.
    fn here(&self) -> Vec<SocketAddr> {
        self.chosen(&self.cluster.on_this_node())
    }

    fn chosen(&self, rule: &Rule<'_>) -> Vec<SocketAddr> {
        self.candidates.iter().filter(|candidate| rule.fate(candidate) == Fate::Chosen).map(|c| c.at).collect()
    }
}

#[cfg(test)]
mod tests;
