//! Evaluation of one endpoint: by its conditions, its location and its hints.
//!
//! The results equal those of `CategorizeEndpoints` in pkg/proxy/topology.go of Kubernetes: KEP-1669 (terminating
//! endpoints), KEP-2086 (internalTrafficPolicy), KEP-4444 and KEP-3015 (traffic distribution).

use std::net::SocketAddr;

use foldhash::HashMap;
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::guard::Guard;
use crate::model::{Condition, EndpointSlice, Placement, Protocol, ServicePort, SlicePort};

/// Fate of an endpoint at a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// It receives connections.
    Chosen,
    /// It isn't ready.
    NotReady,
    /// It is terminating, and there are ready endpoints.
    Terminating,
    /// It isn't on this node, as the traffic policy Local requires.
    NotOnThisNode,
    /// Its hints name other nodes, and there are endpoints with hints for this one.
    HintedForOtherNodes,
    /// Its hints name other zones, and there are endpoints with hints for this one.
    HintedForOtherZones,
    /// Its address isn't of the frontend's family.
    OtherFamily,
    /// Its slice doesn't have the service's port.
    NoSuchPort,
    /// It has an address that no service may have as an endpoint.
    Refused,
}

/// An endpoint with the given port and family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    /// Address and target port.
    pub at: SocketAddr,
    pub condition: Condition,
    pub placement: &'a Placement,
}

impl Candidate<'_> {
    /// Whether any policy could choose it.
    pub fn is_usable(&self) -> bool {
        self.condition > Condition::Unusable
    }
}

/// Number of ports of a slice above which they are looked up by a hash: nearly all slices have one.
const FEW_PORTS: usize = 4;

/// The slices of a service, with the target ports of its ports.
pub(super) struct Targets<'a> {
    slices: Vec<(&'a EndpointSlice, Numbers<'a>)>,
    guard: &'a Guard,
}

/// Target ports by name and protocol of the service port; empty for a slice with few ports.
type Numbers<'a> = HashMap<(&'a str, Protocol), u16>;

impl<'a> Targets<'a> {
    pub(super) fn new(slices: impl Iterator<Item = &'a EndpointSlice>, guard: &'a Guard) -> Self {
        let ports = |slice: &'a EndpointSlice| {
            let ports = if slice.ports.len() > FEW_PORTS { &slice.ports[..] } else { &[] };
            ports.iter().map(|port| ((port.name.as_str(), port.protocol), port.port)).collect()
        };
        Self { slices: slices.map(|slice| (slice, ports(slice))).collect(), guard }
    }

    /// The slices, and the target port of a port in each.
    pub(super) fn of(&self, port: &ServicePort) -> impl Iterator<Item = (&'a EndpointSlice, Option<u16>)> {
        self.slices.iter().map(|(slice, ports)| {
            let same = |target: &&SlicePort| target.name == port.name && target.protocol == port.protocol;
            let target = match ports.is_empty() {
                true => slice.ports.iter().find(same).map(|target| target.port),
                false => ports.get(&(port.name.as_str(), port.protocol)).copied(),
            };
            (*slice, target)
        })
    }

    /// Whether no service may have this endpoint.
    pub(super) fn is_refused(&self, at: SocketAddr, protocol: Protocol) -> bool {
        self.guard.endpoint(at, protocol).is_some()
    }

    /// The endpoints of one port and family, sorted, without duplicates. An address may be in several slices, while an
    /// endpoint moves between them or when its address is reused; then the slice with the best condition counts.
    pub(super) fn candidates(&self, port: &ServicePort, v4: bool) -> Vec<Candidate<'a>> {
        let mut candidates = Vec::new();
        for (slice, target) in self.of(port) {
            let Some(target) = target else { continue };
            let of_family = slice.endpoints.iter().filter(|endpoint| endpoint.addr.is_ipv4() == v4);
            candidates.extend(of_family.filter_map(|endpoint| {
                let at = SocketAddr::new(endpoint.addr, target);
                let may = !self.is_refused(at, port.protocol);
                may.then_some(Candidate { at, condition: endpoint.condition, placement: &endpoint.placement })
            }));
        }
        candidates.sort_by(|a, b| (a.at, b.condition).cmp(&(b.at, a.condition)));
        candidates.dedup_by_key(|candidate| candidate.at);
        candidates
    }
}

/// The endpoints that a traffic policy chooses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule<'a> {
    /// With this condition, or a better one.
    condition: Condition,
    /// On this node only.
    local: bool,
    /// With these hints for this node or its zone.
    hints: Hints,
    settings: &'a Settings,
}

/// The kind of hints that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hints {
    None,
    Node,
    Zone,
}

impl<'a> Rule<'a> {
    /// The rule of the traffic policy Cluster.
    pub fn cluster(candidates: &[Candidate<'_>], settings: &'a Settings) -> Self {
        let condition = best(candidates.iter());
        let hints = if condition == Condition::Ready { Hints::of(candidates, settings) } else { Hints::None };
        Self { condition, local: false, hints, settings }
    }

    /// The rule of the traffic policy Local. It ignores hints, and falls back to terminating endpoints independently of
    /// those on other nodes.
    pub fn local(candidates: &[Candidate<'_>], settings: &'a Settings) -> Self {
        let condition = best(candidates.iter().filter(|candidate| candidate.placement.is_on(&settings.node)));
        Self { condition, local: true, hints: Hints::None, settings }
    }

    /// The part of a rule's choice on this node, whatever its hints.
    pub fn on_this_node(self) -> Self {
        Self { local: true, hints: Hints::None, ..self }
    }

    /// Fate of an endpoint under this rule.
    pub fn fate(&self, candidate: &Candidate<'_>) -> Fate {
        if !candidate.is_usable() {
            Fate::NotReady
        } else if self.local && !candidate.placement.is_on(&self.settings.node) {
            Fate::NotOnThisNode
        } else if candidate.condition < self.condition {
            Fate::Terminating
        } else if !self.hints.admit(candidate.placement, self.settings) {
            if self.hints == Hints::Node { Fate::HintedForOtherNodes } else { Fate::HintedForOtherZones }
        } else {
            Fate::Chosen
        }
    }
}

/// Ready endpoints if there are any, else those that are terminating but still serving.
fn best<'c, 'a: 'c>(candidates: impl Iterator<Item = &'c Candidate<'a>>) -> Condition {
    candidates.map(|candidate| candidate.condition).max().unwrap_or(Condition::Unusable)
}

impl Hints {
    /// Hints apply only if every ready endpoint has one, since otherwise they are being changed, and if one matches
    /// here: first hints for nodes, then for zones.
    fn of(candidates: &[Candidate<'_>], settings: &Settings) -> Self {
        let ready = || candidates.iter().filter(|c| c.condition == Condition::Ready).map(|c| c.placement);
        for hints in [Self::Node, Self::Zone] {
            if ready().all(|placement| !hints.names(placement).is_empty())
                && ready().any(|placement| hints.admit(placement, settings))
            {
                return hints;
            }
        }
        Self::None
    }

    fn names(self, placement: &Placement) -> &[Box<str>] {
        match self {
            Self::None => &[],
            Self::Node => &placement.for_nodes,
            Self::Zone => &placement.for_zones,
        }
    }

    fn admit(self, placement: &Placement, settings: &Settings) -> bool {
        let here = match self {
            Self::None => return true,
            Self::Node => Some(settings.node.as_str()),
            Self::Zone => settings.zone.as_deref(),
        };
        self.names(placement).iter().any(|name| Some(&**name) == here)
    }
}
