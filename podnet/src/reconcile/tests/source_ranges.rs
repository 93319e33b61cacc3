//! Source ranges are written before the frontends that need them, and removed after them.

use super::*;

fn limited(at: &str, ranges: &[&str]) -> frontend::Frontend {
    frontend::Frontend {
        kind: FrontendKind::LoadBalancer,
        source_ranges: Some(ranges.iter().map(|range| range.parse().unwrap()).collect()),
        ..frontend("a", at, Protocol::Tcp, &[1])
    }
}

fn table(bench: &Bench) -> Vec<String> {
    let show = |range: &SourceRange| {
        let v4 = range.data.addr.is_v4();
        let len = range.len - if v4 { 128 } else { 32 };
        format!("{} {}/{len}", range.data.service & !(1 << 31), IpAddr::from(range.data.addr))
    };
    bench.tables.source_ranges.iter().map(show).collect()
}

#[test]
fn ranges_belong_to_the_service_port() {
    let mut bench = Bench::new(roomy());
    let v4 = || limited("192.0.2.1:80", &["10.0.0.0/8", "0.0.0.0/0"]);
    bench.set("a", vec![v4(), limited("192.0.2.2:80", &["10.0.0.0/8"]), limited("[2001:db8::1]:80", &["::/0"])]);
    bench.settle();
    bench.assert_as_desired();
    assert_eq!(table(&bench), ["1 ::/0", "1 0.0.0.0/0", "1 10.0.0.0/8"]);
    bench.tables.writes = 0;
    bench.set("a", vec![limited("192.0.2.2:80", &["10.0.0.0/8"])]);
    assert_eq!(bench.run().changed, 4);
    assert_eq!(table(&bench), ["1 10.0.0.0/8"], "one frontend still needs it");
    // A change of ranges leaves the frontend's value unchanged.
    bench.tables.writes = 0;
    bench.set("a", vec![limited("192.0.2.2:80", &["10.1.0.0/16", "10.0.0.0/8"])]);
    assert_eq!((bench.run().changed, bench.tables.writes), (1, 1));
    bench.set("a", vec![limited("192.0.2.2:80", &[])]);
    bench.run();
    bench.assert_as_desired();
    bench.set("a", vec![frontend::Frontend { source_ranges: None, ..limited("192.0.2.2:80", &[]) }]);
    bench.run();
    bench.assert_as_desired();
}

#[test]
fn failed_removal_is_retried() {
    let mut bench = Bench::new(roomy());
    bench.set("a", vec![limited("192.0.2.1:80", &["10.0.0.0/8"])]);
    bench.settle();
    bench.set("a", vec![limited("192.0.2.1:80", &["10.0.0.0/8", "192.0.2.0/24"])]);
    bench.run();
    bench.set("a", vec![limited("192.0.2.1:80", &["10.0.0.0/8"])]);
    bench.tables.fail_every = Some(0);
    let outcome = bench.run();
    assert_eq!((outcome.changed, outcome.pending, table(&bench).len()), (1, 1, 2));
    let (what, retry) = bench.reconciler.pending().next().unwrap();
    assert_eq!((what.to_string().as_str(), retry.failures), ("the table `source_ranges`", 1));
    bench.tables.fail_every = None;
    bench.now = outcome.next_retry.unwrap();
    assert_eq!(bench.run(), Outcome::default());
    bench.assert_as_desired();
}

#[test]
fn source_ranges_are_adopted() {
    let mut bench = Bench::new(roomy());
    let all = || vec![limited("192.0.2.1:80", &["10.0.0.0/8"]), limited("[2001:db8::1]:80", &["2001:db8::/32"])];
    bench.set("a", all());
    bench.settle();
    // Not needed by any frontend.
    bench.tables.source_ranges.insert(ranges::of_service(9, &[Default::default()])[0]);
    bench.restart(true);
    assert_eq!(bench.reconciler.usage().source_ranges, 3);
    bench.run();
    assert_eq!(table(&bench), ["1 2001:db8::/32", "1 10.0.0.0/8"], "before anything is synced");
    bench.set("a", all());
    bench.synced = true;
    assert_eq!(bench.run(), Outcome::default());
    bench.set("a", vec![]);
    bench.run();
    assert!(table(&bench).is_empty());
}
