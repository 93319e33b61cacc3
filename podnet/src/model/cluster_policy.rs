//! ClusterNetworkPolicies.

use super::left_out::LeftOut;
use super::policy::{PolicyRule, Selector};

/// A ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`).
///
/// As the API demands, a rule with a part that podnet can't understand matches nothing if it accepts, and denies
/// everything otherwise; it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNetworkPolicy {
    /// Its `metadata.uid`; empty in a file.
    pub uid: Box<str>,
    /// When its rules are evaluated.
    pub tier: Tier,
    /// Policies of a tier with smaller numbers are evaluated first; of those with the same, the first by name.
    pub priority: u16,
    /// The namespaces of the pods that it applies to.
    pub namespaces: Selector,
    /// The pods in these namespaces.
    pub pods: Selector,
    /// About connections to these pods. The first that matches decides.
    pub ingress: Vec<ClusterRule>,
    /// About connections from these pods. The first that matches decides.
    pub egress: Vec<ClusterRule>,
    /// Rules and other elements that podnet can't understand, and that therefore have no effect, or not the stated one.
    pub left_out: LeftOut,
}

/// A tier: `Admin` is evaluated before NetworkPolicies, `Baseline` after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Policies that NetworkPolicies can't override.
    Admin,
    /// Policies for pods that no NetworkPolicy isolates.
    Baseline,
}

impl Tier {
    /// Its name, as in the field `tier`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        }
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRule {
    /// Its name; may be empty.
    pub name: Box<str>,
    /// What it does with connections that it matches.
    pub action: Action,
    /// What it matches.
    pub matches: PolicyRule,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Allows the connection, whatever later rules say.
    Accept,
    /// Denies the connection, whatever later rules say.
    Deny,
    /// Leaves the decision to the next tier.
    Pass,
}

impl Action {
    /// Its name, as in the field `action`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        }
    }
}
