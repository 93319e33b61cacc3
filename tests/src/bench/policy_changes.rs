//! Network policy in the control plane, in this process: from parsed objects to the kernel's tables.
//!
//! The cluster has 200 namespaces with 50 pods and 5 policies each; 30 of the pods are on this node, in as many
//! namespaces. Times are those of the daemon's thread, from an object of the API to the last entry in the tables.
//!
//! | row | what changes |
//! |---|---|
//! | `control/policies_load_s` | all objects arrive at once |
//! | `control/policy_change_p99_ms` | a policy about pods of this node is created, changed or deleted |
//! | `control/policy_peer_p99_ms` | a pod of another node starts, gets another label, or ends |
//! | `control/policy_local_p99_ms` | the same with a pod of this node |
//! | `control/policy_churn_s` | 1,000 pods of other nodes start, in batches of 10 |
//! | `control/policy_rolling_cpu_s` | all 1,000 pods of a namespace with 20 policies are replaced, one by one (CPU) |
//! | `control/policy_memory_mib` | memory of this process for 1,000 policies and 50,000 pods |

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use podnet::{
    config::Config,
    control::Control,
    datapath::{Datapath, Sizes},
    model::{
        Batch, Change, Kind, LabelCondition, Namespace, NetworkPolicy, Object, ObjectKey, Pod, PolicyPeer, PolicyPort,
        PolicyRule, PortMatch, Protocol, Requirement, Selector,
    },
};
use podnet_cni::datapath::PinDir;

use super::{
    Options,
    results::{Results, Series},
    rig::{cpu_time, secluded},
    rounds,
    stats::percentile,
};

const NAMESPACES: usize = 200;
const PODS: usize = 50;
const POLICIES: usize = 5;
/// Number of pods of this node.
const LOCAL: usize = 30;
/// Number of pods in the namespace that is rolled, and of its policies.
const ROLLED: usize = 1_000;
const ROLLED_POLICIES: usize = 20;
/// Number of pods that start in the churn, and how many of them arrive at once.
const CHURN: usize = 1_000;
const AT_ONCE: usize = 10;
/// Number of pods for which memory is measured.
const MANY_PODS: usize = 50_000;
const NODE: &str = "node1";

const LOAD: &str = "control/policies_load_s";
const CHANGE: &str = "control/policy_change_p99_ms";
const PEER: &str = "control/policy_peer_p99_ms";
const OWN: &str = "control/policy_local_p99_ms";
const CHURNED: &str = "control/policy_churn_s";
const ROLLING: &str = "control/policy_rolling_cpu_s";
const MEMORY: &str = "control/policy_memory_mib";

/// Measures all rows, if one is requested, since they come from the same runs.
pub fn run(options: &Options, results: &mut Results) -> Result<()> {
    let rows = [LOAD, CHANGE, PEER, OWN, CHURNED, ROLLING, MEMORY];
    if !rows.into_iter().any(|row| options.wants(row)) {
        return Ok(());
    }
    let count = if options.quick { 1 } else { 5 };
    let mut values = rows.map(|_| Vec::new());
    secluded(|bpffs| {
        let bar = rounds::progress("control/policy", count);
        for round in 0..count {
            let measured = measure(&bpffs.join(format!("policies-{round}")))?;
            // Later rounds reuse memory that earlier ones have freed.
            let of_round = if round == 0 { &measured[..] } else { &measured[..rows.len() - 1] };
            values.iter_mut().zip(of_round).for_each(|(values, value)| values.push(*value));
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    })?;
    for (name, values) in rows.into_iter().zip(values) {
        let unit = name.rsplit('_').next().unwrap_or_default();
        let unit = if unit == "mib" { "MiB" } else { unit };
        results.push(Series { name: name.into(), unit, values, baselines: Vec::new() });
    }
    Ok(())
}

/// One round: a value for each row.
fn measure(bpffs: &Path) -> Result<[f64; 7]> {
    let mut site = Site::new(bpffs)?;
    let before = resident()?;
    let load = site.timed(site_objects())?.as_secs_f64();

    let mut change = Vec::new();
    for i in 0..LOCAL {
        let name = ObjectKey::new(Kind::NetworkPolicy, &namespace(i), "new");
        for peers in [Some("app-1"), Some("app-2"), None] {
            let object = peers.map(|peers| policy("app-0", vec![rule(peers)]));
            change.push(site.timed(vec![Change::new(name.clone(), object)])?);
        }
    }
    let lives = |site: &mut Site, node: &str, block: u8| -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        for i in 0..LOCAL {
            let key = ObjectKey::new(Kind::Pod, &namespace(i), "new");
            for app in [Some(1), Some(2), None] {
                let object = app.map(|app| pod(node, app, Ipv4Addr::new(10, block, 0, i as u8)));
                times.push(site.timed(vec![Change::new(key.clone(), object)])?);
            }
        }
        Ok(times)
    };
    let (peer, own) = (lives(&mut site, "node2", 200)?, lives(&mut site, NODE, 201)?);

    let starts = |i: usize| {
        let object = pod("node2", i, Ipv4Addr::new(10, 202, (i / 250) as u8, (i % 250) as u8));
        Change::new(ObjectKey::new(Kind::Pod, &namespace(i % NAMESPACES), &format!("churn-{i}")), Some(object))
    };
    let mut churn = Duration::ZERO;
    for batch in 0..CHURN / AT_ONCE {
        churn += site.timed((0..AT_ONCE).map(|i| starts(batch * AT_ONCE + i)).collect())?;
    }

    let rolling = site.roll()?;
    // Beyond the pods that there are already.
    let more = MANY_PODS - NAMESPACES * PODS - CHURN - ROLLED;
    site.timed((0..more).map(far_pod).collect())?;
    let memory = resident()? - before;
    let p99 = |times: &[Duration]| {
        let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        percentile(&times, 99.0).context("no samples")
    };
    Ok([load, p99(&change)?, p99(&peer)?, p99(&own)?, churn.as_secs_f64(), rolling, memory])
}

/// A node without a network: objects in memory, and the tables.
struct Site {
    _directory: tempfile::TempDir,
    control: Control,
    datapath: Datapath,
}

impl Site {
    /// `bpffs` is a new directory in a BPF file system.
    fn new(bpffs: &Path) -> Result<Self> {
        fs::create_dir(bpffs)?;
        let directory = tempfile::tempdir()?;
        let root = directory.path().display();
        let config =
            Config::parse(&format!("{{node: {NODE}, manifests: {root}, runDir: {root}/.run, stateDir: {root}/.run}}"))
                .map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut datapath = Datapath::start(PinDir::new(bpffs), Sizes::default())?;
        let control = Control::adopt(&config, datapath.tables())?;
        Ok(Self { control, datapath, _directory: directory })
    }

    /// Applies changes. Returns the time until they are in the tables.
    fn timed(&mut self, changes: Vec<Change>) -> Result<Duration> {
        let start = Instant::now();
        self.control.apply(Batch { changes, synced: true, policies_synced: true });
        self.control.policies_mut().sync(self.datapath.policy_tables())?;
        Ok(start.elapsed())
    }

    /// Replaces the pods of a namespace one by one: each new pod starts, gets an address, and then the old one ends.
    /// Returns the CPU time in seconds.
    fn roll(&mut self) -> Result<f64> {
        let of = |kind, name: String| ObjectKey::new(kind, "rolled", &name);
        let address = |generation: u8, i: usize| Ipv4Addr::new(10, generation, (i / 250) as u8, (i % 250) as u8);
        let node = |i: usize| if i < LOCAL { NODE } else { "node2" };
        let start = |generation: u8, i: usize, with_address: bool| {
            let mut pod = pod_of(node(i), i % ROLLED_POLICIES, address(generation, i));
            if !with_address {
                pod.ips.clear();
            }
            Change::new(of(Kind::Pod, format!("pod-{generation}-{i}")), Some(pod.into()))
        };
        let policies = (0..ROLLED_POLICIES).map(|i| {
            let rules = vec![rule(&format!("app-{}", (i + 1) % ROLLED_POLICIES))];
            Change::new(of(Kind::NetworkPolicy, format!("policy-{i}")), Some(policy(&format!("app-{i}"), rules)))
        });
        let namespace = Change::new(ObjectKey::new(Kind::Namespace, "", "rolled"), Some(namespace_of("rolled")));
        let pods = (0..ROLLED).map(|i| start(210, i, true));
        self.timed(std::iter::once(namespace).chain(policies).chain(pods).collect())?;
        let before = cpu_time()?;
        for i in 0..ROLLED {
            self.timed(vec![start(211, i, false)])?;
            self.timed(vec![start(211, i, true)])?;
            self.timed(vec![Change::new(of(Kind::Pod, format!("pod-210-{i}")), None)])?;
        }
        let took = cpu_time()? - before;
        ensure!(self.control.policies().subjects().count() >= LOCAL, "pods of this node are not isolated");
        Ok(took.as_secs_f64())
    }
}

fn site_objects() -> Vec<Change> {
    let mut all = Vec::new();
    for i in 0..NAMESPACES {
        all.push(Change::new(ObjectKey::new(Kind::Namespace, "", &namespace(i)), Some(namespace_of(&namespace(i)))));
        for j in 0..POLICIES {
            let rules = vec![rule(&format!("app-{}", (j + 1) % POLICIES))];
            let key = ObjectKey::new(Kind::NetworkPolicy, &namespace(i), &format!("policy-{j}"));
            all.push(Change::new(key, Some(policy(&format!("app-{j}"), rules))));
        }
        for j in 0..PODS {
            let node = if j == 0 && i < LOCAL { NODE } else { "node2" };
            let object = pod(node, j, Ipv4Addr::new(10, 100, i as u8, j as u8));
            all.push(Change::new(ObjectKey::new(Kind::Pod, &namespace(i), &format!("pod-{j}")), Some(object)));
        }
    }
    all
}

/// A pod of another node, in one of many namespaces.
fn far_pod(i: usize) -> Change {
    let key = ObjectKey::new(Kind::Pod, &namespace(i % NAMESPACES), &format!("far-{i}"));
    Change::new(key, Some(pod("node3", i, Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 220, 0, 0)) + i as u32))))
}

fn namespace(i: usize) -> String {
    format!("namespace-{i:03}")
}

fn namespace_of(name: &str) -> Object {
    let labels = [("kubernetes.io/metadata.name", name)];
    Namespace { labels: labels.into_iter().collect(), ..Namespace::default() }.into()
}

fn pod(node: &str, app: usize, ip: Ipv4Addr) -> Object {
    pod_of(node, app % POLICIES, ip).into()
}

fn pod_of(node: &str, app: usize, ip: Ipv4Addr) -> Pod {
    let app = format!("app-{app}");
    let labels = [("app", app.as_str()), ("pod-template-hash", "5d4f8c7b9d")].into_iter().collect();
    Pod { node: node.into(), labels, ips: vec![IpAddr::from(ip)], ..Pod::default() }
}

/// A policy for both directions of the pods of an app.
fn policy(of: &str, rules: Vec<PolicyRule>) -> Object {
    let (ingress, egress) = (Some(rules.clone()), Some(rules));
    NetworkPolicy { pods: app(of), ingress, egress, ..NetworkPolicy::default() }.into()
}

/// A rule about the pods of an app in the policy's namespace and in all namespaces, and a block.
fn rule(peers: &str) -> PolicyRule {
    let block = PolicyPeer::Block { cidr: "192.0.2.0/24".parse().expect("a network"), except: Vec::new() };
    let ports = PolicyPort { protocol: Protocol::Tcp, ports: PortMatch::Range(80, 80) };
    let peers = vec![
        PolicyPeer::Pods { namespaces: None, pods: app(peers) },
        PolicyPeer::Pods { namespaces: Some(Selector::default()), pods: app(peers) },
        block,
    ];
    PolicyRule { peers: Some(peers), ports: Some(vec![ports]) }
}

fn app(name: &str) -> Selector {
    Selector(vec![Requirement { key: "app".into(), condition: LabelCondition::In(vec![name.into()]) }])
}

/// Resident memory of this process, in MiB.
fn resident() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
