//! Which policies have denied a connection, for display. The tables don't say: they hold numbers of rules.

use std::net::IpAddr;

use podnet_common::addr::Proto;

use super::atoms::{Class, Direction, Ports, Rule, RuleSet, Stage};
use super::index::Policies;
use crate::model::{Action, ObjectName};

/// A connection, or a packet, that policies have denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Whether those of the source have; otherwise those of the destination.
    pub egress: bool,
    /// Source of the packet.
    pub source: IpAddr,
    /// Its destination: the address of a service, if the packet was sent to one.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: Proto,
    /// Destination port, if known.
    pub port: Option<u16>,
}

impl Policies {
    /// The policies that deny a connection. Several NetworkPolicies isolate a pod together. If none is found, since the
    /// destination stands for a backend, or because policies have changed: those that could deny it.
    pub fn denying(&self, denial: &Denial) -> Vec<&ObjectName> {
        let (direction, subject, peer) = match denial.egress {
            true => (Direction::Egress, denial.source, denial.destination),
            false => (Direction::Ingress, denial.destination, denial.source),
        };
        let Some(profile) = self.profile_at(subject) else { return Vec::new() };
        let RuleSet { rules, isolating, .. } = self.rule_set(profile, direction);
        let class = self.class_at(peer);
        let first = |stage| {
            let mut of_stage = rules.iter().filter(|rule| rule.stage == stage);
            of_stage.find(|rule| matches(rule, &class, denial)).map(|rule| (rule.action, rule.policy))
        };
        let isolating_names = || isolating.iter().filter_map(|policy| self.name_of(*policy));
        let found = match (first(Stage::Admin), !isolating.is_empty()) {
            (Some((Action::Deny, policy)), _) => self.name_of(policy).into_iter().collect(),
            (Some((Action::Accept, _)), _) => Vec::new(),
            (_, true) if first(Stage::Network).is_none() => isolating_names().collect(),
            (_, true) => Vec::new(),
            (_, false) => match first(Stage::Baseline) {
                Some((Action::Deny, policy)) => self.name_of(policy).into_iter().collect(),
                _ => Vec::new(),
            },
        };
        if !found.is_empty() {
            return found;
        }
        let denies = rules.iter().filter(|rule| rule.action == Action::Deny);
        let mut all: Vec<_> = denies.filter_map(|rule| self.name_of(rule.policy)).chain(isolating_names()).collect();
        all.dedup();
        all
    }
}

/// Whether a rule is about connections with a peer of this class.
fn matches(rule: &Rule, peer: &Class, denial: &Denial) -> bool {
    let range = |first: u16, last: u16| denial.port.is_some_and(|port| (first..=last).contains(&port));
    let port = |ports: &Ports| match ports {
        Ports::Protocol(protocol) => Proto::from(*protocol) == denial.protocol,
        Ports::Range(ports) => Proto::from(ports.protocol) == denial.protocol && range(ports.first, ports.last),
        Ports::Named(protocol, atom) => {
            Proto::from(*protocol) == denial.protocol && peer.ports(*atom).any(|port| range(port, port))
        }
    };
    rule.peers.as_ref().is_none_or(|peers| peer.is_in_any(peers))
        && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ClusterNetworkPolicy, ClusterRule, LeftOut, NetworkPolicy, Pod, PolicyPeer, PolicyRule, Selector, Tier,
    };

    #[test]
    fn those_that_deny_are_named() {
        let name = |namespace: &str, name: &str| ObjectName { namespace: namespace.into(), name: name.into() };
        let ip = |number: u8| IpAddr::from([10, 0, 0, number]);
        let pod = |number: u8| Pod { node: "n1".into(), ips: vec![ip(number)], ..Pod::default() };
        let mut policies = Policies::new("n1");
        policies.set_pod(&name("a", "p"), Some(&pod(1)));
        policies.set_pod(&name("b", "q"), Some(&pod(2)));
        let own = PolicyRule {
            peers: Some(vec![PolicyPeer::Pods { namespaces: None, pods: Selector::default() }]),
            ports: None,
        };
        for (policy, rules) in [("deny", vec![]), ("own", vec![own])] {
            let policy = (name("a", policy), NetworkPolicy { ingress: Some(rules), ..NetworkPolicy::default() });
            policies.set_policy(&policy.0, Some(policy.1.into()));
        }
        let denying = |policies: &mut Policies, source: u8, port: Option<u16>| -> Vec<String> {
            policies.update();
            let (source, destination) = (ip(source), ip(1));
            let denial = Denial { egress: false, source, destination, protocol: Proto::TCP, port };
            policies.denying(&denial).into_iter().map(ObjectName::to_string).collect()
        };
        assert_eq!(denying(&mut policies, 2, Some(80)), ["a/deny", "a/own"]);
        let block = |cidr: &str| PolicyPeer::Block { cidr: cidr.parse().unwrap(), except: Vec::new() };
        let matches = PolicyRule { peers: Some(vec![block("10.0.0.2/32")]), ports: None };
        let admin = ClusterNetworkPolicy {
            uid: "".into(),
            tier: Tier::Admin,
            priority: 0,
            namespaces: Selector::default(),
            pods: Selector::default(),
            ingress: vec![ClusterRule { name: "".into(), action: Action::Deny, matches }],
            egress: Vec::new(),
            left_out: LeftOut::default(),
        };
        policies.set_policy(&name("", "admin"), Some(admin.clone().into()));
        assert_eq!(denying(&mut policies, 2, Some(80)), ["admin"]);
        assert_eq!(denying(&mut policies, 9, None), ["a/deny", "a/own"]);
        assert_eq!(denying(&mut policies, 1, None), ["admin", "a/deny", "a/own"], "none does, so all that could");
        policies.set_policy(&name("", "admin"), Some(ClusterNetworkPolicy { tier: Tier::Baseline, ..admin }.into()));
        ["deny", "own"].into_iter().for_each(|policy| policies.set_policy(&name("a", policy), None));
        assert_eq!(denying(&mut policies, 2, None), ["admin"]);
        let elsewhere = Denial { egress: true, source: ip(77), destination: ip(1), protocol: Proto::TCP, port: None };
        assert!(policies.denying(&elsewhere).is_empty(), "no pod has this address");
    }
}
