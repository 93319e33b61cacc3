//! The endpoints of one port and family, under both policies.

use std::net::SocketAddr;

use super::meter::Counted;
use super::rule::{Candidate, Fate, Rule};
use super::settings::Settings;
use crate::frontend::{Backends, IfNone};
use crate::model::TrafficPolicy;

/// The endpoints of one port and family as this node sees them.
pub(super) struct View<'a> {
    pub(super) candidates: Vec<Candidate<'a>>,
    cluster: Rule<'a>,
    local: Rule<'a>,
    /// What of it a [`Meter`] has counted.
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
        // A client that is refused gives up; one that isn't answered may be sent to another node.
        let elsewhere = list.is_empty() && self.candidates.iter().any(Candidate::is_usable);
        Backends { list, if_none: if elsewhere { IfNone::Drop } else { IfNone::Reject } }
    }

    /// What another node may send on to this one. Hints don't count: they are the other node's.
    pub(super) fn here(&self) -> Vec<SocketAddr> {
        self.chosen(&self.cluster.on_this_node())
    }

    fn chosen(&self, rule: &Rule<'_>) -> Vec<SocketAddr> {
        self.candidates.iter().filter(|candidate| rule.fate(candidate) == Fate::Chosen).map(|c| c.at).collect()
    }
}
