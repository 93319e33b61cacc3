//! Affinities end together with their backends.

use podnet_common::addr::Port;

use super::*;

fn sticky(at: &str, seconds: u32, backends: &[u8]) -> frontend::Frontend {
    frontend::Frontend { affinity: seconds, ..frontend("a", at, Protocol::Tcp, backends) }
}

impl Bench {
    /// Adds an affinity of a client to a backend of a frontend.
    pub(super) fn stick(&mut self, client: u32, key: &FrontendKey, backend: u8) {
        let service = self.tables.frontends[key].service;
        let client = podnet_common::addr::Addr::v4(client);
        let to = addresses(&[backend])[0];
        let affinity = Affinity { addr: to.ip().into(), port: Port::new(to.port()), ..Affinity::default() };
        self.tables.affinity.get_mut().insert(AffinityKey { client, service }, affinity);
    }

    /// Runs a round some time after the last one.
    fn later(&mut self) -> Outcome {
        self.now += Duration::from_secs(1);
        self.run()
    }

    fn sticking(&self) -> Vec<u32> {
        self.tables.affinity.borrow().keys().map(|key| key.client.0[3]).collect()
    }
}

#[test]
fn only_affinities_to_removed_backends_end() {
    let mut bench = Bench::new(roomy());
    bench.set("a", vec![sticky("10.96.0.1:80", 60, &[1, 2, 3])]);
    bench.set("b", vec![frontend::Frontend { affinity: 60, ..udp("b", "10.96.0.2:80", &[1]) }]);
    bench.run();
    let (a, b) = (key(&sticky("10.96.0.1:80", 0, &[])), key(&udp("", "10.96.0.2:80", &[])));
    for (client, key, backend) in [(1, &a, 1), (2, &a, 2), (3, &b, 1)] {
        bench.stick(client, key, backend);
    }
    bench.set("a", vec![sticky("10.96.0.1:80", 60, &[2, 3])]);
    let outcome = bench.later();
    assert_eq!(bench.sticking(), [2, 3]);
    // By a program in flight.
    bench.stick(4, &a, 1);
    assert_eq!(outcome.next_retry, Some(bench.now + GRACE));
    bench.now += GRACE;
    assert_eq!(bench.run(), Outcome::default());
    assert_eq!(bench.sticking(), [2, 3]);
    // A backend was added, or the time changed: nothing to prune.
    let writes = bench.tables.writes;
    bench.set("a", vec![sticky("10.96.0.1:80", 90, &[2, 3, 4])]);
    bench.later();
    assert_eq!(bench.tables.writes, writes + 3, "a backend, a segment, a frontend");
    // Affinity is switched off, then the service deleted.
    bench.set("a", vec![sticky("10.96.0.1:80", 0, &[2, 3, 4])]);
    bench.later();
    assert_eq!(bench.sticking(), [3]);
    bench.set("b", vec![]);
    bench.later();
    assert_eq!(bench.sticking(), [0; 0]);
}

#[test]
fn changes_in_quick_succession_share_a_pass() {
    let mut bench = Bench::new(roomy());
    let at = "10.96.0.1:80";
    bench.set("a", vec![sticky(at, 60, &[1, 2, 3, 4])]);
    bench.run();
    let key = key(&sticky(at, 0, &[]));
    (1..=4).for_each(|n| bench.stick(u32::from(n), &key, n));
    bench.set("a", vec![sticky(at, 60, &[2, 3, 4])]);
    bench.later();
    assert_eq!(bench.sticking(), [2, 3, 4]);
    bench.set("a", vec![sticky(at, 60, &[3, 4])]);
    bench.run();
    bench.set("a", vec![sticky(at, 60, &[4])]);
    let soon = bench.run().next_retry.unwrap();
    assert_eq!(bench.sticking(), [2, 3, 4]);
    assert_eq!(soon - bench.now, Duration::from_millis(100));
    bench.now = soon;
    bench.run();
    assert_eq!(bench.sticking(), [4]);
}

#[test]
fn affinities_are_pruned_per_scope() {
    let mut bench = Bench::new(roomy());
    let all = |outside: &[u8]| {
        let local = frontend::Frontend {
            kind: FrontendKind::NodePort,
            outside: Some(list(outside)),
            ..sticky("0.0.0.0:30080", 60, &[1, 2])
        };
        vec![sticky("10.96.0.1:80", 60, &[1, 2]), local]
    };
    bench.set("a", all(&[2]));
    bench.run();
    let node_port = key(&all(&[])[1]);
    let outside = scoped(node_port, FrontendKey::OUTSIDE);
    let services: BTreeSet<_> = bench.tables.frontends.values().map(|f| f.service).collect();
    assert_eq!(services.len(), 4, "of the address, and of each kind of client");
    bench.stick(1, &node_port, 2);
    bench.stick(2, &outside, 2);
    bench.set("a", all(&[]));
    bench.later();
    assert_eq!(bench.sticking(), [1]);
    assert_eq!(bench.reconciler.names().name(ServiceId(bench.tables.frontends[&outside].service)).unwrap().port, "TCP");
}

#[test]
fn start_prunes_all_and_failures_are_retried() {
    let mut bench = Bench::new(roomy());
    bench.set("a", vec![sticky(AT, 60, &[1, 2])]);
    bench.run();
    let key = key(&sticky(AT, 0, &[]));
    // The daemon was killed before it could prune.
    bench.stick(1, &key, 1);
    bench.stick(2, &key, 3);
    bench.restart(true);
    bench.tables.fail_every = Some(0);
    let outcome = bench.run();
    assert_eq!(outcome.pending, 1);
    assert_eq!(bench.reconciler.pending().next().unwrap().0.to_string(), "the table `affinity`");
    bench.tables.fail_every = None;
    bench.now = outcome.next_retry.unwrap();
    assert_eq!(bench.run(), Outcome::default(), "also before anything is synced");
    assert_eq!(bench.sticking(), [1]);
}
