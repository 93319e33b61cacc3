//! Objects that claim addresses or ports that are not theirs: nodes, pods and other services are unaffected.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Place, Pod, Service, eventually, manifest};
use podnet_tests::traffic::{Family, Outcome, Server, Transport};

/// Port of the pods.
const TARGET: u16 = 8080;

/// A server on each node, and a client on the first.
struct Site {
    thief: Pod,
    right: Pod,
    client: Pod,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().build()?;
        let thief = lab.node(0).add_server("thief", TARGET)?;
        let right = lab.node(1).add_server("right", TARGET)?;
        let client = lab.node(0).add_pod("client")?;
        Ok(Self { thief, right, client, lab })
    }

    /// The first node's host and a pod on it.
    fn clients(&self) -> [&Place; 2] {
        [&self.client.place, &self.lab.node(0).place]
    }

    /// Waits until the first node warns about something, and returns the index of the warning.
    fn warned(&self, parts: &[&str]) -> Result<usize> {
        eventually(&format!("a warning of {parts:?}"), || {
            let status = self.lab.node(0).podnet_json(&["status"])?;
            let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
            let place = warnings.iter().position(|warning| parts.iter().all(|part| warning.to_string().contains(part)));
            place.with_context(|| format!("{warnings:#?}"))
        })
    }

    fn restart(&self) -> Result<()> {
        self.lab.node(0).kill_daemon()?;
        self.lab.node(0).start_daemon()
    }
}

#[test]
fn conflicting_objects() -> Result<()> {
    cases!(
        Site::new()?,
        external_ip_of_another_node_takes_nothing,
        node_keeps_the_ports_it_needs,
        endpoints_cannot_forge_tunnel_packets,
        greedy_service_leaves_room_for_others,
        node_cannot_claim_pods_of_another,
    )
}

/// The external IP is another node's address: that node decides, as for any external client.
fn external_ip_of_another_node_takes_nothing(site: &Site) -> Result<()> {
    let (lab, other) = (&site.lab, site.lab.node(1));
    let gateway = lab.fabric();
    let ways = [IpAddr::from([172, 30, 0, 254]), "fd00:30::fe".parse()?];
    let _servers = [
        Server::start(gateway, "gateway", (ways[0], 8081).into())?,
        Server::start(gateway, "gateway", (ways[1], 8081).into())?,
    ];
    let ips = [Family::ALL.map(|family| other.ip(family)), ways].concat();
    let service = Service::new("grab", 50, 8081, TARGET).external_ips(&ips);
    service.apply(lab, None)?;
    service.set_endpoints(lab, &[&site.thief])?;
    for restarted in [false, true] {
        for ip in &ips {
            site.warned(&["Service default/grab", &format!("{ip} is ignored")])?;
        }
        for (family, transport) in Transport::over_all() {
            for place in site.clients() {
                place.reaches(transport, service.addr(family), &["thief"]).context("the rest counts")?;
                place.reaches(transport, (ways[family as usize], 8081).into(), &["gateway"])?;
                let seen = place.reaches(transport, (other.ip(family), 8081).into(), &["thief"])?;
                ensure!(seen == other.ip(family), "it came from {seen} and not through the other node");
            }
        }
        if !restarted {
            site.restart()?;
        }
    }
    service.delete(lab)
}

fn node_keeps_the_ports_it_needs(site: &Site) -> Result<()> {
    let (lab, node) = (&site.lab, site.lab.node(0));
    let ips = Family::ALL.map(|family| node.ip(family));
    let _servers = node.serve(10_250)?;
    let service = Service::new("kubelet", 51, 10_250, TARGET).external_ips(&ips);
    service.apply(lab, None)?;
    service.set_endpoints(lab, &[&site.thief])?;
    site.warned(&["Service default/kubelet", "10250/TCP is ignored"])?;
    for family in Family::ALL {
        for place in site.clients() {
            place.reaches(Transport::Tcp, (node.ip(family), 10_250).into(), &[node.name()])?;
        }
    }
    service.delete(lab)
}

fn endpoints_cannot_forge_tunnel_packets(site: &Site) -> Result<()> {
    let (lab, other) = (&site.lab, site.lab.node(1));
    let service = Service::new("forge", 52, 80, 8472);
    service.apply(lab, None)?;
    service.set_endpoints(lab, &Family::ALL.map(|family| other.ip(family)))?;
    for family in Family::ALL {
        let at = std::net::SocketAddr::new(other.ip(family), 8472);
        site.warned(&["Service default/forge", &format!("endpoint {at}/UDP"), "ignored"])?;
        site.client.place.expect(Transport::Udp, service.addr(family), &Outcome::Refused)?;
    }
    service.delete(lab)
}

fn greedy_service_leaves_room_for_others(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let ips: Vec<_> = (0..260).map(|i| IpAddr::from([198, 18, (i / 250) as u8, (i % 250) as u8]).to_string()).collect();
    let mut greedy = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: a-greedy, namespace: tenant}}\nspec:\n  externalIPs: [{}]\n  ports:\n",
        ips.join(", ")
    );
    for port in 1..=260 {
        writeln!(greedy, "  - {{name: p{port}, port: {port}}}")?;
    }
    lab.apply("a-greedy", &greedy)?;
    site.warned(&["Service tenant/a-greedy", "exceeds its share of the table `frontends`"])?;
    for (number, restarted) in [(53, false), (54, true)] {
        if restarted {
            site.restart()?;
        }
        let service = Service::new(&format!("modest-{number}"), number, 80, TARGET);
        service.apply(lab, None)?;
        service.set_endpoints(lab, &[&site.right])?;
        for (family, transport) in Transport::over_all() {
            let reached = || site.client.place.reaches(transport, service.addr(family), &["right"]);
            eventually("the next service", reached)?;
        }
        let status = site.lab.node(0).podnet_json(&["status"])?;
        ensure!(!status["warnings"].to_string().contains("is full"), "{:#}", status["warnings"]);
        service.delete(lab)?;
    }
    lab.withdraw("a-greedy")
}

fn node_cannot_claim_pods_of_another(site: &Site) -> Result<()> {
    let (lab, other) = (&site.lab, site.lab.node(1));
    // One pod of the other node, and all of its pods.
    let ips = Family::ALL.map(|family| site.right.ip(family));
    let evil = manifest::node("zz-evil", other.pod_cidrs(), &ips);
    lab.apply("zz-evil", &manifest::yaml([&evil]))?;
    for cidr in other.pod_cidrs() {
        let place = site.warned(&["Node zz-evil", cidr, &format!("of node {}", other.name())])?;
        ensure!(place < 4, "it is not among the first warnings");
    }
    for (family, transport) in Transport::over_all() {
        site.client.place.reaches(transport, site.right.addr(family, TARGET), &["right"])?;
    }
    lab.withdraw("zz-evil")
}
