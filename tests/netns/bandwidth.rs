//! The capability `bandwidth`: what a pod receives and sends keeps to its limits, wherever the other side is.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use podnet_tests::lab::{Lab, Place, Pod, Service, eventually};
use podnet_tests::traffic::{Family, IperfServer, iperf};
use serde_json::json;

/// What the pod may receive and send, in bits a second.
const RECEIVES: u64 = 50_000_000;
const SENDS: u64 = 20_000_000;
/// iperf3's port, at pods and at the services in front of them.
const PORT: u16 = 5201;
/// How long is measured, in seconds.
const TIME: u32 = 2;

struct Site {
    lab: Lab,
    limited: Pod,
    /// Pods without limits, on the same node and on another.
    others: [Pod; 2],
    services: [Service; 3],
}

#[test]
fn bandwidth() -> Result<()> {
    let lab = Lab::builder().build()?;
    // As a runtime writes it that knows the annotations of Kubernetes alone.
    let unsaid = u32::MAX;
    let limits = json!({"bandwidth": {
        "ingressRate": RECEIVES, "ingressBurst": unsaid, "egressRate": SENDS, "egressBurst": unsaid,
    }});
    let limited = lab.node(0).add_pod_with("limited", limits)?;
    let others = [lab.node(0).add_pod("near")?, lab.node(1).add_pod("far")?];
    let services = [("limited", 10, &limited), ("near", 11, &others[0]), ("far", 12, &others[1])].map(
        |(name, number, pod)| -> Result<Service> {
            let service = Service::new(name, number, PORT, PORT);
            service.apply(&lab, None)?;
            service.set_endpoints(&lab, &pod.ips)?;
            Ok(service)
        },
    );
    let [a, b, c] = services;
    let site = Site { lab, limited, others, services: [a?, b?, c?] };
    what_the_pod_receives_is_limited(&site)?;
    what_the_pod_sends_is_limited(&site)?;
    others_are_not_limited(&site)?;
    limits_that_somebody_takes_away_are_put_back(&site)
}

/// Sends to an address and demands that the rate is the limit's, within what a busy machine makes of it.
fn measured(from: &Place, server: &IperfServer, to: SocketAddr, limit: u64) -> Result<()> {
    let rate = iperf(from, server, to, TIME, String::new)? * 1e9;
    println!("{} → {to}: {:.1} of {:.1} Mbit/s", from.name(), rate / 1e6, limit as f64 / 1e6);
    let share = rate / limit as f64;
    ensure!((0.7..1.2).contains(&share), "{} → {to}: {rate:.0} bit/s, the limit is {limit}", from.name());
    Ok(())
}

fn what_the_pod_receives_is_limited(site: &Site) -> Result<()> {
    for family in Family::ALL {
        let addr = site.limited.addr(family, PORT);
        let server = IperfServer::start(&site.limited.place, addr)?;
        for other in &site.others {
            measured(&other.place, &server, addr, RECEIVES)?;
        }
        measured(&site.lab.node(0).place, &server, addr, RECEIVES)?;
        // Through a service, whose packets the programs redirect, and to another node's.
        measured(&site.others[0].place, &server, site.services[0].addr(family), RECEIVES)?;
        measured(&site.others[1].place, &server, site.services[0].addr(family), RECEIVES)?;
    }
    Ok(())
}

fn what_the_pod_sends_is_limited(site: &Site) -> Result<()> {
    for family in Family::ALL {
        for (other, service) in site.others.iter().zip(&site.services[1..]) {
            let addr = other.addr(family, PORT);
            let server = IperfServer::start(&other.place, addr)?;
            measured(&site.limited.place, &server, addr, SENDS)?;
            measured(&site.limited.place, &server, service.addr(family), SENDS)?;
        }
    }
    Ok(())
}

fn others_are_not_limited(site: &Site) -> Result<()> {
    let addr = site.others[0].addr(Family::V4, PORT);
    let server = IperfServer::start(&site.others[0].place, addr)?;
    let rate = iperf(&site.others[1].place, &server, addr, 1, String::new)? * 1e9;
    ensure!(rate > 2.0 * RECEIVES as f64, "{rate} bit/s");
    Ok(())
}

fn limits_that_somebody_takes_away_are_put_back(site: &Site) -> Result<()> {
    let (pod, node) = (&site.limited, site.lab.node(0));
    pod.invoke("CHECK")?;
    let end = pod.host_ifname()?;
    node.place.run("tc", &["qdisc", "del", "dev", &end, "root"])?;
    // The kernel tells nobody who asked for links, addresses, routes and neighbours.
    node.place.run("ip", &["link", "set", &end, "mtu", "1400"])?;
    eventually("the queue is back", || {
        let queues = node.place.run("tc", &["qdisc", "show", "dev", &end, "root"])?;
        ensure!(queues.contains("tbf"), "{queues}");
        Ok(())
    })?;
    pod.invoke("CHECK")?;
    pod.place.run("tc", &["qdisc", "del", "dev", "eth0", "root"])?;
    let error = pod.invoke("CHECK").err().context("CHECK has not seen that the pod's own queue is gone")?;
    ensure!(format!("{error:#}").contains("not limited"), "{error:#}");
    Ok(())
}
