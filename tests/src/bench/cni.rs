//! podnet-cni and Debian's ptp with host-local, invoked in the same way on the same node.
//!
//! A sample is the time that a runtime waits, from fork to the plugin's exit. Every ADD is for a new network namespace,
//! and its DEL follows at once. With IPv6, ptp waits for duplicate address detection.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use podnet_cni::node_info::NodeInfo;
use serde_json::{Value, json};

use super::{
    Options,
    results::{Results, Series},
    rounds,
};
use crate::lab::{Invocation, Lab, NetNs, Node, eventually, manifest, policed};

const PTP: &str = "/usr/lib/cni/ptp";
/// By how much longer ADD takes under network policies, dual-stack.
const POLICED: &str = "cni_add_policed_extra";
const ROUNDS: usize = 40;
const QUICK_ROUNDS: usize = 6;
/// As many pods as a node with a /24 of addresses can have.
const AT_ONCE: usize = 250;
/// Number of rounds with so many pods.
const CROWDS: usize = 6;
/// Time in which the kernel destroys the namespaces of a crowd.
const TAKEN_DOWN: Duration = Duration::from_secs(3);

/// Measures all requested rows.
pub fn run(options: &Options, results: &mut Results) -> Result<()> {
    let pairs = ["cni_add", "cni_add_dual", "cni_del", "cni_del_dual"];
    let single = pairs.iter().any(|row| options.wants(row) || options.wants(&format!("{row}@ptp")));
    let crowd = ["cni_add_250", "cni_add_250@ptp", "cni_add_250_errors"].into_iter().any(|row| options.wants(row));
    if options.wants(POLICED) {
        measure_policed(options, results)?;
    }
    if !single && !crowd {
        return Ok(());
    }
    ensure!(Path::new(PTP).exists(), "there is no {PTP}: install the package containernetworking-plugins");
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(0);
    if single {
        measure_pairs(options, node, false, results)?;
        measure_pairs(options, node, true, results)?;
    }
    if crowd {
        measure_crowds(options, node, results)?;
    }
    Ok(())
}

/// ADD and DEL of both plugins in turn.
fn measure_pairs(options: &Options, node: &Node, dual: bool, results: &mut Results) -> Result<()> {
    let plugins = [Plugin::podnet(node, dual), Plugin::ptp(node, dual)];
    let rounds = if options.quick { QUICK_ROUNDS } else { ROUNDS };
    let suffix = if dual { "_dual" } else { "" };
    let (mut add, mut del) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    // Namespaces are kept to the end: the kernel destroys them in the background, which delays all other configuration
    // of interfaces.
    let mut pods = Vec::new();
    let bar = rounds::progress(&format!("cni{suffix}"), 2 * (rounds as u64 + 1));
    for round in 0..=rounds {
        for turn in 0..plugins.len() {
            let i = if round % 2 == 0 { turn } else { plugins.len() - 1 - turn };
            let pod = Sandbox::new()?;
            let (added, deleted) = plugins[i].cycle(node, &pod)?;
            pods.push(pod);
            if round > 0 {
                add[i].push(added);
                del[i].push(deleted);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    for (operation, samples) in [("cni_add", add), ("cni_del", del)] {
        let name = format!("{operation}{suffix}");
        let peer = format!("{name}@ptp");
        let [ours, theirs] = samples;
        results.push(Series { name, unit: "ms", values: ours, baselines: vec![peer.clone()] });
        results.push(Series { name: peer, unit: "ms", values: theirs, baselines: Vec::new() });
    }
    Ok(())
}

/// ADDs of pods whose network policies have to be put into effect, and of pods in a namespace without policies, in
/// turn: the differences. The daemon knows the Pod objects before, as with a kubelet.
fn measure_policed(options: &Options, results: &mut Results) -> Result<()> {
    let rounds = if options.quick { QUICK_ROUNDS } else { ROUNDS };
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(0);
    let name = |round: usize| format!("policed-{round}");
    let ingress = json!({"ingress": [{"from": [policed::app("friend")]}]});
    let mut objects = vec![policed::policy("deny", "web", ingress)];
    objects.extend((0..=rounds).map(|round| policed::announced(&name(round), node, "web")));
    node.apply("policed", &manifest::yaml(&objects))?;
    eventually("the node knows of the policy", || {
        ensure!(NodeInfo::read(&node.run_dir())?.policed.contains("default"), "no pod starts closed");
        Ok(())
    })?;
    let plugin = Plugin::podnet(node, true);
    let (mut values, mut pods) = (Vec::new(), Vec::new());
    let bar = rounds::progress(POLICED, rounds as u64 + 1);
    for round in 0..=rounds {
        let mut times = [0.0; 2];
        for turn in [round % 2, 1 - round % 2] {
            let namespace = ["free", "default"][turn];
            let pod = Sandbox::named(namespace, &name(round))?;
            times[turn] = plugin.cycle(node, &pod)?.0;
            pods.push(pod);
        }
        if round > 0 {
            values.push(times[1] - times[0]);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    results.push(Series { name: POLICED.into(), unit: "ms", values, baselines: Vec::new() });
    Ok(())
}

/// As many parallel ADDs as a node has pods: the time until the last one has ended, and the number that failed or got
/// the address of another pod.
fn measure_crowds(options: &Options, node: &Node, results: &mut Results) -> Result<()> {
    let plugins = [("cni_add_250", Plugin::podnet(node, false)), ("cni_add_250@ptp", Plugin::ptp(node, false))];
    let rounds = if options.quick { 1 } else { CROWDS };
    let (mut times, mut errors) = ([Vec::new(), Vec::new()], Vec::new());
    let bar = rounds::progress("cni 250 at once", 2 * rounds as u64);
    for _ in 0..rounds {
        for (i, (_, plugin)) in plugins.iter().enumerate() {
            let crowd = plugin.crowd(node)?;
            times[i].push(crowd.ms);
            if i == 0 {
                errors.push(crowd.wrong as f64);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let [ours, theirs] = times;
    let [(name, _), (peer, _)] = plugins;
    results.push(Series { name: name.into(), unit: "ms", values: ours, baselines: vec![peer.into()] });
    results.push(Series { name: peer.into(), unit: "ms", values: theirs, baselines: Vec::new() });
    results.push(Series { name: "cni_add_250_errors".into(), unit: "pods", values: errors, baselines: Vec::new() });
    Ok(())
}

/// A plugin with its configuration.
struct Plugin {
    path: std::path::PathBuf,
    config: Value,
}

/// Results of a crowd.
struct Crowd {
    ms: f64,
    /// Number that failed, or got the address of another pod.
    wrong: usize,
}

impl Plugin {
    /// podnet-cni with its eBPF datapath, beside a running daemon.
    fn podnet(node: &Node, dual: bool) -> Self {
        let mut config = node.plugin_config().clone();
        config["podCIDRs"] = json!(node.pod_cidrs().iter().take(if dual { 2 } else { 1 }).collect::<Vec<_>>());
        Self { path: node.plugin().to_owned(), config }
    }

    fn ptp(node: &Node, dual: bool) -> Self {
        let mut ranges = vec![json!([{"subnet": "10.200.0.0/16"}])];
        if dual {
            ranges.push(json!([{"subnet": "fd00:200::/64"}]));
        }
        // Separate databases, so that a search in one range does not pass over the other.
        let state = node.state_dir().join(if dual { "host-local-dual" } else { "host-local" });
        let config = json!({
            "cniVersion": "1.0.0", "name": "ptp", "type": "ptp",
            "ipam": {"type": "host-local", "ranges": ranges, "dataDir": state, "routes": [{"dst": "0.0.0.0/0"}]},
        });
        Self { path: PTP.into(), config }
    }

    /// ADD and DEL of a new pod, in milliseconds each.
    fn cycle(&self, node: &Node, pod: &Sandbox) -> Result<(f64, f64)> {
        let (added, result) = timed(|| self.invoke(node, "ADD", pod));
        let result = result?;
        ensure!(result["ips"].as_array().is_some_and(|ips| !ips.is_empty()), "ADD gave no address: {result}");
        let (deleted, end) = timed(|| self.invoke(node, "DEL", pod));
        end?;
        Ok((added, deleted))
    }

    fn crowd(&self, node: &Node) -> Result<Crowd> {
        let pods = (0..AT_ONCE).map(|_| Sandbox::new()).collect::<Result<Vec<_>>>()?;
        let (ms, outcomes) = timed(|| {
            thread::scope(|scope| {
                let threads: Vec<_> =
                    pods.iter().map(|pod| scope.spawn(move || self.invoke(node, "ADD", pod))).collect();
                threads.into_iter().map(|t| t.join().expect("invoking does not panic")).collect::<Vec<_>>()
            })
        });
        let mut addresses = BTreeSet::new();
        for outcome in &outcomes {
            match outcome {
                Ok(result) => drop(addresses.insert(result["ips"][0]["address"].to_string())),
                Err(error) => eprintln!("{error:#}"),
            }
        }
        pods.iter().try_for_each(|pod| self.invoke(node, "DEL", pod).map(drop))?;
        drop(pods);
        thread::sleep(TAKEN_DOWN);
        Ok(Crowd { ms, wrong: AT_ONCE - addresses.len() })
    }

    fn invoke(&self, node: &Node, command: &str, pod: &Sandbox) -> Result<Value> {
        Invocation {
            plugin: &self.path,
            command,
            container_id: &pod.id,
            netns: &pod.path,
            ifname: "eth0",
            args: &pod.args,
            config: &self.config,
        }
        .run(&node.place)
    }
}

/// A network namespace for a pod.
struct Sandbox {
    id: String,
    path: String,
    args: String,
    _netns: NetNs,
}

impl Sandbox {
    fn new() -> Result<Self> {
        Self::with("IgnoreUnknown=1".into())
    }

    fn named(namespace: &str, name: &str) -> Result<Self> {
        Self::with(format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"))
    }

    fn with(args: String) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let netns = NetNs::new().context("cannot make a network namespace")?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
        Ok(Self { id: format!("bench-{}", COUNT.fetch_add(1, Ordering::Relaxed)), path, args, _netns: netns })
    }
}

/// Duration of a call in milliseconds, and its result.
fn timed<T>(call: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = call();
    (start.elapsed().as_secs_f64() * 1e3, result)
}
