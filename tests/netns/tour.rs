//! A tour of everything that depends on the kernel, on one cluster: the test for a kernel new to podnet.
//!
//! Other tests examine each part in more depth. This one shows within seconds whether a kernel has what podnet needs;
//! `cargo xtask test --kernel` runs it in virtual machines. Its first lines say how podnet uses this kernel.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::tc::{SchedClassifier, TcAttachType};
use podnet::config::SocketLb;
use podnet_cni::datapath::PinDir;
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Node, Place, Pod, Service, client_ip, eventually, wait_until};
use podnet_tests::traffic::{Ask, Family, Outcome, Server, Stream, Transport};

/// Port of the pods.
const TARGET: u16 = 8080;
/// Servers, on node1 and node2.
const WEB: [&str; 2] = ["web-1", "web-2"];

/// Two nodes with a server and a client each, and an external machine with a server.
struct Site {
    web: [Pod; 2],
    clients: [Pod; 2],
    _outside: Vec<Server>,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).build()?;
        let web = [lab.node(0).add_server(WEB[0], TARGET)?, lab.node(1).add_server(WEB[1], TARGET)?];
        let clients = [lab.node(0).add_pod("client-1")?, lab.node(1).add_pod("client-2")?];
        let serve = |family| Server::start(lab.client(), "outside", (client_ip(family), TARGET).into());
        let outside = Family::ALL.map(serve).into_iter().collect::<Result<_>>()?;
        println!("TC programs attached by: {}", attached_by(lab.node(0))?);
        println!("socket hooks attached: {}", socket_hooks(lab.node(0))?);
        Ok(Self { web, clients, _outside: outside, lab })
    }

    /// A Service with these servers as backends, at its ClusterIP and a NodePort.
    fn service(&self, number: u8, source_ip: Option<&str>, web: &[&Pod]) -> Result<Service> {
        let service = Service::new(&format!("web-{number}"), number, 80, TARGET).node_port(30_000 + u16::from(number));
        service.apply(&self.lab, source_ip)?;
        service.set_endpoints(&self.lab, web)?;
        Ok(service)
    }
}

#[test]
fn tour() -> Result<()> {
    cases!(
        Site::new()?,
        pods_and_hosts_reach_pods,
        pods_use_cluster_ips,
        external_clients_use_node_ports,
        direct_return_preserves_external_client_addresses,
        pods_are_masqueraded_outside,
        host_processes_use_cluster_ips,
        flows_survive_a_killed_daemon,
    )
}

/// How programs are attached to the uplink: TCX, or a clsact filter before Linux 6.6.
fn attached_by(node: &Node) -> Result<&'static str> {
    let query = node.place.netns().run(|| SchedClassifier::query_tcx("eth0", TcAttachType::Ingress))?;
    if query.is_ok_and(|(_, programs)| !programs.is_empty()) {
        return Ok("TCX");
    }
    let filters = node.place.run("tc", &["filter", "show", "dev", "eth0", "ingress"])?;
    ensure!(filters.contains("direct-action"), "no program is attached to eth0: {filters}");
    Ok("clsact")
}

/// Number of socket hooks attached through links.
fn socket_hooks(node: &Node) -> Result<usize> {
    let links = PinDir::new(&node.bpffs()).links();
    let entries = fs::read_dir(&links).with_context(|| format!("can't read {}", links.display()))?;
    let names = entries.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|entry| entry.file_name());
    Ok(names.filter(|name| name.to_string_lossy().starts_with("sock_")).count())
}

fn pods_and_hosts_reach_pods(site: &Site) -> Result<()> {
    for family in Family::ALL {
        let far = site.web[1].ip(family);
        eventually("a route to the other node's pods", || Ok(site.clients[0].place.ping(far)?))?;
        for pod in &site.web {
            for client in &site.clients {
                client.place.is_seen_as(client.ip(family), pod.addr(family, TARGET), pod.name())?;
            }
            for node in site.lab.nodes() {
                node.place.is_seen_as(node.ip(family), pod.addr(family, TARGET), pod.name())?;
            }
        }
    }
    Ok(())
}

/// Sends requests until each server has answered; the peer must be the Service's address, and the servers must see this
/// client address.
fn spread(place: &Place, transport: Transport, to: SocketAddr, seen: impl Fn(&str) -> IpAddr) -> Result<()> {
    let what = || format!("{transport} from {} to {to}", place.name());
    place.reaches(transport, to, &WEB)?;
    let mut servers = BTreeSet::new();
    // The probability that one of two backends is missed in 60 attempts is 2^-59.
    for _ in 0..60 {
        let answer = Ask::new(transport, to).from(place).with_context(what)?;
        ensure!(answer.peer == to, "{}: the answer came from {}", what(), answer.peer);
        let expected = seen(&answer.server);
        ensure!(answer.seen.ip() == expected, "{}: seen as {} instead of {expected}", what(), answer.seen.ip());
        servers.insert(answer.server);
        if servers.len() == WEB.len() {
            return Ok(());
        }
    }
    anyhow::bail!("{}: only {servers:?} answered", what())
}

fn pods_use_cluster_ips(site: &Site) -> Result<()> {
    let both = site.service(10, None, &[&site.web[0], &site.web[1]])?;
    let itself = site.service(11, None, &[&site.web[0]])?;
    let hidden = site.service(12, Some("snat"), &[&site.web[1]])?;
    for (family, transport) in Transport::over_all() {
        for client in &site.clients {
            spread(&client.place, transport, both.addr(family), |_| client.ip(family))?;
        }
        let seen = site.web[0].place.reaches(transport, itself.addr(family), &WEB[..1])?;
        ensure!(seen != site.web[0].ip(family), "{transport}/{family}: a pod saw itself as the client");
        let node = Outcome::answer(WEB[1], site.lab.node(0).ip(family));
        site.clients[0].place.expect(transport, hidden.addr(family), &node)?;
        let refused = (both.ip(family), 81).into();
        site.clients[0].place.expect(transport, refused, &Outcome::Refused)?;
    }
    Ok(())
}

/// A backend on the addressed node sees the client; a backend on another node sees the addressed node.
fn external_clients_use_node_ports(site: &Site) -> Result<()> {
    let service = site.service(20, None, &[&site.web[0], &site.web[1]])?;
    let node = site.lab.node(0);
    for (family, transport) in Transport::over_all() {
        let seen = |server: &str| if server == WEB[0] { client_ip(family) } else { node.ip(family) };
        spread(site.lab.client(), transport, service.at(node, family), seen)?;
        for place in [&site.clients[1].place, &site.lab.node(1).place] {
            place.reaches(transport, service.at(node, family), &WEB)?;
        }
    }
    Ok(())
}

fn direct_return_preserves_external_client_addresses(site: &Site) -> Result<()> {
    let service = site.service(21, Some("preserve"), &[&site.web[0], &site.web[1]])?;
    let node = site.lab.node(0);
    for (family, transport) in Transport::over_all() {
        spread(site.lab.client(), transport, service.at(node, family), |_| client_ip(family))?;
    }
    Ok(())
}

fn pods_are_masqueraded_outside(site: &Site) -> Result<()> {
    for (family, transport) in Transport::over_all() {
        for (client, node) in site.clients.iter().zip(site.lab.nodes()) {
            let expected = Outcome::answer("outside", node.ip(family));
            client.place.expect(transport, (client_ip(family), TARGET).into(), &expected)?;
        }
    }
    Ok(())
}

/// First in the socket hooks, if the kernel supports them, then per packet through podnet0.
fn host_processes_use_cluster_ips(site: &Site) -> Result<()> {
    let service = site.service(10, None, &[&site.web[0], &site.web[1]])?;
    let node = site.lab.node(0);
    let used = || {
        Transport::over_all().try_for_each(|(family, transport)| {
            spread(&node.place, transport, service.addr(family), |_| node.ip(family))
        })
    };
    used()?;
    let configured = |mode| {
        node.stop_daemon()?;
        node.configure(|config| config.socket_lb = mode)?;
        node.start_daemon()
    };
    configured(SocketLb::Off)?;
    ensure!(socket_hooks(node)? == 0, "socket hooks are left");
    used().context("without socket hooks")?;
    configured(SocketLb::Host)?;
    used().context("with socket hooks again")
}

fn flows_survive_a_killed_daemon(site: &Site) -> Result<()> {
    let inside = site.service(10, None, &[&site.web[0], &site.web[1]])?;
    let direct = site.service(21, Some("preserve"), &[&site.web[1]])?;
    let hidden = site.service(22, Some("snat"), &[&site.web[1]])?;
    let node = site.lab.node(0);
    let mut streams = Vec::new();
    for (family, transport) in Transport::over_all() {
        for (place, to) in [
            (&site.clients[0].place, site.web[1].addr(family, TARGET)),
            (&site.clients[0].place, inside.addr(family)),
            (&node.place, inside.addr(family)),
            (site.lab.client(), direct.at(node, family)),
            (site.lab.client(), hidden.at(node, family)),
            (&site.clients[0].place, (client_ip(family), TARGET).into()),
        ] {
            let what = format!("{transport} from {} to {to}", place.name());
            let stream = eventually(&what, || {
                place.ask(transport, to)?;
                Ok(Stream::start(place, transport, to, Duration::from_millis(20))?)
            })?;
            streams.push((what, stream));
        }
    }
    let flow = |when: &str| -> Result<()> {
        let before: Vec<_> = streams.iter().map(|(_, stream)| stream.answered()).collect();
        for ((what, stream), before) in streams.iter().zip(before) {
            wait_until(&format!("{what} goes on {when}"), || Ok(stream.answered() >= before + 20))?;
        }
        Ok(())
    };
    flow("at first")?;
    site.lab.nodes().iter().try_for_each(|node| node.kill_daemon())?;
    flow("while no daemon runs")?;
    let mut orphan = node.add_pod("orphan").context("a pod while no daemon runs")?;
    orphan.serve(TARGET)?;
    for (family, transport) in Transport::over_all() {
        site.clients[1].place.reaches(transport, orphan.addr(family, TARGET), &["orphan"])?;
        orphan.place.reaches(transport, inside.addr(family), &WEB)?;
    }
    // The programs of one node are replaced, those of the other node are kept.
    node.disown_programs()?;
    site.lab.nodes().iter().try_for_each(|node| node.start_daemon())?;
    flow("with new daemons")?;
    orphan.delete()?;
    for (what, stream) in streams {
        let report = stream.stop();
        ensure!(report.is_clean(), "{what}: {report:?}");
    }
    Ok(())
}
