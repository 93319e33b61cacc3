//! Shared and spread segments.

use super::*;

#[test]
fn frontends_with_the_same_backends_share_a_segment() {
    let mut bench = Bench::new(roomy());
    let all = |list: &[u8]| {
        let at = |kind, at| frontend::Frontend { kind, ..frontend("a", at, Protocol::Tcp, list) };
        vec![
            at(FrontendKind::ClusterIp, "10.96.0.1:80"),
            at(FrontendKind::NodePort, "0.0.0.0:30080"),
            at(FrontendKind::LoadBalancer, "192.0.2.1:80"),
        ]
    };
    bench.set("a", all(&[1, 2]));
    bench.run();
    assert_eq!(bench.reconciler.usage().slots, 2);
    bench.tables.writes = 0;
    bench.set("a", all(&[2, 3]));
    bench.run();
    assert_eq!(bench.tables.writes, 1 + 1 + 3, "a backend, one segment, three frontends");
    assert_eq!(bench.reconciler.usage().slots, 4, "the old one rests");
    // One frontend is removed, and another service gets one with the same backends.
    let mut two = all(&[2, 3]);
    two.pop();
    bench.set("a", two);
    bench.set("b", vec![frontend("b", "10.96.0.2:80", Protocol::Tcp, &[2, 3])]);
    bench.settle();
    bench.assert_as_desired();
    assert_eq!((bench.reconciler.usage().slots, bench.reconciler.usage().backends), (2, 2));
    bench.set("a", vec![]);
    bench.settle();
    bench.assert_as_desired();
    bench.set("b", vec![]);
    bench.settle();
    assert_eq!(bench.reconciler.usage(), Usage::default());
}

#[test]
fn slots_are_a_maglev_table_where_nodes_must_agree() {
    let mut bench = Bench::new(roomy());
    let at = "192.0.2.1:80";
    bench.set("a", vec![direct("a", at, &[1, 2, 3]), frontend("a", AT, Protocol::Tcp, &[1, 2, 3])]);
    bench.run();
    bench.assert_as_desired();
    let key = key(&direct("", at, &[1]));
    let value = bench.tables.frontends[&key];
    assert_eq!(value.slot_count, SPREAD);
    let backends = bench.desired.get(&key).unwrap().backends;
    let table: Vec<_> = maglev::table(backends, SPREAD).iter().map(|i| backends[*i as usize]).collect();
    assert_eq!(bench.tables.resolve(&value), table);
    assert_eq!(bench.tables.frontends[&scoped(key, FrontendKey::PEER)].slot_count, 1);
    assert_eq!(bench.reconciler.usage().slots, SPREAD + 1 + 3);
    // With as many backends as slots, or more, a table would have no benefit.
    for count in [SPREAD as u8 - 1, SPREAD as u8, SPREAD as u8 + 1] {
        let many: Vec<_> = (1..=count).collect();
        bench.set("a", vec![direct("a", at, &many)]);
        assert_eq!(bench.run().pending, 0);
        assert_eq!(bench.tables.frontends[&key].slot_count, SPREAD.max(u32::from(count)));
    }
    bench.set("a", vec![frontend("a", at, Protocol::Tcp, &[1, 2, 3])]);
    bench.settle();
    bench.assert_as_desired();
    assert_eq!(bench.reconciler.usage().slots, 3, "it isn't spread any more");
}

#[test]
fn backends_are_listed_if_a_table_does_not_fit() {
    // A quarter of 28 stays free for others: two tables fit.
    let mut bench = Bench::new(MemoryTables::new(100, 28, 100));
    let at = |n: u8| format!("192.0.2.{n}:80");
    for n in 1..=3u8 {
        let name = format!("s{n}");
        bench.set(&name, vec![direct(&name, &at(n), &[n, n + 10, n + 20])]);
    }
    let outcome = bench.run();
    assert_eq!((outcome.pending, outcome.unwritten), (1, 0), "it is told");
    let (what, retry) = bench.reconciler.pending().next().unwrap();
    assert_eq!(what.to_string(), "192.0.2.3:80/TCP");
    assert!(retry.reason.contains("`slots` is full: nodes choose the same backend only until"), "{}", retry.reason);
    bench.assert_as_desired();
    let key = |n: u8| key(&direct("", &at(n), &[1]));
    assert_eq!(bench.tables.frontends[&key(3)].slot_count, 3);
    // Retried repeatedly, without effect.
    let writes = bench.tables.writes;
    bench.now += Duration::from_secs(5);
    let outcome = bench.run();
    assert_eq!((outcome.pending, outcome.changed, bench.tables.writes), (1, 0, writes));
    // Changes of the list still take effect.
    bench.set("s3", vec![direct("s3", &at(3), &[3, 13])]);
    bench.run();
    bench.assert_as_desired();
    assert_eq!(bench.tables.frontends[&key(3)].slot_count, 2);
    // Until there is room.
    bench.set("s1", vec![]);
    bench.settle();
    bench.assert_as_desired();
    assert_eq!(bench.tables.frontends[&key(3)].slot_count, SPREAD);
}
