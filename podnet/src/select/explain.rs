//! Explanations of which endpoints a service's frontends have, for users.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::health::health;
use super::places::{addresses, places, policies, source, source_ranges};
use super::refused::refused;
use super::remarks::remarks;
use super::rule::{Fate, Targets};
use super::select;
use super::settings::Settings;
use super::view::View;
use crate::entry_counts::Share;
use crate::frontend::{FrontendAddr, FrontendKind, IfNone, SourceMode};
use crate::guard::Guard;
use crate::model::{
    Condition, Endpoint, EndpointSlice, Ignored, ObjectName, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};

/// A service as seen by this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// Why it has no frontends at all.
    pub ignored: Option<Ignored>,
    /// Source address that its backends see.
    #[serde(rename = "sourceIP")]
    pub source: SourceMode,
    /// Traffic policy for clients of ClusterIPs.
    pub internal_traffic_policy: TrafficPolicy,
    /// Traffic policy for clients of all other frontends, if they come from outside the node.
    pub external_traffic_policy: TrafficPolicy,
    /// Duration of client affinity in seconds; 0: no affinity.
    pub affinity_seconds: u32,
    /// TCP port of the health check, by which a load balancer learns whether this node has endpoints.
    pub health_check_node_port: Option<u16>,
    /// Number of endpoints that the health check reports.
    pub health_check_endpoints: Option<usize>,
    /// Elements that are left out, with the reason, and other remarks for its author.
    pub remarks: Vec<String>,
    /// Its frontends, in the order of its ports.
    pub frontends: Vec<ExplainedFrontend>,
}

/// A frontend, and the fate of each endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedFrontend {
    /// Kind of its address.
    pub kind: FrontendKind,
    /// The address; the unspecified one stands for all addresses of the node of its family.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// Name of the service port.
    pub port_name: String,
    /// Whether it is left out since the service would exceed its share of the tables.
    pub beyond_share: bool,
    /// Clients that may use it; `None`: all.
    pub source_ranges: Option<Vec<IpNetwork>>,
    /// One choice for all clients, or two.
    pub choices: Vec<Choice>,
}

/// The endpoints for some clients of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    /// The clients.
    pub clients: Clients,
    /// The effective traffic policy.
    pub traffic_policy: TrafficPolicy,
    /// Verdict on connections if no endpoint is chosen.
    pub if_none: Option<IfNone>,
    /// All endpoints of the service: first those with the frontend's port and family, sorted.
    pub endpoints: Vec<ExplainedEndpoint>,
}

/// Clients of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Clients {
    /// All of them.
    All,
    /// This node's pods and processes.
    ThisNode,
    /// Clients that arrive by an uplink.
    Outside,
}

/// Fate of an endpoint at a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// The target port; `None` if its slice doesn't have the service's port.
    pub port: Option<u16>,
    /// Its node.
    pub node: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Whether it accepts connections.
    pub condition: Condition,
    /// Chosen, or the reason why not.
    pub fate: Fate,
}

/// Explains the result of [`super::select`] for a service with this share. `slices` are the service's own, with their
/// names.
pub fn explain<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = (&'a str, &'a EndpointSlice)> + Clone,
    settings: &Settings,
    guard: &'a Guard,
    share: Share,
) -> Explained {
    let refused = refused(service, slices.clone(), guard);
    let slices = slices.map(|(_, slice)| slice);
    let check = health(name, service, slices.clone(), settings, guard);
    let selection = select(name, service, slices.clone(), settings, guard, share);
    let (beyond, unspread) = selection.shortages();
    let admitted: HashSet<FrontendAddr> = selection.frontends.iter().map(|frontend| frontend.key).collect();
    let left_out = service.left_out.lines().chain(slices.clone().flat_map(|slice| slice.left_out.lines()));
    let remarks = left_out.chain(refused.lines()).chain(beyond).chain(remarks(service)).chain(unspread).collect();
    let (targets, addresses) = (Targets::new(slices, guard), addresses(service, guard));
    let mut frontends = Vec::new();
    for port in service.ports.iter().filter(|_| service.ignored.is_none()) {
        for (kind, addr) in places(&addresses, service, port, guard) {
            frontends.push(ExplainedFrontend {
                kind,
                address: addr.ip(),
                port: addr.port(),
                protocol: port.protocol,
                port_name: port.name.clone(),
                beyond_share: !admitted.contains(&FrontendAddr { socket: addr, protocol: port.protocol }),
                source_ranges: source_ranges(service, kind, &addr.ip()),
                choices: choices(service, port, kind, addr.is_ipv4(), &targets, settings),
            });
        }
    }
    Explained {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        kind: service.kind,
        ignored: service.ignored,
        source: source(service, settings),
        internal_traffic_policy: service.internal_policy,
        external_traffic_policy: service.external_policy,
        affinity_seconds: service.affinity,
        health_check_node_port: check.as_ref().map(|check| check.port),
        health_check_endpoints: check.as_ref().map(|check| check.local_endpoints),
        remarks,
        frontends,
    }
}

fn choices(
    service: &Service,
    port: &ServicePort,
    kind: FrontendKind,
    v4: bool,
    targets: &Targets<'_>,
    settings: &Settings,
) -> Vec<Choice> {
    let view = View::new(targets.candidates(port, v4), settings);
    let others = others(port, v4, targets);
    let choice = |clients, traffic_policy| {
        let rule = view.rule(traffic_policy);
        let evaluated = view.candidates.iter().map(|candidate| ExplainedEndpoint {
            address: candidate.at.ip(),
            port: Some(candidate.at.port()),
            node: candidate.placement.node.as_deref().map(Into::into),
            zone: candidate.placement.zone.as_deref().map(Into::into),
            condition: candidate.condition,
            fate: rule.fate(candidate),
        });
        let backends = view.backends(traffic_policy);
        Choice {
            clients,
            traffic_policy,
            if_none: backends.list.is_empty().then_some(backends.if_none),
            endpoints: evaluated.chain(others.iter().cloned()).collect(),
        }
    };
    let policies = policies(service, kind);
    match policies.outside {
        None => vec![choice(Clients::All, policies.inside)],
        Some(outside) => vec![choice(Clients::ThisNode, policies.inside), choice(Clients::Outside, outside)],
    }
}

/// Endpoints that no policy can choose, sorted, without duplicates.
fn others(port: &ServicePort, v4: bool, targets: &Targets<'_>) -> Vec<ExplainedEndpoint> {
    let mut others = Vec::new();
    for (slice, target) in targets.of(port) {
        let refused = |endpoint: &Endpoint| {
            target.is_some_and(|target| targets.is_refused((endpoint.addr, target).into(), port.protocol))
        };
        let other = |endpoint: &&Endpoint| target.is_none() || endpoint.addr.is_ipv4() != v4 || refused(endpoint);
        others.extend(slice.endpoints.iter().filter(other).map(|endpoint| ExplainedEndpoint {
            address: endpoint.addr,
            port: target,
            node: endpoint.placement.node.as_deref().map(Into::into),
            zone: endpoint.placement.zone.as_deref().map(Into::into),
            condition: endpoint.condition,
            fate: match endpoint.addr.is_ipv4() == v4 {
                true if refused(endpoint) => Fate::Refused,
                true => Fate::NoSuchPort,
                false => Fate::OtherFamily,
            },
        }));
    }
    others.sort_by_key(|endpoint| (endpoint.address, endpoint.port));
    others.dedup_by_key(|endpoint| (endpoint.address, endpoint.port));
    others
}
