//! What is right, evaluated object by object for one connection, as the NetworkPolicy API defines it.

use std::net::IpAddr;

use podnet_common::addr::Proto;

use super::{Cluster, Direction, NODE, Question};
use crate::model::{
    LabelCondition, Labels, NAMESPACE_NAME_LABEL, ObjectName, Pod, PolicyPeer, PolicyPort, PolicyRule, PortMatch,
    Protocol, Selector,
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
                return true;
            }
        }
        !isolated
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
                    Some(selector) => match self.namespaces.get(&name.namespace) {
                        Some(namespace) => fits(selector, &namespace.labels),
                        // Nothing but its name is known.
                        None => {
                            let own = [(NAMESPACE_NAME_LABEL, name.namespace.as_str())].into_iter().collect();
                            selector.0.iter().all(|one| &*one.key == NAMESPACE_NAME_LABEL) && fits(selector, &own)
                        }
                    },
                };
                in_namespace && fits(pods, &pod.labels)
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
