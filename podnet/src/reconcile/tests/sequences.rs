//! Arbitrary sequences of changes, failures and restarts.

use proptest::prelude::*;

use super::*;

/// A frontend of any kind.
#[derive(Clone, Debug)]
struct Wish {
    at: u8,
    protocol: Protocol,
    kind: FrontendKind,
    backends: Vec<u8>,
    outside: Option<Vec<u8>>,
    here: Option<Vec<u8>>,
    affinity: u32,
    /// Restricted to the service's source ranges.
    limited: bool,
}

impl Wish {
    fn frontend(&self, owner: &str, ranges: &[u8]) -> frontend::Frontend {
        let at = match self.kind {
            FrontendKind::ClusterIp => format!("10.96.0.{}:53", self.at),
            FrontendKind::LoadBalancer => format!("192.0.2.{}:53", self.at),
            _ => format!("0.0.0.0:{}", 30_000 + u16::from(self.at)),
        };
        let ranges = || ranges.iter().map(|n| format!("10.{n}.0.0/16").parse().unwrap()).collect();
        frontend::Frontend {
            kind: self.kind,
            affinity: self.affinity,
            outside: self.outside.as_deref().map(list),
            here: self.here.as_deref().map(addresses),
            source_ranges: self.limited.then(ranges),
            ..frontend(owner, &at, self.protocol, &self.backends)
        }
    }
}

fn wish() -> impl Strategy<Value = Wish> {
    let backends = || prop::collection::btree_set(1u8..9, 0..7).prop_map(|set| set.into_iter().collect::<Vec<_>>());
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let kind =
        prop_oneof![Just(FrontendKind::ClusterIp), Just(FrontendKind::NodePort), Just(FrontendKind::LoadBalancer)];
    let outside = prop::option::weighted(0.3, backends());
    let here = prop::option::weighted(0.3, backends());
    let affinity = prop_oneof![Just(0u32), Just(60)];
    (0u8..2, protocol, kind, backends(), outside, here, affinity, prop::bool::weighted(0.3)).prop_map(
        |(at, protocol, kind, backends, outside, here, affinity, limited)| Wish {
            at,
            protocol,
            kind,
            backends,
            outside,
            here,
            affinity,
            limited,
        },
    )
}

/// One step of a sequence.
#[derive(Clone, Debug)]
enum Step {
    /// Replaces the frontends and source ranges of a service.
    Set(u8, Vec<Wish>, Vec<u8>),
    /// Replaces the host ports of this node's pods.
    HostPorts(Vec<u8>),
    /// One in this number of writes fails.
    Fail(Option<u32>),
    /// Time passes, in milliseconds.
    Wait(u64),
    /// A client connects to a frontend, and gets one of its backends.
    Client(u8, prop::sample::Index, prop::sample::Index),
    /// The daemon is killed and started.
    Restart(bool),
    Run,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3, prop::collection::vec(wish(), 0..4), prop::collection::vec(0u8..4, 0..3))
            .prop_map(|(owner, wishes, ranges)| Step::Set(owner, wishes, ranges)),
        1 => prop::collection::vec(0u8..3, 0..3).prop_map(Step::HostPorts),
        2 => prop::option::of(0u32..6).prop_map(Step::Fail),
        3 => (0u64..3000).prop_map(Step::Wait),
        3 => (any::<u8>(), any::<prop::sample::Index>(), any::<prop::sample::Index>())
            .prop_map(|(client, frontend, backend)| Step::Client(client, frontend, backend)),
        1 => any::<bool>().prop_map(Step::Restart),
        5 => Just(Step::Run),
    ]
}

fn pods(ports: &[u8]) -> Vec<frontend::Frontend> {
    let port = |(pod, port): (usize, &u8)| frontend::Frontend {
        kind: FrontendKind::HostPort,
        ..udp(&format!("pod{pod}"), &format!("0.0.0.0:{}", 30_000 + u16::from(*port)), &[9])
    };
    ports.iter().enumerate().map(port).collect()
}

impl Bench {
    fn client(&mut self, client: u8, frontend: prop::sample::Index, backend: prop::sample::Index) {
        let sticky: Vec<_> = self.tables.frontends.iter().filter(|(_, value)| value.affinity != 0).collect();
        let Some((key, value)) = sticky.get(frontend.index(sticky.len().max(1))) else { return };
        let backends = resolve(self.tables_ref(), value);
        if let Some(backend) = backends.get(backend.index(backends.len().max(1))) {
            let (key, last) = (**key, backend.addr.0[3].to_ne_bytes()[3]);
            self.stick(u32::from(client), &key, last);
        }
    }

    fn tables_ref(&self) -> &MemoryTables {
        &self.tables
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever fails and whenever the daemon is killed: at every moment each frontend leads to all its old or all its
    /// new backends, and everything to which it refers exists (asserted in [`Watched`]); no affinity outlives its
    /// backend; and the tables converge to exactly the desired state.
    #[test]
    fn every_sequence_converges(steps in prop::collection::vec(step(), 1..60)) {
        // Small enough that each table is sometimes full.
        let tables = MemoryTables::new(14, 40, 19).with_source_ranges(3);
        let mut bench = Bench::new(tables);
        let mut services: BTreeMap<u8, Vec<frontend::Frontend>> = BTreeMap::new();
        let mut host: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                Step::Set(owner, wishes, ranges) => {
                    let name = format!("s{owner}");
                    let frontends: Vec<_> = wishes.iter().map(|wish| wish.frontend(&name, &ranges)).collect();
                    services.insert(owner, frontends.clone());
                    bench.set(&name, frontends);
                }
                Step::HostPorts(ports) => {
                    bench.reconciler.mark(bench.desired.set(&Owner::HostPorts, pods(&ports)));
                    host = ports;
                }
                Step::Fail(every) => bench.tables.fail_every = every,
                Step::Wait(time) => bench.now += Duration::from_millis(time),
                Step::Client(client, frontend, backend) => bench.client(client, frontend, backend),
                Step::Restart(names) => {
                    bench.restart(names);
                    for (owner, frontends) in &services {
                        bench.set(&format!("s{owner}"), frontends.clone());
                    }
                    bench.reconciler.mark(bench.desired.set(&Owner::HostPorts, pods(&host)));
                    bench.run();
                    bench.synced = true;
                }
                Step::Run => { bench.run(); }
            }
        }
        bench.tables.fail_every = None;
        bench.synced = true;
        // A single service always fits, even beside what it replaces.
        bench.set("s1", vec![]);
        bench.set("s2", vec![]);
        bench.reconciler.mark(bench.desired.set(&Owner::HostPorts, vec![]));
        bench.set("s0", vec![direct("s0", "192.0.2.1:53", &[1, 2, 3, 4]), udp("s0", "10.96.0.2:53", &[3, 4, 5])]);
        bench.settle();
        bench.assert_as_desired();
        let usage = bench.reconciler.usage();
        let slots = SPREAD + 1 + 3;
        prop_assert_eq!(usage, Usage { frontends: 5, slots, backends: 7, source_ranges: 0 }, "nothing leaks");
        bench.set("s0", vec![]);
        bench.settle();
        prop_assert_eq!(bench.reconciler.usage(), Usage::default());
        prop_assert!(bench.tables.affinity.borrow().is_empty());
    }
}
