//! Network policies as commands show them. The event loop takes [`PolicyFacts`] and [`PodFacts`], which share the
//! objects; the server makes readable values of them.

use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    model::{
        LabelCondition, NetworkPolicy, ObjectName, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Protocol, Selector,
    },
    policy::Policies,
};

/// A NetworkPolicy in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySummary {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it isolates pods from what connects to them.
    pub ingress: bool,
    /// Whether it isolates pods from what they connect to.
    pub egress: bool,
    /// Number of this node's pods that it selects.
    pub subjects: usize,
    /// Number of pods that the selectors of its rules find, on all nodes.
    pub peers: usize,
    /// Number of its elements that are left out as invalid.
    pub problems: usize,
}

impl PolicySummary {
    /// Summarises a policy.
    pub fn of(policies: &Policies, name: &ObjectName, object: &NetworkPolicy) -> Self {
        Self {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            ingress: object.ingress.is_some(),
            egress: object.egress.is_some(),
            subjects: policies.subjects(name).count(),
            peers: policies.peers(name),
            problems: object.left_out.count(),
        }
    }
}

/// A NetworkPolicy with its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDetail {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Selector of its pods; empty: all of the namespace.
    pub pods: String,
    /// What may connect to these pods; `None`: it doesn't isolate them in this direction.
    pub ingress: Option<Vec<RuleView>>,
    /// What these pods may connect to; `None`: it doesn't isolate them in this direction.
    pub egress: Option<Vec<RuleView>>,
    /// This node's pods that it selects, as `namespace/name`.
    pub subjects: Vec<String>,
    /// Number of pods that the selectors of its rules find, on all nodes.
    pub peers: usize,
    /// Its elements that are left out as invalid, with the reasons.
    pub problems: Vec<String>,
}

/// A rule: allows what both of its lists match. Selectors are written as for `kubectl --selector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleView {
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
    /// What may connect to it; `None`: everything, since no policy isolates it in this direction.
    pub ingress: Option<Isolation>,
    /// What it may connect to; `None`: everything, since no policy isolates it in this direction.
    pub egress: Option<Isolation>,
}

/// Isolation of a pod in one direction: only what a rule allows passes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// The policies that isolate it, as `namespace/name`.
    pub policies: Vec<String>,
    /// Their rules.
    pub rules: Vec<NamedRule>,
}

/// A rule with its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedRule {
    /// The policy, as `namespace/name`.
    pub policy: String,
    /// The rule.
    #[serde(flatten)]
    pub rule: RuleView,
}

/// Answer to the question for a pod's policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAnswer {
    /// `None` if the pod is unknown.
    pub pod: Option<PodPolicies>,
    /// Whether the cluster has any policy. Pods may be unknown while it has none.
    pub any_policy: bool,
}

/// Everything needed to show a policy.
#[derive(Clone, Debug)]
pub struct PolicyFacts {
    name: ObjectName,
    object: Arc<NetworkPolicy>,
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
        PolicyDetail {
            namespace,
            name,
            pods: selector(&object.pods),
            ingress: object.ingress.as_deref().map(rules),
            egress: object.egress.as_deref().map(rules),
            subjects: subjects.iter().map(ObjectName::to_string).collect(),
            peers,
            problems: object.left_out.lines().collect(),
        }
    }
}

/// Everything needed to explain which policies a pod has.
#[derive(Clone, Debug)]
pub struct PodFacts {
    name: ObjectName,
    /// `None` if the pod is unknown.
    local: Option<bool>,
    selecting: Vec<(ObjectName, Arc<NetworkPolicy>)>,
    any_policy: bool,
}

impl PodFacts {
    /// Those of a pod.
    pub fn of(policies: &Policies, name: &ObjectName) -> Self {
        let selecting = policies.isolating(name);
        Self {
            name: name.clone(),
            local: policies.is_local(name),
            selecting: selecting.filter_map(|name| Some((name.clone(), policies.get(name)?.clone()))).collect(),
            any_policy: !policies.is_empty(),
        }
    }

    /// In readable form.
    pub fn answer(self) -> PodAnswer {
        let ingress = self.isolation(|policy| policy.ingress.as_deref());
        let egress = self.isolation(|policy| policy.egress.as_deref());
        let ObjectName { namespace, name } = self.name;
        let pod = self.local.map(|local| PodPolicies { namespace, name, local, ingress, egress });
        PodAnswer { pod, any_policy: self.any_policy }
    }

    fn isolation(&self, direction: impl Fn(&NetworkPolicy) -> Option<&[PolicyRule]>) -> Option<Isolation> {
        let mut isolation = None::<Isolation>;
        for (name, object) in &self.selecting {
            let Some(rules) = direction(object) else { continue };
            let isolation = isolation.get_or_insert_default();
            let policy = name.to_string();
            isolation.rules.extend(rules.iter().map(|rule| NamedRule { policy: policy.clone(), rule: view(rule) }));
            isolation.policies.push(policy);
        }
        isolation
    }
}

fn rules(rules: &[PolicyRule]) -> Vec<RuleView> {
    rules.iter().map(view).collect()
}

fn view(rule: &PolicyRule) -> RuleView {
    RuleView {
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
