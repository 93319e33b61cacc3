//! Which endpoints each frontend of a service uses: a pure function of the service, its slices, the node and the
//! settings.
//!
//! ```text
//! Service ── its frontends ──┐
//! slices ─── candidates ─────┴─ rule (Cluster or Local) ──→ fate of each candidate ──→ select(), explain()
//! ```
//! A service has a share of the tables, which `meter` keeps it to. What [`select`] chooses and what [`explain`] tells are the same judgement, so the explanation is never another
//! one than the tables'.

mod explain;
mod health;
mod meter;
mod remarks;
mod rule;

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use explain::{Choice, Clients, Explained, ExplainedEndpoint, ExplainedFrontend, explain};
pub use health::{HealthCheck, health};
pub use remarks::remarks;
pub use rule::Fate;

use crate::frontend::{Backends, Frontend, FrontendAddr, FrontendKind, IfNone, ServicePortName, SourceMode};
use crate::guard::Guard;
use crate::model::{EndpointSlice, LeftOut, Node, ObjectName, Service, ServicePort, SourceIp, TrafficPolicy};
use crate::room::{Bound, Room, Share};
use meter::{Counted, Meter};
use rule::{Candidate, Rule, Targets};

/// What holds for all services on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which source address a backend sees, where the service doesn't say.
    pub source_ip: SourceIp,
    /// This node's name.
    pub node: String,
    /// The zone that it is in, if known.
    pub zone: Option<String>,
    /// Slots of a table by which nodes choose alike.
    pub spread: u32,
}

impl Settings {
    /// For a node whose object may not be there yet.
    pub fn new(source_ip: SourceIp, name: &str, node: Option<&Node>) -> Self {
        Self { source_ip, node: name.into(), zone: node.and_then(|node| node.zone.clone()), spread: 0 }
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

/// What a service comes to on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Its frontends. No two have the same address, port and protocol: an address that the service has in several ways
    /// counts as the first of ClusterIP, load balancer's address, external IP.
    pub frontends: Vec<Frontend>,
    /// What they take of the tables.
    pub takes: Room,
    /// What there is no room for.
    pub beyond: Option<Beyond>,
    /// How many lists of backends have no table by which nodes choose alike, for want of room.
    pub unspread: usize,
}

/// Frontends of a service that would take more than its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// What the first of them goes beyond.
    pub bound: Bound,
    /// The first of them.
    pub first: FrontendAddr,
    /// How many there are.
    pub count: usize,
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bound: Bound { table, most, scarce }, first, count } = self;
        let others = count.saturating_sub(1);
        let why = match scarce {
            false => "as much as any Service may have",
            true => "as much as each Service of its namespace gets while all ask for more than there is",
        };
        write!(
            f,
            "{first} and {others} more frontends are left out: it takes more than its share of the table `{table}`, which is \
             {most} entries, {why}; use fewer ports, addresses, endpoints or source ranges"
        )
    }
}

impl Selection {
    /// What there is no room for, for people: what is left out, and what isn't as it should be.
    pub fn shortages(&self) -> (Option<String>, Option<String>) {
        let unspread = (self.unspread > 0).then(|| {
            format!(
                "{} of its lists of backends have no room in its share of the table `slots`: nodes choose the same backend there \
                 only until its endpoints change; preserve the source of fewer ports",
                self.unspread
            )
        });
        (self.beyond.map(|beyond| beyond.to_string()), unspread)
    }
}

/// The frontends of a service on this node that its share has room for: first those of its ClusterIPs, then all others, port
/// by port. `slices` are the service's own.
pub fn select<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    settings: &Settings,
    guard: &'a Guard,
    share: Share,
) -> Selection {
    let source = source(service, settings);
    let targets = Targets::new(slices, guard);
    let addresses = addresses(service, guard);
    let ports = if service.ignored.is_none() { &service.ports[..] } else { &[] };
    // Made when they are needed: few services have both families.
    let mut views: Vec<[Option<View<'_>>; 2]> = Vec::new();
    views.resize_with(ports.len(), Default::default);
    let (mut meter, mut selected) = (Meter::new(share, settings.spread), Vec::new());
    for of_cluster in [true, false] {
        for (index, port) in ports.iter().enumerate() {
            for (kind, addr) in places(&addresses, service, port, guard) {
                if (kind == FrontendKind::ClusterIp) != of_cluster {
                    continue;
                }
                let key = FrontendAddr { socket: addr, protocol: port.protocol };
                if meter.is_full() {
                    meter.refuse(key);
                    continue;
                }
                let v4 = addr.is_ipv4();
                let view = views[index][usize::from(v4)].get_or_insert_with(|| {
                    let candidates = targets.candidates(port, v4);
                    meter.examine(candidates.len());
                    View::new(candidates, settings)
                });
                let policies = policies(service, kind);
                let sent_on = kind != FrontendKind::ClusterIp && source == SourceMode::Preserve;
                let mut frontend = Frontend {
                    key,
                    kind,
                    service: ServicePortName { service: name.clone(), port: port.name.clone() },
                    source,
                    affinity: service.affinity,
                    source_ranges: source_ranges(service, kind, &addr.ip()),
                    backends: view.backends(policies.inside),
                    outside: policies.outside.map(|policy| view.backends(policy)),
                    here: (sent_on && policies.outside.is_none()).then(|| view.here()),
                    spread: true,
                };
                if meter.admit(&mut view.counted, policies, &mut frontend) {
                    selected.push((index, frontend));
                }
            }
        }
    }
    selected.sort_by_key(|(index, _)| *index);
    let frontends = selected.into_iter().map(|(_, frontend)| frontend).collect();
    Selection { frontends, takes: meter.takes(), beyond: meter.beyond(), unspread: meter.unspread() }
}

/// Which source address a service's backends see.
fn source(service: &Service, settings: &Settings) -> SourceMode {
    match service.source_ip.unwrap_or(settings.source_ip) {
        SourceIp::Auto => SourceMode::Auto,
        SourceIp::Preserve => SourceMode::Preserve,
        SourceIp::Snat => SourceMode::Snat,
    }
}

/// Kind and address of a service's frontends but NodePorts, each address once. Those of families that the service doesn't
/// have are left out: it can have no endpoints for them, and a load balancer that has them reaches the service in another
/// way. So are those that no service may have.
fn addresses(service: &Service, guard: &Guard) -> Vec<(FrontendKind, IpAddr)> {
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
fn places<'a>(
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

/// What of a service and its slices no service may have, and why.
pub fn refused<'a>(
    service: &Service,
    slices: impl Iterator<Item = (&'a str, &'a EndpointSlice)>,
    guard: &Guard,
) -> LeftOut {
    let mut left_out = LeftOut::default();
    if service.ignored.is_some() {
        return left_out;
    }
    for (kind, ip) in all_addresses(service).filter(|(_, ip)| service.families.has(ip)) {
        if let Some(why) = guard.address(kind, ip) {
            left_out.add(|| format!("{ip} is left out: {why}"));
        }
    }
    let addresses = addresses(service, guard);
    for port in &service.ports {
        for (kind, at) in all_places(addresses.iter().copied(), service, port) {
            if let Some(why) = guard.port(kind, at, port.protocol) {
                left_out.add(|| format!("{at}/{} is left out: {why}", port.protocol));
            }
        }
    }
    if let Some((port, why)) = health::refused(service, guard) {
        left_out.add(|| format!("healthCheckNodePort {port} is left out: {why}"));
    }
    for (name, slice) in slices {
        // Whatever the ports, an endpoint is looked at once: a slice may have thousands of both.
        let tunnel = slice.ports.iter().find(|port| Guard::is_tunnel(port.port, port.protocol));
        let Some(port) = tunnel.or(slice.ports.first()) else { continue };
        for endpoint in &slice.endpoints {
            let at = SocketAddr::new(endpoint.addr, port.port);
            if let Some(why) = guard.endpoint(at, port.protocol) {
                left_out.add(|| format!("endpoint {at}/{} of {name} is left out: {why}", port.protocol));
            }
        }
    }
    left_out
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
    let ranges = service.source_ranges.as_ref().filter(|_| kind == FrontendKind::LoadBalancer)?;
    Some(ranges.iter().filter(|range| range.is_ipv4() == ip.is_ipv4()).copied().collect())
}

/// The endpoints of one port and family as this node sees them.
struct View<'a> {
    candidates: Vec<Candidate<'a>>,
    cluster: Rule<'a>,
    local: Rule<'a>,
    /// What of it a [`Meter`] has counted.
    counted: Counted,
}

impl<'a> View<'a> {
    fn new(candidates: Vec<Candidate<'a>>, settings: &'a Settings) -> Self {
        let cluster = Rule::cluster(&candidates, settings);
        let local = Rule::local(&candidates, settings);
        Self { candidates, cluster, local, counted: Counted::default() }
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
