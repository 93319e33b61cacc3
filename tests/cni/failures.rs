//! Failures of ADD, and leftovers: everything is undone.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::support::{Node, Pod, ips};

#[test]
fn an_interface_of_that_name_is_left_alone() {
    let node = Node::new();
    let pod = Pod::new();
    pod.netns.ip("link add eth0 type bridge");
    let before = pod.netns.ip_json("-d link show eth0");
    assert_eq!(node.call("ADD", &pod).code(), 104);
    assert_eq!(pod.netns.ip_json("-d link show eth0"), before);
    node.assert_only(&[]);
    // The address it had taken rests.
    assert_eq!(ips(&node.add(&Pod::new()))[0], "10.244.1.3".parse::<IpAddr>().unwrap());
}

#[test]
fn a_failure_after_the_link_was_made_undoes_it() {
    let node = Node::new();
    let pod = Pod::new();
    // No route leads by a multicast gateway: the kernel refuses after pair and host end are there.
    let info = json!({
        "schema": 1, "bpffs": "/sys/fs/bpf", "podCIDRs": ["10.244.9.0/24"], "mtu": 1500, "gateways": ["224.0.0.1"],
    });
    fs::create_dir_all(node.dir().join("run")).unwrap();
    fs::write(node.dir().join("run/node.json"), info.to_string()).unwrap();
    let error = node.call("ADD", &pod).error();
    assert_eq!(error["code"], 105);
    assert!(error["msg"].as_str().unwrap().contains("add the route"), "the message says what failed: {error}");
    node.assert_only(&[]);
    assert!(pod.netns.links().is_empty());
    fs::remove_file(node.dir().join("run/node.json")).unwrap();
    node.add(&pod);
}

/// A pipe without another end.
pub fn pipe(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
}

#[test]
fn a_netns_that_is_a_pipe_is_refused_and_not_waited_for() {
    let (node, pod) = (Node::new(), Pod::new());
    let result = node.add(&pod);
    let path = node.dir().join("pipe");
    pipe(&path);
    for command in ["ADD", "CHECK", "DEL"] {
        let mut call = node.command(command, Some(&pod));
        call.env("CNI_NETNS", &path);
        if command == "ADD" {
            call.env("CNI_CONTAINERID", "another");
        }
        let outcome = node.run(call, &node.config_with(json!({"prevResult": result})));
        if command == "DEL" {
            outcome.silent();
            continue;
        }
        let error = outcome.error();
        assert_eq!(error["code"], 4, "{command}: {error}");
        assert!(error["details"].as_str().unwrap().contains("/run/netns/NAME"), "{error}");
    }
    node.assert_only(&[]);
}

#[test]
fn pipes_in_the_place_of_files_are_named_and_not_waited_for() {
    let (node, pod, other) = (Node::new(), Pod::new(), Pod::new());
    for file in ["state/lock", "state/allocator", "run/node.json"] {
        let path = node.dir().join(file);
        let aside = path.with_extension("aside");
        let _ = fs::rename(&path, &aside);
        pipe(&path);
        let error = node.call("ADD", &pod).error();
        let msg = error["msg"].as_str().unwrap();
        assert_eq!(error["code"], 5, "{error}");
        assert!(msg.contains(file) && msg.contains("a named pipe") && msg.contains("remove it"), "{error}");
        fs::remove_file(&path).unwrap();
        let _ = fs::rename(&aside, &path);
    }
    node.assert_only(&[]);
    // A log of calls is worth nothing.
    fs::remove_file(node.dir().join("run/calls")).unwrap();
    pipe(&node.dir().join("run/calls"));
    node.add(&pod);
    let record = node.record(&pod);
    fs::remove_file(&record).unwrap();
    pipe(&record);
    node.add(&other);
    node.status().silent();
    assert!(node.call("ADD", &pod).success, "its ADD removes it like what a killed one has left");
    let record = node.record(&pod);
    fs::remove_file(&record).unwrap();
    pipe(&record);
    node.gc(&[&pod, &other]).silent();
    node.del(&pod);
    node.assert_only(&[&other]);
}

#[test]
fn a_record_half_written_is_a_leftover() {
    for cut in [0, 1, 40] {
        let node = Node::new();
        let (pod, other) = (Pod::new(), Pod::new());
        node.add(&pod);
        let kept = node.add(&other);
        let record = node.record(&pod);
        let bytes = fs::read(&record).unwrap();
        fs::write(&record, &bytes[..cut]).unwrap();
        // It holds its addresses until somebody removes it.
        let third = Pod::new();
        assert!(!ips(&node.add(&third)).contains(&"10.244.1.2".parse().unwrap()));
        node.del(&third);
        node.gc(&[&other]).silent();
        node.assert_only(&[&other]);
        assert!(pod.netns.links().is_empty());
        node.check(&other, &kept).silent();
    }
}

#[test]
fn del_of_a_record_half_written() {
    let node = Node::new();
    let pod = Pod::new();
    node.add(&pod);
    fs::write(node.record(&pod), "{").unwrap();
    node.del(&pod);
    node.assert_only(&[]);
}

#[test]
fn leftovers_of_killed_processes_are_no_obstacle() {
    let node = Node::new();
    let pod = Pod::new();
    node.add(&pod);
    let ready = node.record(&pod);
    node.del(&pod);
    // Killed before it could write: an empty record, which holds its addresses until DEL.
    fs::write(ready.with_extension("allocating"), "").unwrap();
    fs::write(node.dir().join("state/allocator.new"), "+1").unwrap();
    let other = Pod::new();
    assert_eq!(ips(&node.add(&other))[0], "10.244.1.3".parse::<IpAddr>().unwrap());
    assert_eq!(ips(&node.add(&pod))[0], "10.244.1.4".parse::<IpAddr>().unwrap(), "ADD removes its own leftover");
    node.del(&pod);
    fs::write(ready.with_extension("allocating"), "{").unwrap();
    node.del(&pod);
    node.assert_only(&[&other]);
}

#[test]
fn losing_the_allocators_memory_costs_only_the_rest() {
    let node = Node::new();
    let (a, b) = (Pod::new(), Pod::new());
    node.add(&a);
    for content in ["", "+10.244.1", "\u{0}\u{0}\n", "+10.244.1.300\n?\n"] {
        fs::write(node.dir().join("state/allocator"), content).unwrap();
        assert_eq!(ips(&node.add(&b))[0], "10.244.1.3".parse::<IpAddr>().unwrap(), "{content:?}");
        node.del(&b);
    }
}

#[test]
fn after_a_reboot_the_records_are_leftovers() {
    let node = Node::with_cidrs(&["10.244.1.0/29"]);
    let pods: Vec<Pod> = (0..5).map(|_| Pod::new()).collect();
    for pod in &pods {
        node.add(pod);
    }
    assert_eq!(node.status().code(), 50);
    // What a reboot does: another boot id, no links.
    for pod in &pods {
        let path = node.record(pod);
        let mut record: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let old = record["bootID"].as_str().unwrap().to_owned();
        record["bootID"] = json!("01234567-89ab-cdef-0123-456789abcdef");
        let renamed = path.to_str().unwrap().replace(&old[..8], "01234567");
        assert_ne!(renamed, path.to_str().unwrap());
        fs::write(&renamed, record.to_string()).unwrap();
        fs::remove_file(&path).unwrap();
        pod.netns.ip("link del eth0");
    }
    node.status().silent();
    // A sandbox of before the reboot is deleted.
    node.del(&pods[0]);
    assert_eq!(node.files().len(), 4);
    let pod = Pod::new();
    node.add(&pod);
    node.assert_only(&[&pod]);
}

#[test]
fn a_link_and_its_record_of_another_boot_are_collected() {
    let node = Node::new();
    let pod = Pod::new();
    node.add(&pod);
    let path = node.record(&pod);
    let record = fs::read_to_string(&path).unwrap();
    let mut changed: Value = serde_json::from_str(&record).unwrap();
    changed["bootID"] = json!("01234567-89ab-cdef-0123-456789abcdef");
    fs::write(&path, changed.to_string()).unwrap();
    node.gc(&[]).silent();
    node.assert_only(&[]);
}
