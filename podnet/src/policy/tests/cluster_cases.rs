//! ClusterNetworkPolicies: cases that are easy to get wrong, each checked against the objects as well.

use super::cases::{cluster, from, from_web, ingress, to_web};
use super::*;

fn rule(action: Action, matches: PolicyRule) -> ClusterRule {
    ClusterRule { name: "".into(), action, matches }
}

fn namespaces(selector: Selector) -> PolicyRule {
    from(vec![PolicyPeer::Pods { namespaces: Some(selector), pods: Selector::default() }])
}

fn all_pods() -> PolicyRule {
    namespaces(Selector::default())
}

fn of_b() -> PolicyRule {
    namespaces(with("env", "b"))
}

impl Cluster {
    fn add_cluster(&mut self, tier: Tier, priority: u16, ingress: Vec<ClusterRule>, egress: Vec<ClusterRule>) {
        let policy = ClusterNetworkPolicy { ingress, egress, ..cluster_policy(tier, priority) };
        self.cluster_policies.insert(format!("cnp{}", self.cluster_policies.len()), policy);
    }
}

#[test]
fn the_first_rule_of_a_tier_decides() {
    use Action::{Accept, Deny};
    let mut site = cluster();
    site.add_cluster(Tier::Admin, 20, vec![rule(Deny, all_pods())], vec![]);
    assert_eq!(site.answers([to_web("10.0.0.2", 80), to_web("192.0.2.1", 80)]), [false, true]);
    site.add_cluster(Tier::Admin, 10, vec![rule(Accept, of_b())], vec![]);
    assert_eq!(site.answers([to_web("10.0.0.2", 80), to_web("fd00::3", 80)]), [true, true]);
    // A wide rule before a narrow one within a policy.
    site.add_cluster(Tier::Admin, 5, vec![rule(Deny, all_pods()), rule(Accept, of_b())], vec![]);
    assert_eq!(site.answers([to_web("10.0.0.2", 80), to_web("fd00::3", 80)]), [false, false]);
}

#[test]
fn admin_precedes_network_policies_and_baseline_follows() {
    use Action::{Accept, Deny, Pass};
    let to = [to_web("10.0.0.2", 80), to_web("fd00::3", 80), to_web("192.0.2.1", 80)];
    let mut site = cluster();
    site.add_cluster(Tier::Baseline, 0, vec![rule(Deny, all_pods())], vec![]);
    assert_eq!(site.answers(to), [false, false, true]);
    // Isolated by NetworkPolicies, the pod doesn't reach the tier Baseline.
    site.add(
        "a",
        ingress(vec![from(vec![PolicyPeer::Pods { namespaces: Some(with("env", "b")), pods: with("app", "db") }])]),
    );
    assert_eq!(site.answers(to), [true, false, false]);
    site.add_cluster(Tier::Admin, 7, vec![rule(Accept, of_b())], vec![]);
    assert_eq!(site.answers(to), [true, true, false]);
    // A narrow Pass over a wide rule.
    let db = from(vec![PolicyPeer::Pods { namespaces: Some(Selector::default()), pods: with("app", "db") }]);
    site.add_cluster(Tier::Admin, 6, vec![rule(Pass, db), rule(Deny, all_pods())], vec![]);
    assert_eq!(site.answers(to), [true, false, false]);
    site.policies.clear();
    assert_eq!(site.answers(to), [false, false, true], "Pass leads to the tier Baseline");
    site.cluster_policies.remove("cnp0");
    assert_eq!(site.answers(to), [true, false, true], "no tier is left");
}

#[test]
fn a_port_range_of_one_protocol_decides_about_no_other() {
    let udp = PolicyPort { protocol: Protocol::Udp, ports: PortMatch::Range(1, 65535) };
    let mut site = cluster();
    let denied = PolicyRule { ports: Some(vec![udp]), ..all_pods() };
    site.add_cluster(Tier::Admin, 0, vec![rule(Action::Deny, denied)], vec![]);
    let [tcp, udp] = [Proto::TCP, Proto::UDP].map(|proto| Question { proto, ..to_web("10.0.0.2", 80) });
    assert_eq!(site.answers([tcp, udp]), [true, false]);
}

#[test]
fn nodes_and_networks_are_peers_of_egress() {
    use Action::{Accept, Deny};
    let mut site = cluster();
    let node = Node {
        internal_ips: vec![ip("172.30.0.2"), ip("fd00:30::2")],
        labels: labels(&[("zone", "a")]),
        ..Node::default()
    };
    site.nodes = [("n2".to_owned(), node)].into();
    let networks = from(vec![block("0.0.0.0/0", &[]), block("::/0", &[])]);
    let nodes = from(vec![PolicyPeer::Nodes(with("zone", "a"))]);
    site.add_cluster(Tier::Admin, 1, vec![], vec![rule(Deny, networks)]);
    let to =
        [from_web("172.30.0.2", 80), from_web("fd00:30::2", 80), from_web("172.30.0.3", 80), from_web("fd00::2", 80)];
    assert_eq!(site.answers(to), [false; 4], "pods too");
    site.add_cluster(Tier::Admin, 0, vec![], vec![rule(Accept, nodes), rule(Accept, of_b())]);
    assert_eq!(site.answers(to), [true, true, false, true]);
    site.nodes.clear();
    assert_eq!(site.answers(to), [false, false, false, true]);
}

#[test]
fn subjects_follow_the_labels_of_their_namespace() {
    let mut site = cluster();
    let policy = ClusterNetworkPolicy {
        namespaces: with("env", "a"),
        pods: with("app", "web"),
        ingress: vec![rule(Action::Deny, all_pods())],
        ..cluster_policy(Tier::Baseline, 0)
    };
    site.cluster_policies.insert("cnp".into(), policy);
    let to = to_web("10.0.0.2", 80);
    assert_eq!(site.answers([to]), [false]);
    let mut policies = site.compile();
    site.namespaces.insert("a".into(), namespace("a", &[("env", "c")]));
    assert_eq!(site.answers([to]), [true]);
    policies.set_namespace("a", site.namespaces.get("a"));
    policies.update();
    assert!(allows(policies.desired(), &to) && policies.has_policies("anywhere"));
}
