//! What the daemon does with the library: records, links and entries are compared and repaired without a list.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use podnet_cni::datapath::{Direction, PinDir, clsact};
use podnet_cni::netlink::Netlink;
use podnet_cni::repair::{Keep, Report, repair};
use podnet_cni::store::Store;
use serde_json::Value;

use crate::bpf::{filters, with_private_mounts};
use crate::ebpf::{index_of, node_with};
use crate::failures::pipe;
use crate::support::{Node, Pod, ips};

fn repaired(node: &Node, pins: Option<&PinDir>) -> Report {
    let store = Store::open(&node.dir().join("state")).unwrap();
    let report = node.netns.run(|| repair(&store, pins, &Keep::Whole { but: &BTreeSet::new() }, &[]));
    assert!(report.errors.is_empty(), "{report:?}");
    report
}

#[test]
fn whole_attachments_stay_and_those_without_a_link_go() {
    let node = Node::new();
    let pods: Vec<Pod> = (0..2).map(|_| Pod::new()).collect();
    for pod in &pods {
        node.add(pod);
    }
    assert!(repaired(&node, None).is_clean());
    pods[1].netns.ip("link del eth0");
    let report = repaired(&node, None);
    assert_eq!(report.removed.iter().map(|n| n.id.container.as_str()).collect::<Vec<_>>(), [&pods[1].id]);
    node.assert_only(&[&pods[0]]);
    assert!(repaired(&node, None).is_clean());
}

#[test]
fn a_pod_whose_record_is_damaged_or_lost_keeps_its_link_and_gets_a_record() {
    with_private_mounts(|| {
        let plain = Node::new();
        let (ebpf, pins) = node_with(16);
        for (node, dir) in [(&plain, None), (&ebpf, Some(PinDir::new(&pins.bpffs)))] {
            let pods: Vec<Pod> = (0..4).map(|_| Pod::new()).collect();
            let results: Vec<Value> = pods.iter().map(|pod| node.add(pod)).collect();
            let paths: Vec<_> = pods.iter().map(|pod| node.record(pod)).collect();
            let whole = fs::read_to_string(&paths[3]).unwrap();
            fs::write(&paths[0], "").unwrap();
            fs::remove_file(&paths[1]).unwrap();
            fs::remove_file(&paths[2]).unwrap();
            pipe(&paths[2]);
            fs::write(&paths[3], &whole[..40]).unwrap();
            let report = repaired(node, dir.as_ref());
            assert_eq!(report.rewritten.len(), 4, "{report:?}");
            assert!(report.removed.is_empty() && report.links.is_empty() && report.left_alone.is_empty(), "{report:?}");
            node.assert_only(&pods.iter().collect::<Vec<_>>());
            for ((pod, result), path) in pods.iter().zip(&results).zip(&paths) {
                assert_eq!(node.record(pod), *path);
                node.check(pod, result).silent();
            }
            assert!(repaired(node, dir.as_ref()).is_clean());
            node.gc(&pods.iter().collect::<Vec<_>>()).silent();
            node.assert_only(&pods.iter().collect::<Vec<_>>());
            node.del(&pods[0]);
            node.gc(&[&pods[1]]).silent();
            node.assert_only(&[&pods[1]]);
        }
        assert_eq!(pins.len(), 2);
    });
}

#[test]
fn a_pod_whose_record_is_lost_is_left_alone_where_nothing_tells_whose_it_is() {
    let node = Node::new();
    let pod = Pod::new();
    let end = node.add(&pod)["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let record = node.record(&pod);
    let bytes = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    // As links of earlier versions are marked.
    node.netns.run(|| {
        let alias = format!("podnet {}", node.dir().join("state").display());
        assert!(Command::new("ip").args(["link", "set", &end, "alias", &alias]).status().unwrap().success());
    });
    let report = repaired(&node, None);
    assert!(report.removed.is_empty() && report.links.is_empty(), "{report:?}");
    assert!(report.left_alone[0].contains(&end), "{report:?}");
    assert_eq!(node.netns.links(), BTreeSet::from([end]));
    fs::write(&record, bytes).unwrap();
    assert!(repaired(&node, None).mended.is_empty(), "the alias is podnet's own matter");
    assert!(repaired(&node, None).is_clean());
}

#[test]
fn a_renamed_link_is_found_by_every_command() {
    let node = Node::new();
    let pods: Vec<Pod> = (0..3).map(|_| Pod::new()).collect();
    let rename = |result: &Value, to: &str| {
        let end = result["interfaces"][0]["name"].as_str().unwrap();
        for line in [format!("set {end} down"), format!("set {end} name {to}"), format!("set {to} up")] {
            node.netns.ip(&format!("link {line}"));
        }
    };
    let results: Vec<Value> = pods.iter().map(|pod| node.add(pod)).collect();
    for (i, result) in results.iter().enumerate() {
        rename(result, &format!("lan{i}"));
    }
    node.del(&pods[0]);
    assert!(!node.netns.links().contains("lan0"));
    node.gc(&[&pods[1], &pods[2]]).silent();
    let report = repaired(&node, None);
    assert!(report.is_clean(), "GC has put them right: {report:?}");
    for (pod, result) in pods[1..].iter().zip(&results[1..]) {
        node.check(pod, result).silent();
    }
    // Somebody else has taken the name of a link.
    let end = results[1]["interfaces"][0]["name"].as_str().unwrap();
    rename(&results[1], "lan1");
    node.netns.ip(&format!("link add {end} type bridge"));
    node.del(&pods[1]);
    assert!(node.netns.links().contains(end), "a bridge of that name is nobody's");
    node.netns.ip(&format!("link del {end}"));
    node.assert_only(&[&pods[2]]);
}

#[test]
fn records_of_another_namespace_are_left_alone() {
    let node = Node::new();
    let pod = Pod::new();
    let result = node.add(&pod);
    let store = Store::open(&node.dir().join("state")).unwrap();
    // A daemon that was started in the wrong namespace sees no links at all.
    let report = Pod::new().netns.run(|| repair(&store, None, &Keep::Whole { but: &BTreeSet::new() }, &[]));
    assert!(report.is_clean(), "{report:?}");
    node.check(&pod, &result).silent();
}

/// A node in a container that was started again: the boot is the same, its network namespace is another, its pods are
/// gone.
#[test]
fn records_of_a_namespace_that_is_gone_go_with_its_pods() {
    let node = Node::new();
    let (gone, lives) = (Pod::new(), Pod::new());
    for pod in [&gone, &lives] {
        node.add(pod);
        let path = node.record(pod);
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["hostNetns"] = 1.into();
        if pod.id == gone.id {
            record["netns"] = "/run/netns/there-is-none-of-this-name".into();
        }
        fs::write(&path, record.to_string()).unwrap();
    }
    let report = repaired(&node, None);
    assert_eq!(report.removed.iter().map(|n| n.id.container.as_str()).collect::<Vec<_>>(), [&gone.id], "{report:?}");
    node.assert_only(&[&lives]);
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
        assert_eq!(report.mended.len(), 1);
        assert_eq!(pins.len(), 2, "a pod without datapath gets no entry");
        assert!(pins.sandboxes().into_keys().eq([cookie]));
        pins.remove_sandbox(cookie);
        assert_eq!(repaired(&node, Some(&dir)).mended.len(), 1, "the sandbox alone");
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
        let report = node.netns.run(|| repair(&other, Some(&dir), &Keep::Whole { but: &BTreeSet::new() }, &[]));
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
            for round in 0..2 {
                let attach = || clsact::attach(&mut Netlink::open().unwrap(), ifindex, &[(&program, direction)]);
                assert_eq!(node.netns.run(attach).unwrap(), round == 0);
            }
        }
        assert_eq!((filters("ingress"), filters("egress")), (1, 1), "attached once each");
        for _ in 0..2 {
            node.netns.run(|| clsact::detach(ifindex, Direction::Ingress)).unwrap();
        }
        assert_eq!((filters("ingress"), filters("egress")), (0, 1));
    });
}
