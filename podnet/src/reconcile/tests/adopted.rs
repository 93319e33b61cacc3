//! Adoption of tables left by an earlier daemon.

use super::*;

fn all_kinds() -> Vec<frontend::Frontend> {
    let local = frontend::Frontend {
        kind: FrontendKind::NodePort,
        outside: Some(list(&[2])),
        ..udp("dns", "0.0.0.0:30053", &[1, 2])
    };
    let limited = frontend::Frontend {
        source_ranges: Some(["10.0.0.0/8", "192.0.2.0/24"].map(|range| range.parse().unwrap()).into()),
        affinity: 60,
        ..direct("dns", "192.0.2.1:53", &[1, 2, 3])
    };
    vec![udp("dns", AT, &[1, 2]), udp("dns", "[fd00::1]:53", &[]), local, limited]
}

#[test]
fn adoption_leaves_correct_entries_untouched() {
    for names in [true, false] {
        let mut bench = Bench::new(roomy());
        bench.set("dns", all_kinds());
        bench.run();
        let before = bench.tables.clone();
        let usage = bench.reconciler.usage();
        bench.restart(names);
        assert_eq!(bench.reconciler.usage(), usage);
        bench.set("dns", all_kinds());
        bench.synced = true;
        assert_eq!(bench.run(), Outcome::default());
        assert_eq!(bench.tables.writes, before.writes + 1, "affinities were looked through");
        let id = bench.tables.frontends[&key(&udp("", AT, &[]))].service;
        let name = bench.reconciler.names().name(ServiceId(id)).map(ToString::to_string);
        assert_eq!(name.as_deref(), Some("default/dns:UDP"), "names kept: {names}");
        bench.set("dns", vec![]);
        bench.settle();
        assert_eq!(bench.reconciler.usage(), Usage::default(), "nothing leaks");
    }
}

/// Overwrites a frontend's first slot.
fn set_slot(tables: &mut MemoryTables, key: FrontendKey, id: u32) -> BackendId {
    let place = tables.frontends[&key].slot_base as usize;
    BackendId(tables.slots.insert(place as u32, id).unwrap_or_default())
}

#[test]
fn adopted_wrong_entries_are_rewritten() {
    let key = key(&udp("", AT, &[]));
    let spread = self::key(&direct("", "192.0.2.1:53", &[1]));
    let breakages: [&dyn Fn(&mut MemoryTables); 9] = [
        &|tables| tables.frontends.get_mut(&key).unwrap().slot_base = 99,
        &|tables| tables.frontends.get_mut(&key).unwrap().slot_count = u32::MAX,
        &|tables| tables.frontends.get_mut(&key).unwrap().slot_base += 1,
        &|tables| _ = set_slot(tables, key, 1000),
        &|tables| _ = set_slot(tables, key, 0),
        // Not the Maglev table, or not of the configured size.
        &|tables| _ = set_slot(tables, spread, 1),
        &|tables| _ = set_slot(tables, spread, 2),
        &|tables| tables.frontends.get_mut(&spread).unwrap().slot_count = 5,
        // Two ids of one backend.
        &|tables| {
            let first = set_slot(tables, key, 50);
            let backend = tables.backends[&first.0];
            tables.backends.insert(50, backend);
        },
    ];
    for (i, breakage) in breakages.iter().enumerate() {
        let mut bench = Bench::new(roomy());
        let set = |bench: &mut Bench| {
            bench.set("a", vec![udp("a", AT, &[1, 2]), direct("a", "192.0.2.1:53", &[1, 2, 3])]);
            bench.set("b", vec![udp("b", "10.96.0.2:53", &[3])]);
        };
        set(&mut bench);
        bench.run();
        breakage(&mut bench.tables);
        bench.restart(false);
        set(&mut bench);
        bench.synced = true;
        // Not watched: wrong entries mislead until they are rewritten.
        let outcome = bench.reconciler.run(&bench.desired, &mut bench.tables, true, bench.now);
        assert_eq!(outcome.pending, 0, "breakage {i}");
        bench.assert_as_desired();
        bench.set("a", vec![]);
        bench.set("b", vec![]);
        bench.settle();
        assert_eq!(bench.reconciler.usage(), Usage::default(), "breakage {i} leaks");
    }
}

#[test]
fn changed_maglev_size_takes_effect() {
    let mut bench = Bench::new(roomy());
    let set = |bench: &mut Bench| bench.set("a", vec![direct("a", "192.0.2.1:53", &[1, 2, 3])]);
    set(&mut bench);
    bench.run();
    let key = key(&direct("", "192.0.2.1:53", &[1]));
    for (size, slots) in [(11, 11), (10, 3)] {
        bench.reconciler = Reconciler::adopt(&bench.tables, bench.reconciler.names().clone(), size, GRACE).unwrap();
        bench.desired = Desired::default();
        set(&mut bench);
        let outcome = bench.reconciler.run(&bench.desired, &mut bench.tables, true, bench.now);
        assert_eq!((outcome.pending, outcome.changed), (0, 1), "{size}");
        assert_eq!(bench.tables.frontends[&key].slot_count, slots, "{size}: what isn't prime spreads nothing");
    }
}

#[test]
fn ids_of_leftovers_are_not_reused() {
    let mut bench = Bench::new(roomy());
    // Killed after the ranges were written, before the frontend.
    bench.set(
        "a",
        vec![frontend::Frontend { source_ranges: Some(vec!["10.0.0.0/8".parse().unwrap()]), ..udp("a", AT, &[1]) }],
    );
    bench.tables.frontends_max = 0;
    bench.reconciler.ranges.acquire(&ranges::of_service(1, &[Default::default()]), &mut bench.tables).unwrap();
    bench.restart(false);
    bench.tables.frontends_max = 100;
    bench.set("b", vec![udp("b", AT, &[1])]);
    bench.run();
    assert_eq!(bench.tables.frontends[&key(&udp("", AT, &[]))].service, 2);
    assert!(bench.tables.source_ranges.is_empty());
}
