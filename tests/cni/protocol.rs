//! The protocol: versions, results, error codes, validation.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Node, Pod, VERSIONS, binary, ips, run_with_input};

#[test]
fn what_others_have_named_stays_on_its_line() {
    let (node, pod) = (Node::new(), Pod::new());
    let hostile = "x\n2030-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}1A\u{202e}\u{200b}";
    let is_harmless = |text: &str| text.chars().all(|c| matches!(c, ' '..='~'));
    for variable in ["CNI_NETNS", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_COMMAND", "CNI_ARGS"] {
        let mut command = node.command("ADD", Some(&pod));
        let args = format!("K8S_POD_NAMESPACE=x;K8S_POD_NAME={hostile};{hostile}=1");
        command.env(variable, if variable == "CNI_ARGS" { &args } else { hostile });
        let outcome = node.run(command, &node.config_with(json!({})));
        let error = outcome.error();
        for text in [&error["msg"], &error["details"]] {
            assert!(is_harmless(text.as_str().unwrap_or_default()), "{variable}: {error}");
        }
        assert!(outcome.stderr.lines().all(is_harmless), "{variable}: {outcome:?}");
        assert!(!outcome.stderr.lines().any(|line| line.starts_with("2030")), "{variable}: {outcome:?}");
    }
    // A pod's name that nothing refuses is in every line of the log.
    let mut command = node.command("ADD", Some(&pod));
    command.env("CNI_ARGS", format!("K8S_POD_NAMESPACE=x;K8S_POD_NAME={hostile}"));
    node.run(command, &node.config_with(json!({"runtimeConfig": {"ips": ["192.0.2.1"]}}))).error();
    node.assert_only(&[]);
}

#[test]
fn version_echoes_and_lists() {
    let call = |input: &str| {
        let mut command = Command::new(binary());
        command.env_clear().env("CNI_COMMAND", "VERSION");
        run_with_input(command, input.as_bytes())
    };
    for version in VERSIONS.into_iter().chain(["9.9.9"]) {
        let answer = call(&json!({"cniVersion": version}).to_string()).result();
        assert_eq!(answer, json!({"cniVersion": version, "supportedVersions": VERSIONS}));
    }
    assert_eq!(call("").result()["supportedVersions"], json!(VERSIONS));
    assert_eq!(call("{").code(), 6);
}

#[test]
fn every_version_gets_its_form_of_result() {
    let node = Node::new();
    for version in VERSIONS {
        let pod = Pod::new();
        let config =
            node.config_with(json!({"cniVersion": version, "mtu": 1450, "dns": {"nameservers": ["10.96.0.10"]}}));
        let result = node.call_with("ADD", &pod, &config).result();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.10"]}));
        match version {
            "0.1.0" | "0.2.0" => old_form(&result),
            _ => new_form(&result, version, &pod),
        }
        let checked = node.call_with("CHECK", &pod, &merge(&config, json!({"prevResult": result})));
        match version {
            "0.1.0" | "0.2.0" | "0.3.0" | "0.3.1" => assert_eq!(checked.code(), 1, "{version} has no CHECK"),
            _ => checked.silent(),
        }
        for command in ["STATUS", "GC"] {
            let config =
                merge(&config, json!({"cni.dev/valid-attachments": [{"containerID": pod.id, "ifname": "eth0"}]}));
            let outcome = node.run(node.command(command, None), &config);
            match version {
                "1.1.0" => outcome.silent(),
                _ => assert_eq!(outcome.code(), 1, "{version} has no {command}"),
            }
        }
        // DEL comes with the result of ADD in newer versions, and works without.
        node.call_with("DEL", &pod, &merge(&config, json!({"prevResult": result}))).silent();
        node.call_with("DEL", &pod, &config).silent();
        node.assert_only(&[]);
    }
}

fn merge(config: &Value, changes: Value) -> Value {
    let mut config = config.clone();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

fn old_form(result: &Value) {
    let keys: Vec<&str> = result.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["cniVersion", "dns", "ip4", "ip6"]);
    assert_eq!(result["ip4"]["gateway"], "169.254.1.1");
    assert_eq!(result["ip4"]["routes"], json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]));
    assert_eq!(result["ip6"]["routes"], json!([{"dst": "::/0", "gw": "fe80::1"}]));
    assert!(result["ip4"]["ip"].as_str().unwrap().ends_with("/32"));
    assert!(result["ip6"]["ip"].as_str().unwrap().ends_with("/128"));
}

fn new_form(result: &Value, version: &str, pod: &Pod) {
    let link = &pod.netns.ip_json("link show eth0")[0];
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 2);
    assert_eq!(interfaces[0].get("sandbox"), None, "the host end first, in no sandbox");
    assert_ne!(interfaces[0]["name"], "eth0");
    assert_eq!(interfaces[1]["name"], "eth0");
    assert_eq!(interfaces[1]["sandbox"], json!(pod.netns.path()));
    assert_eq!(interfaces[1]["mac"], link["address"]);
    assert_eq!(link["mtu"], 1450);
    let mtu = if version == "1.1.0" { Some(json!(1450)) } else { None };
    assert_eq!(interfaces[1].get("mtu"), mtu.as_ref(), "mtu came with 1.1.0");
    for (ip, number) in result["ips"].as_array().unwrap().iter().zip(["4", "6"]) {
        assert_eq!(ip["interface"], 1);
        let expected = if version < "1.0.0" { Some(json!(number)) } else { None };
        assert_eq!(ip.get("version"), expected.as_ref(), "0.3 and 0.4 say the address's version");
    }
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}]));
}

#[test]
fn environment_errors() {
    let node = Node::new();
    let pod = Pod::new();
    for command in ["ADD", "CHECK", "DEL"] {
        for variable in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            let mut call = node.command(command, Some(&pod));
            call.env_remove(variable);
            let outcome = node.run(call, &node.config);
            if (command, variable) == ("DEL", "CNI_NETNS") {
                outcome.silent();
            } else {
                let error = outcome.error();
                assert_eq!(error["code"], 4);
                assert!(error["msg"].as_str().unwrap().contains(variable), "{error}");
            }
        }
    }
    for (variable, value) in [
        ("CNI_COMMAND", "NONSENSE"),
        ("CNI_CONTAINERID", "../escape"),
        ("CNI_IFNAME", "sixteen-bytes-xx"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_ARGS", "UNKNOWN=1"),
        ("CNI_ARGS", "nonsense"),
        ("CNI_NETNS", "/etc/hostname"),
    ] {
        let mut call = node.command("ADD", Some(&pod));
        call.env(variable, value);
        assert_eq!(node.run(call, &node.config).code(), 4, "{variable}={value}");
    }
    let mut call = node.command("ADD", Some(&pod));
    call.env("CNI_NETNS", "/run/netns/there-is-none-of-this-name");
    assert_eq!(node.run(call, &node.config).code(), 3, "an unknown container");
    node.assert_only(&[]);
    assert!(pod.netns.links().is_empty());
}

#[test]
fn configuration_errors() {
    let node = Node::new();
    let pod = Pod::new();
    for (changes, code) in [
        (json!({"cniVersion": "1.2.0"}), 1),
        (json!({"cniVersion": "1"}), 1),
        (json!({"ipMasq": true}), 2),
        (json!({"ipam": {"type": "host-local"}}), 2),
        (json!({"name": ""}), 7),
        (json!({"name": "../x"}), 7),
        (json!({"mtu": "large"}), 7),
        (json!({"mtu": 1000}), 7),
        (json!({"datapath": "iptables"}), 7),
        (json!({"podCIDRs": ["10.0.0.0/32"]}), 7),
        (json!({"podCIDRs": ["10.0.0.0/99"]}), 7),
        (json!({"stateDir": "here"}), 7),
        (json!({"prevResult": {"ips": 7}}), 7),
        (json!({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}), 7),
        (json!({"runtimeConfig": {"ips": ["10.244.1.0"]}}), 103),
        (json!({"runtimeConfig": {"ips": ["10.244.1.1"]}}), 103),
        (json!({"runtimeConfig": {"ips": ["10.244.1.255"]}}), 103),
        (json!({"runtimeConfig": {"ips": ["192.0.2.1"]}}), 103),
        (json!({"podCIDRs": []}), 11),
    ] {
        assert_eq!(node.call_with("ADD", &pod, &node.config_with(changes.clone())).code(), code, "{changes}");
    }
    let error = node.call_with("ADD", &pod, &node.config_with(json!({"ipam": {"type": "host-local"}}))).error();
    let msg = error["msg"].as_str().unwrap();
    assert!(msg.contains("ipam") && msg.contains("host-local"), "key and value must be named: {msg}");

    let raw = |input: &[u8]| run_with_input(node.command("ADD", Some(&pod)), input);
    for garbage in [&b""[..], b"{", b"nonsense", b"\xff\xfe"] {
        assert!(matches!(raw(garbage).code(), 6 | 7), "{garbage:?}");
    }
    assert_eq!(raw(b"{\"cniVersion\": ").code(), 6);
    assert_eq!(raw(&vec![b' '; 9 << 20]).code(), 7, "input is bounded");
    node.assert_only(&[]);
}

#[test]
fn errors_are_json_on_standard_output_and_logs_go_elsewhere() {
    let node = Node::new();
    let pod = Pod::new();
    node.add(&pod);
    let outcome = node.call_with("ADD", &pod, &node.config_with(json!({"cniVersion": "0.4.0"})));
    assert_eq!(outcome.error()["cniVersion"], "0.4.0", "errors speak the caller's version");
    assert_eq!(outcome.code(), 100);
    assert_eq!(outcome.stdout.lines().count(), 1);
    assert!(outcome.stderr.contains("ERROR cni.add{attachment="), "{}", outcome.stderr);
}

#[test]
fn own_namespace_is_refused_unless_the_caller_insists() {
    let node = Node::new();
    let pod = Pod::new();
    let own = node.netns.path();
    for command in ["ADD", "CHECK"] {
        let mut call = node.command(command, Some(&pod));
        call.env("CNI_NETNS", &own);
        let outcome = node.run(call, &node.config_with(json!({"prevResult": {"ips": []}})));
        assert_eq!(outcome.code(), 4, "{command}");
    }
    node.assert_only(&[]);
    // Past the check, it is the kernel that refuses: the pod's gateway would be the pod itself.
    let mut call = node.command("ADD", Some(&pod));
    call.env("CNI_NETNS", &own).env("CNI_NETNS_OVERRIDE", "1");
    assert_eq!(node.run(call, &node.config).code(), 105);
    node.assert_only(&[]);
}

/// The path of a process's namespace, whose id is another's by now.
#[test]
fn del_with_the_hosts_own_namespace_releases_everything_and_touches_nothing_of_the_host() {
    let node = Node::new();
    let (pod, other) = (Pod::new(), Pod::new());
    node.netns.ip("link add eth0 type bridge");
    node.netns.ip("link set eth0 up");
    node.netns.ip("addr add 10.244.1.2/32 dev eth0");
    node.netns.ip("route add default dev eth0");
    let host = || (node.netns.ip("-4 addr show eth0"), node.netns.ip("route show default"));
    let before = host();
    node.add(&pod);
    for pod in [&pod, &other] {
        let mut call = node.command("DEL", Some(pod));
        call.env("CNI_NETNS", node.netns.path());
        node.run(call, &node.config).silent();
        assert_eq!(host(), before);
    }
    assert!(pod.netns.links().is_empty() && node.files().is_empty());
    assert_eq!(node.netns.links(), ["eth0".to_owned()].into());
}

#[test]
fn called_by_hand_it_says_what_it_is() {
    for argument in [None, Some("--version"), Some("--help"), Some("-h")] {
        let mut call = std::process::Command::new(crate::support::binary());
        call.env_clear().args(argument);
        let outcome = run_with_input(call, b"");
        assert!(outcome.success && outcome.stdout.is_empty(), "{outcome:?}");
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        assert_eq!(lines[0], concat!("CNI podnet-cni plugin v", env!("CARGO_PKG_VERSION")));
        assert_eq!(lines[1], format!("CNI protocol versions supported: {}", crate::support::VERSIONS.join(", ")));
    }
}

#[test]
fn capabilities_are_honoured_and_recorded() {
    let node = Node::new();
    let pod = Pod::new();
    let config = node.config_with(json!({
        "capabilities": {"portMappings": true, "ips": true, "mac": true, "dns": true},
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}],
            "ips": ["10.244.1.77/24", "fd00:244:1::77"],
            "mac": "02:11:22:33:44:55",
            "dns": {"servers": ["10.96.0.10"], "searches": ["svc.cluster.local"], "options": ["ndots:5"]},
        },
    }));
    let mut call = node.command("ADD", Some(&pod));
    call.env(
        "CNI_ARGS",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1;K8S_POD_INFRA_CONTAINER_ID=x;MORE=y",
    );
    let result = node.run(call, &config).result();
    assert_eq!(ips(&result), ["10.244.1.77", "fd00:244:1::77"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()));
    assert_eq!(pod.netns.ip_json("link show eth0")[0]["address"], "02:11:22:33:44:55");
    assert_eq!(result["dns"]["search"], json!(["svc.cluster.local"]));
    let record: Value = serde_json::from_str(&std::fs::read_to_string(node.record(&pod)).unwrap()).unwrap();
    assert_eq!(record["state"], "ready");
    assert_eq!(record["pod"], json!({"namespace": "shop", "name": "web-0", "uid": "u1"}));
    assert_eq!(record["portMappings"][0]["hostPort"], 8080);

    let other = Pod::new();
    assert_eq!(node.call_with("ADD", &other, &config).code(), 103, "the addresses are taken");
    assert!(other.netns.links().is_empty());
    let range = json!({"runtimeConfig": {"ipRanges": [
        [{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.200", "rangeEnd": "10.244.1.201"}],
    ]}});
    let result = node.call_with("ADD", &other, &node.config_with(range)).result();
    assert_eq!(ips(&result), ["10.244.1.200".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn a_previous_result_is_passed_on_and_extended() {
    let node = Node::new();
    let pod = Pod::new();
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "net1", "sandbox": pod.netns.path(), "pciID": "0000:00:1f.6"}],
        "ips": [{"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24", "priority": 7}],
        "dns": {"domain": "example.org"},
    });
    let result = node.call_with("ADD", &pod, &node.config_with(json!({"prevResult": previous}))).result();
    assert_eq!(result["interfaces"][0], previous["interfaces"][0]);
    assert_eq!(result["ips"][0], previous["ips"][0]);
    assert_eq!(result["routes"][0], previous["routes"][0]);
    assert_eq!(result["dns"], previous["dns"]);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!((&result["ips"][1]["interface"], &result["ips"][2]["interface"]), (&json!(2), &json!(2)));
    node.check(&pod, &result).silent();
    node.del(&pod);
    // As a plugin in Go may write what it doesn't have.
    let nulls = json!({"cniVersion": "1.1.0", "interfaces": null, "ips": null, "routes": null, "dns": null});
    let result = node.call_with("ADD", &pod, &node.config_with(json!({"prevResult": nulls}))).result();
    node.check(&pod, &result).silent();
    node.del(&pod);
}
