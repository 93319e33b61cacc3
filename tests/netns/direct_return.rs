//! Direct server return: a backend on another node than the one addressed replies to the client directly, from the
//! frontend's address.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet::config::Xdp;
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Place, Pod, Service, client_ip, far_ip, vips, wait_until};
use podnet_tests::traffic::{Family, Frames, Outcome, Stream, Transport};

/// Port of the pods.
const TARGET: u16 = 8080;
/// MTU of a narrow link on the path.
const SMALL: u32 = 1400;

/// External clients use node1; the backends are on node2.
struct Site {
    web: Vec<Pod>,
    lab: Lab,
    service: Service,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).far(true).plain_links(true).build()?;
        let web = ["web-0", "web-1"].map(|name| lab.node(1).add_server(name, TARGET));
        let web: Vec<_> = web.into_iter().collect::<Result<_>>()?;
        [lab.client(), lab.fabric()].into_iter().try_for_each(|machine| lab.route_vips(machine, lab.node(0)))?;
        let service = Service::new("web", 20, 80, TARGET).load_balancer(&vips(1), 30_080);
        Ok(Self { web, lab, service })
    }

    /// Applies the service, with one backend.
    fn up(&self) -> Result<()> {
        self.service.apply(&self.lab, Some("preserve"))?;
        self.service.set_endpoints(&self.lab, &[&self.web[0]])?;
        self.seen()
    }

    /// Frontends used by external clients.
    fn frontends(&self, family: Family) -> [SocketAddr; 2] {
        let node = self.lab.node(0).ip(family);
        [(node, self.service.at_nodes()).into(), (vips(1)[family as usize], self.service.port()).into()]
    }

    /// External clients and their addresses.
    fn clients(&self, family: Family) -> [(&Place, IpAddr); 2] {
        [(self.lab.client(), client_ip(family)), (self.lab.far(), far_ip(family))]
    }

    /// Every client with every frontend.
    fn each(&self, mut check: impl FnMut(&Place, IpAddr, SocketAddr) -> Result<()>) -> Result<()> {
        for family in Family::ALL {
            for (place, ip) in self.clients(family) {
                for to in self.frontends(family) {
                    check(place, ip, to).with_context(|| format!("{} at {to}", place.name()))?;
                }
            }
        }
        Ok(())
    }

    /// Backends see the client's address, clients see the frontend's.
    fn seen(&self) -> Result<()> {
        self.each(|place, ip, to| {
            let expected = Outcome::answer("web-0", ip);
            Transport::ALL.into_iter().try_for_each(|transport| place.expect(transport, to, &expected))
        })
    }
}

#[test]
fn direct_return() -> Result<()> {
    cases!(
        Site::new()?,
        client_addresses_are_preserved,
        replies_bypass_the_first_node,
        path_mtu_towards_the_client_is_discovered,
        icmp_errors_come_from_the_frontend,
        host_processes_can_be_backends,
        flows_survive_daemon_restarts_and_leave_removed_backends,
        direct_return_works_with_generic_xdp,
    )
}

fn client_addresses_are_preserved(site: &Site) -> Result<()> {
    site.up()?;
    site.each(|place, _, to| place.exchanges_much(to))?;
    site.each(|place, _, to| {
        let stream = Stream::start(place, Transport::Tcp, to, Duration::from_millis(1))?;
        wait_until("200 messages", || Ok(stream.answered() >= 200))?;
        let report = stream.stop();
        ensure!(report.is_clean(), "{report:?}");
        Ok(())
    })
}

fn flows_survive_daemon_restarts_and_leave_removed_backends(site: &Site) -> Result<()> {
    site.up()?;
    let mut streams = Vec::new();
    site.each(|place, _, to| {
        for transport in Transport::ALL {
            let what = format!("{transport} from {} to {to}", place.name());
            streams.push((what, transport, Stream::start(place, transport, to, Duration::from_millis(10))?));
        }
        Ok(())
    })?;
    let flow = |messages: u32| -> Result<()> {
        let before: Vec<_> = streams.iter().map(|(_, _, stream)| stream.answered()).collect();
        for ((what, _, stream), before) in streams.iter().zip(before) {
            wait_until(&format!("{what} goes on"), || Ok(stream.answered() >= before + messages))?;
        }
        Ok(())
    };
    flow(50)?;
    for node in site.lab.nodes() {
        node.kill_daemon()?;
        flow(50)?;
        node.start_daemon()?;
        flow(50)?;
    }
    site.service.set_endpoints(&site.lab, &[&site.web[1]])?;
    site.each(|place, _, to| {
        Transport::ALL.into_iter().try_for_each(|transport| place.reaches(transport, to, &["web-1"]).map(drop))
    })?;
    flow(100)?;
    for (what, transport, stream) in streams {
        let report = stream.stop();
        ensure!(report.is_clean(), "{what}: {report:?}");
        let moved = report.answers.get("web-1").is_some_and(|count| *count >= 50);
        ensure!(moved == (transport == Transport::Udp), "{what}: {report:?}");
    }
    Ok(())
}

fn direct_return_works_with_generic_xdp(site: &Site) -> Result<()> {
    for node in site.lab.nodes() {
        node.stop_daemon()?;
        node.configure(|config| config.xdp = Xdp::Generic)?;
        node.start_daemon()?;
    }
    client_addresses_are_preserved(site)
}

fn replies_bypass_the_first_node(site: &Site) -> Result<()> {
    site.up()?;
    site.each(|place, ip, to| {
        for transport in Transport::ALL {
            let tap = Frames::on(&site.lab.node(0).place, "eth0")?;
            (0..20).try_for_each(|_| place.ask(transport, to).map(drop))?;
            let answer = tap.expect(Duration::from_millis(100), |frame| ends(frame) == Some([to.ip(), ip]))?;
            ensure!(answer.is_none(), "{transport}: node1 has sent {answer:x?}");
        }
        Ok(())
    })
}

/// Source and destination of a packet.
fn ends(frame: &[u8]) -> Option<[IpAddr; 2]> {
    let v4 = |at: usize| Some(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?.into());
    let v6 = |at: usize| Some(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?.into());
    match frame.get(12..14)? {
        [8, 0] => Some([v4(26)?, v4(30)?]),
        [0x86, 0xdd] => Some([v6(22)?, v6(38)?]),
        _ => None,
    }
}

fn path_mtu_towards_the_client_is_discovered(site: &Site) -> Result<()> {
    site.up()?;
    // Behind the fabric, which then sends its ICMP errors to the frontend's address, that is to node1.
    site.lab.fabric().ip(&format!("link set router mtu {SMALL}\n"))?;
    site.lab.router().ip(&format!("link set eth0 mtu {SMALL}\n"))?;
    let found = site.each(|place, _, to| place.exchanges_much(to));
    site.lab.fabric().ip("link set router mtu 1500\n")?;
    site.lab.router().ip("link set eth0 mtu 1500\n")?;
    found
}

fn icmp_errors_come_from_the_frontend(site: &Site) -> Result<()> {
    site.up()?;
    // Closed port: the pod's kernel answers.
    let closed = Service::new("closed", 21, 80, TARGET + 1).node_port(30_081);
    closed.apply(&site.lab, Some("preserve"))?;
    closed.set_endpoints(&site.lab, &[&site.web[0]])?;
    for (family, transport) in Transport::over_all() {
        for (place, _) in site.clients(family) {
            place.expect(transport, (site.lab.node(0).ip(family), 30_081).into(), &Outcome::Refused)?;
        }
    }
    Ok(())
}

fn host_processes_can_be_backends(site: &Site) -> Result<()> {
    site.up()?;
    let _servers = site.lab.node(1).serve(TARGET)?;
    site.service.set_endpoints(&site.lab, &Family::ALL.map(|family| site.lab.node(1).ip(family)))?;
    site.each(|place, ip, to| {
        let expected = Outcome::answer("node2", ip);
        Transport::ALL.into_iter().try_for_each(|transport| place.expect(transport, to, &expected))?;
        place.exchanges_much(to)
    })
}
