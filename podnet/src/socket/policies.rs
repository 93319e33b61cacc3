//! Network policies as commands show them. The event loop takes [`PolicyFacts`] and [`PodFacts`], which share the
//! objects; the server makes readable values of them.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    model::{
        ClusterRule, LabelCondition, ObjectName, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Protocol, Selector,
    },
    policy::{AnyPolicy, Policies},
};

/// The place of a ClusterNetworkPolicy among others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierView {
    /// `Admin` or `Baseline`.
    pub name: String,
    /// Policies of a tier with smaller numbers are evaluated first.
    pub priority: u16,
}

impl TierView {
    fn of(policy: &AnyPolicy) -> Option<Self> {
        match policy {
            AnyPolicy::Network(_) => None,
            AnyPolicy::Cluster(policy) => Some(Self { name: policy.tier.name().into(), priority: policy.priority }),
        }
    }
}

/// A policy in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySummary {
    /// Its namespace; empty for a ClusterNetworkPolicy.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// For a ClusterNetworkPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<TierView>,
    /// Whether it isolates pods for ingress, or has ingress rules.
    pub ingress: bool,
    /// Whether it isolates pods for egress, or has egress rules.
    pub egress: bool,
    /// Number of this node's pods that it applies to.
    pub subjects: usize,
    /// Number of pods that the selectors of its rules find, on all nodes.
    pub peers: usize,
    /// Packets that it has denied on this node.
    #[serde(default)]
    pub denied: DeniedPackets,
    /// Number of its elements that are left out as invalid.
    pub problems: usize,
}

/// Numbers of packets that a policy has denied on this node. Several NetworkPolicies that isolate a pod deny together:
/// a packet counts for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedPackets {
    /// Packets to its pods.
    pub ingress: u64,
    /// Packets from its pods.
    pub egress: u64,
}

impl PolicySummary {
    /// Summarises a policy.
    pub fn of(policies: &Policies, name: &ObjectName, object: &AnyPolicy, denied: DeniedPackets) -> Self {
        Self {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            tier: TierView::of(object),
            ingress: object.has_ingress(),
            egress: object.has_egress(),
            subjects: policies.subjects(name).count(),
            peers: policies.peers(name),
            denied,
            problems: object.left_out().count(),
        }
    }
}

/// A policy with its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDetail {
    /// Its namespace; empty for a ClusterNetworkPolicy.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// For a ClusterNetworkPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<TierView>,
    /// ClusterNetworkPolicy: selector of its pods' namespaces, empty for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<String>,
    /// Selector of its pods; empty: all of the namespaces.
    pub pods: String,
    /// Rules about connections to these pods; `None`: it has none, or doesn't isolate them in this direction.
    pub ingress: Option<Vec<RuleView>>,
    /// Rules about connections from these pods; `None`: it has none, or doesn't isolate them in this direction.
    pub egress: Option<Vec<RuleView>>,
    /// This node's pods that it applies to, as `namespace/name`.
    pub subjects: Vec<String>,
    /// Number of pods that the selectors of its rules find, on all nodes.
    pub peers: usize,
    /// Its elements that are left out as invalid, with the reasons.
    pub problems: Vec<String>,
}

/// A rule, for connections that both of its lists match. Selectors are written as for `kubectl --selector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleView {
    /// Its name, in a ClusterNetworkPolicy that gives it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Accept`, `Deny` or `Pass` in a ClusterNetworkPolicy; `None`: it accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The other ends; `None`: all addresses.
    pub peers: Option<Vec<PeerView>>,
    /// Ports of the destination; `None`: all protocols and ports.
    pub ports: Option<Vec<PortView>>,
}

/// A peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerView {
    /// Pods.
    Pods {
        /// Selector of their namespaces, empty for all; `None`: the policy's own namespace.
        namespaces: Option<String>,
        /// Selector of the pods in these namespaces; empty: all.
        pods: String,
    },
    /// Addresses.
    Block {
        /// The range.
        cidr: IpNetwork,
        /// Ranges that are excluded from it.
        except: Vec<IpNetwork>,
    },
    /// Nodes.
    Nodes(
        /// Their selector; empty: all.
        String,
    ),
}

/// Ports of a rule. Without number and name: all of the protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// The protocol.
    pub protocol: Protocol,
    /// First port of a range.
    pub first: Option<u16>,
    /// Last port of the range.
    pub last: Option<u16>,
    /// Name of a port of the destination pod.
    pub name: Option<String>,
}

/// The policies of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodPolicies {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it is on this node. Policies are enforced by the node of the pod.
    pub local: bool,
    /// What may connect to it; `None`: everything, since no policy says anything about that.
    pub ingress: Option<PodRules>,
    /// What it may connect to; `None`: everything, since no policy says anything about that.
    pub egress: Option<PodRules>,
    /// Its policies with invalid elements, which allow less than they seem to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<PolicyProblems>,
}

/// Number of a policy's invalid elements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyProblems {
    /// The policy, as in [`PodRules::policies`].
    pub policy: String,
    /// How many.
    pub count: usize,
}

/// What policies say about the connections of a pod in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRules {
    /// Whether NetworkPolicies isolate it: without a rule that accepts, a connection is denied.
    pub isolated: bool,
    /// The policies in the order in which they are evaluated: `namespace/name`, or the name of a ClusterNetworkPolicy.
    pub policies: Vec<String>,
    /// Their rules in the same order.
    pub rules: Vec<NamedRule>,
}

/// A rule with its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedRule {
    /// The policy, as in [`PodRules::policies`].
    pub policy: String,
    /// For a ClusterNetworkPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<TierView>,
    /// The rule.
    #[serde(flatten)]
    pub rule: RuleView,
}

/// Answer to the request for a pod's policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAnswer {
    /// `None` if the pod is unknown.
    pub pod: Option<PodPolicies>,
    /// Whether the cluster has any policy. Pods may be unknown while it has none.
    pub any_policy: bool,
}

/// The part of a rule set that denies packets, as in the table `policy_denials`, and the policies behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DenyingRule {
    /// Id of the set.
    pub set: u32,
    /// Number of a rule; 0: no rule allows the packets.
    pub rule: u32,
    /// The policies: `namespace/name`, or the name of a ClusterNetworkPolicy.
    pub policies: Vec<String>,
}

/// Everything needed to show a policy.
#[derive(Clone, Debug)]
pub struct PolicyFacts {
    name: ObjectName,
    object: AnyPolicy,
    subjects: Vec<ObjectName>,
    peers: usize,
}

impl PolicyFacts {
    /// Those of a policy; `None` if there is no such policy.
    pub fn of(policies: &Policies, name: &ObjectName) -> Option<Self> {
        let object = policies.get(name)?.clone();
        let subjects = policies.subjects(name).cloned().collect();
        Some(Self { name: name.clone(), object, subjects, peers: policies.peers(name) })
    }

    /// In readable form.
    pub fn detail(self) -> PolicyDetail {
        let Self { name: ObjectName { namespace, name }, object, subjects, peers } = self;
        let (namespaces, pods) = match &object {
            AnyPolicy::Network(policy) => (None, selector(&policy.pods)),
            AnyPolicy::Cluster(policy) => (Some(selector(&policy.namespaces)), selector(&policy.pods)),
        };
        PolicyDetail {
            namespace,
            name,
            tier: TierView::of(&object),
            namespaces,
            pods,
            ingress: rules(&object, true),
            egress: rules(&object, false),
            subjects: subjects.iter().map(ObjectName::to_string).collect(),
            peers,
            problems: object.left_out().lines().collect(),
        }
    }
}

/// Everything needed to explain which policies a pod has.
#[derive(Clone, Debug)]
pub struct PodFacts {
    name: ObjectName,
    /// `None` if the pod is unknown.
    local: Option<bool>,
    /// In the order in which they are evaluated.
    policies: Vec<(ObjectName, AnyPolicy)>,
    any_policy: bool,
}

impl PodFacts {
    /// Those of a pod.
    pub fn of(policies: &Policies, name: &ObjectName) -> Self {
        let applying = policies.applying(name).into_iter();
        Self {
            name: name.clone(),
            local: policies.is_local(name),
            policies: applying.map(|(name, policy)| (name.clone(), policy.clone())).collect(),
            any_policy: !policies.is_empty(),
        }
    }

    /// In readable form.
    pub fn answer(self) -> PodAnswer {
        let (ingress, egress) = (self.applied(true), self.applied(false));
        let ObjectName { namespace, name } = self.name;
        let of_policy = |(name, policy): &(ObjectName, AnyPolicy)| {
            let count = policy.left_out().count();
            (count > 0).then(|| PolicyProblems { policy: name.to_string(), count })
        };
        let problems = self.policies.iter().filter_map(of_policy).collect();
        let pod = self.local.map(|local| PodPolicies { namespace, name, local, ingress, egress, problems });
        PodAnswer { pod, any_policy: self.any_policy }
    }

    fn applied(&self, ingress: bool) -> Option<PodRules> {
        let mut applied = None::<PodRules>;
        for (name, object) in &self.policies {
            let Some(rules) = rules(object, ingress) else { continue };
            let applied = applied.get_or_insert_default();
            let (policy, tier) = (name.to_string(), TierView::of(object));
            applied.isolated |= tier.is_none();
            let rule = |rule| NamedRule { policy: policy.clone(), tier: tier.clone(), rule };
            applied.rules.extend(rules.into_iter().map(rule));
            applied.policies.push(policy);
        }
        applied
    }
}

/// The rules of one direction; `None` if the policy says nothing about it.
fn rules(policy: &AnyPolicy, ingress: bool) -> Option<Vec<RuleView>> {
    match policy {
        AnyPolicy::Network(policy) => {
            let rules = if ingress { &policy.ingress } else { &policy.egress };
            rules.as_ref().map(|rules| rules.iter().map(view).collect())
        }
        AnyPolicy::Cluster(policy) => {
            let rules = if ingress { &policy.ingress } else { &policy.egress };
            let named = |rule: &ClusterRule| RuleView {
                name: (!rule.name.is_empty()).then(|| rule.name.to_string()),
                action: Some(rule.action.name().into()),
                ..view(&rule.matches)
            };
            (!rules.is_empty()).then(|| rules.iter().map(named).collect())
        }
    }
}

fn view(rule: &PolicyRule) -> RuleView {
    RuleView {
        name: None,
        action: None,
        peers: rule.peers.as_ref().map(|peers| peers.iter().map(peer).collect()),
        ports: rule.ports.as_ref().map(|ports| ports.iter().map(port).collect()),
    }
}

fn peer(peer: &PolicyPeer) -> PeerView {
    match peer {
        PolicyPeer::Pods { namespaces, pods } => {
            PeerView::Pods { namespaces: namespaces.as_ref().map(selector), pods: selector(pods) }
        }
        PolicyPeer::Block { cidr, except } => PeerView::Block { cidr: *cidr, except: except.clone() },
        PolicyPeer::Nodes(nodes) => PeerView::Nodes(selector(nodes)),
    }
}

fn port(port: &PolicyPort) -> PortView {
    let all = PortView { protocol: port.protocol, ..PortView::default() };
    match &port.ports {
        PortMatch::All => all,
        PortMatch::Range(first, last) => PortView { first: Some(*first), last: Some(*last), ..all },
        PortMatch::Name(name) => PortView { name: Some(name.to_string()), ..all },
    }
}

/// A selector as `kubectl --selector` takes it; empty if it selects everything.
fn selector(selector: &Selector) -> String {
    let requirement = |(key, condition): (&str, &LabelCondition)| match condition {
        LabelCondition::In(values) => match &values[..] {
            [value] => format!("{key}={value}"),
            values => format!("{key} in ({})", values.join(",")),
        },
        LabelCondition::NotIn(values) => match &values[..] {
            [value] => format!("{key}!={value}"),
            values => format!("{key} notin ({})", values.join(",")),
        },
        LabelCondition::Exists => key.to_owned(),
        LabelCondition::DoesNotExist => format!("!{key}"),
    };
    let requirements = selector.0.iter().map(|one| requirement((&one.key, &one.condition)));
    requirements.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Requirement;

    #[test]
    fn selectors_of_a_policy_are_written_as_for_kubectl() {
        let values = |values: &[&str]| values.iter().map(|value| (*value).into()).collect::<Vec<_>>();
        let conditions = [
            LabelCondition::In(values(&["web"])),
            LabelCondition::In(values(&["a", "b"])),
            LabelCondition::NotIn(values(&["web"])),
            LabelCondition::NotIn(values(&["a", "b"])),
            LabelCondition::Exists,
            LabelCondition::DoesNotExist,
        ];
        let requirements = conditions.map(|condition| Requirement { key: "k".into(), condition });
        assert_eq!(selector(&Selector(requirements.into())), "k=web,k in (a,b),k!=web,k notin (a,b),k,!k");
        assert_eq!(selector(&Selector::default()), "");
    }
}
