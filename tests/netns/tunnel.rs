//! The tunnel: pods, nodes and services across nodes that share no link.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podnet::config::Routing;
use podnet_tests::cases;
use podnet_tests::lab::{Families, Lab, Node, Pod, Service, eventually, vips, wait_until};
use podnet_tests::traffic::{Ask, Family, Frames, Outcome, Server, Stream, Transport, udp_frame};
use serde_json::Value;

/// Port of the servers.
const TARGET: u16 = 8080;
/// Port of the nodes' host processes.
const HOST_TARGET: u16 = 9090;
/// The tunnel device.
const TUNNEL: &str = "podnet-vxlan";
/// Its MTU over IPv4, with nodes at 1500.
const MTU: u32 = 1450;
/// The UDP port of the tunnel.
const PORT: u16 = 8472;

/// A server in a pod on every node, and in every node's host network.
struct Site {
    pods: Vec<Pod>,
    _hosts: Vec<Vec<Server>>,
    lab: Lab,
}

impl Site {
    fn new(lab: Lab) -> Result<Self> {
        let pods: Result<Vec<_>> =
            lab.nodes().iter().map(|node| node.add_server(&format!("on-{}", node.name()), TARGET)).collect();
        let hosts: Result<_> = lab.nodes().iter().map(|node| node.serve(HOST_TARGET)).collect();
        let site = Self { pods: pods?, _hosts: hosts?, lab };
        for (family, from) in site.over_pods() {
            for to in &site.pods {
                eventually("a way to all pods", || Ok(from.place.ping(to.ip(family))?))
                    .with_context(|| format!("{} → {}, {}", from.name(), to.name(), family.name()))?;
            }
        }
        Ok(site)
    }

    fn routed() -> Result<Self> {
        Self::new(Lab::builder().nodes(3).client(true).routed(true).build()?)
    }

    fn over_pods(&self) -> impl Iterator<Item = (Family, &Pod)> {
        let families: Vec<_> = self.pods[0].ips.iter().map(|ip| Family::of(*ip)).collect();
        families.into_iter().flat_map(|family| self.pods.iter().map(move |pod| (family, pod)))
    }

    /// Pods and processes of all nodes reach those of all other nodes, with their own addresses.
    fn all_pairs(&self) -> Result<()> {
        for (family, from) in self.over_pods() {
            for to in &self.pods {
                from.place.is_seen_as(from.ip(family), to.addr(family, TARGET), to.name())?;
            }
            for node in self.lab.nodes() {
                from.place.is_seen_as(from.ip(family), (node.ip(family), HOST_TARGET).into(), node.name())?;
                node.place.is_seen_as(node.ip(family), from.addr(family, TARGET), from.name())?;
            }
        }
        Ok(())
    }
}

/// Entries of a node's tunnel: MACs in its forwarding table, neighbours, and routes.
fn entries(node: &Node) -> Result<[BTreeSet<String>; 3]> {
    let rows = |program: &str, args: &[&str], key: &str| -> Result<BTreeSet<String>> {
        let rows: Vec<Value> = serde_json::from_str(&node.place.run(program, args)?)?;
        Ok(rows.iter().filter_map(|row| Some(row[key].as_str()?.to_owned())).collect())
    };
    let mut routes = rows("ip", &["-j", "route", "show", "dev", TUNNEL], "dst")?;
    routes.extend(rows("ip", &["-6", "-j", "route", "show", "dev", TUNNEL, "proto", "112"], "dst")?);
    Ok([
        rows("bridge", &["-j", "fdb", "show", "dev", TUNNEL], "mac")?,
        rows("ip", &["-j", "neigh", "show", "dev", TUNNEL, "nud", "permanent"], "dst")?,
        routes,
    ])
}

#[test]
fn nodes_behind_a_router() -> Result<()> {
    cases!(
        Site::routed()?,
        all_pods_and_hosts_reach_each_other,
        services_work_as_on_one_link,
        external_client_addresses_are_preserved,
        large_packets_are_delivered_or_reported,
        forged_tunnel_packets_are_dropped,
        flows_survive_daemon_upgrades,
        status_shows_the_tunnel,
        removed_parts_are_restored_at_once,
        // These change the cluster.
        shared_link_is_used_while_it_exists,
        nodes_are_added_moved_and_removed,
        cleanup_leaves_nothing
    )
}

fn all_pods_and_hosts_reach_each_other(site: &Site) -> Result<()> {
    site.all_pairs()?;
    for node in site.lab.nodes() {
        let [macs, neighbours, routes] = entries(node)?;
        ensure!((macs.len(), neighbours.len(), routes.len()) == (2, 4, 4), "{macs:?} {neighbours:?} {routes:?}");
    }
    Ok(())
}

/// ClusterIPs from pods and hosts, NodePorts from pods, hosts and outside, in all modes, with backends in pods and
/// hosts.
fn services_work_as_on_one_link(site: &Site) -> Result<()> {
    let (lab, client) = (&site.lab, site.lab.client());
    let outside: [IpAddr; 2] = [[172, 30, 0, 100].into(), [0xfd00, 0x30, 0, 0, 0, 0, 0, 0x100].into()];
    let pod = Service::new("pod", 20, 80, TARGET).node_port(30_020);
    let host = Service::new("host", 21, 80, HOST_TARGET).node_port(30_021);
    for mode in ["auto", "snat"] {
        pod.apply(lab, Some(mode))?;
        pod.set_endpoints(lab, &[&site.pods[1]])?;
        host.apply(lab, Some(mode))?;
        host.set_endpoints(lab, &Family::ALL.map(|family| lab.node(1).ip(family)))?;
        for (family, transport) in Transport::over_all() {
            let node = |n: usize| lab.node(n).ip(family);
            let from_pod = if mode == "snat" { node(0) } else { site.pods[0].ip(family) };
            for (service, backend) in [(&pod, "on-node2"), (&host, "node2")] {
                let what = || format!("{mode}, backend {backend}");
                let seen_as = |ip| Outcome::answer(backend, ip);
                let at_node = |n: usize| SocketAddr::new(node(n), service.at_nodes());
                let place = &site.pods[0].place;
                place.expect(transport, service.addr(family), &seen_as(from_pod)).with_context(what)?;
                place.expect(transport, at_node(0), &seen_as(from_pod)).with_context(what)?;
                lab.node(0).place.expect(transport, service.addr(family), &seen_as(node(0))).with_context(what)?;
                // Through a third node, which is the client that the backend sees.
                client.expect(transport, at_node(2), &seen_as(node(2))).with_context(what)?;
                place.expect(transport, at_node(2), &seen_as(node(2))).with_context(what)?;
                // At the backend's own node.
                let direct = if mode == "snat" { node(1) } else { outside[family as usize] };
                if backend == "on-node2" {
                    client.expect(transport, at_node(1), &seen_as(direct)).with_context(what)?;
                }
            }
        }
    }
    pod.delete(lab)?;
    host.delete(lab)
}

fn external_client_addresses_are_preserved(site: &Site) -> Result<()> {
    let lab = &site.lab;
    lab.route_vips(lab.client(), lab.node(0))?;
    let service = Service::new("direct", 22, 80, TARGET).load_balancer(&vips(1), 30_022);
    service.apply(lab, Some("preserve"))?;
    service.set_endpoints(lab, &[&site.pods[1]])?;
    let outside: [IpAddr; 2] = [[172, 30, 0, 100].into(), [0xfd00, 0x30, 0, 0, 0, 0, 0, 0x100].into()];
    for family in Family::ALL {
        let expected = Outcome::answer("on-node2", outside[family as usize]);
        for to in [(lab.node(0).ip(family), service.at_nodes()), (vips(1)[family as usize], service.port())] {
            for transport in Transport::ALL {
                lab.client().expect(transport, to.into(), &expected)?;
            }
            lab.client().exchanges_much(to.into())?;
        }
    }
    let flows = lab.node(0).podnet_json(&["conntrack", "list"])?;
    let ways: Vec<_> = flows.as_array().context("no list")?.iter().filter_map(|flow| flow["egress"].as_str()).collect();
    ensure!(ways.contains(&"tunnel"), "{flows}");
    service.delete(lab)
}

/// Pods have the tunnel's MTU, and senders of larger packets get an ICMP error.
fn large_packets_are_delivered_or_reported(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let link = site.pods[0].place.run("ip", &["link", "show", "eth0"])?;
    ensure!(link.contains(&format!("mtu {MTU} ")), "{link}");
    // A pod created before there was a tunnel.
    let old = lab.node(0).add_pod("old")?;
    old.place.ip("link set eth0 mtu 1500\n")?;
    lab.node(0).place.ip(&format!("link set {} mtu 1500\n", old.host_ifname()?))?;
    let service = Service::new("large", 23, 80, TARGET).node_port(30_023);
    service.apply(lab, None)?;
    service.set_endpoints(lab, &[&site.pods[1]])?;
    let host = Service::new("large-host", 24, 80, HOST_TARGET);
    host.apply(lab, None)?;
    host.set_endpoints(lab, &Family::ALL.map(|family| lab.node(1).ip(family)))?;
    for (family, transport) in Transport::over_all() {
        old.place.reaches(transport, service.addr(family), &["on-node2"])?;
        old.place.reaches(transport, host.addr(family), &["node2"])?;
    }
    for family in Family::ALL {
        let node: SocketAddr = (lab.node(1).ip(family), HOST_TARGET).into();
        for to in [site.pods[1].addr(family, TARGET), service.addr(family), node, host.addr(family)] {
            let ask = Ask::new(Transport::Udp, to).payload("z".repeat(1460)).connected().whole();
            let ask = ask.timeout(Duration::from_millis(500));
            eventually("the sender is told", || {
                let error = ask.open(&old.place)?.ask().err().context("it was answered")?;
                ensure!(error.raw_os_error() == Some(libc::EMSGSIZE), "{error}");
                Ok(())
            })
            .with_context(|| format!("to {to}"))?;
            old.place.exchanges_much(to)?;
            lab.node(0).place.exchanges_much(to)?;
        }
        lab.client().exchanges_much(service.at(lab.node(0), family))?;
    }
    service.delete(lab)?;
    host.delete(lab)
}

/// VXLAN packet (RFC 7348, section 5) that contains this frame.
fn vxlan(frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, 112, 0], frame].concat()
}

fn forged_tunnel_packets_are_dropped(site: &Site) -> Result<()> {
    let (lab, node) = (&site.lab, site.lab.node(0));
    let (client, into) = (Frames::on(lab.client(), "eth0")?, Frames::on(&site.pods[0].place, "eth0")?);
    let macs = (lab.client().mac("eth0")?, node.place.mac("eth0")?);
    let attacker = node.add_pod("attacker")?;
    let inner_macs = (lab.node(1).place.mac(TUNNEL)?, node.place.mac(TUNNEL)?);
    for family in Family::ALL {
        let from = |payload: &[u8]| {
            let (src, dst) = (site.pods[1].addr(family, 9), site.pods[0].addr(family, 9));
            udp_frame(inner_macs, src, dst, payload)
        };
        let outer = |outside: IpAddr, payload: &[u8]| {
            let to = SocketAddr::new(node.ip(Family::V4), PORT);
            udp_frame(macs, SocketAddr::new(outside, 50_000), to, &vxlan(&from(payload)))
        };
        let before = node.drops()?.get("tunnel_from_outside").copied().unwrap_or(0);
        client.send(&outer([172, 30, 0, 100].into(), b"forged"))?;
        // The same frame with the node's source address is accepted.
        client.send(&outer(lab.node(1).ip(Family::V4), b"honest"))?;
        let mut forged = false;
        let honest = into.expect(Duration::from_secs(5), |frame| {
            forged |= frame.ends_with(b"forged");
            frame.ends_with(b"honest")
        })?;
        ensure!(honest.is_some() && !forged, "honest {}, forged {forged}", honest.is_some());
        let after = node.drops()?.get("tunnel_from_outside").copied().unwrap_or(0);
        ensure!(after == before + 1, "{before} → {after}");
        // From a pod on the node itself.
        let (out, own) = (Frames::on(&attacker.place, "eth0")?, attacker.place.mac("eth0")?);
        let gateway = node.place.mac(&attacker.host_ifname()?)?;
        let to = SocketAddr::new(node.ip(Family::V4), PORT);
        out.send(&udp_frame((own, gateway), attacker.addr(Family::V4, 9), to, &vxlan(&from(b"forged"))))?;
        wait_until("it is counted", || Ok(node.drops()?.get("tunnel_from_outside") == Some(&(before + 2))))?;
        ensure!(into.expect(Duration::from_millis(50), |frame| frame.ends_with(b"forged"))?.is_none());
        // A packet from a pod's address outside the tunnel.
        let before = node.drops()?.get("pod_from_wrong_node").copied().unwrap_or(0);
        let (src, dst) = (site.pods[1].addr(family, 9), site.pods[0].addr(family, 9));
        client.send(&udp_frame(macs, src, dst, b"forged"))?;
        wait_until("it is counted", || {
            Ok(node.drops()?.get("pod_from_wrong_node").copied().unwrap_or(0) == before + 1)
        })?;
    }
    Ok(())
}

fn flows_survive_daemon_upgrades(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let service = Service::new("steady", 25, 80, TARGET).node_port(30_025);
    service.apply(lab, None)?;
    service.set_endpoints(lab, &[&site.pods[1]])?;
    let mut streams = Vec::new();
    for (family, transport) in Transport::over_all() {
        let pod = &site.pods[0].place;
        pod.reaches(transport, service.addr(family), &["on-node2"])?;
        lab.client().reaches(transport, service.at(lab.node(0), family), &["on-node2"])?;
        for (place, to) in [
            (pod, site.pods[1].addr(family, TARGET)),
            (pod, service.addr(family)),
            (&lab.node(0).place, site.pods[1].addr(family, TARGET)),
            (lab.client(), service.at(lab.node(0), family)),
        ] {
            streams.push(Stream::start(place, transport, to, Duration::from_millis(1))?);
        }
    }
    for node in [lab.node(0), lab.node(1)] {
        node.kill_daemon()?;
        node.disown_programs()?;
        node.start_daemon()?;
    }
    for stream in streams {
        let now = stream.answered();
        wait_until("more messages", || Ok(stream.answered() >= now + 100))?;
        let report = stream.stop();
        ensure!(report.is_clean(), "{report:?}");
    }
    service.delete(lab)
}

fn status_shows_the_tunnel(site: &Site) -> Result<()> {
    let text = site.lab.node(0).podnet(&["status"])?;
    for part in ["no problems found", "podnet-vxlan (mtu 1450): from_uplink tc, to_uplink tc", "4 through the tunnel"] {
        ensure!(text.contains(part), "no {part:?} in\n{text}");
    }
    Ok(())
}

fn removed_parts_are_restored_at_once(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let before = entries(node)?;
    let disturb = |what: &str, commands: &str| -> Result<()> {
        node.place.run("sh", &["-ec", commands])?;
        let start = Instant::now();
        eventually(what, || {
            ensure!(entries(node)? == before, "{:?}", entries(node)?);
            Ok(())
        })?;
        // Much less than the 30 s between the daemon's full checks.
        ensure!(start.elapsed() < Duration::from_secs(10), "{what}: after {:?}", start.elapsed());
        site.all_pairs()
    };
    let forget =
        format!("bridge fdb show dev {TUNNEL} | while read mac rest; do bridge fdb del $mac dev {TUNNEL}; done");
    disturb("the forwarding table", &forget)?;
    disturb(
        "neighbours",
        &format!("ip neigh flush dev {TUNNEL} nud permanent; ip -6 neigh flush dev {TUNNEL} nud permanent"),
    )?;
    disturb("routes", &format!("ip route flush dev {TUNNEL}; ip -6 route flush dev {TUNNEL}"))?;
    disturb("being up", &format!("ip link set {TUNNEL} down"))
}

fn shared_link_is_used_while_it_exists(site: &Site) -> Result<()> {
    let link = |verb: &str| -> Result<()> {
        for (node, other) in [(0, 1), (1, 0)] {
            for family in Family::ALL {
                let other = site.lab.node(other).ip(family);
                site.lab.node(node).place.ip(&format!("route {verb} {other} dev eth0\n"))?;
            }
        }
        Ok(())
    };
    let routes = |node: usize| -> Result<usize> { Ok(entries(site.lab.node(node))?[2].len()) };
    link("add")?;
    wait_until("the link is used", || Ok(routes(0)? == 2 && routes(1)? == 2 && routes(2)? == 4))?;
    eventually("all pods reach each other", || site.all_pairs())?;
    link("del")?;
    wait_until("the tunnel is used", || Ok(routes(0)? == 4 && routes(1)? == 4))?;
    eventually("all pods reach each other", || site.all_pairs())
}

fn nodes_are_added_moved_and_removed(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let last = lab.node(2);
    // Its Node object is deleted on the other nodes.
    for node in &lab.nodes()[..2] {
        let text = std::fs::read_to_string(node.manifest_dir().join("nodes.yaml"))?;
        let (rest, _) = text.rsplit_once("---").context("one node only")?;
        node.apply("nodes", rest)?;
        wait_until("its entries go", || Ok(entries(node)?.map(|rows| rows.len()) == [1, 2, 2]))?;
    }
    // It returns with other addresses.
    let moved: [IpAddr; 2] = [[172, 30, 0, 33].into(), [0xfd00, 0x30, 0, 0, 0, 0, 0, 0x33].into()];
    for (addr, length) in moved.iter().zip([32, 128]) {
        last.place.ip(&format!("addr add {addr}/{length} dev eth0\n"))?;
    }
    lab.apply_nodes(|node, object| {
        if node.name() == last.name() {
            let addresses = moved.map(|ip| serde_json::json!({"type": "InternalIP", "address": ip}));
            object["status"]["addresses"] = addresses.to_vec().into();
        }
    })?;
    for (family, from) in site.over_pods() {
        for to in &site.pods {
            eventually("all pods reach each other again", || {
                from.place.is_seen_as(from.ip(family), to.addr(family, TARGET), to.name())
            })?;
        }
    }
    let remote = lab.node(0).place.run("bridge", &["fdb", "show", "dev", TUNNEL])?;
    ensure!(remote.contains("172.30.0.33") && !remote.contains("172.30.0.3 "), "{remote}");
    lab.apply_nodes(|_, _| {})?;
    for (addr, length) in moved.iter().zip([32, 128]) {
        last.place.ip(&format!("addr del {addr}/{length} dev eth0\n"))?;
    }
    eventually("all pods reach each other", || site.all_pairs())
}

fn cleanup_leaves_nothing(site: &Site) -> Result<()> {
    let node = site.lab.node(2);
    node.stop_daemon()?;
    node.podnet(&["cleanup"])?;
    ensure!(node.place.ifindex(TUNNEL).is_err(), "the device is still there");
    Ok(())
}

#[test]
fn vxlan_routing_uses_the_tunnel_on_a_shared_link() -> Result<()> {
    let lab = Lab::builder().config(|_, config| config.routing = Routing::Vxlan).build()?;
    let site = Site::new(lab)?;
    site.all_pairs()?;
    for node in site.lab.nodes() {
        ensure!(entries(node)?.map(|rows| rows.len()) == [1, 2, 2]);
    }
    // Back to automatic routing: the tunnel is removed once all nodes know.
    for node in site.lab.nodes() {
        node.configure(|config| config.routing = Routing::Auto)?;
        node.stop_daemon()?;
    }
    for node in site.lab.nodes() {
        node.start_daemon()?;
        ensure!(node.place.ifindex(TUNNEL).is_err(), "the device is still there");
    }
    eventually("all pods reach each other", || site.all_pairs())
}

#[test]
fn ipv6_only_nodes_have_a_tunnel() -> Result<()> {
    let lab = Lab::builder().families(Families::V6).routed(true).build()?;
    let site = Site::new(lab)?;
    site.all_pairs()?;
    let node = site.lab.node(0);
    let mtu = node.place.run("cat", &[&format!("/sys/class/net/{TUNNEL}/mtu")])?;
    ensure!(mtu.trim() == "1430", "{mtu}");
    site.pods[0].place.exchanges_much(site.pods[1].addr(Family::V6, TARGET))
}

#[test]
fn unreachable_nodes_are_reported_with_the_cause() -> Result<()> {
    let lab = Lab::builder().routed(true).daemons(false).build()?;
    let [direct, taken] = [lab.node(0), lab.node(1)];
    direct.configure(|config| config.routing = Routing::Direct)?;
    direct.start_daemon()?;
    let status = |node: &Node, part: &str| {
        wait_until(part, || {
            let output = node.podnet_output(&["status"])?;
            Ok(String::from_utf8_lossy(&output.stdout).contains(part))
        })
    };
    status(direct, "behind the router 172.30.0.254, not on a link of this node: set `routing: auto`")?;
    ensure!(direct.place.ifindex(TUNNEL).is_err());
    taken.place.ip(&format!("link add {TUNNEL} type bridge\n"))?;
    taken.start_daemon()?;
    status(taken, "an interface podnet-vxlan exists that does not belong to podnet")?;
    status(taken, "the tunnel podnet-vxlan is missing")?;
    // The name becomes free.
    taken.place.ip(&format!("link del {TUNNEL}\n"))?;
    status(taken, "2 through the tunnel")
}

#[test]
fn connections_are_refused_through_the_tunnel() -> Result<()> {
    let site = Site::new(Lab::builder().routed(true).build()?)?;
    let service = Service::new("closed", 26, 80, 81);
    service.apply(&site.lab, None)?;
    service.set_endpoints(&site.lab, &[&site.pods[1]])?;
    for family in Family::ALL {
        for to in [site.pods[1].addr(family, 81), service.addr(family)] {
            eventually("it is refused", || {
                let error = site.pods[0].place.ask(Transport::Tcp, to).err().context("it was answered")?;
                ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
                Ok(())
            })
            .with_context(|| format!("{to}"))?;
        }
    }
    Ok(())
}
