//! What a pod's network is like, with `datapath: none`: reachability through the node's own stack, both families.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Netns, Node, Pod, ips};

const PATIENCE: Duration = Duration::from_secs(5);

/// A connection and a datagram from one namespace to an address in another; returns the source that was seen.
fn reach(client: &Netns, server: &Netns, address: IpAddr) -> IpAddr {
    let listener = server.run(|| TcpListener::bind((address, 0))).expect("listen");
    let to: SocketAddr = listener.local_addr().unwrap();
    let mut connection = client.run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("connect");
    let (mut accepted, from) = listener.accept().unwrap();
    connection.write_all(b"ping").unwrap();
    accepted.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = [0; 4];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");

    let socket = server.run(|| UdpSocket::bind((address, 0))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let sender = client.run(|| UdpSocket::bind((any, 0))).unwrap();
    sender.send_to(b"hello", socket.local_addr().unwrap()).unwrap();
    let (length, udp_from) = socket.recv_from(&mut [0; 16]).expect("a datagram");
    assert_eq!((length, udp_from.ip()), (5, from.ip()));
    from.ip()
}

#[test]
fn pods_reach_each_other_at_once_with_their_own_addresses() {
    for cidrs in [&["10.244.1.0/24", "fd00:244:1::/64"][..], &["10.244.1.0/24"], &["fd00:244:1::/64"]] {
        let node = Node::with_cidrs(cidrs);
        let (a, b) = (Pod::new(), Pod::new());
        let (of_a, of_b) = (ips(&node.add(&a)), ips(&node.add(&b)));
        assert_eq!(of_a.len(), cidrs.len());
        for (from, to) in of_a.iter().zip(&of_b) {
            assert_eq!(reach(&a.netns, &b.netns, *to), *from);
            assert_eq!(reach(&b.netns, &a.netns, *from), *to);
        }
        node.assert_only(&[&a, &b]);
    }
}

#[test]
fn node_and_pods_reach_each_other_and_the_node_uses_its_own_address() {
    let node = Node::new();
    for address in ["192.0.2.10/32", "2001:db8::10/128"] {
        node.netns.ip(&format!("addr add {address} dev lo"));
    }
    let pod = Pod::new();
    let result = node.add(&pod);
    for (ip, of_node) in ips(&result).into_iter().zip(["192.0.2.10", "2001:db8::10"]) {
        let of_node: IpAddr = of_node.parse().unwrap();
        assert_eq!(reach(&node.netns, &pod.netns, ip), of_node, "not the link-local gateway's");
        assert_eq!(reach(&pod.netns, &node.netns, of_node), ip);
    }
    let loopback: IpAddr = [127, 0, 0, 1].into();
    assert_eq!(reach(&pod.netns, &pod.netns, loopback), loopback, "lo is up in the pod");
}

#[test]
fn the_gateway_answers_who_asks() {
    let node = Node::new();
    let pod = Pod::new();
    node.add(&pod);
    let gateway: IpAddr = "169.254.1.1".parse().unwrap();
    pod.netns.ip("neigh del 169.254.1.1 dev eth0");
    reach(&pod.netns, &node.netns, gateway);
    let neighbour = &pod.netns.ip_json("neigh show 169.254.1.1")[0];
    let host_end = node.netns.links().pop_first().unwrap();
    assert_eq!(neighbour["lladdr"], node.netns.ip_json(&format!("link show {host_end}"))[0]["address"]);
}

#[test]
fn links_and_addresses_are_as_described() {
    let node = Node::new();
    let pod = Pod::new();
    let result = node.add(&pod);
    let host_end = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
    assert!(host_end.len() == 13 && host_end.starts_with("pn"), "{host_end}");

    let addresses = pod.netns.ip_json("addr show eth0");
    let infos = addresses[0]["addr_info"].as_array().unwrap();
    let lengths: Vec<&Value> = infos.iter().filter(|i| i["scope"] == "global").map(|i| &i["prefixlen"]).collect();
    assert_eq!(lengths, [32, 128]);
    assert!(infos.iter().all(|i| i.get("tentative").is_none()), "no address waits for DAD: {infos:?}");
    assert_eq!(infos.iter().filter(|i| i["scope"] == "link").count(), 1);
    let flags = pod.netns.ip_json("link show lo")[0]["flags"].to_string();
    assert!(flags.contains("\"UP\""), "{flags}");

    for (netns, name, family) in [
        (&pod.netns, "eth0", "-4"),
        (&pod.netns, "eth0", "-6"),
        (&node.netns, &host_end, "-4"),
        (&node.netns, &host_end, "-6"),
    ] {
        let neighbours = netns.ip_json(&format!("{family} neigh show dev {name} nud permanent"));
        assert_eq!(neighbours.as_array().unwrap().len(), 1, "{family} on {name}");
    }
    for key in ["accept_dad", "accept_ra"] {
        assert_eq!(pod.netns.sysctl(&format!("ipv6/conf/eth0/{key}")), "0");
        assert_eq!(node.netns.sysctl(&format!("ipv6/conf/{host_end}/{key}")), "0");
    }
    assert_eq!(node.netns.sysctl("ipv4/ip_forward"), "1");
    assert_eq!(node.netns.sysctl("ipv6/conf/all/forwarding"), "1");
    assert_eq!(result["interfaces"][0]["mac"], node.netns.ip_json(&format!("link show {host_end}"))[0]["address"]);
    for interface in result["interfaces"].as_array().unwrap() {
        let first = u8::from_str_radix(&interface["mac"].as_str().unwrap()[..2], 16).unwrap();
        assert_eq!(first & 3, 2, "locally administered, unicast");
    }
}

#[test]
fn ipv6_works_where_the_container_begins_without_it() {
    let node = Node::new();
    let pod = Pod::new();
    for of in ["all", "default"] {
        pod.netns.run(|| std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"), "1").unwrap());
    }
    let result = node.add(&pod);
    assert_eq!(ips(&result).len(), 2);
    node.check(&pod, &result).silent();
}

#[test]
fn forwarding_does_not_cost_the_node_its_router() {
    let node = Node::new();
    node.netns.ip("link add uplink type bridge");
    assert_eq!(node.netns.sysctl("ipv6/conf/uplink/accept_ra"), "1");
    node.add(&Pod::new());
    assert_eq!(node.netns.sysctl("ipv6/conf/uplink/accept_ra"), "2", "goes on to listen to routers");
}

#[test]
fn an_ipv4_pod_is_silent_in_ipv6() {
    let node = Node::with_cidrs(&["10.244.1.0/24"]);
    let pod = Pod::new();
    let result = node.add(&pod);
    let host_end = result["interfaces"][0]["name"].as_str().unwrap();
    for (netns, name) in [(&pod.netns, "eth0"), (&node.netns, host_end)] {
        let addresses = netns.ip_json(&format!("-6 addr show dev {name}"));
        assert!(addresses.as_array().unwrap().iter().all(|a| a.get("addr_info").is_none()), "{addresses}");
    }
}

#[test]
fn host_ends_forward_whatever_new_interfaces_begin_with() {
    let node = Node::new();
    for (key, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
        node.netns.run(|| std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap());
    }
    for (key, value) in [
        ("ipv4/conf/default/forwarding", "0"),
        ("ipv6/conf/default/forwarding", "0"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/all/rp_filter", "1"),
    ] {
        node.netns.run(|| std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap());
    }
    let (a, b) = (Pod::new(), Pod::new());
    let (of_a, of_b) = (ips(&node.add(&a)), ips(&node.add(&b)));
    for (from, to) in of_a.iter().zip(&of_b) {
        assert_eq!(reach(&a.netns, &b.netns, *to), *from);
    }
    for end in node.netns.links() {
        assert_eq!(node.netns.sysctl(&format!("ipv4/conf/{end}/rp_filter")), "2");
    }
}

#[test]
fn a_node_without_an_ipv4_address_reaches_its_pods() {
    let node = Node::new();
    let pod = Pod::new();
    let result = node.add(&pod);
    let v4 = ips(&result)[0];
    assert_eq!(reach(&node.netns, &pod.netns, v4), "169.254.1.1".parse::<IpAddr>().unwrap());
    node.check(&pod, &result).silent();
    // When it has one, it is used.
    node.netns.ip("addr add 192.0.2.10/32 dev lo");
    node.gc(&[&pod]).silent();
    assert_eq!(reach(&node.netns, &pod.netns, v4), "192.0.2.10".parse::<IpAddr>().unwrap());
    node.netns.ip("addr del 192.0.2.10/32 dev lo");
    node.gc(&[&pod]).silent();
    assert_eq!(reach(&node.netns, &pod.netns, v4), "169.254.1.1".parse::<IpAddr>().unwrap());
}

/// A process that ends with its test.
struct Sleeper(std::process::Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As of a rootless container, or a pod with a user namespace of its own.
#[test]
fn a_namespace_of_another_user_namespace_gets_its_interface() {
    let node = Node::new();
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo; exec sleep 1000"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut sleeper = Sleeper(command.spawn().expect("unshare, of the package util-linux"));
    sleeper.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let path = format!("/proc/{}/ns/net", sleeper.0.id());
    let call = |command: &str, config: &Value| {
        let mut call = node.command(command, None);
        call.env("CNI_CONTAINERID", "userns").env("CNI_IFNAME", "eth0").env("CNI_NETNS", &path);
        node.run(call, config)
    };
    let result = call("ADD", &node.config).result();
    node.netns.ip("addr add 192.0.2.10/32 dev lo");
    let inside = Netns::of_process(sleeper.0.id());
    for ip in ips(&result).into_iter().filter(IpAddr::is_ipv4) {
        reach(&node.netns, &inside, ip);
    }
    call("CHECK", &node.config_with(serde_json::json!({"prevResult": result}))).silent();
    call("DEL", &node.config).silent();
    assert!(inside.links().is_empty());
}

/// What the plugin `tuning` does, chained behind podnet-cni.
#[test]
fn check_fails_when_a_later_plugin_has_changed_the_pods_mac() {
    let node = Node::new();
    let pod = Pod::new();
    let result = node.add(&pod);
    pod.netns.ip("link set eth0 address 02:00:00:00:00:99");
    let error = node.check(&pod, &result).error();
    assert_eq!(error["code"], 101);
    let msg = error["msg"].as_str().unwrap();
    assert!(msg.contains("02:00:00:00:00:99") && msg.contains("capability `mac`"), "{msg}");
}
