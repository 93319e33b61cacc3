//! A node with several uplinks: every interface that is neither a pod's nor podnet's own leads outside, with or without
//! Ethernet, even if it appears late and no configuration names it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Endpoint, Lab, Node, Place, Pod, Service, Tun, eventually};
use podnet_tests::traffic::{Ask, Family, Frames, Outcome, Server, Transport, udp_frame};
use serde_json::{Value, json};

/// Port of the servers.
const PORT: u16 = 8080;
/// NodePorts: of all pods; of the other node's pod, with externalTrafficPolicy Local; of a host process.
const NODE_PORT: u16 = 30_080;
const LOCAL_PORT: u16 = 30_081;
const HOST_PORT: u16 = 30_082;

/// An interface of the first node, with a machine behind it.
struct Way {
    ifname: &'static str,
    number: u16,
    machine: Place,
    _servers: Vec<Server>,
    _tun: Option<Tun>,
}

impl Way {
    /// Connects a new machine and assigns addresses to both ends. The machine has another address on lo, to which the
    /// node has a route.
    fn new(
        lab: &Lab,
        number: u16,
        ifname: &'static str,
        wire: impl FnOnce(&Place, &Place) -> Result<Option<Tun>>,
    ) -> Result<Self> {
        let (node, machine) = (&lab.node(0).place, lab.add_machine(ifname)?);
        let tun = wire(node, &machine)?;
        let mut way = Self { ifname, number, machine, _servers: Vec::new(), _tun: tun };
        for family in Family::ALL {
            let length = if family == Family::V4 { 24 } else { 64 };
            let nodad = if family == Family::V4 { "" } else { " nodad" };
            node.ip(&format!("addr add {}/{length} dev {ifname}{nodad}\n", way.node(family)))?;
            way.machine.ip(&format!("addr add {}/{length} dev eth0{nodad}\n", way.there(family)))?;
            way.machine.ip(&format!("addr add {} dev lo\n", way.beyond(family)))?;
            node.ip(&format!("route add {} via {} dev {ifname}\n", way.beyond(family), way.there(family)))?;
            for at in [way.there(family), way.beyond(family)] {
                way._servers.push(Server::start(&way.machine, ifname, (at, PORT).into())?);
            }
        }
        Ok(way)
    }

    fn ip(&self, subnet: u16, host: u16, family: Family) -> IpAddr {
        match family {
            Family::V4 => [192, 168, subnet as u8, host as u8].into(),
            Family::V6 => [0xfd00, 0x168, subnet, 0, 0, 0, 0, host].into(),
        }
    }

    /// The node's address on the interface.
    fn node(&self, family: Family) -> IpAddr {
        self.ip(self.number, 1, family)
    }

    /// The machine's address.
    fn there(&self, family: Family) -> IpAddr {
        self.ip(self.number, 2, family)
    }

    /// The machine's address on lo.
    fn beyond(&self, family: Family) -> IpAddr {
        self.ip(100 + self.number, 2, family)
    }
}

/// Interfaces of every kind supported by this kernel, created after the start of the daemon, and a server on each node.
struct Site {
    ways: Vec<Way>,
    pods: [Pod; 2],
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().build()?;
        let pods = [lab.node(0).add_server("pod-1", PORT)?, lab.node(1).add_server("pod-2", PORT)?];
        let ways = vec![
            Way::new(&lab, 1, "nic", |node, machine| node.wire("nic", machine, "eth0", 1500).map(|()| None))?,
            // Same as in container runtimes: a port of a bridge is not an uplink.
            Way::new(&lab, 2, "bridge", |node, machine| {
                node.wire("port", machine, "eth0", 1500)?;
                node.ip("link add bridge type bridge\nlink set bridge up\nlink set port master bridge\n")?;
                Ok(None)
            })?,
            Way::new(&lab, 3, "macvlan", |node, machine| {
                node.wire("lower", machine, "eth0", 1500)?;
                node.ip("link add macvlan link lower type macvlan mode bridge\nlink set macvlan up\n")?;
                Ok(None)
            })?,
            Way::new(&lab, 4, "raw", |node, machine| Tun::between(node, "raw", machine, "eth0").map(Some))?,
        ];
        Ok(Self { ways, pods, lab })
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Every interface, family and transport.
    fn over_all(&self, mut check: impl FnMut(&Way, Family, Transport) -> Result<()>) -> Result<()> {
        for way in &self.ways {
            for (family, transport) in Transport::over_all() {
                check(way, family, transport).with_context(|| format!("{}, {transport}/{family}", way.ifname))?;
            }
        }
        Ok(())
    }
}

#[test]
fn multiple_uplinks() -> Result<()> {
    cases!(
        Site::new()?,
        status_lists_every_uplink,
        pods_are_masqueraded_with_the_address_of_the_uplink,
        routing_rules_and_next_hop_objects_are_followed,
        node_ports_are_served_at_every_address,
        cluster_ips_are_closed_and_policies_apply,
        icmp_errors_have_the_address_of_the_uplink,
        large_transfers_work,
        configured_uplinks_are_the_only_ones
    )
}

/// Hooks of an interface in `podnet status`.
fn hooks(node: &Node, ifname: &str) -> Result<Vec<(String, bool)>> {
    let status = node.podnet_json(&["status"])?;
    let rows = status["datapath"]["hooks"].as_array().cloned().unwrap_or_default();
    let row = |row: &Value| (row["hook"].as_str().unwrap_or_default().to_owned(), row["attached"] == true);
    Ok(rows.iter().filter(|row| row["interface"] == ifname).map(row).collect())
}

fn status_lists_every_uplink(site: &Site) -> Result<()> {
    for way in &site.ways {
        let expected = if way.ifname == "raw" { ["from_raw", "to_raw"] } else { ["from_uplink", "to_uplink"] };
        let expected: Vec<_> = expected.map(|hook| (hook.to_owned(), true)).into();
        eventually(way.ifname, || {
            let found = hooks(site.node(), way.ifname)?;
            ensure!(found == expected, "{found:?} instead of {expected:?}");
            let text = site.node().podnet(&["status"])?;
            ensure!(text.contains(&format!("{} (mtu", way.ifname)), "it isn't shown:\n{text}");
            Ok(())
        })?;
    }
    ensure!(hooks(site.node(), "port")?.is_empty(), "a bridge's port has hooks of its own");
    ensure!(!hooks(site.node(), "lower")?.is_empty(), "what is below a macvlan device is a way too");
    Ok(())
}

fn pods_are_masqueraded_with_the_address_of_the_uplink(site: &Site) -> Result<()> {
    site.over_all(|way, family, transport| {
        let expected = Outcome::answer(way.ifname, way.node(family));
        for at in [way.there(family), way.beyond(family)] {
            site.pods[0].place.expect(transport, (at, PORT).into(), &expected)?;
            site.pods[0].place.ping(at).context("ping")?;
        }
        Ok(())
    })
}

fn routing_rules_and_next_hop_objects_are_followed(site: &Site) -> Result<()> {
    let node = site.node();
    node.place.set_sysctl("net.ipv4.nexthop_compat_mode", "0")?;
    for (way, table) in site.ways.iter().zip(100..) {
        for family in Family::ALL {
            let cidr = &node.pod_cidrs()[family as usize];
            let (version, gateway) = (if family == Family::V4 { "-4" } else { "-6" }, way.there(family));
            // One address through a routing table for the pods, one through a next hop object.
            let [ruled, named] = [150, 200].map(|subnet| way.ip(subnet + way.number, 2, family));
            for at in [ruled, named] {
                way.machine.ip(&format!("addr add {at} dev lo\n"))?;
            }
            node.place.run("ip", &[version, "rule", "add", "from", cidr, "table", &table.to_string()])?;
            let id = (u32::from(way.number) * 10 + family as u32).to_string();
            node.place.ip(&format!(
                "route add {ruled} via {gateway} dev {0} table {table}\n\
                 nexthop add id {id} via {gateway} dev {0}\nroute add {named} nhid {id}\n",
                way.ifname
            ))?;
            let expected = Outcome::answer(way.ifname, way.node(family));
            for at in [ruled, named] {
                let server = Server::start(&way.machine, way.ifname, (at, PORT).into())?;
                for transport in Transport::ALL {
                    let asked = site.pods[0].place.expect(transport, server.addr(), &expected);
                    asked.with_context(|| format!("{}, {transport}/{family}", way.ifname))?;
                }
            }
            node.place.run("ip", &[version, "rule", "del", "from", cidr, "table", &table.to_string()])?;
        }
    }
    node.place.set_sysctl("net.ipv4.nexthop_compat_mode", "1")
}

fn node_ports_are_served_at_every_address(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let web = Service::new("web", 30, 80, PORT).node_port(NODE_PORT);
    web.apply(lab, None)?;
    web.set_endpoints(lab, &site.pods.each_ref())?;
    let _host = lab.node(0).serve(PORT)?;
    let host = Service::new("host", 31, 80, PORT).node_port(HOST_PORT);
    host.apply(lab, None)?;
    host.set_endpoints(lab, &[Endpoint::host(lab.node(0))])?;
    let mapping = |protocol: &str| json!({"hostPort": 9000, "containerPort": PORT, "protocol": protocol});
    let mut bound = lab.node(0).add_pod_with("bound", json!({"portMappings": [mapping("tcp"), mapping("udp")]}))?;
    bound.serve(PORT)?;
    site.over_all(|way, family, transport| {
        let at = |port: u16| SocketAddr::new(way.node(family), port);
        for server in ["pod-1", "pod-2"] {
            let answered = || match way.machine.outcome(transport, at(NODE_PORT)) {
                Outcome::Answer { server: by, .. } if by == server => Ok(()),
                other => anyhow::bail!("{other}"),
            };
            eventually(&format!("an answer of {server}"), answered)?;
        }
        let client = way.there(family);
        way.machine.expect(transport, at(HOST_PORT), &Outcome::answer(lab.node(0).name(), client)).context("host")?;
        way.machine.expect(transport, at(9000), &Outcome::answer("bound", client)).context("hostPort")
    })
}

fn cluster_ips_are_closed_and_policies_apply(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let vips = [[203, 0, 113, 40].into(), [0xfd00, 0x203, 0, 0, 0, 0, 0, 0x40].into()];
    let open = Service::new("open", 32, 80, PORT).load_balancer(&vips, 0).source_ranges(&["192.0.2.0/24"]);
    open.apply(lab, None)?;
    open.set_endpoints(lab, &site.pods.each_ref())?;
    let local = Service::new("local", 33, 80, PORT).node_port(LOCAL_PORT).external_local();
    local.apply(lab, None)?;
    local.set_endpoints(lab, &[&site.pods[1]])?;
    site.over_all(|way, family, transport| {
        for at in [open.ip(family), vips[family as usize]] {
            let length = if family == Family::V4 { 32 } else { 128 };
            way.machine.ip(&format!("route replace {at}/{length} via {}\n", way.node(family)))?;
        }
        site.pods[0].place.reaches(transport, open.addr(family), &["pod-1", "pod-2"])?;
        for (what, at) in [
            ("a ClusterIP", open.addr(family)),
            ("source ranges", (vips[family as usize], 80).into()),
            ("externalTrafficPolicy", (way.node(family), LOCAL_PORT).into()),
        ] {
            way.machine.expect(transport, at, &Outcome::Silence).context(what)?;
        }
        Ok(())
    })?;
    let drops = site.node().drops()?;
    for reason in ["cluster_ip_from_outside", "source_range", "no_local_endpoint"] {
        ensure!(drops.get(reason).is_some_and(|count| *count > 0), "{reason}: {drops:?}");
    }
    Ok(())
}

fn icmp_errors_have_the_address_of_the_uplink(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let web = Service::new("web", 30, 80, PORT).node_port(NODE_PORT);
    web.apply(lab, None)?;
    web.set_endpoints(lab, &[&site.pods[0]])?;
    for way in site.ways.iter().filter(|way| way.ifname != "raw") {
        let (machine, node) = (way.machine.mac("eth0")?, lab.node(0).place.mac(way.ifname)?);
        let frames = Frames::on(&way.machine, "eth0")?;
        for family in Family::ALL {
            let at = SocketAddr::new(way.node(family), NODE_PORT);
            way.machine.reaches(Transport::Udp, at, &["pod-1"])?;
            let mut frame = udp_frame((machine, node), SocketAddr::new(way.there(family), 4711), at, b"late");
            // TTL or hop limit; the position of its word simplifies the update of IPv4's header checksum.
            let v4 = family == Family::V4;
            let ttl = if v4 { 14 + 8 } else { 14 + 7 };
            let taken = frame[ttl] - 1;
            frame[ttl] = 1;
            if v4 {
                let sum = u16::from_be_bytes([frame[24], frame[25]]);
                let (sum, carry) = sum.overflowing_add(u16::from(taken) << 8);
                frame[24..26].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
            }
            frames.send(&frame)?;
            let (kind, header, source) = if v4 { (11, 34, 26..30) } else { (3, 54, 22..38) };
            let is_error = |frame: &[u8]| {
                let (ethertype, protocol) = if v4 { ([8, 0], 1) } else { ([0x86, 0xdd], 58) };
                let at = if v4 { 23 } else { 20 };
                frame.len() > header && frame[12..14] == ethertype && frame[at] == protocol && frame[header] == kind
            };
            let error = frames.expect(Duration::from_secs(5), is_error)?;
            let error = error.with_context(|| format!("{}, {family}: no error came", way.ifname))?;
            let expected = match way.node(family) {
                IpAddr::V4(addr) => addr.octets().to_vec(),
                IpAddr::V6(addr) => addr.octets().to_vec(),
            };
            ensure!(error[source] == expected[..], "{}, {family}: it isn't from {}", way.ifname, way.node(family));
        }
    }
    Ok(())
}

fn large_transfers_work(site: &Site) -> Result<()> {
    let web = Service::new("web", 30, 80, PORT).node_port(NODE_PORT);
    web.apply(&site.lab, None)?;
    web.set_endpoints(&site.lab, &[&site.pods[0]])?;
    for way in &site.ways {
        for family in Family::ALL {
            let what = || format!("{}, {family}", way.ifname);
            site.pods[0].place.exchanges_much((way.beyond(family), PORT).into()).with_context(what)?;
            way.machine.reaches(Transport::Tcp, (way.node(family), NODE_PORT).into(), &["pod-1"])?;
            way.machine.exchanges_much((way.node(family), NODE_PORT).into()).with_context(what)?;
        }
    }
    Ok(())
}

fn configured_uplinks_are_the_only_ones(site: &Site) -> Result<()> {
    let node = site.node();
    let configure = |names: &[&str]| {
        node.stop_daemon()?;
        node.configure(|config| config.uplinks = names.iter().map(|name| (*name).to_owned()).collect())?;
        node.start_daemon()
    };
    configure(&["eth0", "nic"])?;
    for way in &site.ways {
        eventually(way.ifname, || {
            let (found, named) = (hooks(node, way.ifname)?, way.ifname == "nic");
            ensure!(found.is_empty() != named, "{found:?}");
            Ok(())
        })?;
    }
    let way = &site.ways[1];
    for (family, transport) in Transport::over_all() {
        let at = SocketAddr::new(way.there(family), PORT);
        // There is no reply to the pod's own address, because the machine has no route to it.
        site.pods[0].place.expect(transport, at, &Outcome::Silence).context("not named")?;
        let way = &site.ways[0];
        let expected = Outcome::answer(way.ifname, way.node(family));
        site.pods[0].place.expect(transport, (way.there(family), PORT).into(), &expected).context("named")?;
    }
    configure(&[])?;
    site.over_all(|way, family, transport| {
        let expected = Outcome::answer(way.ifname, way.node(family));
        site.pods[0].place.expect(transport, (way.there(family), PORT).into(), &expected)
    })?;
    // A deleted uplink is forgotten, and one that becomes a port of another passes its packets on.
    node.place.ip("link add late type bridge\nlink set late up\n")?;
    eventually("hooks", || {
        let found = hooks(node, "late")?;
        ensure!(found.len() == 2 && found.iter().all(|(_, attached)| *attached), "{found:?}");
        Ok(())
    })?;
    node.place.ip("link set nic master late\n")?;
    eventually("a port has none", || {
        let found = hooks(node, "nic")?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })?;
    let ask = Ask::new(Transport::Tcp, (site.lab.node(1).ip(Family::V4), PORT).into());
    let _served = site.lab.node(1).serve(PORT)?;
    ask.from(&site.pods[0].place).context("the first way goes on")?;
    node.place.ip("link set nic nomaster\nlink del late\n")
}
