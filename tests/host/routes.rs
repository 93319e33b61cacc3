//! Routes to other nodes' pods, and the MACs of these nodes.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podnet::config::Routing;
use podnet::host::tunnel::Prepared;
use podnet::host::watch::{Debounce, Watcher};
use podnet::host::{Host, HostError, NodeNetwork, NodeRoutes, RemoteNode};
use podnet_tests::lab::NetNs;

use crate::{addresses, in_netns, ip, new_netns, open, path_of};

/// Two nodes on one link, a veth pair between two namespaces: eth0 in each.
fn two_nodes() -> (NetNs, NetNs) {
    let (near, far) = (new_netns(), new_netns());
    let far_path = path_of(&far);
    in_netns(&near, || async move {
        ip("link set lo up");
        ip(&format!("link add eth0 type veth peer name eth0 netns {far_path}"));
        ip("link set eth0 up");
        ip("address add 172.30.0.1/24 dev eth0");
        ip("address add fd00:30::1/64 dev eth0 nodad");
    });
    in_netns(&far, || async {
        ip("link set lo up");
        ip("link set eth0 address 02:00:00:00:00:02");
        ip("link set eth0 up");
        ip("address add 172.30.0.2/24 dev eth0");
        ip("address add fd00:30::2/64 dev eth0 nodad");
    });
    (near, far)
}

fn node2() -> RemoteNode {
    RemoteNode {
        name: "node2".into(),
        addresses: addresses(&["172.30.0.2", "fd00:30::2"]),
        pod_cidrs: vec!["10.244.2.0/24".parse().unwrap(), "fd00:244:2::/64".parse().unwrap()],
    }
}

/// Synchronises the routes with other nodes on the link.
async fn sync(host: &Host, nodes: &[RemoteNode], addresses: &[IpAddr]) -> NodeRoutes {
    let routing = Routing::Direct;
    let network = NodeNetwork { name: "node1", addresses, mtu: 1500, routing, pod_cidrs: &[], nodes };
    host.sync_node_routes(&host.snapshot().await.unwrap(), &network, Prepared::default()).await.unwrap()
}

fn macs(routes: &NodeRoutes) -> Vec<Option<u8>> {
    routes.hops.iter().map(|hop| hop.mac.map(|mac| mac.0[5])).collect()
}

#[test]
fn routes_and_macs_follow_the_nodes() {
    let (near, far) = two_nodes();
    in_netns(&near, || async {
        let host = open();
        let mut watcher = Watcher::open(Debounce::default()).unwrap();
        let sources = addresses(&["172.30.0.1", "fd00:30::1"]);
        let routes = sync(&host, &[node2()], &sources).await;
        assert!(routes.errors.is_empty() && routes.unreachable.is_empty(), "{routes:?}");
        assert_eq!(routes.changed, 2);
        let (v4, v6) = (ip("route get 10.244.2.5"), ip("route get fd00:244:2::5"));
        assert!(v4.contains("via 172.30.0.2 dev eth0 src 172.30.0.1"), "{v4}");
        assert!(v6.contains("via fd00:30::2 dev eth0") && v6.contains("src fd00:30::1"), "{v6}");

        // The kernel resolves the MACs, and the watcher notifies of the change.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let change = tokio::time::timeout_at(deadline, watcher.changed()).await.expect("the neighbours answer");
            if change.neighbours {
                let routes = sync(&host, &[node2()], &sources).await;
                assert_eq!(routes.changed, 0, "what is right is left alone");
                if macs(&routes) == [Some(2), Some(2)] {
                    break;
                }
            }
        }

        // The other node replaces its network card: its MAC changes, announced by ARP and neighbour advertisements.
        in_netns(&far, || async {
            ip("link set eth0 address 02:00:00:00:00:22");
            ip("neighbour flush dev eth0");
            for (any, near) in [("0.0.0.0", "172.30.0.1"), ("::", "fd00:30::1")] {
                let socket = std::net::UdpSocket::bind((any, 0)).unwrap();
                socket.send_to(b"who has this address?", (near, 9)).unwrap();
            }
            // Keeps this namespace alive until the addresses are resolved; only queued packets hold it otherwise.
            tokio::time::sleep(Duration::from_millis(500)).await;
        });
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            tokio::time::timeout_at(deadline, watcher.changed()).await.expect("the new MAC becomes known");
            if macs(&sync(&host, &[node2()], &sources).await) == [Some(0x22), Some(0x22)] {
                break;
            }
        }

        // The node is removed.
        let routes = sync(&host, &[], &sources).await;
        assert_eq!((routes.changed, ip("route show proto 112").as_str()), (2, ""));
        assert_eq!(ip("-6 route show proto 112"), "");
    });
}

#[test]
fn foreign_routes_are_left_alone() {
    let (near, _far) = two_nodes();
    in_netns(&near, || async {
        let host = open();
        ip("route add 10.244.2.0/24 via 172.30.0.9 dev eth0");
        ip("-6 route add fd00:244:9::/64 via fd00:30::9 dev eth0");
        // A pod's route as the plugin creates it, possibly with podnet's protocol number.
        ip("route add 10.244.1.5/32 dev eth0 proto 112");
        let routes = sync(&host, &[node2()], &[]).await;
        assert!(matches!(&routes.errors[..], [HostError::ForeignRoute { .. }]), "{routes:?}");
        assert_eq!(routes.changed, 1, "the IPv6 route is made all the same");
        assert_eq!(host.remove_node_routes().await.unwrap(), 1);
        assert!(ip("route show 10.244.2.0/24").contains("172.30.0.9"));
        assert!(ip("-6 route show fd00:244:9::/64").contains("fd00:30::9"));
        assert!(ip("route show 10.244.1.5").contains("eth0"));
    });
}

#[test]
fn unused_addresses_of_local_pod_cidrs_are_unreachable() {
    let (near, _far) = two_nodes();
    in_netns(&near, || async {
        let host = open();
        ip("route add default via 172.30.0.254");
        ip("-6 route add default via fd00:30::fe");
        ip("route add 10.244.1.5/32 dev eth0");
        let cidrs: Vec<IpNetwork> = ["10.244.1.0/24", "fd00:244:1::/64"].map(|c| c.parse().unwrap()).into();
        let own = addresses(&["172.30.0.1", "fd00:30::1"]);
        let network = NodeNetwork { name: "node1", addresses: &own, pod_cidrs: &cidrs, ..NodeNetwork::default() };
        for changed in [2, 0] {
            let snapshot = host.snapshot().await.unwrap();
            let routes = host.sync_node_routes(&snapshot, &network, Prepared::default()).await.unwrap();
            assert!(routes.errors.is_empty() && routes.changed == changed, "{routes:?}");
        }
        let refused = |to: &str| std::net::UdpSocket::bind("[::]:0").unwrap().connect((to, 9)).unwrap_err().kind();
        assert_eq!(refused("fd00:244:1::9"), std::io::ErrorKind::HostUnreachable);
        let v4 = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(v4.connect("10.244.1.9:9").unwrap_err().kind(), std::io::ErrorKind::HostUnreachable);
        v4.connect("10.244.1.5:9").expect("a pod's own route");
        // Routes of other programs stay effective.
        ip("route add 10.244.1.0/24 via 172.30.0.254 metric 100");
        v4.connect("10.244.1.9:9").expect("another's route");
        assert_eq!(host.remove_node_routes().await.unwrap(), 2);
        assert_eq!(ip("route show type unreachable") + &ip("-6 route show type unreachable"), "");
        assert!(ip("route show 10.244.1.0/24").contains("172.30.0.254"));
    });
}

#[test]
fn node_behind_a_router_is_reported_and_gets_no_route() {
    let (near, _far) = two_nodes();
    in_netns(&near, || async {
        ip("route add default via 172.30.0.254");
        let mut node = node2();
        node.addresses = addresses(&["10.7.0.2", "fd00:30::2"]);
        let routes = sync(&open(), &[node], &[]).await;
        assert_eq!(routes.unreachable.len(), 1, "{routes:?}");
        assert!(routes.unreachable[0].reason.contains("172.30.0.254"), "{routes:?}");
        assert_eq!((routes.changed, routes.hops.len()), (1, 1), "IPv6 works");
    });
}
