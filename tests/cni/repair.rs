//! What the daemon does with the library: records, links and entries are compared and repaired without a list.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use podnet_cni::datapath::{Direction, PinDir, clsact};
use podnet_cni::repair::{Keep, Report, repair};
use podnet_cni::store::Store;

use crate::bpf::{filters, with_private_mounts};
use crate::ebpf::{index_of, node_with};
use crate::support::{Node, Pod, ips};

fn repaired(node: &Node, pins: Option<&PinDir>) -> Report {
    let store = Store::open(&node.dir().join("state")).unwrap();
    let report = node.netns.run(|| repair(&store, pins, &Keep::Whole { but: &BTreeSet::new() }));
    assert!(report.errors.is_empty(), "{report:?}");
    report
}

#[test]
fn whole_attachments_stay_and_others_go() {
    let node = Node::new();
    let pods: Vec<Pod> = (0..4).map(|_| Pod::new()).collect();
    for pod in &pods {
        node.add(pod);
    }
    assert!(repaired(&node, None).is_clean());
    pods[1].netns.ip("link del eth0");
    fs::write(node.record(&pods[2]), "").unwrap();
    fs::remove_file(node.record(&pods[3])).unwrap();
    let report = repaired(&node, None);
    let removed: Vec<&str> = report.removed.iter().map(|n| n.id.container.as_str()).collect();
    assert_eq!(removed.len(), 2);
    assert!(removed.contains(&pods[1].id.as_str()) && removed.contains(&pods[2].id.as_str()));
    assert_eq!(report.links.len(), 1);
    node.assert_only(&[&pods[0]]);
    assert!(repaired(&node, None).is_clean());
}

#[test]
fn records_of_another_namespace_are_not_judged() {
    let node = Node::new();
    let pod = Pod::new();
    let result = node.add(&pod);
    let store = Store::open(&node.dir().join("state")).unwrap();
    // A daemon that was started in the wrong namespace sees no links at all.
    let report = Pod::new().netns.run(|| repair(&store, None, &Keep::Whole { but: &BTreeSet::new() }));
    assert!(report.is_clean(), "{report:?}");
    node.check(&pod, &result).silent();
}

#[test]
fn a_new_datapath_gets_the_pods_of_the_old_one() {
    with_private_mounts(|| {
        let (mut node, pins) = node_with(16);
        let (kept, unpublished) = (Pod::new(), Pod::new());
        let result = node.add(&kept);
        node.config["datapath"] = serde_json::json!("none");
        node.add(&unpublished);
        let dir = PinDir::new(&pins.bpffs);
        assert!(repaired(&node, Some(&dir)).is_clean());
        for ip in ips(&result) {
            pins.remove(ip);
        }
        let orphan: IpAddr = "10.244.1.250".parse().unwrap();
        pins.insert(orphan, 4711);
        let cookie = kept.netns.cookie();
        pins.remove_sandbox(cookie);
        pins.insert_sandbox(1 << 40, [orphan, IpAddr::from([0; 16])]);
        let report = repaired(&node, Some(&dir));
        assert_eq!((report.endpoints, report.sandboxes), (vec![orphan], vec![1 << 40]));
        assert_eq!(report.restored.len(), 1);
        assert_eq!(pins.len(), 2, "a pod without datapath gets no entry");
        assert!(pins.sandboxes().into_keys().eq([cookie]));
        pins.remove_sandbox(cookie);
        assert_eq!(repaired(&node, Some(&dir)).restored.len(), 1, "the sandbox alone");
        assert!(pins.sandboxes().contains_key(&cookie) && repaired(&node, Some(&dir)).is_clean());
        node.check(&kept, &result).silent();

        // Somebody has taken the programs off.
        let host_end = result["interfaces"][0]["name"].as_str().unwrap();
        let ifindex = podnet_common::addr::IfIndex(index_of(&node, host_end));
        let there = || (filters(&node.netns, host_end, "ingress"), filters(&node.netns, host_end, "egress"));
        let before = there();
        node.netns.run(|| podnet_cni::datapath::detach_pod(&PinDir::new(&pins.bpffs), ifindex)).unwrap();
        assert_eq!(there(), (vec![], vec![]));
        repaired(&node, Some(&dir));
        assert_eq!(there(), before);
        assert_eq!((before.0.len(), before.1.len()), (1, 1));
    });
}

#[test]
fn entries_of_another_store_are_left_alone() {
    with_private_mounts(|| {
        let (node, pins) = node_with(16);
        let pod = Pod::new();
        let result = node.add(&pod);
        let other = Store::open(&node.dir().join("other")).unwrap();
        let dir = PinDir::new(&pins.bpffs);
        let report = node.netns.run(|| repair(&other, Some(&dir), &Keep::Whole { but: &BTreeSet::new() }));
        assert!(report.is_clean(), "{report:?}");
        node.check(&pod, &result).silent();
    });
}

/// What kernels before 6.6 get, which works on newer ones too.
#[test]
fn a_clsact_filter_stays_with_the_device() {
    with_private_mounts(|| {
        let (node, pins) = node_with(4);
        node.netns.ip("link add uplink type bridge");
        let ifindex = podnet_common::addr::IfIndex(index_of(&node, "uplink"));
        let program = pins.bpffs.join("podnet/hooks/from_pod");
        let filters = |direction: &str| filters(&node.netns, "uplink", direction).len();
        for direction in [Direction::Ingress, Direction::Egress] {
            for _ in 0..2 {
                node.netns.run(|| clsact::attach(&program, ifindex, direction)).unwrap();
            }
        }
        assert_eq!((filters("ingress"), filters("egress")), (1, 1), "attached once each");
        for _ in 0..2 {
            node.netns.run(|| clsact::detach(ifindex, Direction::Ingress)).unwrap();
        }
        assert_eq!((filters("ingress"), filters("egress")), (0, 1));
    });
}
