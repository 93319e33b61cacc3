//! The capability `bandwidth`: a pod's limits apply in both directions, whatever the peer.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use podnet::config::Install;
use podnet_tests::lab::{Lab, Place, Pod, Service, eventually};
use podnet_tests::traffic::{Family, IperfLoad, IperfServer, iperf};
use serde_json::json;

/// Limits of the pod in bits per second, received and sent.
const RECEIVES: u64 = 50_000_000;
const SENDS: u64 = 20_000_000;
/// iperf3's port, at pods and at the services in front of them.
const PORT: u16 = 5201;
/// Duration of a measurement in seconds.
const TIME: u32 = 1;
/// Permitted relative deviation of a rate from the limit.
const WITHIN: f64 = 0.1;
/// Attempts at a measurement, since other load on the machine slows a sender down as well.
const ATTEMPTS: usize = 4;

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
    // As written by a runtime that supports only the annotations of Kubernetes.
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
    ingress_is_limited(&site)?;
    egress_is_limited(&site)?;
    other_pods_are_not_limited(&site)?;
    removed_limits_are_restored(&site)?;
    chained_bandwidth_plugin_is_reported_and_fails(&site)
}

/// Sends to an address, over TCP and at twice the limit over UDP, and requires that the rate matches the limit.
fn measured(from: &Place, server: &IperfServer, to: SocketAddr, limit: u64) -> Result<()> {
    for (load, name) in [(IperfLoad::Tcp, "TCP"), (IperfLoad::Udp { rate: 2 * limit, size: 1400 }, "UDP")] {
        let mut rates = Vec::new();
        let within = |rate: &f64| (rate / limit as f64 - 1.0).abs() <= WITHIN;
        while !rates.last().is_some_and(within) {
            ensure!(rates.len() < ATTEMPTS, "{} → {to}, {name}: {rates:?} bit/s, the limit is {limit}", from.name());
            rates.push(iperf(from, server, to, load, TIME, String::new)? * 1e9);
        }
        println!("{} → {to}, {name}: {rates:.0?} of {limit} bit/s", from.name());
    }
    Ok(())
}

fn ingress_is_limited(site: &Site) -> Result<()> {
    for family in Family::ALL {
        let addr = site.limited.addr(family, PORT);
        let server = IperfServer::start(&site.limited.place, addr)?;
        for other in &site.others {
            measured(&other.place, &server, addr, RECEIVES)?;
        }
        measured(&site.lab.node(0).place, &server, addr, RECEIVES)?;
        // Through a service, whose packets are redirected by the programs, and to a pod of another node.
        measured(&site.others[0].place, &server, site.services[0].addr(family), RECEIVES)?;
        measured(&site.others[1].place, &server, site.services[0].addr(family), RECEIVES)?;
    }
    Ok(())
}

fn egress_is_limited(site: &Site) -> Result<()> {
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

fn other_pods_are_not_limited(site: &Site) -> Result<()> {
    let addr = site.others[0].addr(Family::V4, PORT);
    let server = IperfServer::start(&site.others[0].place, addr)?;
    let rate = iperf(&site.others[1].place, &server, addr, IperfLoad::Tcp, 1, String::new)? * 1e9;
    ensure!(rate > 2.0 * RECEIVES as f64, "{rate} bit/s");
    Ok(())
}

fn removed_limits_are_restored(site: &Site) -> Result<()> {
    let (pod, node) = (&site.limited, site.lab.node(0));
    pod.invoke("CHECK")?;
    let end = pod.host_ifname()?;
    node.place.run("tc", &["qdisc", "del", "dev", &end, "root"])?;
    eventually("the queue is back", || {
        let queues = node.place.run("tc", &["qdisc", "show", "dev", &end, "root"])?;
        ensure!(queues.contains("tbf"), "{queues}");
        Ok(())
    })?;
    pod.invoke("CHECK")?;
    pod.place.run("tc", &["qdisc", "del", "dev", "eth0", "root"])?;
    let error = pod.invoke("CHECK").err().context("CHECK has not seen that the pod's own queue is gone")?;
    ensure!(format!("{error:#}").contains("no longer limited"), "{error:#}");
    Ok(())
}

/// The standard plugin `bandwidth`, chained behind podnet's.
fn chained_bandwidth_plugin_is_reported_and_fails(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let lists = node.run_dir().join("lists");
    fs::create_dir_all(&lists)?;
    let list = |plugins: &[&str]| {
        let plugins: Vec<_> = plugins.iter().map(|name| json!({"type": name})).collect();
        json!({"cniVersion": "1.0.0", "name": "other", "plugins": plugins}).to_string()
    };
    fs::write(lists.join("00-other.conflist"), list(&["podnet-cni", "bandwidth"]))?;
    node.stop_daemon()?;
    node.configure(|config| {
        config.install = Some(Install { bin_dir: node.run_dir().join("programs"), conf_dir: lists.clone() });
    })?;
    node.start_daemon()?;
    let warnings = || Ok::<_, anyhow::Error>(node.podnet_json(&["status"])?["warnings"].to_string());
    eventually("it is warned of", || {
        let warnings = warnings()?;
        ensure!(warnings.contains("00-other.conflist chains the plugin `bandwidth` behind podnet-cni"), "{warnings}");
        Ok(())
    })?;
    fs::write(lists.join("00-other.conflist"), list(&["podnet-cni", "portmap"]))?;
    eventually("another list is only named", || {
        let warnings = warnings()?;
        ensure!(!warnings.contains("`bandwidth`") && warnings.contains("uses"), "{warnings}");
        Ok(())
    })?;

    // It cannot create its egress limit, because podnet's programs are attached there.
    let pod = &site.others[0];
    let mut result = pod.result.clone();
    // The newest version that it supports.
    result["cniVersion"] = "1.0.0".into();
    let config = json!({
        "cniVersion": "1.0.0", "name": "other", "type": "bandwidth", "prevResult": result,
        "runtimeConfig": {"bandwidth": {"egressRate": SENDS, "egressBurst": SENDS}},
    });
    let call = [
        "CNI_COMMAND=ADD",
        &format!("CNI_CONTAINERID={}", pod.container_id),
        &format!("CNI_NETNS={}", pod.netns_path()),
        "CNI_IFNAME=eth0",
        "CNI_PATH=/usr/lib/cni",
        "/usr/lib/cni/bandwidth",
    ];
    let output = node.place.output("env", &call, &config.to_string())?;
    let answer = String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success() && answer.contains("file exists"), "{answer}");
    Ok(())
}
