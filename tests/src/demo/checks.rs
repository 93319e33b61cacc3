//! The checks of the demonstration, one function each. They return a text for the reader, or an error if the check
//! fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::cluster::{Cluster, REPLICAS, SERVER_PORT};
use crate::lab::{Place, Pod, Service, eventually};
use crate::traffic::{Ask, Family, Load, LoadReport, Transport};

/// Every pod has unique addresses in its node's pod CIDRs.
pub(super) fn unique_ips(cluster: &Cluster) -> Result<String> {
    let all: Vec<IpAddr> = cluster.pods.values().flat_map(|pod| pod.ips.clone()).collect();
    let unique: BTreeSet<_> = all.iter().collect();
    ensure!(unique.len() == all.len(), "an address was handed out twice: {all:?}");
    for pod in cluster.pods.values() {
        for (ip, cidr) in pod.ips.iter().zip(pod.node().pod_cidrs()) {
            let range: ipnetwork::IpNetwork = cidr.parse()?;
            ensure!(range.contains(*ip), "{} has {ip}, which is not in {cidr}", pod.name());
        }
        ensure!(pod.ips.len() == pod.node().pod_cidrs().len(), "{} lacks an address family: {:?}", pod.name(), pod.ips);
    }
    Ok(format!("{} addresses on {} pods, all different", all.len(), cluster.pods.len()))
}

/// A pod reaches another over TCP, UDP and ICMP of both families, and is seen with its own address.
pub(super) fn pod_to_pod(from: &Pod, to: &Pod) -> Result<String> {
    for family in Family::ALL {
        from.place.ping(to.ip(family)).with_context(|| format!("ping {}", to.ip(family)))?;
        for transport in Transport::ALL {
            let what = || format!("{transport} to {}", to.addr(family, SERVER_PORT));
            let answer = from.place.ask(transport, to.addr(family, SERVER_PORT)).with_context(what)?;
            ensure!(answer.server == to.name(), "{}: {} answered", what(), answer.server);
            let own = from.ip(family);
            ensure!(answer.seen.ip() == own, "{}: seen as {} instead of {own}", what(), answer.seen.ip());
        }
    }
    Ok("TCP, UDP and ping over IPv4 and IPv6, source address kept".to_owned())
}

/// Waits until a service answers from a place over both families.
pub(super) fn service_up(cluster: &Cluster) -> Result<String> {
    let start = Instant::now();
    for (service, transport) in examples(cluster) {
        for place in vantage_points(cluster)? {
            for family in Family::ALL {
                let what = format!("{} answers {} over {family}", service.name(), place.name());
                eventually(&what, || Ok(place.ask(transport, service.addr(family))?))?;
            }
        }
    }
    Ok(format!(
        "from both client pods and a host process, {} ms after the files were written",
        start.elapsed().as_millis()
    ))
}

/// Requests from a place are distributed over all replicas, without failures.
pub(super) fn spread(place: &Place, service: &Service, transport: Transport) -> Result<String> {
    const REQUESTS: usize = 90;
    let mut details = Vec::new();
    for family in Family::ALL {
        let mut counts: BTreeMap<String, usize> = REPLICAS.iter().map(|name| ((*name).to_owned(), 0)).collect();
        for _ in 0..REQUESTS {
            let answer = place.ask(transport, service.addr(family)).with_context(|| format!("{family}"))?;
            let peer = answer.peer;
            ensure!(peer == service.addr(family), "the client's socket shows {peer} instead of the Service");
            *counts.entry(answer.server).or_default() += 1;
        }
        // A replica's share is binomially distributed with mean 30 and standard deviation 4.5; 10 is four and a half
        // deviations below.
        ensure!(counts.len() == REPLICAS.len(), "{family}: a server that is not a replica answered: {counts:?}");
        ensure!(counts.values().all(|count| *count >= 10), "{family}: not spread evenly: {counts:?}");
        let shares: Vec<_> = counts.values().map(ToString::to_string).collect();
        details.push(format!("{family} {}", shares.join("/")));
    }
    Ok(format!("{} of {REQUESTS} requests each", details.join(", ")))
}

/// The example's Services, with the protocol of each.
pub(super) fn examples(cluster: &Cluster) -> [(&Service, Transport); 2] {
    [(&cluster.services.web, Transport::Tcp), (&cluster.services.dns, Transport::Udp)]
}

/// Sources of requests: a pod on each node, and a host process.
pub(super) fn vantage_points(cluster: &Cluster) -> Result<[&Place; 3]> {
    Ok([&cluster.pod("client-1")?.place, &cluster.pod("client-2")?.place, &cluster.lab.node(0).place])
}

/// Scaling from one replica to three and back under load: no request is lost, and all replicas get a share.
pub(super) fn scaling(cluster: &Cluster) -> Result<String> {
    cluster.scale(1)?;
    settle(cluster, &REPLICAS[..1])?;
    let pause = Duration::from_millis(5);
    let loads: Vec<_> = vantage_points(cluster)?
        .into_iter()
        .flat_map(|place| {
            let start = move |family: Family| {
                examples(cluster).map(|(service, transport)| Load::start(place, transport, service.addr(family), pause))
            };
            Family::ALL.into_iter().flat_map(start)
        })
        .collect();
    let changes = (|| {
        thread::sleep(Duration::from_millis(500));
        cluster.scale(3)?;
        settle(cluster, &REPLICAS)?;
        thread::sleep(Duration::from_millis(500));
        cluster.scale(1)?;
        settle(cluster, &REPLICAS[..1])?;
        thread::sleep(Duration::from_millis(500));
        cluster.scale(3)
    })();
    let reports: Vec<LoadReport> = loads.into_iter().map(Load::stop).collect();
    changes?;
    settle(cluster, &REPLICAS)?;
    let errors: Vec<_> = reports.iter().flat_map(|report| &report.errors).collect();
    let answered: u32 = reports.iter().map(LoadReport::answered).sum();
    ensure!(errors.is_empty(), "{} of {} requests lost: {}", errors.len(), answered as usize + errors.len(), errors[0]);
    for name in REPLICAS {
        ensure!(reports.iter().all(|report| report.answers.contains_key(name)), "{name} got no request: {reports:?}");
    }
    let slowest = reports.iter().map(|report| report.slowest).max().unwrap_or_default();
    Ok(format!("{answered} requests from two pods and a host, none lost, the slowest took {} ms", slowest.as_millis()))
}

/// Waits until exactly these replicas answer, from all places.
fn settle(cluster: &Cluster, replicas: &[&str]) -> Result<()> {
    let wanted: BTreeSet<&str> = replicas.iter().copied().collect();
    for place in vantage_points(cluster)? {
        for (service, transport) in examples(cluster) {
            for family in Family::ALL {
                let what = format!("{} is served to {} by {replicas:?} only", service.name(), place.name());
                eventually(&what, || {
                    let answers: BTreeSet<String> = (0..30)
                        .map(|_| Ok(place.ask(transport, service.addr(family))?.server))
                        .collect::<Result<_>>()?;
                    let answers: BTreeSet<&str> = answers.iter().map(String::as_str).collect();
                    ensure!(answers == wanted, "{answers:?} answered");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// A replica is deleted and recreated with other addresses, and the service follows.
pub(super) fn recreate(cluster: &mut Cluster) -> Result<String> {
    let name = REPLICAS[2];
    cluster.scale(2)?;
    settle(cluster, &REPLICAS[..2])?;
    let old = cluster.pods.remove(name).context("the third replica is gone")?;
    let (before, node) = (old.ips.clone(), old.node().clone());
    old.delete()?;
    let stale = Ask::new(Transport::Tcp, (before[0], SERVER_PORT).into()).timeout(Duration::from_millis(300));
    if let Ok(answer) = stale.from(&cluster.pod("client-1")?.place) {
        bail!("{} still answers at {} after {name} was deleted", answer.server, before[0]);
    }
    let index = cluster.lab.nodes().iter().position(|other| *other.name() == *node.name()).context("no such node")?;
    cluster.add_pod(name, index)?;
    let after = &cluster.pod(name)?.ips;
    ensure!(before.iter().all(|ip| !after.contains(ip)), "{name} was {before:?} and is {after:?}");
    cluster.scale(3)?;
    settle(cluster, &REPLICAS)?;
    pod_to_pod(cluster.pod("client-2")?, cluster.pod(name)?)?;
    Ok(format!("{name} was {}, is {}", before[0], after[0]))
}

/// An external machine gets no answer from a ClusterIP, even with a route to it.
pub(super) fn outside(cluster: &Cluster) -> Result<String> {
    let (client, web) = (cluster.lab.client(), &cluster.services.web);
    for family in Family::ALL {
        let node = cluster.lab.node(0).ip(family);
        client.ip(&format!("route replace {} via {node}\n", web.ip(family)))?;
        client.ping(node).with_context(|| format!("the node does not answer at {node}"))?;
        let ask = Ask::new(Transport::Tcp, web.addr(family)).timeout(Duration::from_millis(300));
        if let Ok(answer) = ask.from(client) {
            bail!("{} answered at {}", answer.server, web.addr(family));
        }
    }
    Ok("a client on the nodes' link is refused over IPv4 and IPv6".to_owned())
}
