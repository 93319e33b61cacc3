//! Tests of the pods that the plugin has connected.

use podnet_common::addr::IfIndex;
use podnet_common::layout::{OfLink, PolicyPod};

use super::*;

#[test]
fn a_pod_has_the_addresses_that_the_plugin_has_given_it() {
    let (mut room, mut memory) = (NetworkPolicies::new("n1", false), MemoryTables::default());
    let pod = Pod { node: "n1".into(), ips: vec!["10.0.0.9".parse().unwrap()], ..Pod::default() };
    update(
        &mut room,
        vec![
            (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy().into())),
            (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into())),
        ],
    );
    assert!(room.set_attached(attached("p")));
    // The plugin has closed it.
    memory.subjects.insert(ADDRESS.parse::<IpAddr>().unwrap().into(), Subject::PENDING);
    room.sync(&mut memory).unwrap();
    assert!(memory.subjects.len() == 1 && subject(&memory) != Some(Subject::PENDING));
    assert!(!room.set_attached(attached("p")), "nothing is new");
}

#[test]
fn an_address_belongs_to_the_pod_that_the_plugin_has_given_it() {
    let (mut room, mut memory) = (filled(), MemoryTables::default());
    // The status of a pod from before a reboot lists it.
    let old = Pod {
        node: "n1".into(),
        ips: vec![ADDRESS.parse().unwrap()],
        created: "2026-01-02T00:00:00Z".into(),
        ..Pod::default()
    };
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "other", "old"), Some(old.into()))]);
    room.set_attached(attached("p"));
    room.sync(&mut memory).unwrap();
    assert!(subject(&memory).is_some(), "the policies of p apply");
    room.set_attached(Attachments::default());
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), None, "those of the pod created last");
}

#[test]
fn a_pod_without_an_object_stays_as_the_plugin_has_left_it() {
    let (mut room, mut memory) = (filled(), MemoryTables::default());
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "x", "p"), None)]);
    room.set_attached(attached("unknown"));
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), None, "it has run before there were policies");
    memory.subjects.insert(ADDRESS.parse::<IpAddr>().unwrap().into(), Subject::PENDING);
    room.set_attached(Attachments::default());
    room.set_attached(attached("unknown"));
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), Some(Subject::PENDING), "it has started with policies");
    // No policy selects it.
    let pod = Pod { node: "n1".into(), ..Pod::default() };
    update(
        &mut room,
        vec![
            (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), None),
            (ObjectKey::new(Kind::Pod, "x", "unknown"), Some(pod.into())),
        ],
    );
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), None);
}

#[test]
fn a_pod_that_the_plugin_is_connecting_stays_closed_whatever_a_status_says() {
    let (mut room, mut memory) = (filled(), MemoryTables::default());
    room.sync(&mut memory).unwrap();
    let address = Addr::from(ADDRESS.parse::<IpAddr>().unwrap());
    // The sandbox of the pod is gone, and its address is that of another pod's.
    memory.subjects.insert(address, Subject::PENDING);
    let egress = NetworkPolicy { egress: Some(Vec::new()), ..policy() };
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(egress.into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), Some(Subject::PENDING));
    let moved = Pod { node: "n1".into(), ips: vec![IpAddr::from([10, 0, 0, 9])], ..Pod::default() };
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "x", "p"), Some(moved.into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), Some(Subject::PENDING));
}

#[test]
fn the_object_of_another_pod_with_the_same_name_opens_nothing() {
    let pod = |uid: &str, static_uid: &str, app: &str| {
        let labels = [("app", app)].into_iter().collect();
        let (uid, static_uid) = (uid.into(), static_uid.into());
        Pod { node: "n1".into(), uid, static_uid, labels, ips: vec![ADDRESS.parse().unwrap()], ..Pod::default() }
    };
    let name = || ObjectKey::new(Kind::Pod, "x", "p");
    let of_app = Requirement { key: "app".into(), condition: LabelCondition::In(vec!["closed".into()]) };
    let policy = || NetworkPolicy { pods: Selector(vec![of_app.clone()]), ..policy() };
    for (uid, static_uid) in [("u1", ""), ("mirror", "u1"), ("", "")] {
        let (mut room, mut memory) = (NetworkPolicies::new("n1", false), MemoryTables::default());
        let policy = (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy().into()));
        update(&mut room, vec![policy, (name(), Some(pod("u0", "", "open").into()))]);
        memory.subjects.insert(ADDRESS.parse::<IpAddr>().unwrap().into(), Subject::PENDING);
        room.set_attached(attached("p"));
        room.sync(&mut memory).unwrap();
        assert_eq!(subject(&memory), Some(Subject::PENDING), "only a predecessor's object is known");
        update(&mut room, vec![(name(), Some(pod(uid, static_uid, "closed").into()))]);
        room.sync(&mut memory).unwrap();
        assert!(subject(&memory).is_some_and(|subject| subject != Subject::PENDING), "{uid}");
    }
}

#[test]
fn a_new_sandbox_with_the_address_of_the_former_gets_the_rules_again() {
    let (mut room, mut memory) = (filled(), MemoryTables::default());
    room.set_attached(attached("p"));
    room.sync(&mut memory).unwrap();
    let isolated = subject(&memory);
    assert!(isolated.is_some());
    // DEL and ADD between two looks at the records.
    memory.subjects.insert(ADDRESS.parse::<IpAddr>().unwrap().into(), Subject::PENDING);
    assert!(room.set_attached(all_attached(&[("p", "u1", "c2", ADDRESS)])));
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), isolated);
}

#[test]
fn a_predecessor_whose_sandbox_still_exists_keeps_its_rules_and_its_successor_gets_others() {
    const NEW: &str = "10.0.0.7";
    let pod = |uid: &str, app: &str, ip: &str| {
        let labels = [("app", app)].into_iter().collect();
        Pod { node: "n1".into(), uid: uid.into(), labels, ips: vec![ip.parse().unwrap()], ..Pod::default() }
    };
    let name = || ObjectKey::new(Kind::Pod, "x", "p");
    let of_app = Requirement { key: "app".into(), condition: LabelCondition::In(vec!["closed".into()]) };
    for (before, after, containers) in
        [("closed", "open", ["a", "b"]), ("closed", "open", ["b", "a"]), ("open", "closed", ["b", "a"])]
    {
        let (mut room, mut memory) = (NetworkPolicies::new("n1", false), MemoryTables::default());
        let held = |memory: &MemoryTables, ip: &str| {
            memory.subjects.get(&ip.parse::<IpAddr>().unwrap().into()).copied().unwrap_or_default()
        };
        let policy = NetworkPolicy { pods: Selector(vec![of_app.clone()]), ..policy() };
        let policy = (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy.into()));
        update(&mut room, vec![policy, (name(), Some(pod("u1", before, ADDRESS).into()))]);
        room.set_attached(all_attached(&[("p", "u1", containers[0], ADDRESS)]));
        room.sync(&mut memory).unwrap();
        let first = held(&memory, ADDRESS);
        assert_eq!(first != Subject::default(), before == "closed");
        // Deleted by force while its runtime hangs.
        update(&mut room, vec![(name(), Some(pod("u2", after, NEW).into()))]);
        let both = [("p", "u1", containers[0], ADDRESS), ("p", "u2", containers[1], NEW)];
        room.set_attached(all_attached(&both));
        room.sync(&mut memory).unwrap();
        assert_eq!(held(&memory, ADDRESS), first, "{before}");
        assert_eq!(held(&memory, NEW) != Subject::default(), after == "closed");
    }
}

/// The interfaces in `policy_pods`.
fn known(memory: &MemoryTables) -> Vec<u32> {
    memory.policy_pods.keys().copied().collect()
}

/// Checks that `policy_pods` contains what `subjects` and `policy_peers` do.
fn check_known(memory: &MemoryTables, attached: &Attachments) {
    for (_, Attached { ips, link, .. }) in attached.iter() {
        let Some(pod) = memory.policy_pods.get(&PolicyPod::slot(*link)) else { continue };
        for ip in ips {
            let sets = memory.subjects.get(&(*ip).into()).copied().unwrap_or_default();
            assert_eq!(
                (pod.ingress.get(*link), pod.egress.get(*link)),
                (Some(sets.ingress), Some(sets.egress)),
                "{ip}"
            );
            let class = if ip.is_ipv4() { pod.class_v4 } else { pod.class_v6 };
            assert_eq!(class.get(*link), memory.policy_peers.get(&(*ip).into()).copied(), "{ip}");
        }
    }
}

/// Interfaces of the pods `p` and `q`, and of one without an object.
fn three_attached() -> Attachments {
    let of = |link, ips: &[&str]| Attached {
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        link: IfIndex(link),
        ..Attached::default()
    };
    let name = |name: &str| ObjectName { namespace: "x".into(), name: name.into() };
    let mut all = Attachments::default();
    all.insert(name("p"), of(11, &[ADDRESS, "fd00::1"]));
    all.insert(name("q"), of(12, &["10.0.0.2", "fd00::2"]));
    all.insert(name("unknown"), of(13, &["10.0.0.3"]));
    all
}

/// The pods `p` and `q`, of which a policy selects those with a label.
fn two_pods(isolated: [bool; 2]) -> Vec<(ObjectKey, Option<Object>)> {
    let of_team = Requirement { key: "team".into(), condition: LabelCondition::Exists };
    let peers = PolicyPeer::Pods { namespaces: None, pods: Selector(vec![of_team.clone()]) };
    let ingress = vec![Rule { peers: Some(vec![peers]), ports: None }];
    let policy = NetworkPolicy { pods: Selector(vec![of_team]), ingress: Some(ingress), ..policy() };
    let pod = |(name, isolated): (&str, bool)| {
        let labels = isolated.then_some(("team", "red")).into_iter().collect();
        (ObjectKey::new(Kind::Pod, "x", name), Some(Pod { node: "n1".into(), labels, ..Pod::default() }.into()))
    };
    let pods = ["p", "q"].into_iter().zip(isolated).map(pod);
    pods.chain([(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy.into()))]).collect()
}

#[test]
fn the_tables_of_a_pod_are_known_by_its_interface() {
    let (mut room, mut memory) = (NetworkPolicies::new("n1", false), MemoryTables::default());
    let check = |room: &mut NetworkPolicies, memory: &mut MemoryTables, isolated: [bool; 2], subjects| {
        update(room, two_pods(isolated));
        room.sync(memory).unwrap();
        assert_eq!((memory.subjects.len(), known(memory)), (subjects, vec![11, 12, 13]));
        check_known(memory, &three_attached());
    };
    room.set_attached(three_attached());
    check(&mut room, &mut memory, [true, false], 2);
    check(&mut room, &mut memory, [true, true], 4);
    assert!(!memory.policy_peers.is_empty());
    check(&mut room, &mut memory, [false, false], 0);
    // The plugin has closed a pod that the daemon doesn't know yet.
    memory.subjects.insert(IpAddr::from([10, 0, 0, 3]).into(), Subject::PENDING);
    room.set_attached(Attachments::default());
    room.sync(&mut memory).unwrap();
    assert_eq!(known(&memory), [0; 0]);
    room.set_attached(three_attached());
    room.sync(&mut memory).unwrap();
    assert_eq!(known(&memory), [11, 12]);
}

#[test]
fn interfaces_never_contradict_addresses_whichever_write_fails() {
    // The labels of p and q before and after: their rule sets change, and their classes as peers of each other.
    for (before, after) in
        [([true, false], [false, true]), ([true, true], [false, true]), ([false, false], [true, true])]
    {
        // Either the daemon ends there, or only that write fails.
        for (left, ends) in (0..).flat_map(|left| [(left, true), (left, false)]) {
            let (mut room, mut memory) = (NetworkPolicies::new("n1", false), limited(100, None));
            room.set_attached(three_attached());
            update(&mut room, two_pods(before));
            room.sync(&mut memory).unwrap();
            update(&mut room, two_pods(after));
            if ends {
                memory.writes_left = Some(left);
            } else {
                (memory.fail_every, memory.writes) = (Some(1_000), 1_000 - left);
            }
            let done = room.sync(&mut memory).is_ok();
            check_known(&memory, &three_attached());
            (memory.writes_left, memory.fail_every) = (None, None);
            room.sync(&mut memory).unwrap();
            assert_eq!((&contents(&memory), known(&memory)), (room.policies().desired(), vec![11, 12, 13]));
            check_known(&memory, &three_attached());
            if done {
                break;
            }
        }
    }
}

#[test]
fn without_room_for_its_rules_a_pod_is_not_open() {
    let (mut room, mut memory) = (NetworkPolicies::new("n1", false), limited(100, None));
    room.set_attached(three_attached());
    update(&mut room, two_pods([false, false]));
    room.sync(&mut memory).unwrap();
    memory.policy_rules_max = 0;
    update(&mut room, two_pods([true, false]));
    assert!(room.sync(&mut memory).is_err());
    assert_eq!((memory.subjects.len(), known(&memory)), (2, vec![12, 13]));
    check_known(&memory, &three_attached());
}

#[test]
fn a_pod_whose_addresses_differ_is_not_known_by_its_interface() {
    let ips: [IpAddr; 3] = [ADDRESS, "10.0.0.2", "fd00::1"].map(|ip| ip.parse().unwrap());
    let attached = Attached { ips: ips.into(), link: IfIndex(11), ..Attached::default() };
    let slots = |subjects: &[Subject], peers: &[u32]| {
        let subjects = ips.map(Addr::from).into_iter().zip(subjects.iter().copied()).collect();
        let peers = ips.map(Addr::from).into_iter().zip(peers.iter().copied()).collect();
        policy_pods([&attached].into_iter(), &subjects, &peers).remove(&11)
    };
    let [one, other] = [1, 2].map(|set| Subject { ingress: set, egress: Subject::OPEN });
    assert_eq!(slots(&[one, one, other], &[]), None);
    assert_eq!(slots(&[one, one], &[]), None, "an address that is no subject");
    assert_eq!(slots(&[Subject::PENDING; 3], &[]), None, "the plugin's");
    let [set, open, class] = [1, Subject::OPEN, 5].map(|number| OfLink::new(IfIndex(11), number));
    let known = |class_v4, class_v6| Some(PolicyPod { ingress: set, egress: open, class_v4, class_v6 });
    let none = OfLink::default();
    assert_eq!(slots(&[one; 3], &[5, 5, 5]), known(class, class));
    assert_eq!(slots(&[one; 3], &[5, 6, 5]), known(none, class));
    assert_eq!(slots(&[one; 3], &[5]), known(none, none), "an address that is no peer");
}
