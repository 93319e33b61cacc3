//! Cost of the control plane with many services: reading them from files, loading the tables, and then a single change.
//! The tables are in memory, so this is the daemon's own part. Times are CPU time of this process.
//!
//!     cargo run --release -p podnet --example control_scale -- [services] [endpoints of each]
//!
//! Every fourth service has a NodePort and a load balancer's address, while there are free NodePorts; some of these
//! have source ranges, a local policy, affinity, or preserve the client's address by direct server return.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use podnet::config::Config;
use podnet::control::Control;
use podnet::datapath::memory::MemoryTables;
use podnet::reconcile::GRACE;
use podnet::source::manifest::ManifestSource;
use podnet_common::addr::Addr;
use podnet_common::{
    layout::{Affinity, AffinityKey},
    tables,
};

/// Number of measurements of each change.
const ROUNDS: u32 = 50;
/// Number of NodePorts.
const NODE_PORTS: u32 = 2768;
/// Target values.
const LOAD_MAX: Duration = Duration::from_secs(2);
const CHANGE_MAX: Duration = Duration::from_millis(2);
const RESIDENT_MAX: u64 = 150 << 20;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let services = arguments.next().transpose()?.unwrap_or(10_000);
    let endpoints = arguments.next().transpose()?.unwrap_or(10);
    println!("{services} services with {endpoints} endpoints each");
    Cluster::new(services, endpoints)?.measure()
}

/// Features of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ClusterIp,
    LoadBalancer,
    SourceRanges,
    LocalPolicy,
    Affinity,
    DirectReturn,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::ClusterIp,
        Self::LoadBalancer,
        Self::SourceRanges,
        Self::LocalPolicy,
        Self::Affinity,
        Self::DirectReturn,
    ];

    fn of(service: u32) -> Self {
        match (service % 4, service / 4) {
            (0, balanced) if balanced < NODE_PORTS => match balanced % 40 {
                0 => Self::DirectReturn,
                1..10 => Self::LocalPolicy,
                10..20 => Self::SourceRanges,
                20..30 => Self::Affinity,
                _ => Self::LoadBalancer,
            },
            _ => Self::ClusterIp,
        }
    }

    fn spec(self) -> &'static str {
        match self {
            Self::ClusterIp | Self::LoadBalancer | Self::DirectReturn => "",
            Self::SourceRanges => "  loadBalancerSourceRanges: [10.0.0.0/8, 192.0.2.0/24, 198.51.100.0/24]\n",
            Self::LocalPolicy => "  externalTrafficPolicy: Local\n",
            Self::Affinity => "  sessionAffinity: ClientIP\n",
        }
    }
}

struct Cluster {
    directory: tempfile::TempDir,
    config: Config,
    services: u32,
    endpoints: u32,
}

impl Cluster {
    fn new(services: u32, endpoints: u32) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let root = directory.path().display();
        let config = Config::parse(&format!(
            "{{node: node1, manifests: {root}/manifests, runDir: {root}/run, stateDir: {root}/state}}"
        ))
        .map_err(|error| anyhow::anyhow!("{error}"))?;
        std::fs::create_dir(directory.path().join("manifests"))?;
        let cluster = Self { directory, config, services, endpoints };
        for service in 0..services {
            cluster.write(service, 0)?;
        }
        cluster.write_node("a")?;
        Ok(cluster)
    }

    fn manifests(&self) -> std::path::PathBuf {
        self.directory.path().join("manifests")
    }

    fn measure(&self) -> anyhow::Result<()> {
        let mut tables =
            MemoryTables::new(tables::FRONTENDS.capacity(), tables::SLOTS.capacity(), tables::BACKENDS.capacity());
        let mut source = ManifestSource::open(&self.manifests())?;
        let mut control = Control::adopt(&self.config, &tables)?;
        let start = cpu()?;
        let batch = source.poll(Instant::now());
        println!("reading the files: {:?}", cpu()? - start);
        let start = cpu()?;
        control.apply(batch);
        println!("selecting endpoints: {:?}", cpu()? - start);
        let outcome = control.reconcile(&mut tables, Instant::now());
        verdict("full load of the tables", cpu()? - start, LOAD_MAX);
        let status = control.status();
        anyhow::ensure!(outcome.pending == 0, "{:?}", status.pending.first());
        println!("{:?}, written by {} operations", status.usage, tables.writes);
        verdict("resident memory in MiB, with tables", Mib::resident("VmRSS")?, Mib(RESIDENT_MAX >> 20));
        println!("at most so far: {:?}", Mib::resident("VmHWM")?);

        stick_clients(&mut tables);
        let mut now = Instant::now();
        for kind in Kind::ALL {
            self.measure_changes(kind, &mut source, &mut control, &mut tables, &mut now)?;
        }
        let start = cpu()?;
        for _ in 0..ROUNDS {
            std::hint::black_box((source.status(), control.status(), control.health(), control.service_addresses()));
        }
        println!("telling how it stands: {:?}", (cpu()? - start) / ROUNDS);

        self.write_node("b")?;
        let batch = source.poll(Instant::now());
        let start = cpu()?;
        let applied = control.apply(batch);
        anyhow::ensure!(applied.services == self.services as usize, "{applied:?}");
        control.reconcile(&mut tables, now);
        println!("another zone of this node, which concerns all services: {:?}", cpu()? - start);

        let mut source = ManifestSource::open(&self.manifests())?;
        let batch = source.poll(Instant::now());
        let start = cpu()?;
        let mut control = Control::adopt(&self.config, &tables)?;
        let adopted = cpu()? - start;
        control.apply(batch);
        let outcome = control.reconcile(&mut tables, Instant::now());
        anyhow::ensure!(outcome.changed == 0, "{outcome:?}");
        println!("the next daemon adopts the tables: {adopted:?}, with all that is wanted: {:?}", cpu()? - start);
        Ok(())
    }

    /// Changes one endpoint of a service repeatedly.
    fn measure_changes(
        &self,
        kind: Kind,
        source: &mut ManifestSource,
        control: &mut Control,
        tables: &mut MemoryTables,
        now: &mut Instant,
    ) -> anyhow::Result<()> {
        let services: Vec<_> = (0..self.services).filter(|service| Kind::of(*service) == kind).take(7).collect();
        let Some(&first) = services.first() else { return Ok(()) };
        let (mut total, mut longest) = (Duration::ZERO, Duration::ZERO);
        for round in 0..ROUNDS {
            // Ends the quarantine of what was replaced before.
            *now += 2 * GRACE;
            let service = services.get(round as usize % 7).copied().unwrap_or(first);
            self.write(service, round + 1)?;
            let batch = source.poll(Instant::now());
            let start = cpu()?;
            let applied = control.apply(batch);
            let outcome = control.reconcile(tables, *now);
            let time = cpu()? - start;
            anyhow::ensure!(applied.services == 1 && outcome.changed >= 1 && outcome.pending == 0, "{outcome:?}");
            (total, longest) = (total + time, longest.max(time));
        }
        verdict(&format!("one changed endpoint, {kind:?} (at most {longest:?})"), total / ROUNDS, CHANGE_MAX);
        Ok(())
    }

    /// A Service and its EndpointSlice, as printed by `kubectl get -o yaml`; `version` changes one endpoint.
    fn write(&self, service: u32, version: u32) -> anyhow::Result<()> {
        let [_, _, high, low] = service.to_be_bytes();
        let kind = Kind::of(service);
        let mut text =
            format!("---\napiVersion: v1\nkind: Service\nmetadata:\n  name: svc-{service}\n  namespace: default\n");
        if kind == Kind::DirectReturn {
            text += "  annotations:\n    podnet.io/source-ip: preserve\n";
        }
        let balanced = kind != Kind::ClusterIp;
        let (name, node_port) = if balanced {
            ("LoadBalancer", format!("    nodePort: {}\n", 30_000 + service / 4))
        } else {
            ("ClusterIP", String::new())
        };
        let _ = write!(
            text,
            "spec:\n  type: {name}\n  clusterIP: 10.96.{high}.{low}\n  clusterIPs:\n  - 10.96.{high}.{low}\n{}  ports:\n\
             \x20 - name: http\n    port: 80\n    protocol: TCP\n    targetPort: 8080\n{node_port}",
            kind.spec()
        );
        if balanced {
            let _ = write!(text, "status:\n  loadBalancer:\n    ingress:\n    - ip: 198.18.{high}.{low}\n");
        }
        let _ = write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: svc-{service}-a\n  namespace: \
             default\n  labels:\n    kubernetes.io/service-name: svc-{service}\naddressType: IPv4\nports:\n- name: http\n  \
             port: 8080\n  protocol: TCP\nendpoints:\n"
        );
        for endpoint in 0..self.endpoints {
            let [_, x, y, z] = (service * self.endpoints + endpoint).to_be_bytes();
            let first = if endpoint == 0 { 100 + version % 20 } else { 10 };
            let _ = writeln!(
                text,
                "- addresses:\n  - {first}.{x}.{y}.{z}\n  conditions:\n    ready: true\n    serving: true\n    terminating: \
                 false\n  nodeName: node{}",
                (service + endpoint) % 100
            );
        }
        Ok(std::fs::write(self.manifests().join(format!("svc-{service}.yaml")), text)?)
    }

    fn write_node(&self, zone: &str) -> anyhow::Result<()> {
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: node1\n  labels:\n    topology.kubernetes.io/zone: {zone}\n"
        );
        Ok(std::fs::write(self.manifests().join("node1.yaml"), text)?)
    }
}

/// Fills the table of affinities.
fn stick_clients(tables: &mut MemoryTables) {
    let sticky: Vec<_> = tables.frontends.values().filter(|frontend| frontend.affinity != 0).copied().collect();
    for (client, frontend) in (0..tables::AFFINITY.capacity() as u32).zip(sticky.iter().cycle()) {
        let backend = tables.backends[&tables.slots[&(frontend.slot_base + 1)]];
        let key = AffinityKey { client: Addr::v4(client.to_be()), service: frontend.service };
        tables
            .affinity
            .get_mut()
            .insert(key, Affinity { addr: backend.addr, port: backend.port, ..Affinity::default() });
    }
}

fn verdict<T: std::fmt::Debug + PartialOrd>(what: &str, found: T, aim: T) {
    let verdict = if found <= aim { "ok" } else { "TOO MUCH" };
    println!("{what}: {found:?}, aim {aim:?}: {verdict}");
}

/// CPU time of this process.
fn cpu() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// An amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mib(u64);

impl Mib {
    /// Of this process: `VmRSS` or `VmHWM`.
    fn resident(field: &str) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib: u64 = line.and_then(|line| line.split_whitespace().next()).unwrap_or_default().parse()?;
        Ok(Self(kib >> 10))
    }
}
