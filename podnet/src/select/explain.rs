//! Why a service's frontends have the endpoints that they have, for people.

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
use crate::frontend::{FrontendAddr, FrontendKind, IfNone, SourceMode};
use crate::guard::Guard;
use crate::model::{
    Condition, Endpoint, EndpointSlice, Ignored, ObjectName, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};
use crate::room::Share;

/// A service as this node sees it.
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
    /// Which source address its backends see.
    #[serde(rename = "sourceIP")]
    pub source: SourceMode,
    /// Whose endpoints clients of ClusterIPs get.
    pub internal_traffic_policy: TrafficPolicy,
    /// Whose endpoints clients of all other frontends get, if they come from outside.
    pub external_traffic_policy: TrafficPolicy,
    /// For how many seconds a client stays with its endpoint; 0 for no affinity.
    pub affinity_seconds: u32,
    /// The port at which a load balancer asks whether this node has endpoints.
    pub health_check_node_port: Option<u16>,
    /// How many endpoints it is told of.
    pub health_check_endpoints: Option<usize>,
    /// What of it is left out and why, and what else its author should know.
    pub remarks: Vec<String>,
    /// Its frontends, in the order of its ports.
    pub frontends: Vec<ExplainedFrontend>,
}

/// A frontend, and what becomes of each endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedFrontend {
    /// What kind of address it has.
    pub kind: FrontendKind,
    /// The address; the unspecified one stands for all of the node's of its family.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The service port's name.
    pub port_name: String,
    /// Whether it is left out since the service would take more than its share of the tables.
    pub beyond_share: bool,
    /// Which clients may use it; none: all.
    pub source_ranges: Option<Vec<IpNetwork>>,
    /// One for all clients, or two.
    pub choices: Vec<Choice>,
}

/// The endpoints that some clients of a frontend get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    /// Which clients.
    pub clients: Clients,
    /// The policy that decides.
    pub traffic_policy: TrafficPolicy,
    /// What becomes of connections, if no endpoint is chosen.
    pub if_none: Option<IfNone>,
    /// Every endpoint of the service: first those that have the frontend's port and family, sorted.
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
    /// Those that come in by an uplink.
    Outside,
}

/// What becomes of an endpoint at a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// The target port; none if its slice doesn't have the service's port.
    pub port: Option<u16>,
    /// The node that it is on.
    pub node: Option<String>,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// Whether it takes connections.
    pub condition: Condition,
    /// Chosen, or why not.
    pub fate: Fate,
}

/// What [`super::select`] makes of a service with this share, and why; `slices` are the service's own, with their names.
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
        let judged = view.candidates.iter().map(|candidate| ExplainedEndpoint {
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
            endpoints: judged.chain(others.iter().cloned()).collect(),
        }
    };
    let policies = policies(service, kind);
    match policies.outside {
        None => vec![choice(Clients::All, policies.inside)],
        Some(outside) => vec![choice(Clients::ThisNode, policies.inside), choice(Clients::Outside, outside)],
    }
}

/// The endpoints that can't be chosen whatever the policy, sorted, each once.
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
