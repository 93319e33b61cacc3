//! Load balancer addresses and external IPs: permitted clients, source addresses, and ports that no service defines.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Place, Pod, Service, client_ip, eventually, vips};
use podnet_tests::traffic::{Ask, Family, Outcome, Ping, PingAnswer, Server, Transport};

/// Port of the pods.
const TARGET: u16 = 8080;

/// Two nodes with a backend each, an external client that routes virtual addresses to node1, and client pods.
struct Site {
    near: Pod,
    far: Pod,
    clients: [Pod; 2],
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).build()?;
        lab.route_vips(lab.client(), lab.node(0))?;
        let near = lab.node(0).add_server("near", TARGET)?;
        let far = lab.node(1).add_server("far", TARGET)?;
        let clients = [lab.node(0).add_pod("client-1")?, lab.node(1).add_pod("client-2")?];
        Ok(Self { near, far, clients, lab })
    }

    /// Pods and hosts of both nodes.
    fn inside(&self) -> impl Iterator<Item = &Place> {
        let pods = self.clients.iter().chain([&self.near, &self.far]).map(|pod| &pod.place);
        pods.chain(self.lab.nodes().iter().map(|node| &node.place))
    }

    fn apply(&self, service: &Service, mode: &str, backend: &Pod) -> Result<()> {
        service.apply(&self.lab, Some(mode))?;
        service.set_endpoints(&self.lab, &[backend])
    }

    /// Outcome of the external client's requests through node1.
    fn expected(&self, mode: &str, backend: &Pod, family: Family) -> Outcome {
        let client = client_ip(family);
        let seen = match (mode, backend.name()) {
            ("preserve", _) | ("auto", "near") => client,
            _ => self.lab.node(0).ip(family),
        };
        Outcome::answer(backend.name(), seen)
    }
}

fn addr(ips: [IpAddr; 2], family: Family, port: u16) -> SocketAddr {
    (ips[family as usize], port).into()
}

#[test]
fn external_addresses() -> Result<()> {
    cases!(
        Site::new()?,
        load_balancer_addresses_and_external_ips_reach_the_backends,
        ip_mode_proxy_is_not_short_circuited,
        external_ip_can_be_a_node_address,
        host_process_reaches_load_balancer_address_assigned_to_its_host,
        source_ranges_apply_to_load_balancer_addresses_only,
        undefined_ports_are_refused_and_never_loop,
        external_ip_takes_only_the_service_ports_of_a_machine,
        addresses_with_a_backend_answer_echo_requests
    )
}

fn load_balancer_addresses_and_external_ips_reach_the_backends(site: &Site) -> Result<()> {
    let mut number = 0;
    for mode in ["auto", "preserve", "snat"] {
        for backend in [&site.near, &site.far] {
            number += 1;
            let (ingress, external) = (vips(number), vips(100 + number));
            let service = Service::new(&format!("s{number}"), 20 + number, 80, TARGET)
                .load_balancer(&ingress, 0)
                .external_ips(&external);
            site.apply(&service, mode, backend)?;
            for (family, transport) in Transport::over_all() {
                for ips in [ingress, external] {
                    let (to, expected) = (addr(ips, family, 80), site.expected(mode, backend, family));
                    let what = || format!("mode {mode}, {} backend", backend.name());
                    site.lab.client().expect(transport, to, &expected).with_context(what)?;
                    // Internal clients do not use the load balancer, which does not exist here.
                    for place in site.inside() {
                        place.reaches(transport, to, &[backend.name()]).with_context(what)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn ip_mode_proxy_is_not_short_circuited(site: &Site) -> Result<()> {
    let ips = vips(10);
    let service = Service::new("proxied", 40, 80, TARGET).load_balancer(&ips, 30_040).ip_mode("Proxy");
    site.apply(&service, "auto", &site.near)?;
    // The load balancer is a machine with these addresses; packets of nodes to it leave the node.
    let balancer = site.lab.fabric();
    let mut servers = Vec::new();
    for ip in ips {
        balancer.ip(&format!("addr add {ip} dev br0\n"))?;
        servers.push(Server::start(balancer, "balancer", (ip, 80).into())?);
    }
    for (family, transport) in Transport::over_all() {
        for place in site.inside() {
            let node = (site.lab.node(0).ip(family), 30_040).into();
            place.reaches(transport, node, &["near"])?;
            place.reaches(transport, service.addr(family), &["near"])?;
            place.reaches(transport, addr(ips, family, 80), &["balancer"])?;
        }
    }
    // With ipMode VIP the address is short-circuited, with Proxy it is not.
    for (mode, server) in [("VIP", "near"), ("Proxy", "balancer")] {
        service.clone().ip_mode(mode).apply(&site.lab, None)?;
        for place in site.inside() {
            for (family, transport) in Transport::over_all() {
                place.reaches(transport, addr(ips, family, 80), &[server]).context(mode)?;
            }
        }
    }
    Ok(())
}

fn external_ip_can_be_a_node_address(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let ips = Family::ALL.map(|family| node.ip(family));
    let service = Service::new("own", 41, 80, TARGET).external_ips(&ips);
    site.apply(&service, "auto", &site.far)?;
    let _servers = node.serve(8081)?;
    let outside_and_in = || [site.lab.client()].into_iter().chain(site.inside());
    for (family, transport) in Transport::over_all() {
        for place in outside_and_in() {
            place.reaches(transport, addr(ips, family, 80), &["far"])?;
            place.reaches(transport, addr(ips, family, 8081), &["node1"]).context("the host's own port")?;
            place.expect(transport, addr(ips, family, 8082), &Outcome::Refused).context("nobody's port")?;
        }
        site.lab.client().ping(node.ip(family))?;
    }
    service.delete(&site.lab)?;
    for (family, transport) in Transport::over_all() {
        for place in outside_and_in() {
            place.expect(transport, addr(ips, family, 80), &Outcome::Refused).context("deleted")?;
        }
    }
    Ok(())
}

fn host_process_reaches_load_balancer_address_assigned_to_its_host(site: &Site) -> Result<()> {
    let (node, ips) = (site.lab.node(0), vips(12));
    // A load balancer that runs on the nodes has the addresses on lo, and no other machine has a route to them.
    let lines = |verb: &str| format!("addr {verb} {}/32 dev lo\naddr {verb} {}/128 dev lo\n", ips[0], ips[1]);
    let service = Service::new("held", 43, 80, TARGET).load_balancer(&ips, 30_043);
    for backend in [&site.near, &site.far] {
        site.apply(&service, "auto", backend)?;
        for held in [false, true] {
            if held {
                node.place.ip(&lines("add"))?;
            }
            for (family, transport) in Transport::over_all() {
                node.place.reaches(transport, addr(ips, family, 80), &[backend.name()])?;
            }
        }
        node.place.ip(&lines("del"))?;
    }
    Ok(())
}

fn source_ranges_apply_to_load_balancer_addresses_only(site: &Site) -> Result<()> {
    let client = site.lab.client();
    client.ip("addr add 172.30.0.150/24 dev eth0\naddr add fd00:30::150/64 dev eth0\n")?;
    let ips = vips(11);
    let service = Service::new("ranged", 42, 80, TARGET).load_balancer(&ips, 30_042);
    let ranged = service.clone().source_ranges(&["172.30.0.144/28", "fd00:30::150/128"]);
    let from =
        |family| -> Result<IpAddr> { Ok(if family == Family::V4 { "172.30.0.150" } else { "fd00:30::150" }.parse()?) };
    let ask = |transport, family, ip| Outcome::of(client, &Ask::new(transport, addr(ips, family, 80)).from_ip(ip));
    for (mode, backend) in [("auto", &site.near), ("auto", &site.far), ("snat", &site.far), ("preserve", &site.far)] {
        ranged.set_endpoints(&site.lab, &[backend])?;
        ranged.apply(&site.lab, Some(mode))?;
        for (family, transport) in Transport::over_all() {
            let what = || format!("mode {mode}, {} backend, {transport}/{family}", backend.name());
            let before = site.lab.node(0).drops()?;
            eventually("the ranges are known", || {
                let (in_range, not) =
                    (ask(transport, family, from(family)?), ask(transport, family, client_ip(family)));
                let answered = matches!(&in_range, Outcome::Answer { server, .. } if server == backend.name());
                ensure!(answered, "in range: {in_range}");
                ensure!(not == Outcome::Silence, "not in range: {not}");
                Ok(())
            })
            .with_context(what)?;
            let count =
                |drops: &std::collections::BTreeMap<String, u64>| drops.get("source_range").copied().unwrap_or(0);
            ensure!(count(&site.lab.node(0).drops()?) > count(&before), "{}: not counted", what());
            // Source ranges do not apply to the Service's other addresses.
            let node = (site.lab.node(0).ip(family), 30_042).into();
            client.reaches(transport, node, &[backend.name()]).with_context(what).context("NodePort")?;
            site.clients[0].place.reaches(transport, service.addr(family), &[backend.name()]).context("ClusterIP")?;
        }
    }
    // Ranges of one family exclude all clients of the other.
    service.clone().source_ranges(&["172.30.0.0/24"]).apply(&site.lab, None)?;
    for transport in Transport::ALL {
        client.reaches(transport, addr(ips, Family::V4, 80), &["far"])?;
        client.expect(transport, addr(ips, Family::V6, 80), &Outcome::Silence)?;
    }
    service.apply(&site.lab, None)?;
    for (family, transport) in Transport::over_all() {
        client.reaches(transport, addr(ips, family, 80), &["far"]).context("without ranges again")?;
    }
    Ok(())
}

fn undefined_ports_are_refused_and_never_loop(site: &Site) -> Result<()> {
    let (used, empty) = (vips(12), vips(13));
    let service = Service::new("used", 43, 80, TARGET).load_balancer(&used, 0).external_ips(&vips(14));
    site.apply(&service, "auto", &site.far)?;
    let none = Service::new("none", 44, 80, TARGET).load_balancer(&empty, 0);
    none.apply(&site.lab, None)?;
    for (family, transport) in Transport::over_all() {
        for place in [site.lab.client()].into_iter().chain(site.inside()) {
            place.reaches(transport, addr(used, family, 80), &["far"])?;
            place.expect(transport, addr(empty, family, 80), &Outcome::Refused).context("no endpoint")?;
        }
        // The router would send the packet back to the node. For internal clients no service has the address.
        for (ips, what) in [
            (used, "an undefined port of a balancer"),
            (vips(14), "an undefined port of an external IP"),
            (empty, "an undefined port without endpoints"),
        ] {
            site.lab.client().expect(transport, addr(ips, family, 81), &Outcome::Refused).context(what)?;
        }
    }
    Ok(())
}

/// An external IP that belongs to a machine, such as an API server: the machine keeps the ports that the service does
/// not define, including live connections, and receives replies from hosts and pods.
fn external_ip_takes_only_the_service_ports_of_a_machine(site: &Site) -> Result<()> {
    const OTHER: u16 = 6443;
    let ips = vips(18);
    let machine = site.lab.client();
    let (node, near) = (site.lab.node(0), &site.near);
    let mut servers = Vec::new();
    for (ip, family) in ips.into_iter().zip(Family::ALL) {
        machine.ip(&format!("addr add {ip} dev lo\nroute add {} via {}\n", near.ip(family), node.ip(family)))?;
        for node in site.lab.nodes() {
            node.place.ip(&format!("route add {ip} via {}\n", client_ip(family)))?;
        }
        for port in [80, OTHER] {
            servers.push(Server::start(machine, "machine", (ip, port).into())?);
        }
        servers.push(Server::start(&node.place, "node1", (node.ip(family), OTHER).into())?);
    }
    let mut live = Vec::new();
    for (family, transport) in Transport::over_all() {
        for place in site.inside() {
            place.reaches(transport, addr(ips, family, 80), &["machine"])?;
            live.push(Ask::new(transport, addr(ips, family, OTHER)).connected().open(place)?);
        }
    }
    let service = Service::new("shadow", 47, 80, TARGET).external_ips(&ips).node_port(30_047);
    site.apply(&service, "auto", &site.far)?;
    for (family, transport) in Transport::over_all() {
        for place in site.inside() {
            let what = || format!("{} over {transport:?} and {family:?}", place.name());
            place.reaches(transport, addr(ips, family, 80), &["far"]).with_context(what)?;
            place.reaches(transport, addr(ips, family, OTHER), &["machine"]).with_context(what)?;
        }
        // The machine as client of a host process, a pod, and a NodePort of the service.
        let to =
            [(node.ip(family), OTHER, "node1"), (near.ip(family), TARGET, "near"), (node.ip(family), 30_047, "far")];
        for (ip, port, server) in to {
            let ask = Ask::new(transport, (ip, port).into()).from_ip(ips[family as usize]);
            let answer = ask.from(machine).with_context(|| format!("{server} over {transport:?} and {family:?}"))?;
            ensure!(answer.server == server, "{answer:?}");
        }
    }
    for place in site.inside() {
        ips.into_iter().try_for_each(|ip| place.ping(ip)).with_context(|| place.name().to_owned())?;
    }
    for flow in &live {
        ensure!(flow.ask().context("a live connection to the machine")?.server == "machine");
    }
    let rules = || Ok::<_, anyhow::Error>(node.place.run("ip", &["rule"])? + &node.place.run("ip", &["-6", "rule"])?);
    ensure!(rules()?.matches("iif lo lookup 112").count() == 2, "{}", rules()?);
    service.delete(&site.lab)?;
    for (family, transport) in Transport::over_all() {
        let healed =
            || site.inside().try_for_each(|p| p.reaches(transport, addr(ips, family, 80), &["machine"]).map(drop));
        eventually("the machine has its port again", healed)?;
    }
    eventually("no rule", || {
        ensure!(!rules()?.contains("lookup 112"), "{}", rules()?);
        Ok(())
    })?;
    for (ip, family) in ips.into_iter().zip(Family::ALL) {
        machine.ip(&format!("addr del {ip} dev lo\nroute del {}\n", near.ip(family)))?;
        for node in site.lab.nodes() {
            node.place.ip(&format!("route del {ip}\n"))?;
        }
    }
    Ok(())
}

fn addresses_with_a_backend_answer_echo_requests(site: &Site) -> Result<()> {
    let (used, external, empty) = (vips(15), vips(16), vips(17));
    let service = Service::new("used", 45, 80, TARGET).load_balancer(&used, 0).external_ips(&external);
    site.apply(&service, "auto", &site.far)?;
    let none = Service::new("none", 46, 80, TARGET).load_balancer(&empty, 0);
    none.apply(&site.lab, None)?;
    let echo =
        |place: &Place, ip: IpAddr| match Ping::new(ip).timeout(std::time::Duration::from_millis(300)).from(place) {
            Ok(PingAnswer::Reply(from)) => from == ip,
            _ => false,
        };
    let answers = |place: &Place, ip: IpAddr, wanted: bool| {
        eventually("an echo reply", || {
            if echo(place, ip) == wanted {
                return Ok(());
            }
            bail!("{} pings {ip}: {}", place.name(), if wanted { "silence" } else { "a reply" })
        })
    };
    for family in Family::ALL {
        answers(site.lab.client(), used[family as usize], true)?;
        answers(site.lab.client(), external[family as usize], true)?;
        answers(site.lab.client(), empty[family as usize], false)?;
        for place in site.inside() {
            answers(place, service.ip(family), true)?;
            answers(place, none.ip(family), false)?;
        }
    }
    service.set_endpoints(&site.lab, &[] as &[&Pod])?;
    for family in Family::ALL {
        answers(site.lab.client(), used[family as usize], false)?;
        answers(&site.clients[0].place, service.ip(family), false)?;
    }
    Ok(())
}
