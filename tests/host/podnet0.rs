//! podnet0 is created, adopted, repaired and removed, and accepts packets from service addresses.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use etherparse::PacketBuilder;
use podnet::host::HostError;
use socket2::Socket;

use crate::{addresses, ensure_podnet0, in_namespace, ip, open, packet_socket, run, uplink, wanted};

const SERVICES: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

#[test]
fn host_processes_are_routed_to_podnet0_with_the_node_address() {
    in_namespace(|| async {
        uplink(1);
        let host = open();
        let pair = ensure_podnet0(&host, &wanted()).await.unwrap();
        assert!(pair.created && pair.changed && pair.problems.is_empty(), "{pair:?}");
        for (service, node) in SERVICES.iter().zip(["172.30.0.1", "fd00:30::1"]) {
            let route = ip(&format!("route get {service}"));
            assert!(route.contains("dev podnet0") && route.contains(&format!("src {node}")), "{route}");
        }
        for hairpin in ["10.244.1.1", "fd00:244:1::1"] {
            assert!(ip(&format!("route get {hairpin}")).contains("dev podnet0"));
        }
        assert_eq!(ip("route show proto 112").lines().count(), 2);
        assert_eq!(ip("-6 route show proto 112").lines().count(), 2);
        for dev in ["podnet0", "podnet1"] {
            assert!(ip(&format!("link show {dev}")).contains("mtu 1400"));
            assert_eq!(ip(&format!("-6 address show dev {dev}")), "", "no link-local address");
        }
        // Packets of processes leave podnet1, with its MAC and without neighbour resolution.
        let frames = packet_socket("podnet1");
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.send_to(b"to a service", (SERVICES[0], 53)).unwrap();
        let frame = next_frame(&frames).expect("the datagram");
        assert_eq!(frame[..6], pair.far_mac.0, "addressed to podnet1");
        assert_eq!(frame[6..12], pair.near_mac.0);
        assert_eq!(frame[12..14], [0x08, 0x00], "IPv4, not ARP");
        assert_eq!(frame[26..30], [172, 30, 0, 1], "from the node's address");
    });
}

#[test]
fn correct_pair_is_left_alone_and_altered_pair_is_repaired() {
    in_namespace(|| async {
        uplink(1);
        let host = open();
        let made = ensure_podnet0(&host, &wanted()).await.unwrap();
        let before = state();
        let adopted = ensure_podnet0(&host, &wanted()).await.unwrap();
        assert!(!adopted.created && !adopted.changed, "{adopted:?}");
        assert_eq!((adopted.near, adopted.far, adopted.far_mac), (made.near, made.far, made.far_mac));
        assert_eq!(state(), before);

        ip("route delete 10.96.0.0/16");
        ip("-6 route delete fd00:96::/112");
        ip("neighbour delete 169.254.1.2 dev podnet0");
        ip("link set podnet1 mtu 1500");
        ip("route add 10.97.0.0/16 via 169.254.1.2 dev podnet0 onlink proto 112");
        let repaired = ensure_podnet0(&host, &wanted()).await.unwrap();
        assert!(repaired.changed && !repaired.created, "{repaired:?}");
        assert_eq!(state(), before);

        ip("link set podnet0 down");
        assert!(ensure_podnet0(&host, &wanted()).await.unwrap().changed);
        assert_eq!(state(), before);

        ip("link add br9 type bridge");
        ip("link set podnet0 master br9");
        assert!(ensure_podnet0(&host, &wanted()).await.unwrap().changed);
        assert_eq!(state(), before);

        // Below 1280 bytes the kernel removes IPv6 from a link.
        ip("link set podnet0 mtu 1000");
        let recreated = ensure_podnet0(&host, &wanted()).await.unwrap();
        assert!(recreated.created && recreated.problems.is_empty(), "{recreated:?}");
        assert!(
            ip("route get fd00:96::1").contains("dev podnet0") && ip("route get 10.96.0.1").contains("dev podnet0")
        );
        assert!(!ip("-6 address show dev podnet0").contains("fe80"));
    });
}

#[test]
fn new_node_address_becomes_the_source() {
    in_namespace(|| async {
        uplink(1);
        let host = open();
        ensure_podnet0(&host, &wanted()).await.unwrap();
        ip("address add 172.30.0.77/24 dev eth0");
        ip("address add fd00:30::77/64 dev eth0 nodad");
        let mut moved = wanted();
        moved.node_addresses = addresses(&["172.30.0.77", "fd00:30::77"]);
        ensure_podnet0(&host, &moved).await.unwrap();
        assert!(ip("route get 10.96.0.1").contains("src 172.30.0.77"));
        assert!(ip("route get fd00:96::1").contains("src fd00:30::77"));
    });
}

#[test]
fn missing_address_is_a_problem_of_its_family_only() {
    in_namespace(|| async {
        uplink(1);
        ip("address delete fd00:30::1/64 dev eth0");
        let host = open();
        let pair = ensure_podnet0(&host, &wanted()).await.unwrap();
        assert!(matches!(&pair.problems[..], [HostError::NoSuchAddress { addr }] if addr.is_ipv6()), "{pair:?}");
        assert!(ip("route get 10.96.0.1").contains("dev podnet0"));
        // Duplicate address detection: first tentative, then usable.
        ip("address add fd00:30::1/64 dev eth0");
        let pair = ensure_podnet0(&host, &wanted()).await.unwrap();
        assert!(matches!(&pair.problems[..], [HostError::Tentative { .. }]), "{pair:?}");
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if ensure_podnet0(&host, &wanted()).await.unwrap().problems.is_empty() {
                assert!(ip("route get fd00:96::1").contains("dev podnet0"));
                return;
            }
        }
        panic!("the address stays tentative");
    });
}

#[test]
fn host_without_ipv6_is_supported() {
    in_namespace(|| async {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        ip("link add eth0 type veth peer name eth0-far");
        ip("link set eth0 up");
        ip("address add 172.30.0.1/24 dev eth0");
        let mut wanted = wanted();
        wanted.node_addresses.truncate(1);
        let pair = ensure_podnet0(&open(), &wanted).await.unwrap();
        assert!(pair.problems.is_empty(), "{pair:?}");
        assert!(ip("route get 10.96.0.1").contains("dev podnet0"));
    });
}

#[test]
fn foreign_interfaces_and_routes_are_left_alone() {
    in_namespace(|| async {
        uplink(1);
        ip("link add podnet0 type bridge");
        let host = open();
        assert!(matches!(ensure_podnet0(&host, &wanted()).await, Err(HostError::ForeignLink { .. })));
        assert!(matches!(host.remove_podnet0().await, Err(HostError::ForeignLink { .. })));
        ip("link delete podnet0");
        ip("route add 10.96.0.0/16 via 172.30.0.254");
        let pair = ensure_podnet0(&host, &wanted()).await.unwrap();
        assert!(matches!(&pair.problems[..], [HostError::ForeignRoute { .. }]), "{pair:?}");
        assert!(ip("route show 10.96.0.0/16").contains("172.30.0.254"));
        assert!(ip("route get fd00:96::1").contains("dev podnet0"), "the others are made all the same");
    });
}

#[test]
fn removal_deletes_the_routes_and_a_broken_pair_is_recreated() {
    in_namespace(|| async {
        uplink(1);
        let host = open();
        // podnet1 is missing because it has been renamed.
        ip("link add podnet0 type veth peer name other");
        assert!(ensure_podnet0(&host, &wanted()).await.unwrap().created);
        assert!(host.remove_podnet0().await.unwrap());
        assert!(!host.remove_podnet0().await.unwrap(), "a second time there is nothing to remove");
        assert_eq!(ip("route show proto 112"), "");
        assert_eq!(ip("-6 route show proto 112"), "");
    });
}

/// Load balancer addresses and external IPs each have a route.
#[test]
fn thousands_of_addresses_are_routed_at_once() {
    in_namespace(|| async {
        uplink(1);
        let host = open();
        let mut many = wanted();
        let external = |i: u32| -> ipnetwork::IpNetwork {
            if i.is_multiple_of(2) {
                IpAddr::from(std::net::Ipv4Addr::from(0xc633_0000 + i)).into()
            } else {
                IpAddr::from(std::net::Ipv6Addr::from((0x2001_0db8 << 96) + u128::from(i))).into()
            }
        };
        many.destinations.extend((0..5000).map(external));
        let count = || ip("route show proto 112").lines().count() + ip("-6 route show proto 112").lines().count();
        for (wanted, routes) in [(&many, 5004), (&wanted(), 4)] {
            let pair = ensure_podnet0(&host, wanted).await.unwrap();
            assert!(pair.problems.is_empty(), "{pair:?}");
            assert_eq!(count(), routes);
        }
    });
}

/// A packet of a host process to its own node's NodePort returns through podnet0, with the node's address as source and
/// destination.
#[test]
fn packets_from_the_node_address_are_accepted() {
    in_namespace(|| async {
        uplink(1);
        let pair = ensure_podnet0(&open(), &wanted()).await.unwrap();
        for filter in ["0", "2"] {
            std::fs::write("/proc/sys/net/ipv4/conf/podnet0/rp_filter", filter).unwrap();
            for node in wanted().node_addresses {
                let socket = UdpSocket::bind(SocketAddr::new(node, 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                inject(&pair, node, node, socket.local_addr().unwrap().port());
                let (_, from) = socket.recv_from(&mut [0; 64]).expect("the packet arrives");
                assert_eq!(from.ip(), node);
            }
        }
    });
}

/// The datapath delivers replies on podnet0, from the service's address to the node's; here podnet1 sends them.
#[test]
fn service_replies_pass_strict_reverse_path_filtering() {
    in_namespace(|| async {
        uplink(1);
        let pair = ensure_podnet0(&open(), &wanted()).await.unwrap();
        for filter in ["0", "1"] {
            for dev in ["all", "podnet0"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{dev}/rp_filter"), filter).unwrap();
            }
            for (service, node) in SERVICES.iter().zip(&wanted().node_addresses) {
                let socket = UdpSocket::bind(SocketAddr::new(*node, 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                let port = socket.local_addr().unwrap().port();
                inject(&pair, service.parse().unwrap(), *node, port);
                let mut buffer = [0; 64];
                let (length, from) = socket.recv_from(&mut buffer).expect("the reply arrives");
                assert_eq!((&buffer[..length], from.ip()), (&b"reply"[..], service.parse::<IpAddr>().unwrap()));
                // A packet from an address whose route points elsewhere shows that the filter is active.
                if filter == "1" && node.is_ipv4() {
                    inject(&pair, "172.30.0.99".parse().unwrap(), *node, port);
                    let lost = socket.recv_from(&mut buffer).expect_err("strict filtering drops it");
                    assert!(matches!(lost.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{lost}");
                }
            }
        }
    });
}

/// Sends a datagram through podnet1, so that it arrives on podnet0.
fn inject(pair: &podnet::host::Podnet0, from: IpAddr, to: IpAddr, port: u16) {
    let ethernet = PacketBuilder::ethernet2(pair.far_mac.0, pair.near_mac.0);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of two families"),
    };
    let mut frame = Vec::new();
    ip.udp(53, port).write(&mut frame, b"reply").unwrap();
    packet_socket("podnet1").send(&frame).unwrap();
}

fn next_frame(mut socket: &Socket) -> Option<Vec<u8>> {
    let mut buffer = [0; 2048];
    let length = std::io::Read::read(&mut socket, &mut buffer).ok()?;
    Some(buffer[..length].to_vec())
}

/// Everything that `ensure_podnet0` sets up, as iproute2 shows it.
fn state() -> String {
    [
        run("ip", "link show podnet0"),
        run("ip", "link show podnet1"),
        run("ip", "route show proto 112"),
        run("ip", "-6 route show proto 112"),
        run("ip", "neighbour show dev podnet0"),
    ]
    .concat()
}
