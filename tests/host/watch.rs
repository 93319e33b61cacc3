//! Notifications of changes of the host's network.

use std::time::Duration;

use podnet::host::watch::{Debounce, Watcher};
use tokio::time::timeout;

use crate::{in_namespace, ip, open, uplink};

const DEBOUNCE: Debounce = Debounce { quiet: Duration::from_millis(100), at_most: Duration::from_secs(5) };

#[test]
fn burst_of_changes_is_one_notification() {
    in_namespace(|| async {
        let mut watcher = Watcher::open(DEBOUNCE).unwrap();
        uplink(1);
        ip("route add 10.7.0.0/16 via 172.30.0.254");
        let change = timeout(Duration::from_secs(5), watcher.changed()).await.expect("a change");
        assert!(change.links && change.addresses && change.routes, "{change:?}");
        // IPv6 link-local addresses settle for a while, then notifications stop.
        while timeout(Duration::from_secs(3), watcher.changed()).await.is_ok() {}
        open().snapshot().await.unwrap();
        assert!(timeout(Duration::from_secs(1), watcher.changed()).await.is_err(), "reading is no change");
        ip("link delete eth0");
        assert!(timeout(Duration::from_secs(5), watcher.changed()).await.expect("a change").links);
    });
}

#[test]
fn dropped_future_loses_no_change() {
    in_namespace(|| async {
        let mut watcher = Watcher::open(DEBOUNCE).unwrap();
        ip("link set lo up");
        assert!(timeout(Duration::from_millis(20), watcher.changed()).await.is_err(), "it is still gathering");
        assert!(timeout(Duration::from_secs(2), watcher.changed()).await.expect("the change is kept").links);
    });
}

#[test]
fn pod_changes_do_not_count_as_node_changes() {
    in_namespace(|| async {
        uplink(1);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut watcher = Watcher::open(DEBOUNCE).unwrap();
        // Same as in the plugin; normally the pod's end would be in another namespace.
        let pod = podnet_tests::lab::NetNs::new().unwrap();
        let path = crate::path_of(&pod);
        ip(&format!("link add pn0123456789a type veth peer name eth0 netns {path}"));
        ip("link set pn0123456789a up");
        ip("address add 169.254.1.1/32 dev pn0123456789a scope link");
        ip("address add fe80::1/64 dev pn0123456789a nodad");
        ip("route add 10.244.1.5/32 dev pn0123456789a");
        ip("-6 route add fd00:244:1::5/128 dev pn0123456789a");
        ip("neighbour add 10.244.1.5 lladdr 02:00:00:00:00:05 dev pn0123456789a");
        ip("link delete pn0123456789a");
        // Only pod links have changed.
        let told = timeout(Duration::from_secs(2), watcher.changed()).await.expect("pods' links are looked after");
        assert!(!(told.links || told.addresses || told.routes || told.neighbours || told.lost), "{told:?}");
        assert!(!told.pods.is_empty() || !told.hosts.is_empty(), "{told:?}");
        ip("address add 172.30.0.9/24 dev eth0");
        assert!(timeout(Duration::from_secs(2), watcher.changed()).await.expect("this one counts").addresses);
    });
}
