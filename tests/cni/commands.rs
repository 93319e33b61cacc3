//! What ADD, DEL, CHECK, STATUS and GC mean.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::process::{Child, Command};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::support::{Node, Outcome, Pod, ips};

fn pods(count: usize) -> Vec<Pod> {
    (0..count).map(|_| Pod::new()).collect()
}

#[test]
fn del_is_idempotent_and_needs_nothing() {
    let node = Node::new();
    let pod = Pod::new();
    node.del(&pod);
    node.add(&pod);
    node.del(&pod);
    node.del(&pod);
    assert!(pod.netns.links().is_empty());
    node.assert_only(&[]);
}

#[test]
fn del_works_when_the_namespace_has_gone() {
    let node = Node::new();
    for netns in [Some("/run/netns/podnet-cni-test-gone"), None] {
        let pod = Pod::new();
        node.add(&pod);
        let id = pod.id.clone();
        drop(pod);
        let mut call = node.command("DEL", None);
        call.env("CNI_CONTAINERID", &id).env("CNI_IFNAME", "eth0");
        call.envs(netns.map(|path| ("CNI_NETNS", path)));
        node.run(call, &node.config).silent();
        node.assert_only(&[]);
    }
}

#[test]
fn del_works_when_the_link_or_the_record_has_gone() {
    let node = Node::new();
    let pod = Pod::new();
    node.add(&pod);
    pod.netns.ip("link del eth0");
    node.del(&pod);
    node.assert_only(&[]);

    node.add(&pod);
    fs::remove_file(node.record(&pod)).unwrap();
    node.del(&pod);
    node.assert_only(&[]);
}

#[test]
fn addresses_are_unique_and_reserved_ones_are_never_given() {
    let node = Node::with_cidrs(&["10.244.1.0/29", "fd00:244:1::/64"]);
    let pods = pods(5);
    let given: BTreeSet<IpAddr> = pods.iter().flat_map(|p| ips(&node.add(p))).collect();
    let v4: BTreeSet<IpAddr> = (2..=6).map(|n| IpAddr::from([10, 244, 1, n])).collect();
    assert_eq!(given.iter().copied().filter(IpAddr::is_ipv4).collect::<BTreeSet<_>>(), v4);
    assert_eq!(given.len(), 10);
    for reserved in ["fd00:244:1::", "fd00:244:1::1"] {
        assert!(!given.contains(&reserved.parse().unwrap()));
    }
}

#[test]
fn an_exhausted_pool_is_told_and_recovers() {
    let node = Node::with_cidrs(&["10.244.1.0/29", "fd00:244:1::/64"]);
    let pods = pods(6);
    for pod in &pods[..5] {
        node.status().silent();
        node.add(pod);
    }
    assert_eq!(node.status().code(), 50);
    assert_eq!(node.call("ADD", &pods[5]).code(), 102);
    node.assert_only(&pods[..5].iter().collect::<Vec<_>>());
    assert!(pods[5].netns.links().is_empty());
    node.del(&pods[3]);
    node.status().silent();
    assert_eq!(ips(&node.add(&pods[5]))[0], "10.244.1.5".parse::<IpAddr>().unwrap());
}

#[test]
fn a_host_port_leads_to_one_pod() {
    let node = Node::new();
    let add = |pod: &Pod, mapping: &Value| {
        node.call_with("ADD", pod, &node.config_with(json!({"runtimeConfig": {"portMappings": [mapping]}})))
    };
    let mapping = |protocol: &str, host_ip: &str| json!({"hostPort": 8080, "containerPort": 80, "protocol": protocol, "hostIP": host_ip});
    let pods = pods(7);
    add(&pods[0], &mapping("TCP", "")).result();
    for host_ip in ["", "0.0.0.0", "::", "192.0.2.1", "2001:db8::1"] {
        let error = add(&pods[1], &mapping("tcp", host_ip)).error();
        assert_eq!(error["code"], 108, "{host_ip}");
        let msg = error["msg"].as_str().unwrap();
        assert!(msg.contains("8080/tcp") && msg.ends_with(&format!("eth0 of container {}", pods[0].id)), "{msg}");
        assert!(error["details"].as_str().unwrap().contains("hostPort"), "{error}");
    }
    node.assert_only(&[&pods[0]]);
    // What can't be mistaken for one another goes together.
    for (pod, (protocol, host_ip)) in
        pods[1..5].iter().zip([("udp", "192.0.2.1"), ("udp", "192.0.2.2"), ("udp", "::"), ("sctp", "")])
    {
        add(pod, &mapping(protocol, host_ip)).result();
    }
    assert_eq!(add(&pods[5], &mapping("udp", "0.0.0.0")).code(), 108);
    // A port is free again after DEL, GC, or a reboot.
    node.del(&pods[0]);
    add(&pods[5], &mapping("tcp", "")).result();
    node.gc(&pods[1..5].iter().collect::<Vec<_>>()).silent();
    add(&pods[6], &mapping("tcp", "")).result();
    // A record in nobody's hands may be unreadable; then it has no ports either.
    fs::write(node.record(&pods[6]), "{").unwrap();
    add(&pods[5], &mapping("tcp", "")).result();
}

/// ADD for a pod of Kubernetes.
fn add_named(node: &Node, config: &Value, pod: &Pod, name: &str, uid: &str) -> Outcome {
    let mut call = node.command("ADD", Some(pod));
    call.env("CNI_ARGS", format!("K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME={name};K8S_POD_UID={uid}"));
    node.run(call, config)
}

/// A process in a pod's namespace.
fn process_in(pod: &Pod) -> Process {
    let mut command = Command::new("sleep");
    pod.netns.enter(command.arg("1000"));
    Process(command.spawn().expect("a process starts"))
}

/// Ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("it ends");
    }
}

/// A runtime that has lost its state makes another sandbox for a static pod, or one of a DaemonSet, whose uid stays.
#[test]
fn a_pod_gets_its_host_port_back_from_a_sandbox_that_the_runtime_has_forgotten() {
    let node = Node::new();
    let config =
        node.config_with(json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}));
    let pods = pods(4);
    let add = |pod: &Pod, name: &str, uid: &str| add_named(&node, &config, pod, name, uid);
    add(&pods[0], "proxy", "u1").result();
    let _forgotten = process_in(&pods[0]);
    assert_eq!(add(&pods[1], "other", "u2").code(), 108);
    assert_eq!(add(&pods[1], "proxy", "").code(), 108, "who it is isn't known");
    add(&pods[2], "proxy", "u1").result();
    node.assert_only(&[&pods[2]]);
    assert!(pods[0].netns.links().is_empty());
    assert_eq!(add(&pods[3], "other", "u2").code(), 108);
}

#[test]
fn earlier_sandboxes_of_a_pod_in_which_nothing_runs_are_removed() {
    let node = Node::new();
    let pods = pods(8);
    let add = |pod: &Pod, name: &str, uid: &str| add_named(&node, &node.config, pod, name, uid).result();
    let result = add(&pods[0], "web", "u1");
    let running = process_in(&pods[0]);
    // Other pods, and whoever isn't known.
    add(&pods[1], "web", "u2");
    add(&pods[2], "web", "");
    add(&pods[3], "", "");
    // Something runs there, though no such pod should have it.
    add(&pods[4], "web", "u1");
    node.assert_only(&[&pods[0], &pods[1], &pods[2], &pods[3], &pods[4]]);
    node.check(&pods[0], &result).silent();
    drop(running);
    // The fourth's namespace goes with its file, if nobody else has opened it.
    add(&pods[5], "web", "u1");
    node.assert_only(&[&pods[1], &pods[2], &pods[3], &pods[5]]);
    assert!(pods[0].netns.links().is_empty() && pods[4].netns.links().is_empty());
    // A DEL that comes after all finds nothing to do.
    node.del(&pods[0]);
    add(&pods[6], "web", "");
    add(&pods[7], "web", "u2");
    node.assert_only(&[&pods[2], &pods[3], &pods[5], &pods[6], &pods[7]]);
}

#[test]
fn host_ports_are_recorded_with_the_addresses() {
    let node = Node::new();
    let pod = Pod::new();
    let result = node.call_with(
        "ADD",
        &pod,
        &node.config_with(json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 0, "containerPort": 79},
            {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": ""},
            {"hostPort": 8080, "containerPort": 81, "protocol": "TCP", "hostIP": "192.0.2.1"},
        ]}})),
    );
    let record: Value = serde_json::from_str(&fs::read_to_string(node.record(&pod)).unwrap()).unwrap();
    let expected = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 81, "protocol": "tcp", "hostIP": "192.0.2.1"},
    ]);
    assert_eq!(record["portMappings"], expected);
    assert_eq!(record["ips"], json!(ips(&result.result())));
}

#[test]
fn a_released_address_rests_until_all_others_were_used() {
    let node = Node::with_cidrs(&["10.244.1.0/28"]);
    let mut order = Vec::new();
    for _ in 0..13 {
        let pod = Pod::new();
        order.extend(ips(&node.add(&pod)));
        node.del(&pod);
    }
    let expected: Vec<IpAddr> = (2..=14).map(|n| IpAddr::from([10, 244, 1, n])).collect();
    assert_eq!(order, expected, "round the whole range");

    // Released in an order that is not the cursor's: they come back in that order.
    let pods = pods(3);
    let first: Vec<IpAddr> = pods.iter().map(|p| ips(&node.add(p))[0]).collect();
    for i in [1, 0, 2] {
        node.del(&pods[i]);
    }
    let again: Vec<IpAddr> = (0..13).map(|_| ips(&node.add(&Pod::new()))[0]).collect();
    assert_eq!(again[10..], [first[1], first[0], first[2]]);
}

#[test]
fn check_finds_what_is_missing() {
    type Break = fn(&Node, &Pod, &Value);
    let broken: [(&str, Break); 6] = [
        ("address", |_, pod, result| {
            pod.netns.ip(&format!("addr del {}/32 dev eth0", ips(result)[0]));
        }),
        ("IPv6 address", |_, pod, result| {
            pod.netns.ip(&format!("addr del {}/128 dev eth0", ips(result)[1]));
        }),
        ("default route", |_, pod, _| {
            pod.netns.ip("route del default");
        }),
        ("node's route", |node, _, result| {
            node.netns.ip(&format!("route del {}", ips(result)[0]));
        }),
        ("link", |_, pod, _| {
            pod.netns.ip("link del eth0");
        }),
        ("record", |node, pod, _| fs::remove_file(node.record(pod)).unwrap()),
    ];
    let node = Node::new();
    for (what, break_it) in broken {
        let pod = Pod::new();
        let result = node.add(&pod);
        node.check(&pod, &result).silent();
        break_it(&node, &pod, &result);
        assert_eq!(node.check(&pod, &result).code(), 101, "{what}");
        node.del(&pod);
    }
    node.assert_only(&[]);
}

#[test]
fn check_tolerates_what_later_plugins_do() {
    let node = Node::new();
    let pod = Pod::new();
    let mut result = node.add(&pod);
    for change in [
        "link set eth0 mtu 1400",
        "addr add 192.0.2.9/24 dev eth0",
        "route add 198.51.100.0/24 via 192.0.2.1",
        "link add other type bridge",
    ] {
        pod.netns.ip(change);
    }
    result["ips"].as_array_mut().unwrap().push(json!({"address": "192.0.2.9/24"}));
    node.check(&pod, &result).silent();
}

#[test]
fn check_compares_the_previous_result() {
    let node = Node::new();
    let pod = Pod::new();
    let result = node.add(&pod);
    assert_eq!(node.call("CHECK", &pod).code(), 7, "prevResult is required");
    let mut wrong = result.clone();
    wrong["ips"][0]["address"] = json!("10.244.1.99/32");
    assert_eq!(node.check(&pod, &wrong).code(), 101);
    let mut wrong = result.clone();
    wrong["interfaces"][1]["sandbox"] = json!("/run/netns/other");
    assert_eq!(node.check(&pod, &wrong).code(), 101);
}

#[test]
fn gc_removes_what_is_not_listed_and_prints_nothing() {
    let node = Node::new();
    let pods = pods(4);
    for pod in &pods {
        node.add(pod);
    }
    // Another network keeps its records in the same place.
    let other = Pod::new();
    let other_config = node.config_with(json!({"name": "other"}));
    node.call_with("ADD", &other, &other_config).result();
    node.gc(&[&pods[1], &pods[2]]).silent();
    node.assert_only(&[&pods[1], &pods[2], &other]);
    node.gc(&[&pods[1], &pods[2]]).silent();
    node.assert_only(&[&pods[1], &pods[2], &other]);
    // The key under which libcni repeats the list.
    let config = other_config.as_object().unwrap().clone();
    let mut config = Value::Object(config);
    config["cni.dev/attachments"] = json!([]);
    node.run(node.command("GC", None), &config).silent();
    node.assert_only(&[&pods[1], &pods[2]]);
    assert_eq!(node.run(node.command("GC", None), &node.config).code(), 7, "no list is not an empty list");
    node.assert_only(&[&pods[1], &pods[2]]);
    node.gc(&[]).silent();
    node.assert_only(&[]);
}

#[test]
fn what_matters_to_new_pods_only_keeps_none_from_being_removed() {
    for changes in [
        json!({"podCIDRs": ["10.231.0.0/99"]}),
        json!({"mtu": "1450"}),
        json!({"datapath": "eBPF"}),
        json!({"runDir": "run/podnet"}),
        json!({"runtimeConfig": []}),
        json!({"ipam": {"type": "host-local"}, "ipMasq": true}),
        json!({"dns": "10.96.0.10", "prevResult": 7}),
    ] {
        let node = Node::new();
        let pods = pods(3);
        for pod in &pods {
            node.add(pod);
        }
        node.call_with("DEL", &pods[0], &node.config_with(changes.clone())).silent();
        node.assert_only(&[&pods[1], &pods[2]]);
        let mut changes = changes;
        let kept = json!({"containerID": pods[1].id, "ifname": "eth0"});
        // One that can't be understood is none of ours.
        changes["cni.dev/valid-attachments"] =
            json!([{"containerID": 7}, null, kept, {"containerID": "../x", "ifname": ""}]);
        node.run(node.command("GC", None), &node.config_with(changes)).silent();
        node.assert_only(&[&pods[1]]);
        let mut call = node.command("DEL", Some(&pods[1]));
        call.env("CNI_ARGS", "UNKNOWN=1");
        node.run(call, &node.config).silent();
        node.assert_only(&[]);
    }
}

/// What ADD would meet.
#[test]
fn status_fails_where_no_record_can_be_written() {
    crate::bpf::with_private_mounts(|| {
        let node = Node::new();
        let state = node.dir().join("state");
        let add_and_status = || {
            let pod = Pod::new();
            let added = node.call("ADD", &pod);
            if added.success {
                node.del(&pod);
            }
            (added.success, node.status())
        };
        fs::create_dir(&state).unwrap();
        let nothing: Option<&str> = None;
        for (options, fill, hint) in [
            ("size=64k", "", ""),
            ("size=64k", "bytes", "full"),
            ("nr_inodes=4", "inodes", "full"),
            ("size=64k,ro", "", "read-only"),
        ] {
            let flags = if options.ends_with(",ro") { MsFlags::MS_RDONLY } else { MsFlags::empty() };
            let options = options.trim_end_matches(",ro");
            mount(nothing, &state, Some("tmpfs"), flags, Some(options)).unwrap();
            match fill {
                "bytes" => drop(fs::write(state.join("ballast"), vec![1; 1 << 20])),
                "inodes" => drop((0..8).find(|i| fs::write(state.join(format!("ballast{i}")), "").is_err())),
                _ => {}
            }
            let (added, status) = add_and_status();
            assert_eq!(added, hint.is_empty(), "{options} {fill}");
            if hint.is_empty() {
                status.silent();
            } else {
                assert_eq!(status.code(), 50, "{options} {fill}");
                assert!(status.error()["details"].as_str().unwrap().contains(hint), "{status:?}");
            }
            assert!(
                fs::read_dir(&state).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().starts_with(".tmp"))
            );
            nix::mount::umount2(&state, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    });
}

#[test]
fn gc_removes_links_without_record_but_no_one_elses() {
    let node = Node::new();
    let pod = Pod::new();
    node.add(&pod);
    fs::remove_file(node.record(&pod)).unwrap();
    node.netns.ip("link add pn0123456789a type bridge");
    node.gc(&[]).silent();
    assert_eq!(node.netns.links(), BTreeSet::from(["pn0123456789a".to_owned()]));
}

#[test]
fn gc_goes_on_past_errors() {
    let node = Node::new();
    let pods = pods(3);
    for pod in &pods {
        node.add(pod);
    }
    // A directory in a record's place can neither be read nor removed.
    let record = node.record(&pods[1]);
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    let outcome = node.gc(&[]);
    assert_eq!(outcome.code(), 107);
    assert_eq!(node.files().len(), 1);
    fs::remove_dir(&record).unwrap();
    node.gc(&[]).silent();
    node.assert_only(&[]);
}

#[test]
fn status_needs_only_what_add_needs() {
    let node = Node::new();
    node.status().silent();
    assert!(!node.dir().join("state").exists(), "STATUS changes nothing");
    let status = |changes| node.run(node.command("STATUS", None), &node.config_with(changes));
    assert_eq!(status(json!({"podCIDRs": []})).code(), 50, "no CIDR and no daemon");
    assert_eq!(status(json!({"datapath": "ebpf"})).code(), 50, "no daemon");
    assert_eq!(status(json!({"podCIDRs": ["10.0.0.0/31"]})).code(), 7);
}

#[test]
fn the_daemons_file_gives_cidrs_and_mtu() {
    let mut node = Node::new();
    node.config["podCIDRs"] = json!([]);
    fs::create_dir_all(node.dir().join("run")).unwrap();
    let info = json!({
        "schema": 1, "bpffs": "/sys/fs/bpf", "podCIDRs": ["10.244.9.0/24"], "mtu": 1380,
        "gateways": ["169.254.9.9", "fe80::9"],
    });
    fs::write(node.dir().join("run/node.json"), info.to_string()).unwrap();
    let pod = Pod::new();
    let result = node.add(&pod);
    assert_eq!(ips(&result), ["10.244.9.2".parse::<IpAddr>().unwrap()]);
    assert_eq!(result["ips"][0]["gateway"], "169.254.9.9");
    assert_eq!(result["routes"].as_array().unwrap().len(), 1, "no IPv6 route without an IPv6 address");
    assert_eq!(pod.netns.ip_json("link show eth0")[0]["mtu"], 1380);
    node.check(&pod, &result).silent();
}
