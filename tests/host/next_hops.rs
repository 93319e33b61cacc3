//! Routes that refer to next hop objects.

use std::fs;
use std::time::Duration;

use podnet::config::Routing;
use podnet::host::tunnel::Prepared;
use podnet::host::watch::{Debounce, Watcher};
use podnet::host::{Host, NodeNetwork, RemoteNode, Uplinks, uplinks};
use tokio::time::timeout;

use crate::{addresses, in_namespace, ip, open, uplink};

/// A node with two uplinks and a router on each. `mode` is the value of the sysctl that controls how much routes repeat
/// of their next hop objects.
fn two_uplinks(mode: &str) {
    uplink(1);
    ip("link add eth1 type veth peer name eth1-far");
    ip("link set eth1 up");
    ip("link set eth1-far up");
    ip("address add 172.31.0.1/24 dev eth1");
    ip("address add fd00:31::1/64 dev eth1 nodad");
    fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", mode).unwrap();
    for (v4, dev, router) in OBJECTS {
        ip(&format!("nexthop add id {v4} via {router} dev {dev}"));
    }
}

/// Next hop objects: id, interface, router.
const OBJECTS: [(u32, &str, &str); 4] =
    [(1, "eth0", "172.30.0.254"), (2, "eth1", "172.31.0.254"), (3, "eth0", "fd00:30::fe"), (4, "eth1", "fd00:31::fe")];

async fn found(host: &Host) -> Uplinks {
    uplinks::find(&host.snapshot().await.unwrap(), &[], &[])
}

/// Names of the main uplinks.
async fn main_uplinks(host: &Host) -> Vec<String> {
    found(host).await.main().map(|uplink| uplink.name.clone()).collect()
}

/// Waits for a notification of a route change.
async fn routes_change(watcher: &mut Watcher) {
    let change = async { while !watcher.changed().await.routes {} };
    timeout(Duration::from_secs(5), change).await.expect("routes may have changed");
}

#[test]
fn interfaces_of_default_next_hop_objects_are_main_uplinks() {
    for mode in ["0", "1"] {
        for (family, [here, there]) in [("-4", [1, 2]), ("-6", [3, 4])] {
            in_namespace(|| async move {
                two_uplinks(mode);
                let host = open();
                assert!(main_uplinks(&host).await.is_empty());
                let mut watcher = Watcher::open(Debounce::default()).unwrap();
                ip(&format!("{family} route add default nhid {here}"));
                routes_change(&mut watcher).await;
                assert_eq!(main_uplinks(&host).await, ["eth0"], "mode {mode}, {family}");
                let routers = uplinks::gateways(&host.snapshot().await.unwrap(), true);
                let router = OBJECTS[here as usize - 1].2;
                assert_eq!(routers, addresses(&[router]).into_iter().collect());

                // The object changes under the route, and a group replaces it.
                let (_, dev, router) = OBJECTS[there as usize - 1];
                ip(&format!("nexthop replace id {here} via {router} dev {dev}"));
                routes_change(&mut watcher).await;
                assert_eq!(main_uplinks(&host).await, ["eth1"], "mode {mode}, {family}");
                let (_, dev, router) = OBJECTS[here as usize - 1];
                ip(&format!("nexthop replace id {here} via {router} dev {dev}"));
                ip(&format!("nexthop add id 10 group {here}/{there}"));
                ip(&format!("{family} route replace default nhid 10"));
                routes_change(&mut watcher).await;
                assert_eq!(main_uplinks(&host).await, ["eth0", "eth1"], "mode {mode}, {family}");
                while timeout(Duration::from_secs(1), watcher.changed()).await.is_ok() {}
                ip(&format!("nexthop replace id 10 group {there}"));
                routes_change(&mut watcher).await;
                assert_eq!(main_uplinks(&host).await, ["eth1"], "mode {mode}, {family}");

                // Deleting the object deletes the route.
                ip("nexthop delete id 10");
                routes_change(&mut watcher).await;
                assert!(main_uplinks(&host).await.is_empty(), "mode {mode}, {family}");
                ip(&format!("{family} nexthop add id 11 blackhole"));
                ip(&format!("{family} route add default nhid 11"));
                assert!(main_uplinks(&host).await.is_empty(), "mode {mode}, {family}");
            });
        }
    }
}

#[test]
fn next_hop_object_determines_the_link_of_a_node() {
    in_namespace(|| async {
        two_uplinks("0");
        ip("nexthop add id 5 dev eth1");
        ip("route add 10.7.0.0/24 nhid 5");
        ip("-6 nexthop add id 6 dev eth1");
        ip("-6 route add fd00:7::/64 nhid 6");
        let node = RemoteNode {
            name: "node2".into(),
            addresses: addresses(&["10.7.0.2", "fd00:7::2"]),
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap(), "fd00:244:2::/64".parse().unwrap()],
        };
        let own = addresses(&["172.31.0.1", "fd00:31::1"]);
        let network = NodeNetwork {
            name: "node1",
            addresses: &own,
            mtu: 1500,
            routing: Routing::Direct,
            pod_cidrs: &[],
            nodes: &[node],
        };
        let host = open();
        let snapshot = host.snapshot().await.unwrap();
        let routes = host.sync_node_routes(&snapshot, &network, Prepared::default()).await.unwrap();
        assert!(routes.errors.is_empty() && routes.unreachable.is_empty(), "{routes:?}");
        for (to, via) in [("10.244.2.5", "10.7.0.2"), ("fd00:244:2::5", "fd00:7::2")] {
            let route = ip(&format!("route get {to}"));
            assert!(route.contains(&format!("via {via} dev eth1")), "{route}");
        }
    });
}
