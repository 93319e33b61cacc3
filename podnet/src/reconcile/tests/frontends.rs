//! Writes, failures and their order.

use super::*;

#[test]
fn change_writes_only_what_is_new() {
    let mut bench = Bench::new(roomy());
    bench.run();
    bench.tables.writes = 0;
    bench.set("dns", vec![udp("dns", AT, &[1, 2])]);
    assert_eq!(bench.run(), Outcome { changed: 2, ..Outcome::default() });
    assert_eq!(bench.tables.writes, 4, "backends, a segment, a frontend, its address");
    let key = key(&udp("", AT, &[]));
    let first = bench.tables.frontends[&key];

    bench.set("dns", vec![udp("dns", AT, &[2, 3])]);
    bench.tables.writes = 0;
    let outcome = bench.run();
    assert_eq!(bench.tables.writes, 3, "one backend, a segment, a frontend");
    assert_eq!(outcome.removed.len(), 1);
    let second = bench.tables.frontends[&key];
    assert_ne!(first.slot_base, second.slot_base);
    assert_eq!(first.service, second.service);
    bench.assert_as_desired();

    bench.set("dns", vec![]);
    bench.run();
    assert!(bench.tables.frontends.is_empty());
    assert_eq!(bench.reconciler.names().name(ServiceId(second.service)), None);
}

#[test]
fn flags_change_without_rewriting_the_segment() {
    let mut bench = Bench::new(roomy());
    bench.set("dns", vec![udp("dns", AT, &[1])]);
    bench.run();
    let key = key(&udp("", AT, &[]));
    let before = bench.tables.frontends[&key];
    let snat = frontend::Frontend { source: SourceMode::Snat, affinity: 60, ..udp("dns", AT, &[1]) };
    bench.set("dns", vec![snat]);
    bench.tables.writes = 0;
    assert_eq!(bench.run().changed, 1);
    assert_eq!(bench.tables.writes, 1);
    assert_eq!(bench.tables.frontends[&key], Frontend { flags: Frontend::SNAT, affinity: 60, ..before });
}

#[test]
fn nothing_is_pruned_until_the_sources_are_synced() {
    let mut bench = Bench::new(roomy());
    let other = "10.96.0.2:53";
    bench.set("dns", vec![udp("dns", AT, &[1])]);
    bench.set("other", vec![udp("other", other, &[2])]);
    bench.run();
    let before = bench.resolved();
    bench.restart(true);
    // For one service the slices aren't known yet, for the other nothing is.
    bench.set("dns", vec![udp("dns", AT, &[])]);
    assert_eq!(bench.run(), Outcome::default());
    assert_eq!(bench.resolved(), before);
    // What is known takes effect immediately.
    bench.set("dns", vec![udp("dns", AT, &[3])]);
    assert_eq!(bench.run().changed, 1);
    // From now on the frontend belongs to this daemon.
    bench.set("dns", vec![udp("dns", AT, &[])]);
    assert_eq!(bench.run().changed, 1);
    bench.synced = true;
    assert_eq!(bench.run().changed, 3, "the other's frontend and its address, and this one answers no pings");
    bench.assert_as_desired();
}

#[test]
fn adopted_addresses_are_known_until_they_are_claimed() {
    let mut bench = Bench::new(roomy());
    let at = |kind, at| frontend::Frontend { kind, ..udp("dns", at, &[1]) };
    let all = [
        (FrontendKind::ClusterIp, AT),
        (FrontendKind::NodePort, "0.0.0.0:30053"),
        (FrontendKind::LoadBalancer, "192.0.2.1:53"),
    ];
    bench.set("dns", all.map(|(kind, address)| at(kind, address)).into());
    bench.run();
    let unclaimed = |bench: &Bench| bench.reconciler.unclaimed_addresses().collect::<BTreeSet<_>>();
    assert!(unclaimed(&bench).is_empty());
    bench.restart(true);
    bench.run();
    assert_eq!(unclaimed(&bench), BTreeSet::from(["192.0.2.1".parse().unwrap()]));
    bench.synced = true;
    bench.run();
    assert!(unclaimed(&bench).is_empty() && bench.tables.frontends.is_empty());
}

#[test]
fn full_tables_are_reported_and_recover() {
    let full_of_ranges = roomy().with_source_ranges(1);
    for (tables, name) in [
        (MemoryTables::new(2, 100, 100), "frontends"),
        (MemoryTables::new(100, 3, 100), "slots"),
        (MemoryTables::new(100, 100, 3), "backends"),
        (full_of_ranges, "source_ranges"),
    ] {
        let mut bench = Bench::new(tables);
        let ranges = |n: u8| Some(vec![format!("10.{n}.0.0/16").parse().unwrap()]);
        bench.set("a", vec![frontend::Frontend { source_ranges: ranges(1), ..udp("a", AT, &[1, 2]) }]);
        assert_eq!(bench.run().pending, 0);
        bench.set("b", vec![frontend::Frontend { source_ranges: ranges(2), ..udp("b", "10.96.0.2:53", &[3, 4]) }]);
        let outcome = bench.run();
        assert!(outcome.pending > 0, "{name}");
        let reason = bench.reconciler.pending().last().unwrap().1.reason.clone();
        assert!(reason.contains(&format!("`{name}` is full")), "{reason}");
        bench.set("a", vec![]);
        bench.run();
        // Slots and ids are quarantined first.
        bench.now += GRACE;
        let outcome = bench.run();
        assert_eq!((outcome.pending, outcome.next_retry), (0, None), "{name}");
        bench.assert_as_desired();
    }
}

#[test]
fn failures_are_retried_with_backoff() {
    let mut bench = Bench::new(roomy());
    bench.run();
    bench.tables.fail_every = Some(0);
    bench.set("dns", vec![udp("dns", AT, &[1])]);
    let mut delays = Vec::new();
    for _ in 0..9 {
        let next = bench.run().next_retry.unwrap();
        delays.push((next - bench.now).as_millis());
        assert_eq!(bench.reconciler.pending().count(), 2);
        let writes = bench.tables.writes;
        bench.run();
        assert_eq!(bench.tables.writes, writes, "nothing is due");
        bench.now = next;
    }
    assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    bench.tables.fail_every = None;
    assert_eq!(bench.run().pending, 0);
    bench.assert_as_desired();
}

#[test]
fn entry_is_written_after_those_it_refers_to() {
    let mut bench = Bench::new(roomy());
    let at = "192.0.2.1:53";
    let local =
        frontend::Frontend { kind: FrontendKind::LoadBalancer, outside: Some(list(&[1])), ..udp("dns", at, &[1, 2]) };
    let (any, outside) = (key(&local), scoped(key(&local), FrontendKey::OUTSIDE));
    bench.run();
    // Two backends and the entry for all clients are written; the entry for clients outside doesn't fit.
    bench.tables.frontends_max = 0;
    bench.set("dns", vec![local.clone()]);
    bench.run();
    let reasons: Vec<_> = bench.reconciler.pending().map(|(what, r)| format!("{what}: {}", r.reason)).collect();
    assert!(reasons[1].starts_with("192.0.2.1:53/UDP: waiting for the entry of 192.0.2.1:53/UDP from"), "{reasons:?}");
    bench.tables.frontends_max = 100;
    bench.settle();
    bench.assert_as_desired();

    // It is removed before the others; if that fails, they stay.
    bench.set("dns", vec![frontend::Frontend { outside: None, ..local }]);
    bench.tables.fail_every = Some(0);
    assert_eq!(bench.run().pending, 2);
    assert!(bench.tables.frontends[&any].flags & Frontend::OUTSIDE_DIFFERS != 0);
    assert!(bench.tables.frontends.contains_key(&outside));
    bench.tables.fail_every = None;
    bench.settle();
    bench.assert_as_desired();
}

#[test]
fn destination_leads_to_the_backends_of_all_scopes() {
    let mut bench = Bench::new(roomy());
    let node_port = frontend::Frontend { kind: FrontendKind::NodePort, ..udp("dns", "0.0.0.0:30053", &[1]) };
    let local = frontend::Frontend { outside: Some(list(&[2])), ..node_port };
    let v6 = frontend::Frontend { kind: FrontendKind::NodePort, ..udp("dns", "[::]:30053", &[]) };
    let sent_on = frontend::Frontend { here: Some(addresses(&[4])), ..udp("dns", "192.0.2.1:53", &[3]) };
    bench.set("dns", vec![local, v6, sent_on, udp("dns", "10.96.0.1:53", &[])]);
    bench.run();
    let leads = |at: &str, n: u8| {
        let to = addresses(&[n])[0];
        let backend = Backend {
            addr: to.ip().into(),
            port: podnet_common::addr::Port::new(to.port()),
            proto: Proto::UDP,
            _pad: 0,
        };
        bench.reconciler.leads_to(&key(&udp("", at, &[])), &backend)
    };
    let node = "203.0.113.7:30053";
    assert!(leads(node, 1) && leads(node, 2), "an address of the node");
    assert!(!leads(node, 3) && !leads("[2001:db8::7]:30053", 1) && !leads("203.0.113.7:30054", 1));
    assert!(leads("192.0.2.1:53", 3) && leads("192.0.2.1:53", 4) && !leads("192.0.2.1:53", 1));
    assert!(!leads("10.96.0.1:53", 1), "an address of its own comes before the node's");
    let node = key(&udp("", node, &[]));
    let backends: Vec<_> =
        bench.reconciler.backends(&node).map(|backend| std::net::IpAddr::from(backend.addr)).collect();
    assert_eq!(backends, [1, 2].map(|n| addresses(&[n])[0].ip()));
}
