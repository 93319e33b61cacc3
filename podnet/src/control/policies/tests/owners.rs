//! Tests of addresses that Pods and Nodes list and that others own.

use super::*;
use crate::model::Node;

fn nodes(of_n2: &str) -> Nodes {
    let node = |ip: &str, range: &str| {
        Arc::new(Node {
            internal_ips: [ip.parse().unwrap()].into(),
            pod_cidrs: [range.parse().unwrap()].into(),
            ..Node::default()
        })
    };
    let all = [("n1", "192.0.2.1", "10.0.0.0/24"), ("n2", "192.0.2.2", of_n2), ("n3", "192.0.2.3", "10.0.3.0/24")];
    all.map(|(name, ip, range)| (name.to_owned(), node(ip, range))).into()
}

fn pod(node: &str, app: &str, created: &str, ips: &[&str]) -> Object {
    Pod {
        node: node.into(),
        labels: [("app", app)].into_iter().collect(),
        created: created.into(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Pod::default()
    }
    .into()
}

#[test]
fn a_pod_has_no_address_of_another_nodes() {
    let (mut room, mut memory) = (NetworkPolicies::new("n1", false), MemoryTables::default());
    let of_app = Requirement { key: "app".into(), condition: LabelCondition::In(vec!["shop".into()]) };
    let peers = Some(vec![PolicyPeer::Pods { namespaces: None, pods: Selector(vec![of_app]) }]);
    let policy = NetworkPolicy { ingress: Some(vec![Rule { peers, ports: None }]), ..policy() };
    let key = |name: &str| ObjectKey::new(Kind::Pod, "x", name);
    let objects = vec![
        (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy.into())),
        (key("p"), Some(pod("n1", "", "", &[ADDRESS]))),
        (key("shop"), Some(pod("n2", "shop", "2026-01-01T00:00:00Z", &["10.0.2.5"]))),
        (key("other"), Some(pod("n2", "other", "2026-01-01T00:00:00Z", &["10.0.2.6"]))),
        // Another node's later pods list both, and the addresses of nodes.
        (key("thief"), Some(pod("n3", "other", "2026-01-02T00:00:00Z", &["10.0.2.5", "10.0.3.9"]))),
        (key("liar"), Some(pod("n3", "shop", "2026-01-02T00:00:00Z", &["10.0.2.6", "192.0.2.2", "10.0.3.8"]))),
    ];
    let class = |memory: &MemoryTables, ip: &str| {
        memory.policy_peers.get(&ip.parse::<IpAddr>().unwrap().into()).copied().unwrap_or_default()
    };
    room.update(objects, (&nodes("10.0.2.0/24"), true));
    room.sync(&mut memory).unwrap();
    let shop = class(&memory, "10.0.2.5");
    assert_ne!(shop, 0);
    assert_eq!(class(&memory, "10.0.3.8"), shop, "its own address");
    for ip in ["10.0.2.6", "192.0.2.2", "10.0.3.9"] {
        assert_ne!(class(&memory, ip), shop, "{ip}");
    }
    // The range is n2's no longer.
    assert!(room.update(Vec::new(), (&nodes("10.0.9.0/24"), true)));
    room.sync(&mut memory).unwrap();
    assert_ne!(class(&memory, "10.0.2.5"), shop);
    assert_eq!(class(&memory, "10.0.2.6"), shop);
    assert!(!room.update(Vec::new(), (&nodes("10.0.9.0/24"), false)));
}

#[test]
fn a_node_has_no_address_of_another_node_or_its_pods() {
    let (mut room, mut memory) = (NetworkPolicies::new("n1", false), MemoryTables::default());
    let bad = Requirement { key: "bad".into(), condition: LabelCondition::Exists };
    let matches = Rule { peers: Some(vec![PolicyPeer::Nodes(Selector(vec![bad]))]), ports: None };
    let egress = vec![ClusterRule { name: "".into(), action: Action::Deny, matches }];
    let policy = ClusterNetworkPolicy { ingress: Vec::new(), egress, ..deny_all() };
    let mut nodes = nodes("10.0.2.0/24");
    let liar = Arc::make_mut(nodes.get_mut("n3").unwrap());
    liar.labels = [("bad", "")].into_iter().collect();
    liar.external_ips = ["192.0.2.2", "10.0.2.5", "203.0.113.3"].iter().map(|ip| ip.parse().unwrap()).collect();
    let objects = vec![
        (ObjectKey::new(Kind::ClusterNetworkPolicy, "", "cnp"), Some(policy.into())),
        (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod("n1", "", "", &[ADDRESS]))),
    ];
    room.update(objects, (&nodes, true));
    room.sync(&mut memory).unwrap();
    let class = |ip: &str| memory.policy_peers.get(&ip.parse::<IpAddr>().unwrap().into()).copied().unwrap_or_default();
    assert_ne!(class("192.0.2.3"), 0);
    assert_eq!(class("203.0.113.3"), class("192.0.2.3"));
    assert_ne!(class("192.0.2.2"), class("192.0.2.3"));
    assert_ne!(class("10.0.2.5"), class("192.0.2.3"));
}
