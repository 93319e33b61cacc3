//! The endpoints of one port and family under both traffic policies.

use std::net::SocketAddr;

use super::meter::Counted;
use super::rule::{Candidate, Fate, Rule};
use super::settings::Settings;
use crate::frontend::{Backends, IfNone};
use crate::model::TrafficPolicy;

/// The endpoints of one port and family as seen by this node.
pub(super) struct View<'a> {
    pub(super) candidates: Vec<Candidate<'a>>,
    cluster: Rule<'a>,
    local: Rule<'a>,
    /// The lists already counted by a `Meter`.
    pub(super) counted: Counted,
}

impl<'a> View<'a> {
    pub(super) fn new(candidates: Vec<Candidate<'a>>, settings: &'a Settings) -> Self {
        let cluster = Rule::cluster(&candidates, settings);
        let local = Rule::local(&candidates, settings);
        Self { candidates, cluster, local, counted: Counted::default() }
    }

    pub(super) fn rule(&self, policy: TrafficPolicy) -> &Rule<'a> {
        match policy {
            TrafficPolicy::Cluster => &self.cluster,
            TrafficPolicy::Local => &self.local,
        }
    }

    pub(super) fn backends(&self, policy: TrafficPolicy) -> Backends {
        let list = self.chosen(self.rule(policy));
        // Clients give up after a rejection; without an answer they may be sent to another node.
        let elsewhere = list.is_empty() && self.candidates.iter().any(Candidate::is_usable);
        Backends { list, if_none: if elsewhere { IfNone::Drop } else { IfNone::Reject } }
    }

    /// Endpoints to which other nodes may forward connections on this one. Hints don't apply: the other node's do.
    pub(super) fn here(&self) -> Vec<SocketAddr> {
        self.chosen(&self.cluster.on_this_node())
    }

    fn chosen(&self, rule: &Rule<'_>) -> Vec<SocketAddr> {
        self.candidates.iter().filter(|candidate| rule.fate(candidate) == Fate::Chosen).map(|c| c.at).collect()
    }
}
