//! Resources of the node itself: replies to its processes, its ports, and addresses that it has by a route only.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Node, Place, Pod, Service, eventually};
use podnet_tests::traffic::{Ask, Family, Outcome, Server, Transport, http_get};
use serde_json::json;

/// Port of the servers.
const PORT: u16 = 8080;
/// Port of a service at the node's addresses, from which a host process also sends.
const SHARED: u16 = 40_000;
/// First of three source ports used before a service has them.
const LIVE: u16 = 40_010;
/// Like [`SHARED`], as a NodePort and as a hostPort.
const NODE_PORT: u16 = 30_040;
const HOST_PORT: u16 = 9040;

/// Two nodes with a server each, and an external server.
struct Site {
    pods: [Pod; 2],
    _outside: Vec<Server>,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).far(true).build()?;
        let pods = [lab.node(0).add_server("pod-1", PORT)?, lab.node(1).add_server("pod-2", PORT)?];
        let serve = |family| Server::start(lab.client(), "outside", outside(family));
        let _outside = Family::ALL.map(serve).into_iter().collect::<Result<_>>()?;
        Ok(Self { pods, _outside, lab })
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }
}

fn outside(family: Family) -> SocketAddr {
    (podnet_tests::lab::client_ip(family), PORT).into()
}

#[test]
fn own_addresses() -> Result<()> {
    cases!(
        Site::new()?,
        address_with_only_a_local_route_belongs_to_the_node,
        replies_to_host_sockets_are_not_translated,
        host_connections_survive_a_service_on_their_port,
        host_port_applies_to_its_node_only,
        source_ranges_apply_to_the_node_itself
    )
}

/// A service with the first node's addresses as external IPs, a service with a NodePort, and a pod with a hostPort.
/// Replies to host processes that use these ports must not reach the backends.
fn shared(site: &Site) -> Result<[Pod; 1]> {
    let ips = Family::ALL.map(|family| site.node().ip(family));
    let external = Service::new("external", 40, SHARED, PORT).external_ips(&ips);
    external.apply(&site.lab, None)?;
    external.set_endpoints(&site.lab, &[&site.pods[1]])?;
    let nodes = Service::new("everywhere", 41, 80, PORT).node_port(NODE_PORT);
    nodes.apply(&site.lab, None)?;
    nodes.set_endpoints(&site.lab, &[&site.pods[1]])?;
    let mapping = |protocol: &str| json!({"hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol});
    let mappings = [mapping("tcp"), mapping("udp")];
    let mut bound = site.lab.node(0).add_pod_with("bound", json!({ "portMappings": mappings }))?;
    bound.serve(PORT)?;
    for (family, transport) in Transport::over_all() {
        let at = |port| SocketAddr::new(site.node().ip(family), port);
        site.lab.client().reaches(transport, at(SHARED), &["pod-2"])?;
        site.lab.client().reaches(transport, at(NODE_PORT), &["pod-2"])?;
        site.lab.client().reaches(transport, at(HOST_PORT), &["bound"])?;
    }
    Ok([bound])
}

/// Destinations of the first node's processes: outside, a local pod, a remote pod.
fn elsewhere(site: &Site, family: Family) -> [(&'static str, SocketAddr); 3] {
    let [here, there] = site.pods.each_ref().map(|pod| pod.addr(family, PORT));
    [("outside", outside(family)), ("pod-1", here), ("pod-2", there)]
}

fn replies_to_host_sockets_are_not_translated(site: &Site) -> Result<()> {
    let _pods = shared(site)?;
    let place = &site.node().place;
    for (family, transport) in Transport::over_all() {
        for (server, to) in elsewhere(site, family) {
            for port in [SHARED, NODE_PORT, HOST_PORT] {
                // TCP sockets are always connected.
                let kinds = if transport == Transport::Tcp { &[true][..] } else { &[true, false] };
                for &connected in kinds {
                    let ask = Ask::new(transport, to).from_ip(site.node().ip(family)).from_port(port);
                    let ask = if connected { ask.connected() } else { ask };
                    let what = || format!("{transport}/{family} from port {port} to {server}");
                    let flow = ask.open(place).with_context(what)?;
                    for _ in 0..3 {
                        let answer = flow.ask().with_context(what)?;
                        ensure!(answer.server == server, "{}: {} answered", what(), answer.server);
                        ensure!(answer.seen.port() == port, "{}: seen with port {}", what(), answer.seen.port());
                    }
                }
            }
        }
        // Clients of the service are still served.
        let at = |port| SocketAddr::new(site.node().ip(family), port);
        for (port, server) in [(SHARED, "pod-2"), (NODE_PORT, "pod-2"), (HOST_PORT, "bound")] {
            site.lab.client().reaches(transport, at(port), &[server])?;
        }
    }
    Ok(())
}

fn host_connections_survive_a_service_on_their_port(site: &Site) -> Result<()> {
    let place = &site.node().place;
    let mut flows = Vec::new();
    for (family, transport) in Transport::over_all() {
        for (number, (server, to)) in elsewhere(site, family).into_iter().enumerate() {
            let ask = Ask::new(transport, to).from_ip(site.node().ip(family)).connected();
            let flow = ask.from_port(LIVE + number as u16).open(place)?;
            ensure!(flow.ask()?.server == server, "{transport}/{family}: {server} didn't answer");
            flows.push((transport, family, server, flow));
        }
    }
    let ips = Family::ALL.map(|family| site.node().ip(family));
    for number in 0..3 {
        let name = format!("late-{number}");
        let service = Service::new(&name, 50 + number, LIVE + u16::from(number), PORT).external_ips(&ips);
        service.apply(&site.lab, None)?;
        service.set_endpoints(&site.lab, &[&site.pods[1]])?;
        let at = SocketAddr::new(ips[0], LIVE + u16::from(number));
        site.lab.client().reaches(Transport::Udp, at, &["pod-2"])?;
    }
    for (transport, family, server, flow) in &flows {
        for _ in 0..3 {
            let answer = flow.ask().with_context(|| format!("{transport}/{family} to {server}"))?;
            ensure!(answer.server == *server, "{transport}/{family}: {} instead of {server}", answer.server);
        }
    }
    Ok(())
}

fn host_port_applies_to_its_node_only(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let strange = Family::ALL.map(|family| match family {
        Family::V4 => IpAddr::from([192, 0, 2, 53]),
        Family::V6 => [0x2001, 0xdb8, 0x53, 0, 0, 0, 0, 0x53].into(),
    });
    // First the external client has these addresses, and the node a route to them; later the node has them.
    for (family, ip) in Family::ALL.into_iter().zip(strange) {
        let nodad = if family == Family::V4 { "" } else { " nodad" };
        site.lab.client().ip(&format!("addr add {ip} dev lo{nodad}\n"))?;
        node.place.ip(&format!("route add {ip} via {}\n", outside(family).ip()))?;
    }
    let _servers = strange.map(|ip| Server::start(site.lab.client(), "outside", (ip, 53).into()));
    let mappings: Vec<_> = strange
        .iter()
        .flat_map(|ip| ["tcp", "udp"].map(|protocol| (ip, protocol)))
        .map(|(ip, protocol)| json!({"hostPort": 53, "containerPort": PORT, "protocol": protocol, "hostIP": ip}))
        .collect();
    let mut thief = node.add_pod_with("thief", json!({ "portMappings": mappings }))?;
    thief.serve(PORT)?;
    eventually("status names the pod", || {
        let text = node.podnet(&["status"])?;
        let named = |ip: &IpAddr| text.lines().any(|line| line.contains("thief") && line.contains(&ip.to_string()));
        ensure!(strange.iter().all(named), "{text}");
        Ok(())
    })?;
    let asked = |server: &str| -> Result<()> {
        for (transport, ip) in Transport::ALL.into_iter().flat_map(|transport| strange.map(|ip| (transport, ip))) {
            for place in [&site.pods[0].place, &node.place] {
                place.reaches(transport, (ip, 53).into(), &[server])?;
            }
        }
        Ok(())
    };
    asked("outside").context("the address is another machine's")?;
    for (family, ip) in Family::ALL.into_iter().zip(strange) {
        let nodad = if family == Family::V4 { "" } else { " nodad" };
        node.place.ip(&format!("route del {ip}\naddr add {ip} dev eth0{nodad}\n"))?;
    }
    asked("thief").context("the node has the address")?;
    for (family, ip) in Family::ALL.into_iter().zip(strange) {
        let length = if family == Family::V4 { 32 } else { 128 };
        node.place.ip(&format!("addr del {ip}/{length} dev eth0\nroute add {ip} via {}\n", outside(family).ip()))?;
    }
    asked("outside").context("the node has lost it again")?;
    for (family, ip) in Family::ALL.into_iter().zip(strange) {
        let length = if family == Family::V4 { 32 } else { 128 };
        node.place.ip(&format!("route del {ip}\n"))?;
        site.lab.client().ip(&format!("addr del {ip}/{length} dev lo\n"))?;
    }
    Ok(())
}

/// Load balancer addresses that are routed to the first node.
fn vips(site: &Site) -> Result<[IpAddr; 2]> {
    let vips = [[203, 0, 113, 10].into(), [0xfd00, 0x203, 0, 0, 0, 0, 0, 0x10].into()];
    for (family, vip) in Family::ALL.into_iter().zip(vips) {
        let length = if family == Family::V4 { 32 } else { 128 };
        let via = site.node().ip(family);
        site.lab.client().ip(&format!("route replace {vip}/{length} via {via}\n"))?;
    }
    Ok(vips)
}

/// Assigns addresses to the first node by local routes, as guest agents of clouds do, or removes them.
fn local_routes(place: &Place, verb: &str, vips: &[IpAddr]) -> Result<()> {
    vips.iter().try_for_each(|vip| place.ip(&format!("route {verb} local {vip} dev eth0 proto 66\n")))
}

fn address_with_only_a_local_route_belongs_to_the_node(site: &Site) -> Result<()> {
    let (vips, node) = (vips(site)?, site.node());
    let balanced = Service::new("balanced", 60, 80, PORT).load_balancer(&vips, 0).external_local().health_check(32_060);
    balanced.apply(&site.lab, None)?;
    balanced.set_endpoints(&site.lab, &[&site.pods[0]])?;
    local_routes(&node.place, "add", &vips)?;
    for (place, what) in [(site.lab.client(), "outside"), (&node.place, "the node"), (&site.pods[0].place, "a pod")] {
        for vip in vips {
            for transport in Transport::ALL {
                place.reaches(transport, (vip, 80).into(), &["pod-1"]).with_context(|| format!("{what}: {vip}"))?;
            }
            for (port, path) in [(10_256, "/healthz"), (32_060, "/")] {
                let what = format!("{what}: {vip}:{port}");
                eventually(&what, || {
                    let status = http_get(place, (vip, port).into(), path)?.status;
                    ensure!(status == 200, "{status}: {}", node.podnet(&["status"])?);
                    Ok(())
                })?;
            }
        }
    }
    local_routes(&node.place, "del", &vips)
}

fn source_ranges_apply_to_the_node_itself(site: &Site) -> Result<()> {
    let (vips, node) = (vips(site)?, site.node());
    local_routes(&node.place, "add", &vips)?;
    let ranges = |name: &str, number, ranges: &[&str]| {
        let service = Service::new(name, number, u16::from(number), PORT).load_balancer(&vips, 0).source_ranges(ranges);
        service.apply(&site.lab, None)?;
        service.set_endpoints(&site.lab, &[&site.pods[0]])?;
        Ok::<_, anyhow::Error>(())
    };
    // The node's addresses only, and the client's only.
    ranges("nodes-only", 61, &["172.30.0.1/32", "fd00:30::1/128"])?;
    ranges("others-only", 62, &["172.30.0.100/32", "fd00:30::100/128"])?;
    for (transport, vip) in Transport::ALL.into_iter().flat_map(|transport| vips.map(|vip| (transport, vip))) {
        node.place.reaches(transport, (vip, 61).into(), &["pod-1"]).context("the node may")?;
        site.lab.client().expect(transport, (vip, 61).into(), &Outcome::Silence).context("the client may not")?;
        site.lab.client().reaches(transport, (vip, 62).into(), &["pod-1"]).context("the client may")?;
        node.place.expect(transport, (vip, 62).into(), &Outcome::Silence).context("the node may not")?;
    }
    local_routes(&node.place, "del", &vips)
}

#[test]
fn masquerade_works_with_any_ephemeral_port_range() -> Result<()> {
    let lab = Lab::builder().client(true).build()?;
    let node = lab.node(0);
    let serve = |family| Server::start(lab.client(), "outside", outside(family));
    let _servers = Family::ALL.map(serve).into_iter().collect::<Result<Vec<_>>>()?;
    node.stop_daemon()?;
    node.place.set_sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    node.place.set_sysctl("net.ipv4.ip_local_reserved_ports", "50000")?;
    // Long-lived connections from ports in the range that will be reserved.
    let held: Vec<u16> = (49_200..49_300).step_by(10).collect();
    let mut flows = Vec::new();
    for (family, transport) in Transport::over_all() {
        for port in &held {
            let ask = Ask::new(transport, outside(family)).from_port(*port).connected();
            flows.push((*port, ask.open(&node.place)?));
        }
    }
    // As after a boot: no state of an earlier daemon exists.
    node.podnet(&["cleanup"])?;
    node.start_daemon()?;
    let reserved = node.place.sysctl("net.ipv4.ip_local_reserved_ports")?;
    ensure!(reserved.split(',').any(|range| range == "49152-65535"), "{reserved}");
    let pod = node.add_pod("pod")?;
    let mut far = lab.node(1).add_pod("far")?;
    far.serve(PORT)?;
    let service = Service::new("web", 70, 80, PORT).node_port(NODE_PORT);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &[&far])?;
    for (family, transport) in Transport::over_all() {
        for _ in 0..200 {
            let answer = Ask::new(transport, outside(family))
                .from(&pod.place)
                .with_context(|| format!("{transport}/{family}"))?;
            let seen = answer.seen;
            ensure!(seen.ip() == node.ip(family) && seen.port() >= 49_152, "seen as {seen}");
            ensure!(!held.contains(&seen.port()), "{} is a socket's of the host", seen.port());
        }
        lab.client().reaches(transport, service.at(node, family), &["far"]).context("a NodePort across nodes")?;
    }
    for (port, flow) in &flows {
        let answer = flow.ask().with_context(|| format!("the host's own port {port}"))?;
        ensure!(answer.seen.port() == *port, "{port} is seen as {}", answer.seen);
    }
    Ok(())
}
