//! `datapath: ebpf`: programs on the host end, entries in the endpoints table, and what happens without the daemon.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use podnet_cni::datapath::{Direction, clsact};
use podnet_common::addr::IfIndex;
use serde_json::{Value, json};

use crate::bpf::{Pins, filters, with_private_mounts};
use crate::support::{Node, Pod, ips};

/// A node whose daemon has published its file.
pub fn node_with(entries: u32) -> (Node, Pins) {
    with_daemon(Node::new(), entries)
}

/// The same of a node that is there.
pub fn with_daemon(mut node: Node, entries: u32) -> (Node, Pins) {
    let pins = Pins::new(node.dir(), entries);
    node.config["datapath"] = json!("ebpf");
    let info = json!({
        "schema": 1, "bpffs": pins.bpffs, "podCIDRs": node.config["podCIDRs"], "mtu": 1480,
        "gateways": ["169.254.1.1", "fe80::1"],
    });
    fs::create_dir_all(node.dir().join("run")).unwrap();
    fs::write(node.dir().join("run/node.json"), info.to_string()).unwrap();
    (node, pins)
}

/// The index of a link in the node's namespace.
pub fn index_of(node: &Node, link: &str) -> u32 {
    node.netns.ip_json(&format!("link show {link}"))[0]["ifindex"].as_u64().unwrap() as u32
}

fn mac(text: &serde_json::Value) -> [u8; 6] {
    let bytes: Vec<u8> = text.as_str().unwrap().split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn without_the_daemon_the_runtime_is_asked_to_come_again() {
    let mut node = Node::new();
    node.config["datapath"] = json!("ebpf");
    let pod = Pod::new();
    let error = node.call("ADD", &pod).error();
    assert_eq!(error["code"], 11);
    assert!(error["details"].as_str().unwrap().contains("podnet daemon"), "{error}");
    assert_eq!(node.status().code(), 50);
    node.assert_only(&[]);
    assert!(pod.netns.links().is_empty());
    node.del(&pod);
    node.gc(&[]).silent();
}

#[test]
fn a_missing_pin_is_named() {
    with_private_mounts(|| {
        for missing in ["from_pod", "to_pod", "endpoints", "sandboxes"] {
            let (node, pins) = node_with(8);
            node.status().silent();
            fs::remove_file(pins.bpffs.join("podnet/hooks").join(missing)).unwrap();
            let pod = Pod::new();
            let error = node.call("ADD", &pod).error();
            assert_eq!(error["code"], 11);
            assert!(error["msg"].as_str().unwrap().contains(&format!("podnet/hooks/{missing}")), "{error}");
            assert_eq!(node.status().code(), 50);
            node.assert_only(&[]);
        }
    });
}

#[test]
fn programs_and_entries_come_and_go_with_the_pod() {
    with_private_mounts(|| {
        let (node, pins) = node_with(8);
        let pod = Pod::new();
        let result = node.add(&pod);
        let host_end = &result["interfaces"][0];
        let ifindex = index_of(&node, host_end["name"].as_str().unwrap());
        for ip in ips(&result) {
            let entry = pins.entry(ip).expect("an entry");
            assert_eq!((entry.ifindex, entry.mtu), (ifindex, 1480));
            assert_eq!((entry.mac, entry.host_mac), (mac(&result["interfaces"][1]["mac"]), mac(&host_end["mac"])));
        }
        assert_eq!(pins.len(), 2);
        let [v4, v6] = ips(&result)[..] else { panic!("{result}") };
        assert_eq!(pins.sandboxes(), [(pod.netns.cookie(), [v4, v6])].into());
        let host_end = host_end["name"].as_str().unwrap();
        assert_eq!(filters(&node.netns, host_end, "ingress"), pins.programs()[..1]);
        assert_eq!(filters(&node.netns, host_end, "egress"), pins.programs()[1..]);
        let directions = [Direction::Ingress, Direction::Egress];
        for (program, direction) in pins.programs().iter().copied().zip(directions) {
            let attached = |program| node.netns.run(|| clsact::attached(program, IfIndex(ifindex), direction).unwrap());
            assert!(attached(program), "{direction:?}");
            assert!(!attached(program + 1_000_000));
            assert!(!node.netns.run(|| clsact::attached(program, IfIndex(1), direction).unwrap()), "lo has no filters");
        }
        node.check(&pod, &result).silent();
        assert_eq!(node.netns.sysctl("ipv4/ip_forward"), "0", "forwarding is the daemon's");

        node.del(&pod);
        assert_eq!((pins.len(), pins.sandboxes().len()), (0, 0));
        node.assert_only(&[]);
    });
}

#[test]
fn a_pod_of_one_family_has_no_address_of_the_other() {
    with_private_mounts(|| {
        for cidr in ["10.244.1.0/24", "fd00:244:1::/64"] {
            let (node, pins) = with_daemon(Node::with_cidrs(&[cidr]), 8);
            let pod = Pod::new();
            let ip = ips(&node.add(&pod))[0];
            let none = IpAddr::from([0; 16]);
            let expected = if ip.is_ipv4() { [ip, none] } else { [none, ip] };
            assert_eq!(pins.sandboxes(), [(pod.netns.cookie(), expected)].into());
        }
    });
}

#[test]
fn entries_go_when_the_namespace_has_gone() {
    with_private_mounts(|| {
        let (node, pins) = node_with(8);
        let pod = Pod::new();
        node.add(&pod);
        let Pod { id, netns } = pod;
        drop(netns);
        let mut call = node.command("DEL", None);
        call.env("CNI_CONTAINERID", &id).env("CNI_IFNAME", "eth0");
        node.run(call, &node.config).silent();
        assert_eq!((pins.len(), pins.sandboxes().len()), (0, 0));
        node.assert_only(&[]);
    });
}

/// As Multus would, which calls a network's plugin for each interface that a pod wants.
#[test]
fn a_second_attachment_is_refused_and_takes_nothing_from_the_first() {
    with_private_mounts(|| {
        for cidrs in [&["10.244.1.0/24", "fd00:244:1::/64"][..], &["10.244.1.0/24"], &["fd00:244:1::/64"]] {
            let (node, pins) = with_daemon(Node::with_cidrs(cidrs), 8);
            let pod = Pod::new();
            let call = |command: &str, ifname: &str, config: &Value| {
                let mut call = node.command(command, Some(&pod));
                call.env("CNI_IFNAME", ifname);
                node.run(call, config)
            };
            let result = call("ADD", "eth0", &node.config).result();
            let routes = || (pod.netns.ip("-4 route show"), pod.netns.ip("-6 route show default"));
            let before = (routes(), pins.len(), pins.sandboxes());
            for config in [&node.config, &node.config_with(json!({"name": "other"}))] {
                let error = call("ADD", "net1", config).error();
                assert_eq!(error["code"], 109, "{error}");
            }
            assert_eq!((routes(), pins.len(), pins.sandboxes()), before);
            assert_eq!(pod.netns.links(), BTreeSet::from(["eth0".to_owned()]));
            call("DEL", "net1", &node.config).silent();
            assert_eq!((routes(), pins.len(), pins.sandboxes()), before);
            node.check(&pod, &result).silent();
            node.assert_only(&[&pod]);
            call("DEL", "eth0", &node.config).silent();
            assert_eq!((pins.len(), pins.sandboxes().len()), (0, 0));
        }
    });
}

#[test]
fn check_looks_into_the_table() {
    with_private_mounts(|| {
        let (node, pins) = node_with(8);
        let pod = Pod::new();
        let result = node.add(&pod);
        pins.insert(ips(&result)[1], 4711);
        assert_eq!(node.check(&pod, &result).code(), 101);
    });
    with_private_mounts(|| {
        let (node, pins) = node_with(8);
        let pod = Pod::new();
        let result = node.add(&pod);
        pins.remove_sandbox(pod.netns.cookie());
        assert_eq!(node.check(&pod, &result).code(), 101);
    });
}

/// A record of a plugin that did not write the table.
#[test]
fn an_attachment_without_a_cookie_is_whole() {
    with_private_mounts(|| {
        let (node, pins) = node_with(8);
        let pod = Pod::new();
        let result = node.add(&pod);
        let path = node.record(&pod);
        let mut record: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert!(record.as_object_mut().unwrap().remove("netnsCookie").is_some());
        fs::write(&path, record.to_string()).unwrap();
        pins.remove_sandbox(pod.netns.cookie());
        node.check(&pod, &result).silent();
        node.gc(&[&pod]).silent();
        node.del(&pod);
        assert_eq!((pins.len(), pins.sandboxes().len()), (0, 0));
    });
}

#[test]
fn a_full_table_undoes_everything() {
    with_private_mounts(|| {
        let (node, pins) = node_with(3);
        let (first, second) = (Pod::new(), Pod::new());
        let result = node.add(&first);
        let error = node.call("ADD", &second).error();
        assert_eq!(error["code"], 106);
        assert_eq!((pins.len(), pins.sandboxes().len()), (2, 1), "the entry that fitted is gone too");
        assert!(second.netns.links().is_empty());
        node.assert_only(&[&first]);
        node.check(&first, &result).silent();
    });
}

#[test]
fn no_room_for_the_sandbox_undoes_everything() {
    with_private_mounts(|| {
        let (node, pins) = node_with(8);
        let foreign = [IpAddr::from([10, 9, 9, 9]), IpAddr::from([0; 16])];
        let filled = (1 << 40..).take_while(|cookie| pins.insert_sandbox(*cookie, foreign)).count();
        let pod = Pod::new();
        let error = node.call("ADD", &pod).error();
        assert_eq!(error["code"], 106);
        assert!(error["msg"].as_str().unwrap().contains("table sandboxes"), "{error}");
        assert_eq!((pins.len(), pins.sandboxes().len()), (0, filled));
        node.assert_only(&[]);
    });
}

#[test]
fn gc_removes_entries_without_record_and_restores_missing_ones() {
    with_private_mounts(|| {
        let (node, pins) = node_with(16);
        let (kept, gone) = (Pod::new(), Pod::new());
        let result = node.add(&kept);
        node.add(&gone);
        let orphan: IpAddr = "10.244.1.200".parse().unwrap();
        pins.insert(orphan, 4711);
        pins.insert(ips(&result)[0], 4712);
        let sandboxes = [(kept.netns.cookie(), ips(&result).try_into().unwrap())];
        pins.remove_sandbox(sandboxes[0].0);
        pins.insert_sandbox(1 << 40, [orphan, IpAddr::from([0; 16])]);
        node.gc(&[&kept]).silent();
        assert_eq!(pins.entry(orphan), None);
        assert_eq!((pins.len(), pins.sandboxes()), (2, sandboxes.into()));
        node.check(&kept, &result).silent();
        node.assert_only(&[&kept]);
    });
}

#[test]
fn pods_go_while_the_pins_are_gone() {
    with_private_mounts(|| {
        let (node, pins) = node_with(8);
        let (a, b) = (Pod::new(), Pod::new());
        node.add(&a);
        node.add(&b);
        fs::remove_dir_all(pins.bpffs.join("podnet")).unwrap();
        fs::remove_file(node.dir().join("run/node.json")).unwrap();
        node.del(&a);
        node.gc(&[]).silent();
        node.assert_only(&[]);
    });
}
