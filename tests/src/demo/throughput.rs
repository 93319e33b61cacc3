//! iperf3 between pods: to the pod's own address, and to the ClusterIP. Medians of short alternating runs; the
//! benchmarks measure it properly.

use std::sync::Arc;

use anyhow::Result;

use super::cluster::{Cluster, IPERF_PORT};
use super::report::ThroughputRow;
use crate::lab::Node;
use crate::traffic::{Family, IperfLoad, IperfServer, iperf};

/// Duration of each run in seconds.
const SECONDS: u32 = 1;
/// Runs of each path, alternating between direct and ClusterIP, because the machine's speed varies over time.
const ROUNDS: usize = 5;

/// Measures both paths on one node and across nodes.
pub(super) fn measure(cluster: &Cluster) -> Result<Vec<ThroughputRow>> {
    let server = cluster.pod("web-0")?;
    let family = Family::V4;
    let direct = server.addr(family, IPERF_PORT);
    let iperf3 = IperfServer::start(&server.place, direct)?;
    let service = cluster.services.iperf.addr(family);
    let mut rows = Vec::new();
    for (client, path) in [("client-1", "same node"), ("client-2", "across nodes")] {
        let place = &cluster.pod(client)?.place;
        let (mut directs, mut services, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let run = |to| iperf(place, &iperf3, to, IperfLoad::Tcp, SECONDS, || datapath(cluster));
            let (reference, through) = (run(direct)?, run(service)?);
            directs.push(reference);
            services.push(through);
            ratios.push(through / reference);
        }
        let mut row = |kind: &str, runs: Vec<f64>, ratio_to_direct| {
            rows.push(ThroughputRow { path: format!("{path}, {kind}"), gbps: median(runs), ratio_to_direct });
        };
        row("direct", directs, 1.0);
        row("ClusterIP", services, median(ratios));
    }
    Ok(rows)
}

/// Throughput from another node to a pod after `change(true)`, relative to that after `change(false)`: the median of
/// pairs of runs.
pub(super) fn compare(cluster: &Cluster, change: impl Fn(bool) -> Result<()>) -> Result<f64> {
    let server = cluster.pod("web-0")?;
    let to = server.addr(Family::V4, IPERF_PORT);
    let iperf3 = IperfServer::start(&server.place, to)?;
    let place = &cluster.pod("client-2")?.place;
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let run = |changed| {
            change(changed)?;
            iperf(place, &iperf3, to, IperfLoad::Tcp, SECONDS, || datapath(cluster))
        };
        let (reference, changed) = (run(false)?, run(true)?);
        ratios.push(changed / reference);
    }
    Ok(median(ratios))
}

/// State of the flows in the nodes' datapaths, for a run that hangs.
fn datapath(cluster: &Cluster) -> String {
    let told = |node: &Arc<Node>| {
        let ask = |command: &[&str]| {
            let answer = node.podnet(command).unwrap_or_else(|error| format!("{error:#}\n"));
            format!("{}: podnet {}:\n{answer}", node.name(), command.join(" "))
        };
        let port = IPERF_PORT.to_string();
        let flows = ask(&["conntrack", "list"]);
        let flows: Vec<_> = flows.lines().filter(|line| line.contains(&port) || line.contains("podnet")).collect();
        format!("{}\n{}", flows.join("\n"), ask(&["drops"]))
    };
    cluster.lab.nodes().iter().map(told).collect::<Vec<_>>().join("\n")
}

/// Median of an odd number of values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
