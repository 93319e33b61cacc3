//! Floods from one pod or one external client: its share of common tables is limited, and other traffic is unaffected.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Node, Pod, Service, client_ip, eventually, wait_until};
use podnet_tests::traffic::{Ask, Family, Flood, Frames, Server, Stream, Transport, syn_frame, udp_frame};

/// Port of the servers.
const TARGET: u16 = 8080;
/// Capacity of the connection table: small, so that a flood fills it at once.
const ROOM: u32 = 16_384;
/// Attempts of other clients during a flood, of each kind.
const ATTEMPTS: u16 = 20;

/// A flooding pod, a victim pod, a backend on each node, and an external server.
struct Site {
    attacker: Pod,
    victim: Pod,
    services: [Service; 2],
    backends: [Pod; 2],
    _outside: Vec<Server>,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).config(|_, config| config.conntrack_max = ROOM).build()?;
        let backends = [lab.node(0).add_server("near", TARGET)?, lab.node(1).add_server("far", TARGET)?];
        let attacker = lab.node(0).add_pod("attacker")?;
        let victim = lab.node(0).add_pod("victim")?;
        let serve = |family| Server::start(lab.client(), "outside", (client_ip(family), TARGET).into());
        let outside = Family::ALL.into_iter().map(serve).collect::<Result<Vec<_>>>()?;
        let services = [20, 21].map(|number| Service::new(&format!("s{number}"), number, 80, TARGET));
        Ok(Self { attacker, victim, services, backends, _outside: outside, lab })
    }

    /// Applies the services; cases start without them.
    fn up(&self) -> Result<()> {
        self.services.iter().zip(&self.backends).try_for_each(|(service, backend)| {
            service.apply(&self.lab, None)?;
            service.set_endpoints(&self.lab, &[backend])
        })
    }

    /// Targets of the victim: local and remote services, and the external machine.
    fn targets(&self, family: Family) -> [(SocketAddr, &'static str); 3] {
        let [near, far] = &self.services;
        [(near.addr(family), "near"), (far.addr(family), "far"), ((client_ip(family), TARGET).into(), "outside")]
    }

    /// Floods with frames built by `frame` from the MACs of the attacker's link and a number, until the attacker
    /// exceeds its share, and checks the victim's traffic during and after the flood.
    fn endure(&self, frame: impl Fn(([u8; 6], [u8; 6]), u32) -> Vec<u8> + Send + 'static) -> Result<()> {
        let node = self.lab.node(0);
        let macs = (self.attacker.place.mac("eth0")?, node.place.mac(&self.attacker.host_ifname()?)?);
        let refused = || -> Result<u64> { Ok(node.drops()?["conntrack_share"]) };
        let mut streams = Vec::new();
        for (family, transport) in Transport::over_all() {
            for (to, server) in self.targets(family) {
                self.victim.place.reaches(transport, to, &[server])?;
                streams.push((to, Stream::start(&self.victim.place, transport, to, Duration::from_millis(10))?));
            }
        }
        let before = refused()?;
        let flood = Flood::start(&self.attacker.place, "eth0", move |number| frame(macs, number))?;
        wait_until("the flood has taken its share", || Ok(refused()? > before))?;
        for (family, transport) in Transport::over_all() {
            for (to, server) in self.targets(family) {
                for _ in 0..ATTEMPTS {
                    // A datagram may be lost where others share a processor with the flood.
                    let ask = Ask::new(transport, to).timeout(Duration::from_secs(2));
                    let answer = eventually("an answer beside a flood", || Ok(ask.from(&self.victim.place)?));
                    let answer = answer.with_context(|| format!("{transport} to {to}"))?;
                    ensure!(answer.server == server, "{} answered", answer.server);
                }
            }
        }
        drop(flood);
        for (to, stream) in streams {
            let report = stream.stop();
            ensure!(report.errors.is_empty() && report.answers.len() == 1, "{to}: {report:?}");
        }
        ensure!(node.drops()?["conntrack_full"] == 0, "{:?}", node.drops()?);
        self.nothing_is_left(&self.attacker.ips)
    }

    /// Waits until no node has a flow of these addresses.
    fn nothing_is_left(&self, ips: &[IpAddr]) -> Result<()> {
        for node in self.lab.nodes() {
            for ip in ips {
                wait_until("its flows are forgotten", || Ok(self.flows(node, *ip)? == 0))?;
            }
        }
        Ok(())
    }

    fn flows(&self, node: &Node, ip: IpAddr) -> Result<usize> {
        let flows = node.podnet_json(&["conntrack", "list", "--ip", &ip.to_string()])?;
        Ok(flows.as_array().context("no list of flows")?.len())
    }
}

#[test]
fn floods() -> Result<()> {
    cases!(Site::new()?, udp_flood_to_many_ports, syn_flood, flows_of_a_deleted_pod_are_removed)
}

/// Each datagram goes to another port of the external machine, from another port.
fn udp_flood_to_many_ports(site: &Site) -> Result<()> {
    site.up()?;
    for family in Family::ALL {
        let (from, to) = (site.attacker.ip(family), client_ip(family));
        site.endure(move |macs, number| {
            let port = |n: u32| 1024 + (n % 60_000) as u16;
            udp_frame(macs, (from, port(number)).into(), (to, port(number / 60_000 + number)).into(), b"flood")
        })
        .with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

/// Replies are discarded: the attacker's stack, which would reset the connections, has no route for them.
fn syn_flood(site: &Site) -> Result<()> {
    site.up()?;
    for (family, service) in Family::ALL.into_iter().flat_map(|family| site.services.iter().map(move |s| (family, s))) {
        let (from, to) = (site.attacker.ip(family), service.addr(family));
        site.attacker.place.ip(&format!("route add blackhole {}\n", to.ip()))?;
        site.endure(move |macs, number| syn_frame(macs, (from, 1024 + (number % 60_000) as u16).into(), to))
            .with_context(|| format!("{to}"))?;
    }
    Ok(())
}

/// Both halves of a pod's flows, established or unanswered, are removed with the pod.
fn flows_of_a_deleted_pod_are_removed(site: &Site) -> Result<()> {
    site.up()?;
    let node = site.lab.node(0);
    let pod = node.add_pod("short-lived")?;
    let ips = pod.ips.clone();
    let macs = (pod.place.mac("eth0")?, node.place.mac(&pod.host_ifname()?)?);
    let frames = Frames::on(&pod.place, "eth0")?;
    let mut flows = Vec::new();
    for family in Family::ALL {
        for (to, server) in site.targets(family) {
            pod.place.reaches(Transport::Tcp, to, &[server])?;
            flows.push(Ask::new(Transport::Tcp, to).open(&pod.place)?);
        }
        // Unused address.
        let nobody = match client_ip(family) {
            IpAddr::V4(ip) => IpAddr::from([ip.octets()[0], ip.octets()[1], ip.octets()[2], 250]),
            IpAddr::V6(_) => "fd00:30::250".parse()?,
        };
        for port in 1..50 {
            frames.send(&udp_frame(macs, (pod.ip(family), 3000).into(), (nobody, port).into(), b"?"))?;
        }
        ensure!(site.flows(node, pod.ip(family))? >= 50, "the flows are there");
    }
    // Its connections end without FIN or RST, since the pod has no route any more.
    for flag in ["-4", "-6"] {
        pod.place.run("ip", &[flag, "route", "flush", "table", "main"])?;
    }
    drop(flows);
    pod.delete()?;
    site.nothing_is_left(&ips)
}
