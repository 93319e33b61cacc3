//! What is right, evaluated object by object for one connection, as the NetworkPolicy API defines it.

use std::net::IpAddr;

use podnet_common::addr::Proto;

use super::{Cluster, Direction, NODE, Question};
use crate::model::{
    Action, LabelCondition, Labels, NAMESPACE_NAME_LABEL, Node, ObjectName, Pod, PolicyPeer, PolicyPort, PolicyRule,
    PortMatch, Protocol, Selector, Tier,
};

impl Cluster {
    /// The pod that has an address. Pods that have ended have none, and those with host network have their node's.
    fn pod_at(&self, addr: IpAddr) -> Option<(&ObjectName, &Pod)> {
        let claims = self.pods.iter().filter(|(_, pod)| pod.ips.contains(&addr) && !pod.ended && !pod.host_network);
        claims.max_by_key(|(name, pod)| (&*pod.node == NODE, pod.created.clone(), (*name).clone()))
    }

    /// Whether the policies allow a connection, as far as its subject is concerned.
    pub(super) fn allows(&self, question: &Question) -> bool {
        let Some((subject, pod)) = self.pod_at(question.subject) else { return true };
        if &*pod.node != NODE || question.peer == question.subject {
            return true;
        }
        match self.tier(Tier::Admin, subject, pod, question) {
            Some(Action::Accept) => return true,
            Some(Action::Deny) => return false,
            Some(Action::Pass) | None => {}
        }
        if let Some(allowed) = self.network_policies(subject, pod, question) {
            return allowed;
        }
        self.tier(Tier::Baseline, subject, pod, question) != Some(Action::Deny)
    }

    /// What the first rule of a tier says that matches.
    fn tier(&self, tier: Tier, subject: &ObjectName, pod: &Pod, question: &Question) -> Option<Action> {
        let mut policies: Vec<_> = self.cluster_policies.iter().filter(|(_, policy)| policy.tier == tier).collect();
        policies.sort_by_key(|(name, policy)| (policy.priority, *name));
        for (_, policy) in policies {
            if !fits(&policy.pods, &pod.labels) || !self.is_in(&policy.namespaces, &subject.namespace) {
                continue;
            }
            let rules = match question.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let none = ObjectName { namespace: String::new(), name: String::new() };
            if let Some(rule) = rules.iter().find(|rule| self.rule_allows(&rule.matches, &none, pod, question)) {
                return Some(rule.action);
            }
        }
        None
    }

    /// What NetworkPolicies say; `None` if none isolates the subject.
    fn network_policies(&self, subject: &ObjectName, pod: &Pod, question: &Question) -> Option<bool> {
        let mut isolated = false;
        for (name, policy) in &self.policies {
            if name.namespace != subject.namespace || !fits(&policy.pods, &pod.labels) {
                continue;
            }
            let rules = match question.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let Some(rules) = rules else { continue };
            isolated = true;
            if rules.iter().any(|rule| self.rule_allows(rule, name, pod, question)) {
                return Some(true);
            }
        }
        isolated.then_some(false)
    }

    fn rule_allows(&self, rule: &PolicyRule, policy: &ObjectName, subject: &Pod, question: &Question) -> bool {
        let destination = match question.direction {
            Direction::Ingress => Some(subject),
            Direction::Egress => self.pod_at(question.peer).map(|(_, pod)| pod),
        };
        let peer =
            rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|peer| self.is_peer(peer, policy, question.peer)));
        let port = rule
            .ports
            .as_ref()
            .is_none_or(|ports| ports.iter().any(|port| is_port(port, destination, question.proto, question.port)));
        peer && port
    }

    fn is_peer(&self, peer: &PolicyPeer, policy: &ObjectName, addr: IpAddr) -> bool {
        match peer {
            PolicyPeer::Block { cidr, except } => {
                cidr.contains(addr) && !except.iter().any(|except| except.contains(addr))
            }
            PolicyPeer::Pods { namespaces, pods } => {
                let Some((name, pod)) = self.pod_at(addr) else { return false };
                let in_namespace = match namespaces {
                    None => name.namespace == policy.namespace,
                    Some(selector) => self.is_in(selector, &name.namespace),
                };
                in_namespace && fits(pods, &pod.labels)
            }
            PolicyPeer::Nodes(selector) => {
                let own = |node: &&Node| node.internal_ips.contains(&addr) || node.external_ips.contains(&addr);
                self.pod_at(addr).is_none() && self.nodes.values().filter(own).any(|node| fits(selector, &node.labels))
            }
        }
    }

    /// Whether a selector selects a namespace.
    fn is_in(&self, selector: &Selector, name: &str) -> bool {
        match self.namespaces.get(name) {
            Some(namespace) => fits(selector, &namespace.labels),
            // Nothing but its name is known.
            None => {
                let own = [(NAMESPACE_NAME_LABEL, name)].into_iter().collect();
                selector.0.iter().all(|one| &*one.key == NAMESPACE_NAME_LABEL) && fits(selector, &own)
            }
        }
    }
}

fn is_port(port: &PolicyPort, destination: Option<&Pod>, proto: Proto, number: u16) -> bool {
    let own = match port.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    proto.0 == own
        && match &port.ports {
            PortMatch::All => true,
            PortMatch::Range(first, last) => (*first..=*last).contains(&number),
            PortMatch::Name(name) => destination.is_some_and(|pod| {
                pod.ports.iter().any(|one| one.name == *name && one.protocol == port.protocol && one.port == number)
            }),
        }
}

fn fits(selector: &Selector, labels: &Labels) -> bool {
    for one in &selector.0 {
        let value = labels.iter().find(|(key, _)| **key == *one.key).map(|(_, value)| value);
        let listed = |values: &[Box<str>]| values.iter().any(|listed| Some(&**listed) == value);
        let met = match &one.condition {
            LabelCondition::In(values) => value.is_some() && listed(values),
            LabelCondition::NotIn(values) => value.is_none() || !listed(values),
            LabelCondition::Exists => value.is_some(),
            LabelCondition::DoesNotExist => value.is_none(),
        };
        if !met {
            return false;
        }
    }
    true
}
