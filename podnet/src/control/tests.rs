//! The control plane from manifests to tables.

use std::time::{Duration, SystemTime};

use super::*;
use crate::datapath::memory::MemoryTables;
use crate::frontend::{Backends, FrontendAddr, FrontendKind, IfNone, ServicePortName, SourceMode};
use crate::model::{Change, Kind, Object, Protocol, raw};
use crate::reconcile::dump;
use crate::source::manifest::ManifestSource;

mod guarded;
mod policies;
mod shadows;
mod shares;

struct Bench {
    directory: tempfile::TempDir,
    source: ManifestSource,
    control: Control,
    tables: MemoryTables,
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: {ip}, ports: [{{port: 53, \
         protocol: UDP}}]}}}}\n"
    )
}

fn slice(service: &str, endpoints: &[&str]) -> String {
    placed(service, &endpoints.iter().map(|ip| format!("addresses: [{ip}]")).collect::<Vec<_>>())
}

/// A slice whose endpoints have more than addresses.
fn placed(service: &str, endpoints: &[String]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("{{{endpoint}}}")).collect();
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: {service}-1, \
         labels: {{kubernetes.io/service-name: {service}}}}}, ports: [{{port: 5353, protocol: UDP}}], endpoints: [{}]}}\n",
        endpoints.join(", ")
    )
}

/// A host port of a pod.
fn host_port(ip: &str, port: u16, protocol: Protocol) -> Frontend {
    Frontend {
        key: FrontendAddr { socket: (ip.parse::<IpAddr>().unwrap(), port).into(), protocol },
        kind: FrontendKind::HostPort,
        service: ServicePortName::of_host_ports(ObjectName { namespace: "x".into(), name: "pod".into() }),
        source: SourceMode::Auto,
        affinity: 0,
        source_ranges: None,
        backends: Backends { list: vec![([10, 244, 1, 2], port).into()], if_none: IfNone::Reject },
        outside: None,
        here: None,
        spread: true,
    }
}

fn raw_manifest(text: &str) -> raw::Manifest {
    crate::yaml::parse(crate::yaml::documents(text)[0]).unwrap()
}

impl Bench {
    fn new() -> Self {
        Self::with(MemoryTables::new(100, 100, 100))
    }

    fn with(tables: MemoryTables) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("m")).unwrap();
        let (source, control) = Self::daemon(&directory, &tables);
        Self { directory, source, control, tables }
    }

    fn daemon(directory: &tempfile::TempDir, tables: &MemoryTables) -> (ManifestSource, Control) {
        let path = directory.path().display();
        let config =
            Config::parse(&format!("{{node: n1, manifests: {path}/m, runDir: {path}/run, stateDir: {path}/state}}"))
                .unwrap();
        (ManifestSource::open(&config.manifests.clone().unwrap()).unwrap(), Control::adopt(&config, tables).unwrap())
    }

    fn restart(&mut self) {
        (self.source, self.control) = Self::daemon(&self.directory, &self.tables);
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join("m").join(name), text).unwrap();
    }

    fn round(&mut self) -> (Applied, Outcome) {
        let now = Instant::now();
        let applied = self.control.apply(self.source.poll(now));
        (applied, self.control.reconcile(&mut self.tables, now))
    }

    fn dump(&self) -> String {
        let names = ServiceNames::read(&self.directory.path().join("run")).unwrap();
        dump::dump(&self.tables, &names).unwrap()
    }
}

#[test]
fn changed_slice_costs_the_work_for_its_service_only() {
    let mut bench = Bench::new();
    for i in 1..=9 {
        let name = format!("s{i}");
        bench.write(&format!("{name}.yaml"), &service(&name, &format!("10.96.0.{i}")));
        bench.write(&format!("{name}-1.yaml"), &slice(&name, &["10.244.1.2", "10.244.1.3"]));
    }
    let (applied, outcome) = bench.round();
    assert_eq!((applied.services, outcome.changed, outcome.pending), (9, 18, 0));
    bench.tables.writes = 0;
    bench.write("s5-1.yaml", &slice("s5", &["10.244.1.2", "10.244.1.4"]));
    let (applied, outcome) = bench.round();
    assert_eq!((applied.services, outcome.changed), (1, 1));
    assert_eq!(bench.tables.writes, 3, "a backend, a segment, a frontend");
    let lost: Vec<_> = outcome.removed[0].backends.iter().map(|b| std::net::IpAddr::from(b.addr).to_string()).collect();
    assert_eq!(lost, ["10.244.1.3"]);
}

#[test]
fn changes_take_effect_when_the_tables_are_written() {
    let mut bench = Bench::new();
    bench.write("web.yaml", &(service("web", "10.96.0.1") + &slice("web", &["10.244.1.2"])));
    bench.write("web2.yaml", &service("other", "10.96.0.2"));
    bench.round();
    assert_eq!(bench.control.take_effective(), [], "what is there at the start is no change");

    let start = Instant::now();
    let origin = |seconds, trigger| Origin {
        arrived: start + Duration::from_secs(seconds),
        trigger: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(trigger)),
    };
    let change = |bench: &mut Bench, ips: &[&str], origin| {
        let (key, object) = Object::new(Kind::EndpointSlice, raw_manifest(&slice("web", ips))).unwrap();
        bench.control.apply(Batch {
            changes: vec![Change { key, object: Some(object), origin }],
            synced: true,
            policies_synced: true,
        });
        let outcome = bench.control.reconcile(&mut bench.tables, Instant::now() + Duration::from_secs(60));
        (outcome.failed, bench.control.take_effective())
    };
    assert_eq!(change(&mut bench, &["10.244.1.2"], origin(1, 1)), (0, vec![]), "it says nothing new");
    assert_eq!(change(&mut bench, &["10.244.1.3"], origin(2, 2)), (0, vec![origin(2, 2)]));

    // Writes fail for a while, and clocks differ.
    bench.tables.fail_every = Some(0);
    assert_eq!(change(&mut bench, &["10.244.1.4"], origin(3, 9)), (1, vec![]));
    assert_eq!(change(&mut bench, &["10.244.1.5"], origin(4, 8)), (1, vec![]));
    assert_eq!((bench.control.status().pending.len(), bench.control.take_effective()), (1, vec![]));
    bench.tables.fail_every = None;
    assert_eq!(bench.control.reconcile(&mut bench.tables, Instant::now() + Duration::from_secs(120)).failed, 0);
    assert_eq!(bench.control.take_effective(), [origin(3, 8)], "the oldest of both");
    assert_eq!(bench.control.take_effective(), []);
}

#[test]
fn restart_with_a_broken_file_keeps_ids_and_frontends() {
    let mut bench = Bench::new();
    bench.write("web.yaml", &(service("web", "10.96.0.1") + &slice("web", &["10.244.1.2"])));
    bench.write("old.yaml", &(service("old", "10.96.0.2") + &slice("old", &["10.244.1.3"])));
    bench.round();
    let before = bench.dump();
    assert!(before.contains("10.96.0.1:53/UDP service 1 default/web slots"), "{before}");
    let writes = bench.tables.writes;

    // A file breaks while the daemon is down; after the start only the tables have its former content.
    bench.write("old.yaml", "kind: [\n");
    bench.restart();
    let (_, outcome) = bench.round();
    assert_eq!((outcome.changed, bench.tables.writes), (0, writes + 1), "affinities were looked through");
    assert!(!bench.control.status().synced);
    assert_eq!(bench.dump(), before);

    bench.write("old.yaml", &service("new", "10.96.0.3"));
    bench.round();
    let after = bench.dump();
    assert!(bench.control.status().synced);
    assert!(!after.contains("10.96.0.2") && after.contains("10.96.0.3:53/UDP service 3 default/new"), "{after}");
}

#[test]
fn nodes_and_problems() {
    let mut bench = Bench::new();
    bench.write("node.yaml", "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.244.1.0/24}}");
    bench.write("a.yaml", &(service("a", "10.96.0.1") + &service("b", "10.96.0.1") + &service("c", "192.0.2.1")));
    bench.write("d.yaml", &service("d", "''"));
    let (applied, _) = bench.round();
    assert!(applied.nodes);
    assert_eq!(bench.control.nodes()["n1"].pod_cidrs.len(), 1);
    let status = bench.control.status();
    assert_eq!((status.services, status.endpoint_slices, status.nodes, status.pending), (4, 0, 1, vec![]));
    let problems: Vec<_> = status.problems.iter().map(|p| p.to_string()).collect();
    let parts = [
        "b: 10.96.0.1:53/UDP is already used by default/a",
        "c: 192.0.2.1 is ignored: it is outside",
        "d: no clusterIP",
    ];
    assert_eq!(problems.len(), parts.len(), "{problems:?}");
    for (problem, part) in problems.iter().zip(parts) {
        assert!(problem.starts_with(&format!("Service default/{part}")), "{problem}");
    }
    bench.write("a.yaml", "# nothing\n");
    let (applied, _) = bench.round();
    assert_eq!((applied.nodes, bench.control.status().services), (false, 1));
}

#[test]
fn status_shows_failed_writes() {
    let mut bench = Bench::new();
    bench.tables.frontends_max = 1;
    bench.write("a.yaml", &service("a", "10.96.0.1"));
    let (_, outcome) = bench.round();
    assert_eq!(outcome.pending, 1);
    let pending = &bench.control.status().pending[0];
    assert_eq!(pending.frontend, "10.96.0.1:53/UDP");
    assert!(pending.reason.contains("full"), "{pending:?}");
}

#[test]
fn zone_of_this_node_affects_all_services() {
    let mut bench = Bench::new();
    let node = |zone: &str| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n1, labels: {{topology.kubernetes.io/zone: {zone}}}}}}}"
        )
    };
    let endpoint = |ip: &str, zone: &str| format!("addresses: [{ip}], hints: {{forZones: [{{name: {zone}}}]}}");
    bench.write("node.yaml", &node("a"));
    for i in 1..=3 {
        let name = format!("s{i}");
        let slice = placed(&name, &[endpoint("10.244.1.2", "a"), endpoint("10.244.1.3", "b")]);
        bench.write(&format!("{name}.yaml"), &(service(&name, &format!("10.96.0.{i}")) + &slice));
    }
    bench.round();
    assert!(bench.dump().contains("10.244.1.2") && !bench.dump().contains("10.244.1.3"), "{}", bench.dump());
    bench.write("node.yaml", &node("b"));
    let (applied, outcome) = bench.round();
    assert_eq!((applied.services, applied.nodes, outcome.changed), (3, true, 3));
    assert!(!bench.dump().contains("10.244.1.2") && bench.dump().contains("10.244.1.3"), "{}", bench.dump());
    // The zone of another node affects none.
    bench.write("other.yaml", &node("a").replace("n1", "n2"));
    assert_eq!(bench.round().0, Applied { nodes: true, ..Applied::default() });
}

#[test]
fn host_ports_persist_beside_services() {
    use crate::frontend::{Backends, FrontendAddr, FrontendKind, IfNone, ServicePortName, SourceMode};
    use crate::model::Protocol;
    let port = |pod: &str, ip: &str| Frontend {
        key: FrontendAddr { socket: "0.0.0.0:8080".parse().unwrap(), protocol: Protocol::Udp },
        kind: FrontendKind::HostPort,
        service: ServicePortName {
            service: ObjectName { namespace: "default".into(), name: pod.into() },
            port: String::new(),
        },
        source: SourceMode::Auto,
        affinity: 0,
        source_ranges: None,
        backends: Backends { list: vec![format!("{ip}:53").parse().unwrap()], if_none: IfNone::Reject },
        outside: None,
        here: None,
        spread: true,
    };
    let mut bench = Bench::new();
    bench.write("web.yaml", &(service("web", "10.96.0.1") + &slice("web", &["10.244.1.2"])));
    bench.control.set_host_ports(vec![port("web", "10.244.1.5"), port("late", "10.244.1.6")]);
    bench.round();
    let dump = bench.dump();
    assert!(
        dump.contains("0.0.0.0:8080/UDP service 1 default/web external slots 0+1\n  backend 1 10.244.1.5"),
        "{dump}"
    );
    assert!(dump.contains("10.96.0.1:53/UDP service 1 default/web slots"), "{dump}");
    let problems = bench.control.status().problems;
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].place.to_string(), "Service default/late");
    assert!(problems[0].reason.starts_with("0.0.0.0:8080/UDP is already used by default/web: "), "{problems:?}");
    // They survive batches of the sources, and a restart if they are set first.
    let writes = bench.tables.writes;
    bench.restart();
    bench.control.set_host_ports(vec![port("web", "10.244.1.5")]);
    bench.round();
    assert_eq!(bench.tables.writes, writes + 1, "affinities were looked through");
    bench.control.set_host_ports(vec![]);
    let (_, outcome) = bench.round();
    assert_eq!((outcome.changed, outcome.removed.len()), (1, 1));
}

#[test]
fn health_of_services_and_of_the_node() {
    let mut bench = Bench::new();
    let balanced = service("web", "10.96.0.1").replace(
        "clusterIP:",
        "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 32000, clusterIP:",
    );
    let at = |node: &str| placed("web", &[format!("addresses: [10.244.1.2], nodeName: {node}")]);
    bench.write("web.yaml", &(balanced.clone() + &at("n1")));
    bench.write("other.yaml", &service("other", "10.96.0.2"));
    let (applied, _) = bench.round();
    assert!(applied.health);
    let local = |bench: &Bench| bench.control.health().checks.iter().map(|c| c.local_endpoints).collect::<Vec<_>>();
    assert_eq!(local(&bench), [1]);
    bench.write("web.yaml", &(balanced + &at("n2")));
    assert!(bench.round().0.health);
    assert_eq!(local(&bench), [0]);
    bench.write("other.yaml", "# nothing\n");
    assert!(!bench.round().0.health);
    bench.write("web.yaml", "# nothing\n");
    assert!(bench.round().0.health && local(&bench).is_empty());

    let node = "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {}}";
    let leaving = node.replace("{}", "{taints: [{key: ToBeDeletedByClusterAutoscaler}]}");
    for (text, changed) in [(node, false), (leaving.as_str(), true), (node, true)] {
        bench.write("node.yaml", text);
        assert_eq!(bench.round().0, Applied { nodes: true, health: changed, ..Applied::default() }, "{text}");
        assert_eq!(bench.control.health().leaving, text == leaving);
    }

    // Failing writes make the node unhealthy; full tables don't.
    for (full, fails) in [(true, false), (false, true)] {
        bench.tables.frontends_max = if full { 0 } else { 100 };
        bench.tables.fail_every = fails.then_some(0);
        bench.write("web.yaml", &service("web", "10.96.0.3"));
        let (_, outcome) = bench.round();
        assert_eq!((outcome.pending, bench.control.health().stale_since.is_some()), (2, fails));
        bench.write("web.yaml", "# nothing\n");
        bench.round();
    }
}

#[test]
fn service_addresses_outside_the_service_ranges() {
    let mut bench = Bench::new();
    let with =
        |ips: &str| service("web", "10.96.0.1").replace("clusterIP:", &format!("externalIPs: [{ips}], clusterIP:"));
    let addresses =
        |bench: &Bench| bench.control.service_addresses().into_iter().map(|ip| ip.to_string()).collect::<Vec<_>>();
    bench.write("web.yaml", &with("192.0.2.1, 192.0.2.2"));
    let (applied, _) = bench.round();
    assert!(applied.addresses);
    assert_eq!(addresses(&bench), ["192.0.2.1", "192.0.2.2"]);
    bench.write("web.yaml", &(with("192.0.2.1, 192.0.2.2") + &slice("web", &["10.244.1.2"])));
    assert!(!bench.round().0.addresses);
    bench.write("web.yaml", &with("192.0.2.2"));
    assert!(bench.round().0.addresses);
    // The owner is unknown.
    bench.write("web.yaml", "kind: [");
    bench.restart();
    assert_eq!(addresses(&bench), ["192.0.2.2"]);
    bench.round();
    assert_eq!(addresses(&bench), ["192.0.2.2"]);
    bench.write("web.yaml", "# nothing\n");
    assert!(bench.round().0.addresses);
    assert!(addresses(&bench).is_empty());
}
