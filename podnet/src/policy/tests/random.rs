//! Random clusters.

use podnet_common::addr::Proto;
use proptest::prelude::*;

use super::*;

/// Few of each, so that objects have much to do with each other.
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const PODS: u8 = 10;
const POLICIES: u8 = 5;
const PORTS: [u16; 8] = [1, 53, 79, 80, 90, 8080, 8081, 65535];

pub(super) fn namespace_of() -> impl Strategy<Value = (String, Option<Namespace>)> {
    let env = prop::option::weighted(0.8, prop::option::of(prop::sample::select(vec!["x", "y"])));
    (prop::sample::select(NAMESPACES.to_vec()), env).prop_map(|(at, env)| {
        let known = env.map(|env| namespace(at, &env.map(|env| ("env", env)).into_iter().collect::<Vec<_>>()));
        (at.into(), known)
    })
}

fn some_labels() -> impl Strategy<Value = Labels> {
    let app = prop::option::of(prop::sample::select(vec!["web", "db"]));
    let tier = prop::option::of(prop::sample::select(vec!["1", "2"]));
    (app, tier)
        .prop_map(|(app, tier)| app.map(|app| ("app", app)).into_iter().chain(tier.map(|t| ("tier", t))).collect())
}

fn named_ports() -> impl Strategy<Value = Vec<NamedPort>> {
    let http = prop::option::of(prop::sample::select(vec![80, 8080, 8081]));
    let dns = (any::<bool>(), any::<bool>());
    (http, dns).prop_map(|(http, (tcp, udp))| {
        let http = http.map(|port| named("http", Protocol::Tcp, port));
        let tcp = tcp.then(|| named("dns", Protocol::Tcp, 53));
        let udp = udp.then(|| named("dns", Protocol::Udp, 53));
        http.into_iter().chain(tcp).chain(udp).collect()
    })
}

/// A pod, or none at its name.
pub(super) fn pod() -> impl Strategy<Value = (ObjectName, Option<Pod>)> {
    let place = (prop::sample::select(NAMESPACES.to_vec()), 0..PODS, prop::bool::weighted(0.9));
    let state = (prop::bool::weighted(0.1), prop::bool::weighted(0.1), any::<bool>(), 0..3_u8);
    // Now and then the address of another pod.
    let addrs = (prop::option::weighted(0.2, 0..PODS), 0..3_u8);
    (place, state, addrs, some_labels(), named_ports()).prop_map(|(place, state, addrs, labels, ports)| {
        let ((at, number, exists), (host_network, ended, here, age), (other, families)) = (place, state, addrs);
        let address = other.unwrap_or(number);
        let v4 = (families != 1).then(|| ip(&format!("10.0.0.{address}")));
        let v6 = (families != 0).then(|| ip(&format!("fd00::{address:x}")));
        let pod = Pod {
            created: format!("2026-01-0{}T00:00:00Z", age + 1).into(),
            labels,
            node: if here { NODE } else { "n2" }.into(),
            ips: v4.into_iter().chain(v6).collect(),
            host_network,
            ended,
            ports,
            ..Pod::default()
        };
        (name(at, &format!("p{number}")), exists.then_some(pod))
    })
}

fn selector(key: &'static str, values: [&'static str; 2]) -> impl Strategy<Value = Selector> {
    let some = prop::sample::subsequence(values.to_vec(), 1..=2)
        .prop_map(|values| values.into_iter().map(Into::into).collect::<Vec<_>>());
    let condition = prop_oneof![
        some.clone().prop_map(LabelCondition::In),
        some.prop_map(LabelCondition::NotIn),
        Just(LabelCondition::Exists),
        Just(LabelCondition::DoesNotExist),
    ];
    prop::option::weighted(0.7, condition)
        .prop_map(move |condition| condition.map_or_else(Selector::default, |condition| requirement(key, condition)))
}

fn pods() -> impl Strategy<Value = Selector> {
    (selector("app", ["web", "db"]), selector("tier", ["1", "2"]), prop::bool::weighted(0.3))
        .prop_map(|(app, tier, both)| Selector(app.0.into_iter().chain(tier.0.into_iter().filter(|_| both)).collect()))
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    let named = prop::sample::select(NAMESPACES.to_vec()).prop_map(|at| with(crate::model::NAMESPACE_NAME_LABEL, at));
    let namespaces = prop::option::of(prop_oneof![2 => selector("env", ["x", "y"]), 1 => named]);
    let blocks = vec![
        block("0.0.0.0/0", &[]),
        block("0.0.0.0/0", &["10.0.0.0/8"]),
        block("10.0.0.0/8", &["10.0.0.4/30"]),
        block("10.0.0.4/31", &[]),
        block("10.0.0.0/28", &["10.0.0.0/29", "10.0.0.9/32"]),
        block("192.0.2.0/24", &["192.0.2.128/25"]),
        block("::/0", &[]),
        block("::/0", &["fd00::/8"]),
        block("fd00::/120", &["fd00::4/126"]),
        block("fd00::4/128", &[]),
    ];
    prop_oneof![
        2 => (namespaces, pods()).prop_map(|(namespaces, pods)| PolicyPeer::Pods { namespaces, pods }),
        1 => prop::sample::select(blocks),
    ]
}

fn port() -> impl Strategy<Value = PolicyPort> {
    let ports = prop_oneof![
        1 => Just(PortMatch::All),
        2 => prop::sample::select(PORTS.to_vec()).prop_map(|port| PortMatch::Range(port, port)),
        2 => prop::sample::select(vec![(1, 65535), (79, 90), (80, 8080), (53, 80), (8080, 65535)])
            .prop_map(|(first, last)| PortMatch::Range(first, last)),
        2 => prop::sample::select(vec!["http", "dns", "none"]).prop_map(|name| PortMatch::Name(name.into())),
    ];
    let protocol = prop_oneof![3 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)];
    (protocol, ports).prop_map(|(protocol, ports)| PolicyPort { protocol, ports })
}

fn rules() -> impl Strategy<Value = Option<Vec<PolicyRule>>> {
    let rule = (
        prop::option::weighted(0.7, prop::collection::vec(peer(), 1..4)),
        prop::option::weighted(0.6, prop::collection::vec(port(), 1..4)),
    )
        .prop_map(|(peers, ports)| PolicyRule { peers, ports });
    prop::option::weighted(0.7, prop::collection::vec(rule, 0..3))
}

/// A policy, or none at its name.
pub(super) fn policy() -> impl Strategy<Value = (ObjectName, Option<NetworkPolicy>)> {
    let place = (prop::sample::select(NAMESPACES.to_vec()), 0..POLICIES, prop::bool::weighted(0.85));
    (place, pods(), rules(), rules()).prop_map(|((at, number, exists), pods, ingress, egress)| {
        let policy = NetworkPolicy { pods, ingress, egress, ..NetworkPolicy::default() };
        (name(at, &format!("np{number}")), exists.then_some(policy))
    })
}

/// A ClusterNetworkPolicy, or none at its name.
pub(super) fn any_cluster_policy() -> impl Strategy<Value = (String, Option<ClusterNetworkPolicy>)> {
    let nodes = selector("zone", ["z1", "z2"]).prop_map(PolicyPeer::Nodes);
    let peer = prop_oneof![4 => peer(), 1 => nodes].prop_map(|peer| match peer {
        PolicyPeer::Pods { namespaces, pods } => {
            PolicyPeer::Pods { namespaces: Some(namespaces.unwrap_or_default()), pods }
        }
        other => other,
    });
    let peers = prop::option::weighted(0.9, prop::collection::vec(peer, 1..3));
    let ports = prop::option::weighted(0.5, prop::collection::vec(port(), 1..3));
    let action = prop::sample::select(vec![Action::Accept, Action::Deny, Action::Pass]);
    let rule = (action, peers, ports).prop_map(|(action, peers, ports)| ClusterRule {
        name: "".into(),
        action,
        matches: PolicyRule { peers, ports },
    });
    let rules = prop::collection::vec(rule, 0..4).boxed();
    let tier = prop::sample::select(vec![Tier::Admin, Tier::Baseline]);
    // Several with one priority.
    let place = (0..3_u8, prop::bool::weighted(0.85), tier, 0..3_u16);
    (place, selector("env", ["x", "y"]), pods(), rules.clone(), rules).prop_map(
        |(place, env, pods, ingress, egress)| {
            let (number, exists, tier, priority) = place;
            let policy = cluster_policy(tier, priority);
            let policy = ClusterNetworkPolicy { namespaces: env, pods, ingress, egress, ..policy };
            (format!("cnp{number}"), exists.then_some(policy))
        },
    )
}

/// A node, or none at its name. None has the address of a pod.
pub(super) fn node() -> impl Strategy<Value = (String, Option<Node>)> {
    let zone = prop::option::of(prop::sample::select(vec!["z1", "z2"]));
    (0..2_u8, prop::bool::weighted(0.8), zone).prop_map(|(number, exists, zone)| {
        let labels = zone.map(|zone| ("zone", zone)).into_iter().collect();
        let internal_ips = vec![ip(&format!("10.1.0.{}", number + 1)), ip(&format!("fd01::{}", number + 1))];
        (format!("n{number}"), exists.then(|| Node { internal_ips, labels, ..Node::default() }))
    })
}

fn present<K: Ord, V>(objects: Vec<(K, Option<V>)>) -> BTreeMap<K, V> {
    objects.into_iter().filter_map(|(key, object)| Some((key, object?))).collect()
}

pub(super) fn cluster() -> impl Strategy<Value = Cluster> {
    let policies = prop::collection::vec(policy(), 0..8);
    let namespaces = prop::collection::vec(namespace_of(), 0..6);
    let pods = prop::collection::vec(pod(), 0..16);
    let of_cluster = prop_oneof![1 => Just(Vec::new()), 2 => prop::collection::vec(any_cluster_policy(), 1..4)];
    let nodes = prop::collection::vec(node(), 0..3);
    (policies, of_cluster, nodes, namespaces, pods).prop_map(|(policies, of_cluster, nodes, namespaces, pods)| {
        Cluster {
            policies: present(policies),
            cluster_policies: present(of_cluster),
            nodes: present(nodes),
            namespaces: present(namespaces),
            pods: present(pods),
        }
    })
}

/// Every question about a pod's address and another one, for a few ports.
pub(super) fn questions() -> Vec<Question> {
    let pods = (0..PODS).flat_map(|number| [ip(&format!("10.0.0.{number}")), ip(&format!("fd00::{number:x}"))]);
    let pods: Vec<_> = pods.collect();
    let others = ["10.0.0.200", "10.1.0.1", "192.0.2.1", "192.0.2.200", "2001:db8::1", "fd01::1"].map(ip);
    let ports = [(Proto::TCP, PORTS.as_slice()), (Proto::UDP, &[53, 80]), (Proto::SCTP, &[80]), (Proto::ICMP, &[0])];
    let mut questions = Vec::new();
    for subject in &pods {
        for peer in pods.iter().chain(&others).filter(|peer| peer.is_ipv4() == subject.is_ipv4()) {
            for (proto, port) in ports.iter().flat_map(|(proto, ports)| ports.iter().map(|port| (*proto, *port))) {
                for direction in [Direction::Ingress, Direction::Egress] {
                    questions.push(Question { subject: *subject, direction, peer: *peer, proto, port });
                }
            }
        }
    }
    questions
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_agree_with_the_objects(cluster in cluster()) {
        let policies = cluster.compile();
        let mut pipeline = Pipeline::new(policies.desired());
        for question in questions() {
            prop_assert_eq!(pipeline.allows(&question), cluster.allows(&question), "{:?}", question);
        }
    }
}
