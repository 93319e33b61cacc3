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
