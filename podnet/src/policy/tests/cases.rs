//! Cases that are easy to get wrong, each checked against the objects as well.

use std::collections::BTreeSet;

use podnet_common::layout::Subject;

use super::*;

/// Pods `web` of namespace `a` and `db` of namespace `b` on this node, and `client` of `b` on another, each with an
/// address of either family that ends in 1, 2 and 3.
pub(super) fn cluster() -> Cluster {
    let pod = |number: u8, node: &str, app: &str| Pod {
        labels: labels(&[("app", app)]),
        node: node.into(),
        ips: vec![ip(&format!("10.0.0.{number}")), ip(&format!("fd00::{number}"))],
        ..Pod::default()
    };
    Cluster {
        namespaces: ["a", "b"].map(|at| (at.to_owned(), namespace(at, &[("env", at)]))).into(),
        pods: [
            (name("a", "web"), pod(1, NODE, "web")),
            (name("b", "db"), pod(2, NODE, "db")),
            (name("b", "client"), pod(3, "n2", "client")),
        ]
        .into(),
        ..Cluster::default()
    }
}

impl Cluster {
    pub(super) fn add(&mut self, at: &str, policy: NetworkPolicy) {
        let number = self.policies.len();
        self.policies.insert(name(at, &format!("np{number}")), policy);
    }

    /// Answers of the tables, which must be those of the objects.
    pub(super) fn answers<const N: usize>(&self, questions: [Question; N]) -> [bool; N] {
        let policies = self.compile();
        questions.map(|question| {
            let verdict = allows(policies.desired(), &question);
            assert_eq!(verdict, self.allows(&question), "{question:?}");
            verdict
        })
    }
}

fn ask(subject: &str, direction: Direction, peer: &str, proto: Proto, port: u16) -> Question {
    Question { subject: ip(subject), direction, peer: ip(peer), proto, port }
}

/// From a peer to the pod `web`, by TCP.
pub(super) fn to_web(peer: &str, port: u16) -> Question {
    let subject = if ip(peer).is_ipv4() { "10.0.0.1" } else { "fd00::1" };
    ask(subject, Direction::Ingress, peer, Proto::TCP, port)
}

/// From the pod `web` to a peer, by TCP.
pub(super) fn from_web(peer: &str, port: u16) -> Question {
    Question { direction: Direction::Egress, ..to_web(peer, port) }
}

pub(super) fn ingress(rules: Vec<PolicyRule>) -> NetworkPolicy {
    NetworkPolicy { ingress: Some(rules), ..NetworkPolicy::default() }
}

fn egress(rules: Vec<PolicyRule>) -> NetworkPolicy {
    NetworkPolicy { egress: Some(rules), ..NetworkPolicy::default() }
}

pub(super) fn from(peers: Vec<PolicyPeer>) -> PolicyRule {
    PolicyRule { peers: Some(peers), ports: None }
}

fn on(ports: Vec<PolicyPort>) -> PolicyRule {
    PolicyRule { peers: None, ports: Some(ports) }
}

fn port(protocol: Protocol, ports: PortMatch) -> PolicyPort {
    PolicyPort { protocol, ports }
}

fn namespace_with(key: &str, value: &str) -> PolicyPeer {
    PolicyPeer::Pods { namespaces: Some(with(key, value)), pods: Selector::default() }
}

#[test]
fn isolation_counts_per_direction() {
    let mut cluster = cluster();
    let questions = [to_web("10.0.0.3", 80), from_web("10.0.0.3", 80), to_web("fd00::3", 80), from_web("fd00::3", 80)];
    assert_eq!(cluster.answers(questions), [true; 4]);
    cluster.add("a", ingress(vec![]));
    assert_eq!(cluster.answers(questions), [false, true, false, true]);
    cluster.add("b", egress(vec![]));
    assert_eq!(cluster.answers(questions), [false, true, false, true], "another namespace's policy");
    cluster.add("a", egress(vec![]));
    assert_eq!(cluster.answers(questions), [false; 4]);
}

#[test]
fn wide_isolation_with_narrow_permission() {
    let mut cluster = cluster();
    cluster.add("a", ingress(vec![]));
    let tcp_80 = port(Protocol::Tcp, PortMatch::Range(80, 80));
    cluster.add(
        "a",
        ingress(vec![PolicyRule { peers: Some(vec![namespace_with("env", "b")]), ports: Some(vec![tcp_80]) }]),
    );
    let questions = [to_web("10.0.0.3", 80), to_web("10.0.0.3", 81), to_web("10.0.0.9", 80), to_web("fd00::3", 80)];
    assert_eq!(cluster.answers(questions), [true, false, false, true]);
}

#[test]
fn policies_share_a_range_but_not_a_protocol() {
    let mut cluster = cluster();
    cluster.add("a", ingress(vec![on(vec![port(Protocol::Tcp, PortMatch::Range(8000, 9000))])]));
    let mut udp = ingress(vec![on(vec![port(Protocol::Udp, PortMatch::Range(8000, 9000))])]);
    udp.ingress.as_mut().unwrap()[0].peers = Some(vec![namespace_with("env", "b")]);
    cluster.add("a", udp);
    let of = |peer, proto| ask("10.0.0.1", Direction::Ingress, peer, proto, 8500);
    let questions = [
        of("10.0.0.9", Proto::TCP),
        of("10.0.0.9", Proto::UDP),
        of("10.0.0.3", Proto::UDP),
        of("10.0.0.3", Proto::SCTP),
        of("10.0.0.3", Proto::ICMP),
    ];
    assert_eq!(cluster.answers(questions), [true, false, true, false, false]);
}

#[test]
fn only_rules_without_ports_allow_other_protocols() {
    let mut cluster = cluster();
    cluster.add(
        "a",
        ingress(vec![on([Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .map(|protocol| port(protocol, PortMatch::All))
            .into())]),
    );
    let icmp = ask("10.0.0.1", Direction::Ingress, "10.0.0.3", Proto::ICMP, 0);
    assert_eq!(cluster.answers([icmp, to_web("10.0.0.3", 80)]), [false, true]);
    cluster.add("a", ingress(vec![from(vec![namespace_with("env", "b")])]));
    assert_eq!(cluster.answers([icmp]), [true]);
}

#[test]
fn an_exception_beside_another_block_that_allows_it() {
    let mut cluster = cluster();
    let rule = |peers| ingress(vec![from(peers)]);
    cluster.add("a", rule(vec![block("10.0.0.0/8", &["10.1.0.0/16"])]));
    let questions = [to_web("10.2.0.1", 1), to_web("10.1.0.1", 1), to_web("10.1.2.3", 1), to_web("10.0.0.3", 1)];
    assert_eq!(cluster.answers(questions), [true, false, false, true]);
    cluster.add("a", rule(vec![block("10.1.2.0/24", &[])]));
    assert_eq!(cluster.answers(questions), [true, false, true, true]);
    cluster.add("a", rule(vec![block("0.0.0.0/0", &["10.0.0.0/8"])]));
    assert_eq!(cluster.answers(questions), [true, false, true, true]);
}

#[test]
fn a_block_without_a_pod_that_a_selector_finds() {
    let mut cluster = cluster();
    cluster.add("a", ingress(vec![from(vec![block("10.0.0.0/24", &["10.0.0.3/32"])])]));
    let questions = [to_web("10.0.0.2", 1), to_web("10.0.0.3", 1)];
    assert_eq!(cluster.answers(questions), [true, false]);
    cluster.add("a", ingress(vec![from(vec![namespace_with("env", "b")])]));
    assert_eq!(cluster.answers(questions), [true, true]);
}

#[test]
fn all_of_ipv6_is_not_ipv4() {
    let mut cluster = cluster();
    cluster.add("a", egress(vec![from(vec![block("::/0", &[])])]));
    let questions = [from_web("192.0.2.1", 1), from_web("10.0.0.3", 1), from_web("2001:db8::1", 1)];
    assert_eq!(cluster.answers(questions), [false, false, true]);
    cluster.add("a", egress(vec![from(vec![block("0.0.0.0/0", &["10.0.0.0/8"])])]));
    assert_eq!(cluster.answers(questions), [true, false, true]);
}

#[test]
fn egress_to_a_backend_in_another_namespace() {
    let mut cluster = cluster();
    let peer = PolicyPeer::Pods { namespaces: Some(with("env", "b")), pods: with("app", "db") };
    cluster.add("a", egress(vec![from(vec![peer])]));
    assert_eq!(cluster.answers([from_web("10.0.0.2", 5432), from_web("10.0.0.3", 5432)]), [true, false]);
    let own = PolicyPeer::Pods { namespaces: None, pods: with("app", "client") };
    cluster.add("a", egress(vec![from(vec![own])]));
    assert_eq!(cluster.answers([from_web("10.0.0.3", 5432)]), [false], "none of its own namespace");
}

#[test]
fn a_namespace_changes_its_labels() {
    let mut cluster = cluster();
    cluster.add("a", ingress(vec![from(vec![namespace_with("env", "prod")])]));
    let mut policies = cluster.compile();
    let question = to_web("10.0.0.3", 80);
    assert!(!allows(policies.desired(), &question));
    policies.set_namespace("b", Some(&namespace("b", &[("env", "prod")])));
    assert!(policies.update() && allows(policies.desired(), &question));
    policies.set_namespace("b", None);
    assert!(policies.update() && !allows(policies.desired(), &question), "nothing but its name is known");
}

#[test]
fn many_ports_in_one_rule() {
    let mut cluster = cluster();
    let ports = (0..64).map(|i| port(Protocol::Tcp, PortMatch::Range(1000 + 2 * i, 1000 + 2 * i))).collect();
    cluster.add("a", ingress(vec![on(ports)]));
    let allowed = (990..1140).filter(|number| cluster.answers([to_web("10.0.0.3", *number)])[0]).count();
    assert_eq!(allowed, 64);
}

#[test]
fn many_policies_on_one_pod() {
    let mut cluster = cluster();
    for i in 0..200 {
        let rule = PolicyRule {
            peers: Some(vec![block(&format!("192.0.2.{i}/32"), &[])]),
            ports: Some(vec![port(Protocol::Tcp, PortMatch::Range(1000 + i, 1000 + i))]),
        };
        cluster.add("a", ingress(vec![rule]));
    }
    let policies = cluster.compile();
    for (last, number) in [(0, 1000), (199, 1199), (199, 1000), (7, 1008), (7, 1007)] {
        let question = to_web(&format!("192.0.2.{last}"), number);
        assert_eq!(allows(policies.desired(), &question), number == 1000 + last, "{question:?}");
        assert_eq!(cluster.allows(&question), number == 1000 + last);
    }
    assert_eq!(policies.applying(&name("a", "web")).len(), 200);
    let subject = policies.desired().subjects[&ip("10.0.0.1").into()];
    assert_eq!(policies.desired().subjects[&ip("fd00::1").into()], subject);
}

#[test]
fn a_named_port_is_the_destinations() {
    let mut cluster = cluster();
    let http = || on(vec![port(Protocol::Tcp, PortMatch::Name("http".into()))]);
    cluster.pods.get_mut(&name("a", "web")).unwrap().ports = vec![named("http", Protocol::Tcp, 80)];
    cluster.pods.get_mut(&name("b", "db")).unwrap().ports = vec![named("http", Protocol::Tcp, 8080)];
    cluster.pods.get_mut(&name("b", "client")).unwrap().ports = vec![named("http", Protocol::Udp, 80)];
    cluster.add("a", ingress(vec![http()]));
    cluster.add("a", egress(vec![http()]));
    let questions = [
        to_web("10.0.0.3", 80),
        to_web("10.0.0.3", 8080),
        from_web("10.0.0.2", 8080),
        from_web("10.0.0.2", 80),
        from_web("10.0.0.3", 80),
        from_web("192.0.2.1", 80),
    ];
    assert_eq!(cluster.answers(questions), [true, false, true, false, false, false]);
    let mut policies = cluster.compile();
    let mut db = cluster.pods[&name("b", "db")].clone();
    db.ports = vec![named("http", Protocol::Tcp, 9090)];
    policies.set_pod(&name("b", "db"), Some(&db));
    policies.update();
    let answers = [9090, 8080].map(|number| allows(policies.desired(), &from_web("10.0.0.2", number)));
    assert_eq!(answers, [true, false]);
}

#[test]
fn a_pod_that_has_ended_leaves_its_address_to_another() {
    let mut cluster = cluster();
    cluster.add("a", ingress(vec![from(vec![namespace_with("env", "b")])]));
    let mut successor = cluster.pods[&name("b", "client")].clone();
    successor.created = "2026-01-01T00:00:00Z".into();
    cluster.pods.insert(name("a", "new"), successor);
    assert_eq!(cluster.answers([to_web("10.0.0.3", 80)]), [false], "created later");
    cluster.pods.remove(&name("a", "new"));
    cluster.pods.get_mut(&name("b", "client")).unwrap().ended = true;
    assert_eq!(cluster.answers([to_web("10.0.0.3", 80)]), [false]);
}

#[test]
fn pods_with_host_network_are_their_node() {
    let mut cluster = cluster();
    for (at, pod) in [("a", "web"), ("b", "client")] {
        cluster.pods.get_mut(&name(at, pod)).unwrap().host_network = true;
    }
    cluster.add("a", ingress(vec![]));
    cluster.add("b", ingress(vec![from(vec![PolicyPeer::Pods { namespaces: None, pods: Selector::default() }])]));
    let to_db = |peer| ask("10.0.0.2", Direction::Ingress, peer, Proto::TCP, 1);
    assert_eq!(cluster.answers([to_web("10.0.0.9", 1), to_db("10.0.0.3")]), [true, false]);
    cluster.add("b", ingress(vec![from(vec![block("10.0.0.3/32", &[])])]));
    assert_eq!(cluster.answers([to_db("10.0.0.3")]), [true]);
}

#[test]
fn only_policies_with_pods_here_cost_anything() {
    let mut cluster = cluster();
    let selecting = |app: &str| NetworkPolicy {
        pods: with("app", app),
        ..ingress(vec![from(vec![namespace_with("env", "a"), block("192.0.2.0/24", &[])])])
    };
    cluster.add("b", selecting("client"));
    let policies = cluster.compile();
    assert_eq!(policies.desired(), &crate::policy::Desired::default());
    cluster.add("b", selecting("db"));
    let policies = cluster.compile();
    assert_eq!(policies.desired().subjects.len(), 2);
    assert_eq!((policies.subjects(&name("b", "np1")).count(), policies.peers(&name("b", "np1"))), (1, 1));
    assert_eq!((policies.subjects(&name("b", "np0")).count(), policies.peers(&name("b", "np0"))), (0, 1));
}

#[test]
fn another_pod_of_a_class_is_one_entry() {
    let mut cluster = cluster();
    cluster.add("a", ingress(vec![from(vec![namespace_with("env", "b")])]));
    let mut policies = cluster.compile();
    let before = policies.desired().clone();
    let mut another = cluster.pods[&name("b", "client")].clone();
    another.ips = vec![ip("10.0.0.77")];
    policies.set_pod(&name("b", "client-2"), Some(&another));
    policies.update();
    let mut expected = before.clone();
    expected.peers.insert(ip("10.0.0.77").into(), before.peers[&ip("10.0.0.3").into()]);
    assert_eq!(policies.desired(), &expected);
    policies.set_pod(&name("b", "client-2"), None);
    policies.update();
    assert_eq!(policies.desired(), &before);
    assert!(!policies.written(&BTreeSet::new()));
}

#[test]
fn ids_of_an_earlier_daemon_are_not_reused() {
    let mut cluster = cluster();
    let rule = |number| PolicyRule {
        peers: Some(vec![namespace_with("env", "b"), block("192.0.2.0/24", &[])]),
        ports: Some(vec![port(Protocol::Tcp, PortMatch::Range(number, number)), port(Protocol::Udp, PortMatch::All)]),
    };
    cluster.add("a", ingress(vec![rule(80)]));
    let old = cluster.compile();
    let mut new = Policies::new(NODE);
    // The plugin is connecting a pod.
    let mut held = old.desired().clone();
    held.subjects.insert(IpAddr::from([10, 9, 9, 9]).into(), Subject::PENDING);
    new.start_after(&held);
    cluster.fill(&mut new);
    let (old, new) = (old.desired(), new.desired());
    let sets =
        |of: &crate::policy::Desired| of.subjects.values().map(|one| one.ingress & 0xff_ffff).collect::<Vec<_>>();
    assert!(sets(new).iter().all(|set| *set != 0 && !sets(old).contains(set)));
    let classes =
        |of: &crate::policy::Desired| of.peers.values().chain(of.blocks.values()).copied().collect::<Vec<_>>();
    assert!(classes(new).len() == 5 && classes(new).iter().all(|class| !classes(old).contains(class)));
    assert!(new.ports.values().all(|ports| !old.ports.values().any(|other| other == ports)));
}
