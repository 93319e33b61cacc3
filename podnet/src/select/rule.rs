//! How one endpoint is judged: by its conditions, by where it is, by whom it is meant for.
//!
//! The outcome is that of `CategorizeEndpoints` in pkg/proxy/topology.go of Kubernetes: KEP-1669 (terminating
//! endpoints), KEP-2086 (internalTrafficPolicy), KEP-4444 and KEP-3015 (traffic distribution).

use std::collections::HashMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::guard::Guard;
use crate::model::{Condition, EndpointSlice, Placement, Protocol, ServicePort, SlicePort};

/// What becomes of an endpoint at a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// Connections go to it.
    Chosen,
    /// It isn't ready.
    NotReady,
    /// It is terminating while others aren't.
    Terminating,
    /// It isn't on this node, as the traffic policy Local wants it.
    NotOnThisNode,
    /// Hints mean it for other nodes, and there are some meant for this one.
    HintedForOtherNodes,
    /// Hints mean it for other zones, and there are some meant for this one.
    HintedForOtherZones,
    /// Its address isn't of the frontend's family.
    OtherFamily,
    /// Its slice doesn't have the service's port.
    NoSuchPort,
    /// It is one that no service may have.
    Refused,
}

/// An endpoint that has the port and family in question.
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

/// Ports of a slice beyond which they are looked up by a hash: nearly all slices have one.
const FEW_PORTS: usize = 4;

/// The slices of a service, with the numbers that its ports have there.
pub(super) struct Targets<'a> {
    slices: Vec<(&'a EndpointSlice, Numbers<'a>)>,
    guard: &'a Guard,
}

/// Target ports by the service port's name and protocol; empty for a slice with few.
type Numbers<'a> = HashMap<(&'a str, Protocol), u16>;

impl<'a> Targets<'a> {
    pub(super) fn new(slices: impl Iterator<Item = &'a EndpointSlice>, guard: &'a Guard) -> Self {
        let ports = |slice: &'a EndpointSlice| {
            let ports = if slice.ports.len() > FEW_PORTS { &slice.ports[..] } else { &[] };
            ports.iter().map(|port| ((port.name.as_str(), port.protocol), port.port)).collect()
        };
        Self { slices: slices.map(|slice| (slice, ports(slice))).collect(), guard }
    }

    /// The slices, and the number that a port has in each.
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

    /// Whether an endpoint is one that no service may have.
    pub(super) fn is_refused(&self, at: SocketAddr, protocol: Protocol) -> bool {
        self.guard.endpoint(at, protocol).is_some()
    }

    /// The endpoints of one port and family, sorted, each once. An address that several slices list, which happens while
    /// an endpoint moves between them or if its address is used again, counts as what the best of them says.
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

/// Which endpoints count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule<'a> {
    /// Those in this condition.
    condition: Condition,
    /// Those on this node only.
    local: bool,
    /// Those meant for it.
    hints: Hints,
    settings: &'a Settings,
}

/// Which hints count.
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

    /// The rule of the traffic policy Local, which ignores hints and decides by itself whether terminating endpoints
    /// have to do.
    pub fn local(candidates: &[Candidate<'_>], settings: &'a Settings) -> Self {
        let condition = best(candidates.iter().filter(|candidate| candidate.placement.is_on(&settings.node)));
        Self { condition, local: true, hints: Hints::None, settings }
    }

    /// The part of a rule's choice that is on this node, whomever it is meant for.
    pub fn on_this_node(self) -> Self {
        Self { local: true, hints: Hints::None, ..self }
    }

    /// What it means for an endpoint.
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
    /// Hints are followed only if every ready endpoint has one, since otherwise they are being changed, and if one is
    /// for here: first those of nodes, then those of zones.
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
