//! Health servers: healthCheckNodePorts for load balancers, and the health of daemon and node.

use std::fs;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Endpoint, Lab, Node, Place, Service, eventually, vips};
use podnet_tests::traffic::{Family, Transport, http_get};
use serde_json::{Value, json};
use socket2::{Protocol, Socket, Type};

/// Port of the pods.
const TARGET: u16 = 8080;
/// Port of the health check.
const PORT: u16 = 31_000;

/// Two nodes and an external client.
struct Site {
    lab: Lab,
}

#[test]
fn health() -> Result<()> {
    let site = Site { lab: Lab::builder().client(true).build()? };
    cases!(
        site,
        health_check_node_port_reports_local_endpoints,
        node_being_deleted_is_unhealthy_and_live,
        probes_are_answered_while_attackers_hold_connections,
        probes_are_answered_without_free_descriptors,
        health_servers_follow_the_daemon_and_can_be_disabled
    )
}

/// Waits until the node's health check returns this status and number of local endpoints, over both families.
fn says(place: &Place, node: &Node, status: u16, endpoints: u64) -> Result<()> {
    for family in Family::ALL {
        let server = SocketAddr::new(node.ip(family), PORT);
        eventually(&format!("{server} says {status} and {endpoints}"), || {
            let response = http_get(place, server, "/")?;
            ensure!(response.status == status, "{response:?}");
            let body: Value = serde_json::from_str(&response.body).with_context(|| response.body.clone())?;
            ensure!(body["service"] == json!({"namespace": "default", "name": "web"}), "{body}");
            ensure!(body["localEndpoints"] == endpoints && body["serviceProxyHealthy"] == true, "{body}");
            let weight = response.header("x-load-balancing-endpoint-weight");
            ensure!(weight == Some(&endpoints.to_string()[..]), "{response:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn health_check_node_port_reports_local_endpoints(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let pods = [lab.node(0).add_pod("web-0")?, lab.node(0).add_pod("web-1")?, lab.node(1).add_pod("web-2")?];
    let service = Service::new("web", 20, 80, TARGET).load_balancer(&vips(1), 30_080);
    let local = service.clone().external_local().health_check(PORT);
    let (client, nodes) = (lab.client(), lab.nodes());
    let [a, b, c] = pods.each_ref().map(Endpoint::of);
    local.apply(lab, None)?;
    local.set_endpoints(lab, &[a.clone(), b.clone()])?;
    says(client, &nodes[0], 200, 2)?;
    says(client, &nodes[1], 503, 0)?;
    // A node queries itself, as some load balancers do.
    says(&nodes[0].place, &nodes[0], 200, 2)?;
    local.set_endpoints(lab, &[a.clone().terminating(), c.clone()])?;
    says(client, &nodes[0], 503, 0).context("a terminating endpoint doesn't count")?;
    says(client, &nodes[1], 200, 1)?;
    local.set_endpoints(lab, &[a.clone().not_ready(), b.clone(), c])?;
    says(client, &nodes[0], 200, 1).context("one that isn't ready doesn't count")?;
    let closed = |why: &str| -> Result<()> {
        for family in Family::ALL {
            let server = SocketAddr::new(nodes[0].ip(family), PORT);
            eventually(why, || {
                let error = http_get(client, server, "/").err().context("it still responds")?;
                ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
                Ok(())
            })?;
        }
        Ok(())
    };
    service.apply(lab, None)?;
    closed("no health check without externalTrafficPolicy Local")?;
    local.apply(lab, None)?;
    says(client, &nodes[0], 200, 1)?;
    local.clone().health_check(PORT + 1).apply(lab, None)?;
    closed("another port")?;
    local.apply(lab, None)?;
    says(client, &nodes[0], 200, 1)?;
    lab.withdraw("web")?;
    closed("the service is deleted")
}

/// Waits until a path of the daemon's server returns this status over both families.
fn status_of(place: &Place, node: &Node, path: &str, status: u16) -> Result<Value> {
    let mut body = Value::Null;
    for family in Family::ALL {
        let server = SocketAddr::new(node.ip(family), 10_256);
        eventually(&format!("{path} of {server} is {status}"), || {
            let response = http_get(place, server, path)?;
            ensure!(response.status == status, "{response:?}");
            body = serde_json::from_str(&response.body).with_context(|| response.body.clone())?;
            Ok(())
        })?;
    }
    Ok(body)
}

fn node_being_deleted_is_unhealthy_and_live(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let (client, nodes) = (lab.client(), lab.nodes());
    for node in nodes {
        status_of(client, node, "/healthz", 200)?;
        status_of(client, node, "/livez", 200)?;
    }
    lab.apply_nodes(|node, object| {
        if node.name() == "node1" {
            let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule", "value": "1"});
            object["spec"]["taints"] = json!([taint]);
        }
    })?;
    status_of(client, &nodes[0], "/healthz", 503)?;
    status_of(client, &nodes[0], "/livez", 200)?;
    status_of(client, &nodes[1], "/healthz", 200)?;
    lab.apply_nodes(|_, _| {})?;
    status_of(client, &nodes[0], "/healthz", 200)?;
    let response = http_get(client, SocketAddr::new(nodes[0].ip(Family::V4), 10_256), "/nothing")?;
    ensure!(response.status == 404, "{response:?}");
    Ok(())
}

/// What an attacker does with a connection to keep others out.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Silent,
    /// One byte every 100 ms.
    Slow,
    HugeHead,
    /// Sends a request, and does not read the response.
    NeverReading,
}

impl Manner {
    const ALL: [Self; 4] = [Self::Silent, Self::Slow, Self::HugeHead, Self::NeverReading];

    /// Data sent in round `round` of a connection.
    fn text(self, round: usize) -> Vec<u8> {
        const HEAD: &[u8] = b"GET /livez HTTP/1.1\r\nHost: ";
        match (self, round) {
            (Self::Silent, _) => Vec::new(),
            (Self::Slow, round) => vec![*HEAD.get(round).unwrap_or(&b'x')],
            (Self::HugeHead, 0) => [HEAD, &[b'x'; 4096]].concat(),
            (Self::HugeHead, _) => vec![b'x'; 4096],
            (Self::NeverReading, 0) => [HEAD, b"x\r\n\r\n"].concat(),
            (Self::NeverReading, _) => Vec::new(),
        }
    }
}

/// Connections that are held until the server closes them, then reopened. Ends when dropped.
struct Siege {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Siege {
    /// Holds `count` connections from each place.
    fn lay(places: &[Place], server: SocketAddr, manner: Manner, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (places, ended) = (places.to_vec(), stop.clone());
        let thread = thread::spawn(move || {
            let mut sockets: Vec<Option<(Socket, usize)>> = (0..places.len() * count).map(|_| None).collect();
            while !ended.load(Ordering::Relaxed) {
                for (slot, place) in sockets.iter_mut().zip(places.iter().cycle()) {
                    *slot = slot.take().or_else(|| Some((connect(place, server)?, 0))).and_then(|(socket, round)| {
                        let gone = |error: std::io::Error| error.kind() != ErrorKind::WouldBlock;
                        let text = manner.text(round);
                        let sent = text.is_empty() || !socket.send(&text).is_err_and(gone);
                        let unread = matches!(manner, Manner::NeverReading);
                        let over = !unread
                            && match socket.peek(&mut [MaybeUninit::uninit(); 1]) {
                                Ok(len) => len == 0,
                                Err(error) => gone(error),
                            };
                        (sent && !over).then_some((socket, round + 1))
                    });
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Siege {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic in the thread has already been reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A connection, possibly still being established.
fn connect(place: &Place, server: SocketAddr) -> Option<Socket> {
    let socket = place.socket_for(server, Type::STREAM, Protocol::TCP).ok()?;
    socket.set_nonblocking(true).ok()?;
    // The result shows in later calls.
    let _ = socket.connect(&server.into());
    Some(socket)
}

/// Sends requests for some time, and requires a response each time.
fn probe(places: &[&Place], server: SocketAddr, seconds: f32) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f32(seconds);
    while Instant::now() < end {
        for place in places {
            let response = http_get(place, server, "/livez").with_context(|| format!("from {}", place.name()))?;
            ensure!(response.status == 200, "{response:?}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn probes_are_answered_while_attackers_hold_connections(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let node = lab.node(0);
    let pods = (0..4).map(|i| node.add_pod(&format!("crowd-{i}"))).collect::<Result<Vec<_>>>()?;
    let many: Vec<Place> = pods.iter().map(|pod| pod.place.clone()).chain([lab.node(1).place.clone()]).collect();
    let probers = [&node.place, lab.client()];
    for (family, manner) in Family::ALL.into_iter().flat_map(|family| Manner::ALL.map(|manner| (family, manner))) {
        let server = SocketAddr::new(node.ip(family), 10_256);
        for (places, each) in [(&many[..1], 1200), (&many[..], 240)] {
            let _siege = Siege::lay(places, server, manner, each);
            probe(&probers, server, 1.0)
                .with_context(|| format!("{manner:?}, {family:?}, {} sources", places.len()))?;
        }
    }
    // From the node itself, also at its loopback addresses.
    let server = SocketAddr::new(node.ip(Family::V4), 10_256);
    let _siege = Siege::lay(&many, server, Manner::Silent, 240);
    for host in ["127.0.0.1:10256", "[::1]:10256"] {
        probe(&[&node.place], host.parse()?, 1.0).context(host)?;
    }
    Ok(())
}

fn probes_are_answered_without_free_descriptors(site: &Site) -> Result<()> {
    let (lab, node) = (&site.lab, site.lab.node(0));
    let daemon = node.daemon_id().context("no daemon")?.to_string();
    let open = fs::read_dir(format!("/proc/{daemon}/fd"))?.count();
    let limit = |soft: &str| lab.client().run("prlimit", &["--pid", &daemon, &format!("--nofile={soft}")]);
    let before = fs::read_to_string(format!("/proc/{daemon}/limits"))?;
    let before = before.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit")?;
    let [soft, hard] = before.split_whitespace().take(2).collect::<Vec<_>>()[..] else { anyhow::bail!("{before}") };
    // Descriptors for ten connections, which the siege competes for.
    limit(&format!("{}:", open + 10))?;
    let server = SocketAddr::new(node.ip(Family::V4), 10_256);
    let siege = Siege::lay(&[lab.node(1).place.clone()], server, Manner::Silent, 300);
    let answered = probe(&[&node.place, lab.client()], server, 3.0);
    drop(siege);
    limit(&format!("{soft}:{hard}"))?;
    answered
}

fn health_servers_follow_the_daemon_and_can_be_disabled(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let node = lab.node(0);
    status_of(lab.client(), node, "/livez", 200)?;
    node.kill_daemon()?;
    let server = SocketAddr::new(node.ip(Family::V4), 10_256);
    ensure!(http_get(lab.client(), server, "/livez").is_err(), "it outlived the daemon");
    node.start_daemon()?;
    status_of(lab.client(), node, "/livez", 200)?;
    node.stop_daemon()?;
    node.configure(|config| config.healthz_bind_address.0 = None)?;
    node.start_daemon()?;
    ensure!(http_get(lab.client(), server, "/livez").is_err(), "it is switched off");
    Ok(())
}

/// The node stays healthy with the objects read before; otherwise load balancers would lose all nodes, and another
/// daemon could not do better.
#[test]
fn missing_manifest_directory_keeps_the_node_healthy() -> Result<()> {
    /// Slightly longer than the datapath may be out of date before the node counts as unhealthy.
    const PATIENCE: Duration = Duration::from_secs(63);
    let lab = Lab::builder().nodes(1).client(true).build()?;
    let node = lab.node(0);
    let pod = node.add_server("web", TARGET)?;
    let service = Service::new("web", 40, 80, TARGET).node_port(30_040);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &[&pod])?;
    let served = || {
        for (family, transport) in Transport::over_all() {
            lab.client().reaches(transport, (node.ip(family), 30_040).into(), &["web"])?;
        }
        Ok(())
    };
    eventually("the service", served)?;
    fs::remove_dir_all(node.manifest_dir())?;
    eventually("the directory's going", || {
        let status = node.podnet_json(&["status"])?;
        ensure!(status["warnings"].to_string().contains("until it is back"), "{:#}", status["warnings"]);
        Ok(())
    })?;
    thread::sleep(PATIENCE);
    served()?;
    for path in ["/healthz", "/livez"] {
        let response = http_get(lab.client(), SocketAddr::new(node.ip(Family::V4), 10_256), path)?;
        ensure!(response.status == 200, "{path}: {response:?}");
    }
    Ok(())
}
