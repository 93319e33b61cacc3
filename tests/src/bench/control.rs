//! The daemon, from files to tables.
//!
//! Each load is that of a new node: a new lab with 10,000 Services and as many EndpointSlices of 10 endpoints, one file
//! each. The time runs from the start of the daemon's process to the last frontend in the kernel's table, including the
//! loading of programs. A change is also timed from outside: from just before the file is renamed into place until the
//! kernel's tables contain the new endpoints.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    Options,
    results::{Results, Series},
    rounds,
    tables::{self, Tables},
};
use crate::lab::{Families, Lab, Node, manifest};

/// Number of services.
pub const SERVICES: usize = 10_000;
/// Number of endpoints of each service.
pub const ENDPOINTS: u8 = 10;
const PORT: u16 = 80;
const TARGET: u16 = 8080;
/// Timeout of a change or load.
const PATIENCE: Duration = Duration::from_secs(60);
/// Idle time of the daemon before its memory is read.
const REST: Duration = Duration::from_secs(1);

const CHANGE: &str = "control/endpoint_change_ms";
const LOAD: &str = "control/load_10000_services_s";
const RSS: &str = "control/rss_mib";
const PEAK: &str = "control/rss_peak_mib";
const MAPS: &str = "control/map_memory_mib";

/// Measures all rows, if any is requested, since they come from the same runs.
pub fn run(options: &Options, results: &mut Results) -> Result<()> {
    if ![CHANGE, LOAD, RSS, PEAK, MAPS].into_iter().any(|row| options.wants(row)) {
        return Ok(());
    }
    let (loads, changes) = if options.quick { (2, 20) } else { (7, 60) };
    let (mut load, mut rss, mut peak, mut maps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut change = Vec::new();
    let bar = rounds::progress("control", loads as u64 + 1);
    for i in 0..loads {
        let lab = prepare()?;
        let node = lab.node(0);
        load.push(timed_load(node)?.as_secs_f64());
        thread::sleep(REST);
        rss.push(status_mib(node, "VmRSS:")?);
        peak.push(status_mib(node, "VmHWM:")?);
        maps.push(tables::memory(node)? as f64 / MIB);
        bar.inc(1);
        if i + 1 == loads {
            let tables = Tables::open(node)?;
            // Spread over the services; the first is a warm-up.
            for n in 0..=changes {
                let took = timed_change(node, &tables, n * 997 % SERVICES)?;
                if n > 0 {
                    change.push(took.as_secs_f64() * 1e3);
                }
            }
        }
    }
    bar.finish_and_clear();
    for (name, unit, values) in
        [(CHANGE, "ms", change), (LOAD, "s", load), (RSS, "MiB", rss), (PEAK, "MiB", peak), (MAPS, "MiB", maps)]
    {
        results.push(Series { name: name.into(), unit, values, baselines: Vec::new() });
    }
    Ok(())
}

const MIB: f64 = (1 << 20) as f64;

/// A node with all its manifests, before the first start of its daemon.
fn prepare() -> Result<Lab> {
    let lab = Lab::builder().nodes(1).families(Families::V4).daemons(false).build()?;
    for service in 0..SERVICES {
        lab.apply(&name(service), &service_manifest(service))?;
        apply_endpoints(lab.node(0), service, endpoints(service, 0))?;
    }
    Ok(lab)
}

/// Files are named so that services are not next to their slices.
fn name(service: usize) -> String {
    format!("service-{service:05}")
}

fn frontend(service: usize) -> SocketAddr {
    let [high, low] = (service as u16).to_be_bytes();
    (Ipv4Addr::new(10, 96, high, low), PORT).into()
}

/// A service.
pub fn service_manifest(service: usize) -> String {
    let ports = [manifest::Port { name: "http", protocol: "TCP", number: PORT }];
    manifest::service(&name(service), &[frontend(service).ip()], &ports, TARGET, None)
}

/// Its EndpointSlice.
pub fn slice_manifest(service: usize, endpoints: impl Iterator<Item = IpAddr>) -> String {
    let ports = [manifest::Port { name: "http", protocol: "TCP", number: TARGET }];
    manifest::endpoint_slices(&name(service), &ports, &endpoints.collect::<Vec<_>>())
}

/// Endpoints of a service; each version has other addresses.
pub fn endpoints(service: usize, version: u8) -> impl Iterator<Item = IpAddr> {
    let [high, low] = (service as u16).to_be_bytes();
    (0..ENDPOINTS).map(move |i| Ipv4Addr::new(20 + i, 100 + version, high, low).into())
}

fn apply_endpoints(node: &Node, service: usize, endpoints: impl Iterator<Item = IpAddr>) -> Result<()> {
    node.apply(&format!("endpoints-{service:05}"), &slice_manifest(service, endpoints))
}

fn timed_load(node: &Node) -> Result<Duration> {
    let start = Instant::now();
    thread::scope(|scope| {
        let daemon = scope.spawn(|| node.start_daemon());
        let done = loop {
            if let Ok(tables) = Tables::open(node)
                && tables.served(u32::from(ENDPOINTS))? == SERVICES
            {
                break start.elapsed();
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "the daemon has not loaded {SERVICES} services in {} s; its log:\n{}",
                    PATIENCE.as_secs(),
                    node.log()
                );
            }
            // Polling takes time from the daemon on a small machine, so pause.
            thread::sleep(Duration::from_millis(20));
        };
        daemon.join().expect("starting a daemon does not panic")?;
        Ok(done)
    })
}

fn timed_change(node: &Node, tables: &Tables, service: usize) -> Result<Duration> {
    let before = tables.backends(frontend(service))?;
    let after: BTreeSet<IpAddr> = [0, 1]
        .into_iter()
        .map(|v| endpoints(service, v).collect())
        .find(|set| *set != before)
        .context("no other set")?;
    let start = Instant::now();
    apply_endpoints(node, service, after.iter().copied())?;
    while tables.backends(frontend(service))? != after {
        if start.elapsed() > PATIENCE {
            bail!(
                "a changed EndpointSlice is not in the tables after {} s; the log:\n{}",
                PATIENCE.as_secs(),
                node.log()
            );
        }
    }
    Ok(start.elapsed())
}

fn status_mib(node: &Node, field: &str) -> Result<f64> {
    let pid = node.daemon_id().context("the daemon does not run")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
