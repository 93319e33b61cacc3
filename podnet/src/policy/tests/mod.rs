//! Whole clusters: the compiled tables, evaluated by the pipeline's code, against an evaluator of the objects.

mod cases;
mod cluster_cases;
mod oracle;
mod pipeline;
mod random;
mod steps;

use std::collections::BTreeMap;
use std::net::IpAddr;

use podnet_common::addr::Proto;

use super::Policies;
use crate::model::{
    Action, ClusterNetworkPolicy, ClusterRule, LabelCondition, Labels, LeftOut, NamedPort, Namespace, NetworkPolicy,
    Node, ObjectName, Pod, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Protocol, Requirement, Selector, Tier,
};
use pipeline::{Pipeline, allows};

/// The node whose tables are compiled.
const NODE: &str = "n1";

/// The objects of a cluster.
#[derive(Clone, Debug, Default)]
struct Cluster {
    policies: BTreeMap<ObjectName, NetworkPolicy>,
    cluster_policies: BTreeMap<String, ClusterNetworkPolicy>,
    nodes: BTreeMap<String, Node>,
    namespaces: BTreeMap<String, Namespace>,
    pods: BTreeMap<ObjectName, Pod>,
}

impl Cluster {
    fn compile(&self) -> Policies {
        let mut policies = Policies::new(NODE);
        self.fill(&mut policies);
        policies
    }

    fn fill(&self, policies: &mut Policies) {
        self.pods.iter().for_each(|(name, pod)| policies.set_pod(name, Some(pod)));
        self.nodes.iter().for_each(|(name, node)| policies.set_node(name, Some(node)));
        self.policies.iter().for_each(|(name, policy)| policies.set_policy(name, Some(policy.clone().into())));
        for (own, policy) in &self.cluster_policies {
            policies.set_policy(&name("", own), Some(policy.clone().into()));
        }
        self.namespaces.iter().for_each(|(name, namespace)| policies.set_namespace(name, Some(namespace)));
        policies.update();
    }
}

/// Direction of a connection as its subject sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// What is asked: may the subject, a pod of the node, and the peer begin this connection?
#[derive(Clone, Copy, Debug)]
struct Question {
    subject: IpAddr,
    direction: Direction,
    peer: IpAddr,
    proto: Proto,
    /// Port of the destination.
    port: u16,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.into(), name: name.into() }
}

fn labels(labels: &[(&str, &str)]) -> Labels {
    labels.iter().copied().collect()
}

fn namespace(name: &str, own: &[(&str, &str)]) -> Namespace {
    let named = (crate::model::NAMESPACE_NAME_LABEL, name);
    Namespace { labels: own.iter().copied().chain([named]).collect(), ..Namespace::default() }
}

fn requirement(key: &str, condition: LabelCondition) -> Selector {
    Selector(vec![Requirement { key: key.into(), condition }])
}

fn with(key: &str, value: &str) -> Selector {
    requirement(key, LabelCondition::In(vec![value.into()]))
}

fn block(cidr: &str, except: &[&str]) -> PolicyPeer {
    let except = except.iter().map(|range| range.parse().unwrap()).collect();
    PolicyPeer::Block { cidr: cidr.parse().unwrap(), except }
}

fn cluster_policy(tier: Tier, priority: u16) -> ClusterNetworkPolicy {
    ClusterNetworkPolicy {
        uid: "".into(),
        tier,
        priority,
        namespaces: Selector::default(),
        pods: Selector::default(),
        ingress: Vec::new(),
        egress: Vec::new(),
        left_out: LeftOut::default(),
    }
}

fn named(name: &str, protocol: Protocol, port: u16) -> NamedPort {
    NamedPort { name: name.into(), protocol, port }
}
