//! The demonstration: podnet's features on a cluster of two nodes, in less than a minute, with every statement checked.

mod checks;
mod cluster;
mod keep;
mod policy;
mod report;
mod scripts;
mod shell;
mod source_ip;
mod throughput;
mod tutorial;

use std::path::PathBuf;

use anyhow::Result;

use cluster::Cluster;
use report::{Report, SourceRow, table};
use tutorial::Tutorial;

pub use shell::shell;

/// Options of the command.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// File for the results.
    pub json: Option<PathBuf>,
    /// Whether the cluster is kept afterwards.
    pub keep: bool,
}

/// Runs the demonstration; true if all checks passed.
///
/// # Errors
/// The JSON file or the scripts of the kept cluster cannot be written. All other failures are part of the report.
pub fn run(options: &Options) -> Result<bool> {
    println!("podnet: pod networking and Services on two nodes in network namespaces");
    let mut report = Report::new();
    report.heading("Cluster");
    let cluster = match Cluster::start() {
        Ok(cluster) => show(cluster, &mut report),
        Err(error) => {
            report.check("two nodes with a daemon each", Err(error));
            None
        }
    };
    report.summarise();
    if let Some(path) = &options.json {
        report.write(path)?;
    }
    let pass = report.failures().next().is_none();
    if let Some(cluster) = cluster.filter(|_| options.keep) {
        keep::until_told(&cluster, pass)?;
    }
    Ok(pass)
}

/// Runs the demonstration in a child that keeps running; returns the result of [`run`] there.
pub fn run_detached(options: &Options) -> Result<bool> {
    keep::in_background(|| run(options))
}

/// Runs all checks; returns the cluster once it has its pods, so that it can be kept.
fn show(mut cluster: Cluster, report: &mut Report) -> Option<Cluster> {
    let nodes: Vec<_> = cluster.lab.nodes().iter().map(|node| format!("{} ready", node.name())).collect();
    report.check("two nodes with a daemon each", Ok(nodes.join(", ")));

    report.heading("Pods, created by podnet-cni");
    let made = cluster.add_pods();
    let failed = made.is_err();
    report.check("pods start", made.map(|()| format!("{} pods", cluster.pods.len())));
    table(
        &["pod", "node", "addresses"],
        cluster.rows().into_iter().map(|row| {
            let ips: Vec<_> = row.ips.iter().map(ToString::to_string).collect();
            vec![row.name, row.node, ips.join("  ")]
        }),
    );
    if failed {
        return None;
    }
    report.check("each pod has its own addresses", checks::unique_ips(&cluster));
    if let Err(error) = show_traffic(&mut cluster, report) {
        report.check("the demonstration ran to its end", Err(error));
    }
    report.pods = cluster.rows();
    Some(cluster)
}

fn show_traffic(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    for (to, what) in [("web-0", "on the same node"), ("web-1", "on another node")] {
        let found = checks::pod_to_pod(cluster.pod("client-1")?, cluster.pod(to)?);
        report.check(format!("client-1 reaches {to} {what}"), found);
    }

    report.heading("Services, from Kubernetes manifests");
    cluster.apply_services()?;
    report.check("web (TCP) and dns (UDP) answer", checks::service_up(cluster));
    for place in checks::vantage_points(cluster)? {
        let kind = if place.name().starts_with("node") { "a process on " } else { "" };
        for (service, transport) in checks::examples(cluster) {
            let found = checks::spread(place, service, transport);
            report.check(
                format!("{kind}{} → {} over {transport} reaches all replicas", place.name(), service.name()),
                found,
            );
        }
    }
    report.check("scaling 1 → 3 → 1 under load", checks::scaling(cluster));
    report.check("a recreated pod gets new addresses", checks::recreate(cluster));
    report.check("ClusterIPs are not reachable from outside", checks::outside(cluster));

    report.heading("Source address seen by the backend");
    report.source_ip = source_ip::observe(cluster)?;
    source_ip::print(&report.source_ip);
    let wrong = report.source_ip.iter().filter(|row| !row.pass).count();
    let all = report.source_ip.len();
    let found = if wrong == 0 {
        Ok(format!("all {all} combinations"))
    } else {
        Err(anyhow::anyhow!("{wrong} of {all} differ"))
    };
    report.check("source addresses are as expected", found);

    report.heading("The Kubernetes tutorial \"Using Source IP\"");
    let rows = play_tutorial(cluster, report);
    source_ip::print(&rows);
    report.source_ip.extend(rows);

    report.heading("Network policies");
    report.check("default-deny isolates all pods", policy::deny(cluster));
    report.check("another policy allows one client", policy::allow(cluster));
    report.check("podnet drops names the reason for the others and the policies", policy::reason(cluster));
    report.check("an egress policy allows one block", policy::egress(cluster));
    report.check("a stream to an isolated pod", policy::cost(cluster));
    policy::clear(cluster)?;

    report.heading("Throughput of one TCP stream (iperf3, medians of 5 runs of 1 s)");
    match throughput::measure(cluster) {
        Ok(rows) => {
            let line = |row: &report::ThroughputRow| {
                vec![row.path.clone(), format!("{:.1}", row.gbps), format!("{:.2}", row.ratio_to_direct)]
            };
            table(&["path", "Gbit/s", "relative to direct"], rows.iter().map(line));
            let idle = rows.iter().find(|row| row.gbps <= 0.0).map(|row| row.path.clone());
            let found =
                idle.map_or(Ok(format!("{} paths", rows.len())), |path| Err(anyhow::anyhow!("no data on: {path}")));
            report.check("data flows on every path", found);
            report.throughput = rows;
        }
        Err(error) => report.check("data flows on every path", Err(error)),
    }
    Ok(())
}

/// Runs the parts of the tutorial; returns the source addresses that the pod saw.
fn play_tutorial(cluster: &Cluster, report: &mut Report) -> Vec<SourceRow> {
    let mut tutorial = Tutorial::new(cluster);
    report.check("ClusterIP", tutorial.cluster_ip());
    report.check("NodePort", tutorial.node_port());
    report.check("NodePort with externalTrafficPolicy: Local", tutorial.node_port_local());
    report.check("LoadBalancer", tutorial.load_balancer());
    report.check("LoadBalancer with externalTrafficPolicy: Local", tutorial.load_balancer_local());
    tutorial.rows()
}
