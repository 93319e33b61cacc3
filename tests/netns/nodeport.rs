//! NodePorts and hostPorts: Services at the nodes' addresses, and pods at those of their node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Endpoint, Lab, Node, Place, Pod, Service, client_ip};
use podnet_tests::traffic::{Ask, Family, Outcome, Transport};
use serde_json::json;

/// Port of the pods.
const TARGET: u16 = 8080;
/// The servers.
const WEB: [&str; 3] = ["web-1", "web-2", "web-3"];
/// Source address modes.
const MODES: [&str; 3] = ["auto", "preserve", "snat"];

/// Three nodes with a server each, clients on two of them, and an external client. node2 serves NodePorts at its first
/// addresses only.
struct Site {
    /// On node1, node2 and node3.
    web: Vec<Pod>,
    clients: [Pod; 2],
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().nodes(3).client(true).config(|index, config| {
            if index == 1 {
                config.node_port_addresses =
                    ["172.30.0.2/32", "fd00:30::2/128"].map(|cidr| cidr.parse().expect("is a CIDR")).into();
            }
        });
        let lab = lab.build()?;
        let start = |(node, name): (usize, &&str)| lab.node(node).add_server(name, TARGET);
        let web = WEB.iter().enumerate().map(start).collect::<Result<_>>()?;
        let clients = [lab.node(0).add_pod("client-1")?, lab.node(1).add_pod("client-2")?];
        Ok(Self { web, clients, lab })
    }
}

#[test]
fn node_ports() -> Result<()> {
    cases!(
        Site::new()?,
        source_address_follows_the_mode,
        pods_and_hosts_use_node_ports_of_any_node,
        requests_are_spread_over_local_and_remote_backends,
        node_ports_are_served_at_all_or_at_configured_addresses,
        service_type_port_and_endpoints_can_change,
        node_ports_leave_host_ports_alone,
        host_processes_can_be_node_port_backends,
        host_ports_reach_the_pod_on_their_node,
    )
}

/// A Service per mode and backend, with numbers and NodePorts counted from `first`.
fn services<'a>(site: &'a Site, backends: &[&'a str], first: u8) -> Result<Vec<(&'static str, &'a Pod, Service)>> {
    let mut services = Vec::new();
    for mode in MODES {
        for backend in site.web.iter().filter(|pod| backends.contains(&pod.name())) {
            let number = first + services.len() as u8;
            let name = format!("{mode}-{}", backend.name());
            let service = Service::new(&name, number, 80, TARGET).node_port(30_000 + u16::from(number));
            service.apply(&site.lab, Some(mode))?;
            service.set_endpoints(&site.lab, &[backend])?;
            services.push((mode, backend, service));
        }
    }
    Ok(services)
}

fn source_address_follows_the_mode(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    for (mode, backend, service) in services(site, &["web-1", "web-2"], 20)? {
        let local = backend.name() == "web-1";
        for (family, transport) in Transport::over_all() {
            // The table that defines the modes, for external clients and externalTrafficPolicy Cluster.
            let seen = match (mode, local) {
                ("preserve", _) | ("auto", true) => client_ip(family),
                _ => node.ip(family),
            };
            let expected = Outcome::answer(backend.name(), seen);
            let found = site.lab.client().expect(transport, service.at(node, family), &expected);
            found.with_context(|| format!("mode {mode}"))?;
        }
    }
    Ok(())
}

fn pods_and_hosts_use_node_ports_of_any_node(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let pods = site.clients.iter().chain(&site.web).map(|pod| &pod.place);
    let places: Vec<&Place> = pods.chain(lab.nodes().iter().map(|node| &node.place)).collect();
    for (mode, backend, service) in services(site, &["web-1", "web-3"], 30)? {
        for place in &places {
            for node in lab.nodes() {
                for (family, transport) in Transport::over_all() {
                    let seen = place.reaches(transport, service.at(node, family), &[backend.name()]);
                    let seen = seen.with_context(|| format!("mode {mode}"))?;
                    let own = backend.ip(family);
                    ensure!(seen != own, "{transport}/{family} from {}: the source is the backend's own", place.name());
                }
            }
        }
    }
    Ok(())
}

fn requests_are_spread_over_local_and_remote_backends(site: &Site) -> Result<()> {
    for (number, mode) in (40..).zip(MODES) {
        let service = Service::new(mode, number, 80, TARGET).node_port(30_000 + u16::from(number));
        service.apply(&site.lab, Some(mode))?;
        service.set_endpoints(&site.lab, &site.web.iter().collect::<Vec<_>>())?;
        for (family, transport) in Transport::over_all() {
            let to = service.at(site.lab.node(0), family);
            site.lab.client().reaches(transport, to, &WEB)?;
            let mut counts = BTreeMap::<String, u32>::new();
            for _ in 0..90 {
                let answer = site.lab.client().ask(transport, to);
                let answer = answer.with_context(|| format!("{mode}, {transport}/{family}, after {counts:?}"))?;
                *counts.entry(answer.server).or_default() += 1;
            }
            // Binomial distribution: mean 30, standard deviation 4.5.
            let fair = counts.len() == 3 && counts.values().all(|count| *count >= 8);
            ensure!(fair, "{mode}, {transport}/{family}: {counts:?}");
        }
    }
    Ok(())
}

fn node_ports_are_served_at_all_or_at_configured_addresses(site: &Site) -> Result<()> {
    let service = Service::new("every", 50, 80, TARGET).node_port(30_050);
    service.apply(&site.lab, None)?;
    service.set_endpoints(&site.lab, &[&site.web[0]])?;
    for node in &site.lab.nodes()[..2] {
        // Added while the daemon runs, which detects it.
        Family::ALL
            .into_iter()
            .try_for_each(|family| node.place.ip(&format!("addr add {} dev eth0\n", second(node, family))))?;
        for (family, transport) in Transport::over_all() {
            let port = service.at_nodes();
            let loopback = (family.loopback(), port).into();
            site.lab.client().reaches(transport, service.at(node, family), &["web-1"])?;
            let more = (second(node, family), port).into();
            for place in [site.lab.client(), &node.place, &site.clients[0].place] {
                if node.name() == "node1" {
                    place.reaches(transport, more, &["web-1"]).context("an address that came later")?;
                } else {
                    place.expect(transport, more, &Outcome::Refused).context("not in nodePortAddresses")?;
                }
            }
            node.place.expect(transport, loopback, &Outcome::Refused).context("loopback")?;
        }
    }
    Ok(())
}

/// An address added to a node later.
fn second(node: &Node, family: Family) -> IpAddr {
    let text = match family {
        Family::V4 => node.ip(family).to_string() + "0",
        Family::V6 => node.ip(family).to_string() + "10",
    };
    text.parse().expect("is an address")
}

fn service_type_port_and_endpoints_can_change(site: &Site) -> Result<()> {
    let (lab, web, inside) = (&site.lab, &site.web[1], &site.clients[0]);
    let plain = Service::new("changing", 51, 80, TARGET);
    let everywhere = |port: u16, expected: &dyn Fn(Transport, SocketAddr, &Place) -> Result<()>| -> Result<()> {
        for place in [lab.client(), &inside.place, &lab.node(0).place] {
            for node in &lab.nodes()[..2] {
                for (family, transport) in Transport::over_all() {
                    expected(transport, (node.ip(family), port).into(), place)?;
                }
            }
        }
        Ok(())
    };
    let answers = |transport: Transport, to, place: &Place| place.reaches(transport, to, &["web-2"]).map(drop);
    let refuses = |transport: Transport, to, place: &Place| place.expect(transport, to, &Outcome::Refused);
    plain.set_endpoints(lab, &[web])?;
    plain.apply(lab, None)?;
    everywhere(30_151, &refuses).context("a ClusterIP only")?;
    plain.clone().node_port(30_151).apply(lab, None)?;
    everywhere(30_151, &answers).context("a NodePort")?;
    plain.clone().node_port(30_152).apply(lab, None)?;
    everywhere(30_152, &answers).context("another NodePort")?;
    everywhere(30_151, &refuses).context("the former NodePort")?;
    plain.set_endpoints(lab, &[] as &[&Pod])?;
    everywhere(30_152, &refuses).context("without endpoints")?;
    plain.set_endpoints(lab, &[web])?;
    everywhere(30_152, &answers).context("with endpoints again")?;
    plain.delete(lab)?;
    everywhere(30_152, &refuses).context("deleted")
}

fn node_ports_leave_host_ports_alone(site: &Site) -> Result<()> {
    let (lab, web) = (&site.lab, &site.web[0]);
    let service = Service::new("beside", 53, 80, TARGET).node_port(30_053);
    service.apply(lab, None)?;
    service.set_endpoints(lab, &[web])?;
    let _servers = lab.node(0).serve(8081)?;
    for (family, transport) in Transport::over_all() {
        let node = lab.node(0).ip(family);
        lab.client().reaches(transport, (node, 30_053).into(), &["web-1"])?;
        for place in [lab.client(), &web.place, &lab.node(0).place] {
            place.reaches(transport, (node, 8081).into(), &["node1"])?;
        }
        // A host process may itself send from a port with this number.
        if transport == Transport::Tcp {
            for to in [web.addr(family, TARGET), site.web[1].addr(family, TARGET), (node, 8081).into()] {
                let ask = Ask::new(transport, to).from_port(30_053);
                ask.from(&lab.node(0).place).with_context(|| format!("from the NodePort's number to {to}"))?;
            }
        }
    }
    Ok(())
}

/// Same as pods in the host network.
fn host_processes_can_be_node_port_backends(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let (near, far) = (lab.node(0), lab.node(2));
    let _servers = [near.serve(8081)?, far.serve(8081)?];
    for (number, backend) in [(54, near), (55, far)] {
        let service = Service::new(backend.name(), number, 80, 8081).node_port(30_000 + u16::from(number));
        service.apply(lab, None)?;
        service.set_endpoints(lab, &[Endpoint::host(backend)])?;
        for (family, transport) in Transport::over_all() {
            for place in [lab.client(), &site.clients[0].place, &site.clients[1].place, &near.place, &far.place] {
                for to in [service.addr(family), service.at(near, family), service.at(far, family)] {
                    // ClusterIPs are not reachable from outside the cluster.
                    if to != service.addr(family) || place.name() != lab.client().name() {
                        place.reaches(transport, to, &[backend.name()])?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// A port mapping, as a runtime passes it to the plugin.
fn mapping(host_port: u16, host_ip: &str, protocol: &str) -> serde_json::Value {
    json!({"hostPort": host_port, "containerPort": TARGET, "protocol": protocol, "hostIP": host_ip})
}

/// On node2, where NodePorts are limited to some addresses; this setting does not apply to hostPorts.
fn host_ports_reach_the_pod_on_their_node(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let node = lab.node(1);
    let everywhere = json!({"portMappings": [mapping(9000, "", "tcp"), mapping(9000, "", "udp")]});
    let mut open = node.add_pod_with("open", everywhere)?;
    let bound: Vec<_> = Family::ALL
        .into_iter()
        .flat_map(|family| ["tcp", "udp"].map(|protocol| mapping(9001, &node.ip(family).to_string(), protocol)))
        .collect();
    let mut bound = node.add_pod_with("bound", json!({ "portMappings": bound }))?;
    let second_only = json!({"portMappings": [mapping(9002, &second(node, Family::V4).to_string(), "tcp")]});
    let mut elsewhere = node.add_pod_with("elsewhere", second_only)?;
    for pod in [&mut open, &mut bound, &mut elsewhere] {
        pod.serve(TARGET)?;
    }
    let [remote, neighbour] = &site.clients;
    for (family, transport) in Transport::over_all() {
        let (ip, second) = (node.ip(family), second(node, family));
        for place in [lab.client(), &neighbour.place, &remote.place, &open.place, &node.place, &lab.node(0).place] {
            place.reaches(transport, (ip, 9000).into(), &["open"])?;
            place.reaches(transport, (ip, 9001).into(), &["bound"])?;
            place.reaches(transport, (second, 9000).into(), &["open"]).context("a second address")?;
            place.expect(transport, (second, 9001).into(), &Outcome::Refused).context("another hostIP")?;
            place.expect(transport, (ip, 9002).into(), &Outcome::Refused).context("another hostIP")?;
            if (transport, family) == (Transport::Tcp, Family::V4) {
                place.reaches(transport, (second, 9002).into(), &["elsewhere"]).context("this hostIP")?;
            }
        }
        lab.client().expect(transport, (ip, 9000).into(), &Outcome::answer("open", client_ip(family)))?;
        // For a pod, this is the pod itself.
        let loopback = family.loopback();
        node.place.reaches(transport, (loopback, 9000).into(), &["open"]).context("at the host's loopback address")?;
        let connected = Ask::new(transport, (loopback, 9000).into()).connected().from(&node.place);
        ensure!(connected.context("a connected socket")?.server == "open", "{transport}/{family}");
        for (place, port) in [(&neighbour.place, 9000), (&open.place, 9000), (&node.place, 9001)] {
            place
                .expect(transport, (loopback, port).into(), &Outcome::Refused)
                .context("at another's loopback address")?;
        }
        let other = (lab.node(0).ip(family), 9000).into();
        lab.client().expect(transport, other, &Outcome::Refused).context("the other node")?;
    }
    open.delete()?;
    for (family, transport) in Transport::over_all() {
        let to = (node.ip(family), 9000).into();
        lab.client().expect(transport, to, &Outcome::Refused).context("the pod is deleted")?;
    }
    bound.delete()?;
    elsewhere.delete()
}
