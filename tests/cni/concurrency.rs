//! Many at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Barrier;

use crate::bpf::with_private_mounts;
use crate::ebpf::node_with;
use crate::support::{Node, Pod, ips};

/// More pods than kubelet allows on a node (110 by default), with a /24 that they nearly use up.
#[test]
fn two_hundred_and_fifty_pods_at_once() {
    with_private_mounts(|| {
        let (node, pins) = node_with(512);
        let pods: Vec<Pod> = (0..250).map(|_| Pod::new()).collect();
        let barrier = Barrier::new(pods.len());
        let all_at_once = |command: &str| -> Vec<_> {
            std::thread::scope(|scope| {
                let call = |pod| {
                    let (node, barrier) = (&node, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        node.call(command, pod)
                    })
                };
                let calls: Vec<_> = pods.iter().map(call).collect();
                calls.into_iter().map(|c| c.join().unwrap()).collect()
            })
        };
        let results = all_at_once("ADD");
        let given: Vec<IpAddr> = results.iter().flat_map(|r| ips(&r.result())).collect();
        assert_eq!(given.len(), 500);
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 500, "an address was allocated twice");
        assert_eq!((pins.len(), pins.sandboxes().len()), (500, 250));
        node.assert_only(&pods.iter().collect::<Vec<_>>());
        for (pod, result) in pods.iter().zip(&results).step_by(25) {
            node.check(pod, &result.result()).silent();
        }
        for outcome in all_at_once("DEL") {
            outcome.silent();
        }
        node.assert_only(&[]);
        assert_eq!((pins.len(), pins.sandboxes().len()), (0, 0));
    });
}

#[test]
fn adding_deleting_and_collecting_together() {
    let node = Node::with_cidrs(&["10.244.1.0/26"]);
    let keep = Pod::new();
    let kept = ips(&node.add(&keep));
    let seen: Vec<IpAddr> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    for _ in 0..8 {
                        let pod = Pod::new();
                        // Another network's GC runs meanwhile and must leave this one alone.
                        seen.extend(ips(&node.add(&pod)));
                        node.del(&pod);
                    }
                    seen
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            for _ in 0..10 {
                let config = node.config_with(serde_json::json!({"name": "other", "cni.dev/valid-attachments": []}));
                node.run(node.command("GC", None), &config).silent();
            }
        });
        collector.join().unwrap();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert_eq!(seen.len(), 48);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 48, "48 of 60 addresses: none comes twice in one round");
    assert!(!seen.contains(&kept[0]));
    node.assert_only(&[&keep]);
}
