//! Tests of the tables of network policy, in memory.

mod attached;
mod owners;

use super::*;
use crate::datapath::memory::MemoryTables;
use crate::model::{
    Action, ClusterNetworkPolicy, ClusterRule, LabelCondition, Namespace, NetworkPolicy, Pod, PolicyPeer, PolicyPort,
    PolicyRule as Rule, PortMatch, Protocol, Requirement, Selector, Tier,
};

/// What the tables contain.
fn contents(memory: &MemoryTables) -> Desired {
    Desired {
        subjects: memory.subjects.clone(),
        peers: memory.policy_peers.clone(),
        blocks: memory.policy_blocks.clone(),
        ports: memory.policy_ports.clone(),
        rules: memory.policy_rules.clone(),
    }
}

/// Tables with room for some rules, which fail after a number of writes.
fn limited(rules: usize, writes: Option<u32>) -> MemoryTables {
    let mut memory = MemoryTables::default();
    (memory.policy_rules_max, memory.writes_left) = (rules, writes);
    memory
}

fn update(room: &mut NetworkPolicies, changes: Vec<(ObjectKey, Option<Object>)>) -> bool {
    room.update(changes, (&Nodes::new(), false))
}

fn policy() -> NetworkPolicy {
    let block = PolicyPeer::Block { cidr: "192.0.2.0/24".parse().unwrap(), except: Vec::new() };
    let pods = PolicyPeer::Pods { namespaces: None, pods: Default::default() };
    let rule = Rule { peers: Some(vec![block, pods]), ports: None };
    NetworkPolicy { uid: "u".into(), ingress: Some(vec![rule]), ..NetworkPolicy::default() }
}

fn filled() -> NetworkPolicies {
    let mut room = NetworkPolicies::new("n1", false);
    let pod = Pod { node: "n1".into(), ips: vec!["10.0.0.1".parse().unwrap()], ..Pod::default() };
    let policy = (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy().into()));
    assert!(update(&mut room, vec![policy, (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]));
    room
}

#[test]
fn tables_follow_the_policies() {
    let (mut room, mut memory) = (filled(), MemoryTables::default());
    room.sync(&mut memory).unwrap();
    assert_eq!(&contents(&memory), room.policies().desired());
    assert_eq!((memory.subjects.len(), memory.policy_rules.len()), (1, 2));
    assert_eq!(room.uid(&ObjectKey::new(Kind::NetworkPolicy, "x", "np")), Some("u"));
    assert!(!update(&mut room, Vec::new()));
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), None)]);
    room.sync(&mut memory).unwrap();
    assert_eq!(contents(&memory), Desired::default());
}

#[test]
fn what_a_replaced_set_has_denied_stays_counted() {
    let (mut room, mut memory) = (filled(), MemoryTables::default());
    room.sync(&mut memory).unwrap();
    let totals = |room: &NetworkPolicies| {
        let totals = room.denials().totals();
        totals.map(|(policy, to, packets)| format!("{policy} {}: {packets}", to.name())).collect::<Vec<_>>()
    };
    memory.policy_denials.get_mut().values_mut().for_each(|packets| *packets = 3);
    room.count(&memory).unwrap();
    assert_eq!(totals(&room), ["x/np ingress: 3"]);
    memory.policy_denials.get_mut().values_mut().for_each(|packets| *packets = 5);
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np2"), Some(policy().into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(totals(&room), ["x/np ingress: 5"], "read before its entry went");
    memory.policy_denials.get_mut().values_mut().for_each(|packets| *packets = 2);
    room.count(&memory).unwrap();
    assert_eq!(totals(&room), ["x/np ingress: 7", "x/np2 ingress: 2"], "both isolate the pod");
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), None)]);
    room.sync(&mut memory).unwrap();
    assert_eq!(totals(&room), ["x/np2 ingress: 2"]);
    // Nothing is counted from here on.
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "x", "p"), None)]);
    room.sync(&mut memory).unwrap();
    assert_eq!(totals(&room).len(), 1, "the policy is still there");
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np2"), None)]);
    room.sync(&mut memory).unwrap();
    room.count(&memory).unwrap();
    assert_eq!(totals(&room), [""; 0], "deleted after its last subject");
}

#[test]
fn a_failed_write_is_made_up_for() {
    for left in 0..12 {
        let (mut room, mut memory) = (filled(), limited(100, Some(left)));
        let all = room.sync(&mut memory).is_ok();
        memory.writes_left = None;
        room.sync(&mut memory).unwrap();
        assert_eq!(&contents(&memory), room.policies().desired(), "{left} writes");
        assert_eq!(all, left >= 6);
        // The same once the tables are known.
        let more = Pod { node: "n2".into(), ips: vec!["10.0.0.2".parse().unwrap()], ..Pod::default() };
        let egress = NetworkPolicy { egress: Some(vec![Rule { peers: None, ports: None }]), ..policy() };
        let egress = (ObjectKey::new(Kind::NetworkPolicy, "x", "np2"), Some(egress.into()));
        update(&mut room, vec![egress, (ObjectKey::new(Kind::Pod, "x", "q"), Some(more.into()))]);
        memory.writes_left = Some(left);
        let all = room.sync(&mut memory).is_ok();
        memory.writes_left = None;
        room.sync(&mut memory).unwrap();
        assert_eq!(&contents(&memory), room.policies().desired(), "{left} more writes");
        assert!(memory.policy_denials.borrow().keys().eq(room.policies().denials().keys()), "{left} more writes");
        assert_eq!(all, left >= 10);
    }
}

#[test]
fn pods_are_isolated_once() {
    let (mut room, mut memory) = (filled(), MemoryTables::default());
    // The daemon has found it running.
    room.set_attached(attached("p"));
    assert!(room.isolates_more(&mut memory).unwrap());
    room.sync(&mut memory).unwrap();
    assert!(!room.isolates_more(&mut memory).unwrap());
    // Its flows have had entries since then.
    let egress = NetworkPolicy { egress: Some(Vec::new()), ..policy() };
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(egress.into()))]);
    assert!(!room.isolates_more(&mut memory).unwrap());
    room.sync(&mut memory).unwrap();
    // The node could reach it without one.
    let matches = Rule { peers: Some(vec![PolicyPeer::Nodes(Selector::default())]), ports: None };
    let egress = vec![ClusterRule { name: "".into(), action: Action::Deny, matches }];
    let cluster = ClusterNetworkPolicy { ingress: Vec::new(), egress, ..deny_all() };
    update(&mut room, vec![(ObjectKey::new(Kind::ClusterNetworkPolicy, "", "cnp"), Some(cluster.into()))]);
    assert!(room.isolates_more(&mut memory).unwrap());
    room.sync(&mut memory).unwrap();
    assert!(!room.isolates_more(&mut memory).unwrap());
    // The plugin has closed the second pod when it started.
    let mut pod = Pod { node: "n1".into(), ips: vec!["10.0.0.2".parse().unwrap()], ..Pod::default() };
    room.set_attached(all_attached(&[("q", "", "c2", "10.0.0.2")]));
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "x", "q"), Some(pod.clone().into()))]);
    assert!(!room.isolates_more(&mut memory).unwrap());
    room.sync(&mut memory).unwrap();
    // The third has been here.
    pod.ips = vec!["10.0.0.3".parse().unwrap()];
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "x", "r"), Some(pod.into()))]);
    assert!(room.isolates_more(&mut memory).unwrap());
}

/// A NetworkPolicy by which one rule has an entry for each of these ports.
fn of_ports(ports: std::ops::Range<u16>) -> NetworkPolicy {
    let port = |number| PolicyPort { protocol: Protocol::Tcp, ports: PortMatch::Range(number, number) };
    let rule = Rule { peers: None, ports: Some(ports.map(port).collect()) };
    NetworkPolicy { ingress: Some(vec![rule]), ..policy() }
}

#[test]
fn a_full_table_gets_room_again() {
    let key = || ObjectKey::new(Kind::NetworkPolicy, "x", "np");
    let (mut room, mut memory) = (filled(), limited(100, None));
    room.sync(&mut memory).unwrap();
    let before = subject(&memory);
    // More than there is room for: what has been is still in force.
    update(&mut room, vec![(key(), Some(of_ports(1..200).into()))]);
    assert!(matches!(room.sync(&mut memory), Err(TableError::Full { .. })));
    assert!(memory.policy_rules.len() <= 100);
    // The policy shrinks: what was added for nothing goes.
    update(&mut room, vec![(key(), Some(of_ports(1..80).into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!((&contents(&memory), subject(&memory) == before), (room.policies().desired(), false));
    // Old and new rules have no room beside each other.
    update(&mut room, vec![(key(), Some(of_ports(101..180).into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(&contents(&memory), room.policies().desired());
    // Nor have those of the next daemon.
    let mut room = NetworkPolicies::new("n1", false);
    room.adopt(&memory).unwrap();
    let pod = Pod { node: "n1".into(), ips: vec![ADDRESS.parse().unwrap()], ..Pod::default() };
    let policy = (key(), Some(of_ports(201..280).into()));
    update(&mut room, vec![policy, (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(&contents(&memory), room.policies().desired());
}

fn deny_all() -> ClusterNetworkPolicy {
    let matches = Rule { peers: None, ports: None };
    ClusterNetworkPolicy {
        uid: "c".into(),
        tier: Tier::Admin,
        priority: 0,
        namespaces: Selector::default(),
        pods: Selector::default(),
        ingress: vec![ClusterRule { name: "".into(), action: Action::Deny, matches }],
        egress: Vec::new(),
        left_out: Default::default(),
    }
}

#[test]
fn a_running_pod_keeps_its_rules_without_its_object() {
    let pod = |ended| Pod { node: "n1".into(), ips: vec![ADDRESS.parse().unwrap()], ended, ..Pod::default() };
    let name = || ObjectKey::new(Kind::Pod, "x", "p");
    let policy = || (ObjectKey::new(Kind::ClusterNetworkPolicy, "", "cnp"), Some(deny_all().into()));
    for gone in [None, Some(pod(true).into())] {
        let (mut room, mut memory) = (NetworkPolicies::new("n1", false), MemoryTables::default());
        room.set_attached(attached("p"));
        update(&mut room, vec![policy(), (name(), Some(pod(false).into()))]);
        room.sync(&mut memory).unwrap();
        let before = contents(&memory);
        assert_eq!((before.subjects.len(), before.rules.len()), (1, 1));
        update(&mut room, vec![(name(), gone.clone())]);
        room.sync(&mut memory).unwrap();
        assert_eq!(contents(&memory), before, "deleted by force, or the object of a predecessor");
        // The next daemon doesn't know which rules these are.
        let mut next = NetworkPolicies::new("n1", false);
        next.adopt(&memory).unwrap();
        next.set_attached(attached("p"));
        update(&mut next, vec![policy()]);
        next.sync(&mut memory).unwrap();
        assert_eq!(subject(&memory), Some(Subject { ingress: Subject::ID, egress: Subject::OPEN }));
        // It has ended.
        room.set_attached(Attachments::default());
        room.sync(&mut memory).unwrap();
        assert_eq!(contents(&memory), Desired::default());
    }
}

#[test]
fn a_pod_stays_closed_until_its_namespace_is_known() {
    let (mut room, mut memory) = (NetworkPolicies::new("n1", true), MemoryTables::default());
    let labels = |team| [("team", team)].into_iter().collect();
    let of_team = Requirement { key: "team".into(), condition: LabelCondition::In(vec!["red".into()]) };
    let policy = ClusterNetworkPolicy { namespaces: Selector(vec![of_team]), ..deny_all() };
    let pod = Pod { node: "n1".into(), ips: vec![ADDRESS.parse().unwrap()], ..Pod::default() };
    room.set_attached(attached("p"));
    memory.subjects.insert(ADDRESS.parse::<IpAddr>().unwrap().into(), Subject::PENDING);
    let policy = (ObjectKey::new(Kind::ClusterNetworkPolicy, "", "cnp"), Some(policy.into()));
    update(&mut room, vec![policy, (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), Some(Subject::PENDING));
    let namespace = |team| {
        (
            ObjectKey::new(Kind::Namespace, "", "x"),
            Some(Namespace { labels: labels(team), ..Namespace::default() }.into()),
        )
    };
    assert!(update(&mut room, vec![namespace("blue")]));
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), None);
    update(&mut room, vec![namespace("red")]);
    room.sync(&mut memory).unwrap();
    assert!(subject(&memory).is_some_and(|subject| Subject::has_cluster_rules(subject.ingress)));
}

#[test]
fn other_ids_of_cluster_rules_open_nothing() {
    let pod = |number: u8, node: &str| {
        let ips = vec![IpAddr::from([10, 0, 0, number])];
        (
            ObjectKey::new(Kind::Pod, "x", &format!("p{number}")),
            Some(Pod { node: node.into(), ips, ..Pod::default() }.into()),
        )
    };
    let policy = || {
        let mut policy = deny_all();
        let peers = PolicyPeer::Pods { namespaces: Some(Selector::default()), pods: Selector::default() };
        policy.ingress[0].matches.peers = Some(vec![peers]);
        (ObjectKey::new(Kind::ClusterNetworkPolicy, "", "cnp"), Some(policy.into()))
    };
    let mut memory = MemoryTables::default();
    let mut room = NetworkPolicies::new("n1", false);
    update(&mut room, vec![policy(), pod(1, "n1"), pod(2, "n2")]);
    room.sync(&mut memory).unwrap();
    // After each number of writes by the next daemon, the peer's class has a rule that denies, or the pod is closed.
    for left in 0..12 {
        let mut memory = memory.clone();
        memory.writes_left = Some(left);
        let mut next = NetworkPolicies::new("n1", false);
        next.adopt(&memory).unwrap();
        update(&mut next, vec![policy(), pod(1, "n1"), pod(2, "n2"), pod(3, "n2")]);
        _ = next.sync(&mut memory);
        let set = subject(&memory).unwrap().ingress;
        let class = memory.policy_peers.get(&IpAddr::from([10, 0, 0, 2]).into()).copied().unwrap_or_default();
        let rule = PolicyRule { set: set & Subject::ID, class, ports: PolicyRule::ALL };
        assert!(set == Subject::CLOSED || memory.policy_rules.contains_key(&rule), "after {left} writes: {set:x}");
    }
}

const ADDRESS: &str = "10.0.0.1";

fn attached(pod: &str) -> Attachments {
    all_attached(&[(pod, "u1", "c1", ADDRESS)])
}

/// Interfaces by pod, uid, container, and address.
fn all_attached(interfaces: &[(&str, &str, &str, &str)]) -> Attachments {
    let mut all = Attachments::default();
    for (pod, uid, container, ip) in interfaces {
        let name = ObjectName { namespace: "x".into(), name: (*pod).into() };
        let attached = Attached {
            uid: (*uid).into(),
            container: (*container).into(),
            ips: [ip.parse().unwrap()].into(),
            ..Attached::default()
        };
        all.insert(name, attached);
    }
    all
}

fn subject(memory: &MemoryTables) -> Option<Subject> {
    memory.subjects.get(&ADDRESS.parse::<IpAddr>().unwrap().into()).copied()
}

#[test]
fn without_room_for_its_rules_a_pod_is_closed() {
    let (mut room, mut memory) = (filled(), limited(0, None));
    assert!(matches!(room.sync(&mut memory), Err(TableError::Full { .. })));
    assert_eq!(subject(&memory), Some(Subject { ingress: Subject::CLOSED, egress: Subject::OPEN }));
    memory.policy_rules_max = 100;
    room.sync(&mut memory).unwrap();
    assert_eq!(&contents(&memory), room.policies().desired());
    let writes = room.writes();
    room.sync(&mut memory).unwrap();
    assert_eq!(room.writes(), writes, "nothing has changed");
}

#[test]
fn tables_of_an_earlier_daemon_stay_if_nothing_has_changed() {
    let mut memory = MemoryTables::default();
    filled().sync(&mut memory).unwrap();
    let before = contents(&memory);
    // No write is allowed.
    memory.writes_left = Some(0);
    let (mut room, policy) = (NetworkPolicies::new("n1", false), policy());
    room.adopt(&memory).unwrap();
    let pod = Pod { node: "n1".into(), ips: vec!["10.0.0.1".parse().unwrap()], ..Pod::default() };
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]);
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy.clone().into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!((&contents(&memory), room.writes()), (&before, 0));
    // Ids go on meaning the same.
    memory.writes_left = None;
    let other = NetworkPolicy { egress: Some(Vec::new()), ..policy };
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np2"), Some(other.into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(&contents(&memory), room.policies().desired());
    assert_ne!(contents(&memory), before);
}

#[test]
fn an_earlier_daemon_had_other_ids() {
    let mut memory = MemoryTables::default();
    filled().sync(&mut memory).unwrap();
    let before = memory.subjects.clone();
    let mut room = NetworkPolicies::new("n1", false);
    room.adopt(&memory).unwrap();
    let changed = NetworkPolicy { egress: Some(Vec::new()), ..policy() };
    let policy = (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(changed.into()));
    let pod = Pod { node: "n1".into(), ips: vec!["10.0.0.1".parse().unwrap()], ..Pod::default() };
    update(&mut room, vec![policy, (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]);
    room.sync(&mut memory).unwrap();
    assert!(memory.subjects.len() == 1 && memory.subjects != before);
}

#[test]
fn a_full_table_of_peers_is_made_up_for() {
    let (mut room, mut memory) = (filled(), MemoryTables::default());
    memory.policy_peers_max = 2;
    let peer = |number: u8, there: bool| {
        let pod = Pod { node: "n2".into(), ips: vec![IpAddr::from([10, 0, 0, number])], ..Pod::default() };
        (ObjectKey::new(Kind::Pod, "x", &format!("q{number}")), there.then(|| pod.into()))
    };
    update(&mut room, (2..6).map(|number| peer(number, true)).collect());
    assert!(matches!(room.sync(&mut memory), Err(TableError::Full { .. })));
    assert!(matches!(room.sync(&mut memory), Err(TableError::Full { .. })), "it stays a problem");
    update(&mut room, (3..6).map(|number| peer(number, false)).collect());
    room.sync(&mut memory).unwrap();
    assert_eq!(&contents(&memory), room.policies().desired());
    assert_eq!(memory.policy_peers.len(), 2);
}

#[test]
fn a_namespace_without_an_object_has_one_label_where_none_is_needed() {
    let lacks = |key: &str| Selector(vec![Requirement { key: key.into(), condition: LabelCondition::DoesNotExist }]);
    let (mut room, mut memory) = (NetworkPolicies::new("n1", false), MemoryTables::default());
    let policy = ClusterNetworkPolicy { namespaces: lacks("tenant"), ..deny_all() };
    let pod = Pod { node: "n1".into(), ips: vec![ADDRESS.parse().unwrap()], ..Pod::default() };
    let policy = (ObjectKey::new(Kind::ClusterNetworkPolicy, "", "cnp"), Some(policy.into()));
    update(&mut room, vec![policy, (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]);
    room.sync(&mut memory).unwrap();
    assert!(subject(&memory).is_some(), "it has no label `tenant`");
    let namespace = |labels: Option<&str>| {
        let labels = labels.map(|key| [(key, "a")].into_iter().collect());
        let object = labels.map(|labels| Namespace { labels, ..Namespace::default() }.into());
        (ObjectKey::new(Kind::Namespace, "", "x"), object)
    };
    update(&mut room, vec![namespace(Some("tenant"))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), None);
    update(&mut room, vec![namespace(None)]);
    room.sync(&mut memory).unwrap();
    assert!(subject(&memory).is_some(), "its object is gone");
}
