//! The daemon in a large cluster: 10,000 Services with 100,000 endpoints and 5,000 Nodes, from the Kubernetes API.
//!
//! A node of the lab runs the daemon, while the scripted API server, in this process, serves objects as large as real
//! ones. Changes are timed from outside: from the moment when the server has them until the kernel's tables contain
//! them. CPU time is that of the daemon's process, including its time in the kernel.

mod cluster;
mod pods;
mod policies;
mod subject;

use std::{
    collections::BTreeMap,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use podnet_common::layout::Frontend;

use super::{
    Options,
    results::{Results, Series},
    rounds,
    stats::percentile,
    tables::Tables,
};
use cluster::{ENDPOINTS, NODES, SERVICES};
use subject::{Programs, Subject};

const START: &str = "scale/start_s";
const RESTART: &str = "scale/restart_s";
const RESTART_PAGED: &str = "scale/restart_paged_s";
const RESTART_CPU: &str = "scale/restart_cpu_s";
const UPGRADE: &str = "scale/upgrade_s";
const RSS: &str = "scale/rss_mib";
const PEAK: &str = "scale/rss_peak_mib";
const PEAK_PAGED: &str = "scale/rss_peak_paged_mib";
const CHANGE: &str = "scale/change_ms/median";
const CHANGE_P99: &str = "scale/change_ms/p99";
const CHANGE_CPU: &str = "scale/change_cpu_ms";
const ROLLING: &str = "scale/rolling_ms/median";
const ROLLING_P99: &str = "scale/rolling_ms/p99";
const ROLLING_MAX: &str = "scale/rolling_ms/max";
const ROLLING_CPU: &str = "scale/rolling_cpu_ms";
const NODE: &str = "scale/node_ms";
const NODE_CPU: &str = "scale/node_cpu_ms";
const HEARTBEATS: &str = "scale/heartbeats_cpu_percent";
const IDLE: &str = "scale/idle_cpu_percent";
const POLICY_P99: &str = "scale/policy_ms/p99";
const PEER_P99: &str = "scale/policy_peer_ms/p99";
const LOCAL_P99: &str = "scale/policy_local_ms/p99";
const PODS_READ: &str = "scale/pods_read_s";
const PODS_READ_CPU: &str = "scale/pods_read_cpu_s";
const PODS_MEMORY: &str = "scale/pods_mib";
const PODS_PEAK: &str = "scale/pods_peak_mib";
const POD_UPDATE_CPU: &str = "scale/pod_update_cpu_ms";
const RSS_AFTER: &str = "scale/rss_after_mib";

const ALL: [&str; 28] = [
    START,
    RESTART,
    RESTART_PAGED,
    RESTART_CPU,
    UPGRADE,
    RSS,
    PEAK,
    PEAK_PAGED,
    CHANGE,
    CHANGE_P99,
    CHANGE_CPU,
    ROLLING,
    ROLLING_P99,
    ROLLING_MAX,
    ROLLING_CPU,
    NODE,
    NODE_CPU,
    HEARTBEATS,
    IDLE,
    RSS_AFTER,
    PODS_READ,
    PODS_READ_CPU,
    PODS_MEMORY,
    PODS_PEAK,
    POD_UPDATE_CPU,
    POLICY_P99,
    PEER_P99,
    LOCAL_P99,
];

/// Idle time of the daemon before its memory is read.
const REST: Duration = Duration::from_secs(2);
/// Polling interval for a single change.
const LOOK: Duration = Duration::from_micros(50);
/// Polling interval for a thousand changes, which take longer.
const LOOK_AT_ALL: Duration = Duration::from_millis(2);
/// Interval between single changes.
const GENTLY: Duration = Duration::from_millis(50);
/// Number of services updated at once.
const ROLLED: usize = 1_000;
/// Interval at which a kubelet writes an unchanged Node's status.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// Extent of the measurements.
struct Extent {
    starts: usize,
    restarts: usize,
    /// Rounds of single changes, and changes per round.
    changes: (usize, usize),
    rollings: usize,
    nodes: usize,
    /// Number of first policies, with which the daemon reads all Pods.
    pods: usize,
    /// Rounds of changes of network policies and their pods.
    policies: usize,
    /// Number and length of periods with heartbeats only, and of idle periods.
    periods: (usize, Duration),
}

const WHOLE: Extent = Extent {
    starts: 3,
    restarts: 8,
    changes: (10, 100),
    rollings: 2,
    nodes: 10,
    pods: 5,
    policies: 4,
    periods: (6, Duration::from_secs(20)),
};
const QUICK: Extent = Extent {
    starts: 1,
    restarts: 2,
    changes: (2, 100),
    rollings: 1,
    nodes: 3,
    pods: 2,
    policies: 1,
    periods: (1, Duration::from_secs(20)),
};

/// Measures all requested rows.
pub fn run(options: &Options, results: &mut Results) -> Result<()> {
    if !ALL.into_iter().any(|row| options.wants(row)) {
        return Ok(());
    }
    let extent = if options.quick { QUICK } else { WHOLE };
    let wants = |rows: &[&str]| rows.iter().any(|row| options.wants(row));
    let spinner = rounds::spinner(format!("scale: {SERVICES} services, {ENDPOINTS} endpoints, {NODES} nodes"));
    let mut subject = Subject::prepare()?;
    starts(&mut subject, &extent, wants(&[START]), wants(&[RESTART, RESTART_PAGED, RESTART_CPU, PEAK_PAGED]), results)?;
    if wants(&[CHANGE, CHANGE_P99, CHANGE_CPU]) {
        spinner.set_message("scale: single changes");
        changes(&mut subject, &extent, results)?;
    }
    if wants(&[ROLLING, ROLLING_P99, ROLLING_MAX, ROLLING_CPU]) {
        spinner.set_message("scale: rolling updates");
        rolling(&mut subject, &extent, results)?;
    }
    if wants(&[NODE, NODE_CPU]) {
        spinner.set_message("scale: nodes come and go");
        nodes(&mut subject, &extent, results)?;
    }
    if wants(&[HEARTBEATS]) {
        spinner.set_message("scale: heartbeats");
        let (periods, length) = extent.periods;
        let beats = |period| heartbeats(&subject, period, length);
        let percents = (0..periods).map(beats).collect::<Result<_>>()?;
        push(results, HEARTBEATS, "%", percents);
    }
    if wants(&[IDLE]) {
        spinner.set_message("scale: nothing happens");
        thread::sleep(REST);
        let (periods, length) = extent.periods;
        let idle = |_| {
            percent(&subject, || {
                thread::sleep(length);
                Ok(())
            })
        };
        push(results, IDLE, "%", (0..periods).map(idle).collect::<Result<_>>()?);
    }
    push(results, RSS_AFTER, "MiB", vec![subject.memory_mib("VmRSS:")?]);
    if wants(&[PODS_READ, PODS_READ_CPU, PODS_MEMORY, PODS_PEAK, POD_UPDATE_CPU]) {
        spinner.set_message(format!("scale: {} pods", pods::PODS));
        let mut costs = Vec::new();
        for _ in 0..extent.pods {
            costs.push(pods::cost(&subject, LOOK_AT_ALL, REST)?);
        }
        let values = |of: fn(&pods::Cost) -> f64| costs.iter().map(of).collect();
        push(results, PODS_READ, "s", values(|cost| cost.read));
        push(results, PODS_READ_CPU, "s", values(|cost| cost.read_cpu));
        push(results, PODS_MEMORY, "MiB", values(|cost| cost.memory));
        push(results, PODS_PEAK, "MiB", values(|cost| cost.peak));
        push(results, POD_UPDATE_CPU, "ms", values(|cost| cost.update_cpu));
    }
    if wants(&[POLICY_P99, PEER_P99, LOCAL_P99]) {
        spinner.set_message("scale: network policies");
        let policies::Lags { policy, peer, local } = policies::lags(&subject, extent.policies, LOOK, GENTLY)?;
        for (row, lag) in [(POLICY_P99, policy), (PEER_P99, peer), (LOCAL_P99, local)] {
            push(results, row, "ms", vec![lag]);
        }
    }
    spinner.finish_and_clear();
    Ok(())
}

fn push(results: &mut Results, name: &str, unit: &'static str, values: Vec<f64>) {
    results.push(Series { name: name.into(), unit, values, baselines: Vec::new() });
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Starts of the daemon, and the resources they take.
fn starts(subject: &mut Subject, extent: &Extent, several: bool, again: bool, results: &mut Results) -> Result<()> {
    let (mut start, mut restart, mut paged, mut cpu, mut upgrade) = (vec![], vec![], vec![], vec![], vec![]);
    let (mut rss, mut peak, mut peak_paged) = (vec![], vec![], vec![]);
    let count = if several { extent.starts } else { 1 };
    for i in 0..count {
        start.push(subject.start()?.as_secs_f64());
        thread::sleep(REST);
        rss.push(subject.memory_mib("VmRSS:")?);
        peak.push(subject.memory_mib("VmHWM:")?);
        if i + 1 < count {
            subject.clean()?;
        }
    }
    for i in 0..if again { 2 * extent.restarts } else { 0 } {
        let streaming = i % 2 == 1;
        subject.set_streaming(streaming);
        let took = subject.restart(Programs::Ours)?.as_secs_f64();
        let taken = subject.cpu()?.as_secs_f64();
        thread::sleep(REST);
        let peaked = subject.memory_mib("VmHWM:")?;
        if streaming {
            restart.push(took);
            cpu.push(taken);
            rss.push(subject.memory_mib("VmRSS:")?);
            peak.push(peaked);
        } else {
            paged.push(took);
            peak_paged.push(peaked);
        }
    }
    for _ in 0..if again { extent.restarts } else { 0 } {
        upgrade.push(subject.restart(Programs::Others)?.as_secs_f64());
        thread::sleep(REST);
    }
    push(results, START, "s", start);
    push(results, RESTART, "s", restart);
    push(results, RESTART_PAGED, "s", paged);
    push(results, RESTART_CPU, "s", cpu);
    push(results, UPGRADE, "s", upgrade);
    push(results, RSS, "MiB", rss);
    push(results, PEAK, "MiB", peak);
    push(results, PEAK_PAGED, "MiB", peak_paged);
    Ok(())
}

/// Single pods of services are replaced repeatedly.
fn changes(subject: &mut Subject, extent: &Extent, results: &mut Results) -> Result<()> {
    let tables = subject.tables()?;
    let (mut all, mut p99, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    let (rounds, count) = extent.changes;
    for round in 0..rounds {
        subject.api().bookmark();
        let (mut lags, before) = (Vec::new(), subject.cpu()?);
        for i in 0..count {
            let service = (round * count + i) * 997 % SERVICES;
            let old = entry(&tables, service)?;
            let start = Instant::now();
            subject.replace_one(service);
            subject.wait("a replaced pod is in the tables", LOOK, || Ok(entry(&tables, service)? != old))?;
            lags.push(ms(start.elapsed()));
            subject.check(&tables, service)?;
            thread::sleep(GENTLY);
        }
        cpu.push(ms(subject.cpu()? - before) / count as f64);
        p99.extend(percentile(&lags, 99.0));
        all.extend(lags);
    }
    push(results, CHANGE, "ms", all);
    push(results, CHANGE_P99, "ms", p99);
    push(results, CHANGE_CPU, "ms", cpu);
    Ok(())
}

/// A service's entry in the table. An update always changes its slots, since the old ones are in quarantine.
fn entry(tables: &Tables, service: usize) -> Result<Frontend> {
    tables.frontend(cluster::frontend(service))?.context("a service has gone")
}

/// A rolling update of a thousand services at once, by a quarter of their pods at a time.
fn rolling(subject: &mut Subject, extent: &Extent, results: &mut Results) -> Result<()> {
    let tables = subject.tables()?;
    let services: Vec<usize> = (0..ROLLED).map(|i| i * 997 % SERVICES).collect();
    let (mut all, mut p99, mut max, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for step in 0..4 * extent.rollings {
        let (before, mut updates) = (subject.cpu()?, 0);
        let rolled: BTreeMap<usize, _> =
            services.iter().map(|service| (*service, subject.cluster.roll(*service, step % 4))).collect();
        let mut outstanding = BTreeMap::new();
        for (service, _) in rolled.iter().filter(|(_, slices)| !slices.is_empty()) {
            outstanding.insert(*service, (entry(&tables, *service)?, None));
        }
        let (sent, times) = mpsc::channel();
        let api = subject.api();
        let mut lags = Vec::with_capacity(outstanding.len());
        thread::scope(|scope| {
            updates += rolled.values().map(Vec::len).sum::<usize>();
            scope.spawn(move || {
                for (service, slices) in rolled {
                    let time = Instant::now();
                    slices.into_iter().for_each(|slice| api.apply(slice));
                    // After a failure nothing receives any more.
                    let _ = sent.send((service, time));
                }
            });
            subject.wait("a rolling update is in the tables", LOOK_AT_ALL, || {
                for (service, time) in times.try_iter() {
                    outstanding.entry(service).and_modify(|(_, sent)| *sent = Some(time));
                }
                let mut done = Vec::new();
                for (service, (old, sent)) in &outstanding {
                    if let Some(sent) = sent
                        && entry(&tables, *service)? != *old
                    {
                        lags.push(ms(sent.elapsed()));
                        done.push(*service);
                    }
                }
                for service in done {
                    outstanding.remove(&service);
                }
                Ok(outstanding.is_empty())
            })
        })?;
        for service in &services {
            subject.check(&tables, *service)?;
        }
        for service in &services {
            let slices = subject.cluster.settle(*service);
            updates += slices.len();
            slices.into_iter().for_each(|slice| subject.api().apply(slice));
        }
        thread::sleep(REST);
        cpu.push(ms(subject.cpu()? - before) / updates as f64);
        p99.extend(percentile(&lags, 99.0));
        max.extend(percentile(&lags, 100.0));
        all.extend(lags);
    }
    push(results, ROLLING, "ms", all);
    push(results, ROLLING_P99, "ms", p99);
    push(results, ROLLING_MAX, "ms", max);
    push(results, ROLLING_CPU, "ms", cpu);
    Ok(())
}

/// Nodes join and leave, one after the other.
fn nodes(subject: &mut Subject, extent: &Extent, results: &mut Results) -> Result<()> {
    let tables = subject.tables()?;
    let (mut lags, mut cpu) = (Vec::new(), Vec::new());
    for i in 0..2 * extent.nodes {
        let joins = i % 2 == 0;
        subject.api().bookmark();
        let (start, before) = (Instant::now(), subject.cpu()?);
        let node = if joins { subject.add_node() } else { subject.remove_node() };
        subject.wait("a node's pods are in the tables", LOOK, || Ok(subject.knows_node(&tables, node)? == joins))?;
        lags.push(ms(start.elapsed()));
        thread::sleep(REST);
        cpu.push(ms(subject.cpu()? - before));
    }
    push(results, NODE, "ms", lags);
    push(results, NODE_CPU, "ms", cpu);
    Ok(())
}

/// All kubelets write their Nodes' status in turn, at the usual rate. Percent of a processor.
fn heartbeats(subject: &Subject, period: usize, length: Duration) -> Result<f64> {
    let between = HEARTBEAT / NODES as u32;
    percent(subject, || {
        let start = Instant::now();
        for beat in 0u32.. {
            let due = between * beat;
            if due >= length {
                break;
            }
            thread::sleep(due.saturating_sub(start.elapsed()));
            let node = (beat as usize * 7 + period) % NODES;
            subject.api().apply(cluster::node(node, 300 * (period + 1)));
        }
        thread::sleep(between);
        Ok(())
    })
}

/// CPU usage of the daemon during `work`, in percent of a processor.
fn percent(subject: &Subject, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    // As real servers do every minute; otherwise the daemon considers the connections dead.
    subject.api().bookmark();
    let (start, before) = (Instant::now(), subject.cpu()?);
    work()?;
    Ok((subject.cpu()? - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
}
