//! Source NAT under load: tens of thousands of flows, port exhaustion, a full connection table.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Pod, Service, wait_until};
use podnet_tests::traffic::{Crowd, CrowdServer, Family, Stream, Transport};

/// Port of the servers.
const TARGET: u16 = 8080;
/// Port of the servers for crowds.
const CROWD: u16 = 8090;
/// Number of simultaneous flows to each destination.
const FLOWS: usize = 30_000;

/// Service with a single backend, with its own NodePort.
fn service(lab: &Lab, number: u8, target: u16, backend: &Pod) -> Result<Service> {
    let service = Service::new(&format!("s{number}"), number, 80, target).node_port(30_000 + u16::from(number));
    service.apply(lab, None)?;
    service.set_endpoints(lab, &[backend])?;
    Ok(service)
}

fn crowd_servers(pod: &Pod) -> Result<Vec<CrowdServer>> {
    Family::ALL.into_iter().map(|family| CrowdServer::start(&pod.place, pod.addr(family, CROWD))).collect()
}

/// Widens a client's ephemeral port range to all ports.
fn all_ports(lab: &Lab) -> Result<()> {
    lab.client().set_sysctl("net.ipv4.ip_local_port_range", "1024 65535")
}

/// Capacity for the flows left by one case plus those of the next.
const ROOM: u32 = 1 << 20;

/// Two backends on node2; external clients use node1.
struct Site {
    servers: Vec<CrowdServer>,
    backends: [Pod; 2],
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).config(|_, config| config.conntrack_max = ROOM).build()?;
        all_ports(&lab)?;
        let backends = [lab.node(1).add_pod("web-0")?, lab.node(1).add_pod("web-1")?];
        let servers = backends.iter().map(crowd_servers).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        Ok(Self { servers, backends, lab })
    }

    /// A service for each of the two backends.
    fn services(&self, first: u8) -> Result<Vec<Service>> {
        let up = |(number, backend)| {
            let service = service(&self.lab, number, CROWD, backend)?;
            for (family, transport) in Transport::over_all() {
                wait_until("the service is there", || {
                    Ok(self.open(&service, transport, family, 1, Duration::from_millis(300))?.opened() == 1)
                })?;
            }
            Ok(service)
        };
        (first..).zip(&self.backends).map(up).collect()
    }

    fn open(
        &self,
        service: &Service,
        transport: Transport,
        family: Family,
        count: usize,
        patience: Duration,
    ) -> Result<Crowd> {
        Crowd::open(self.lab.client(), transport, service.at(self.lab.node(0), family), count, patience)
    }

    fn exhausted(&self) -> Result<u64> {
        Ok(self.lab.node(0).drops()?.get("snat_exhausted").copied().unwrap_or(0))
    }
}

#[test]
fn crowds() -> Result<()> {
    let site = Site::new()?;
    ensure!(site.servers.len() == 4, "two families, two backends");
    cases!(site, thirty_thousand_tcp_flows_to_each_of_two_backends, thirty_thousand_udp_flows_to_each_of_two_backends,)
}

fn thirty_thousand_tcp_flows_to_each_of_two_backends(site: &Site) -> Result<()> {
    thirty_thousand(site, 20, Transport::Tcp, Family::V4)
}

fn thirty_thousand_udp_flows_to_each_of_two_backends(site: &Site) -> Result<()> {
    thirty_thousand(site, 22, Transport::Udp, Family::V6)
}

fn thirty_thousand(site: &Site, first: u8, transport: Transport, family: Family) -> Result<()> {
    let before = site.exhausted()?;
    let open = |service| site.open(service, transport, family, FLOWS, Duration::from_secs(8));
    let mut crowds = site.services(first)?.iter().map(open).collect::<Result<Vec<_>>>()?;
    for (crowd, backend) in crowds.iter_mut().zip(&site.backends) {
        let drops = site.lab.node(0).drops()?;
        ensure!(crowd.opened() == FLOWS, "{} of {FLOWS} flows: {drops:?}", crowd.opened());
        crowd.check().with_context(|| format!("the flows to {}", backend.name()))?;
    }
    ensure!(site.exhausted()? == before, "a port was missing: {:?}", site.lab.node(0).drops()?);
    Ok(())
}

#[test]
fn port_exhaustion_is_counted_and_ports_are_reused() -> Result<()> {
    /// Ports 1024 to 1223, outside the host's ephemeral range, and the ports that podnet reserves.
    const PORTS: usize = 200 + 16_384;
    const PATIENCE: Duration = Duration::from_secs(1);
    let lab = Lab::builder().client(true).daemons(false).build()?;
    all_ports(&lab)?;
    let node = lab.node(0);
    node.place.set_sysctl("net.ipv4.ip_local_port_range", "1224 65535")?;
    lab.nodes().iter().try_for_each(|node| node.start_daemon())?;
    let backends = [lab.node(1).add_pod("web-0")?, lab.node(1).add_pod("web-1")?];
    let _servers: Vec<_> = backends.iter().map(crowd_servers).collect::<Result<_>>()?;
    let services = [service(&lab, 20, CROWD, &backends[0])?, service(&lab, 21, CROWD, &backends[1])?];
    let open = |service: &Service, transport, family, count| {
        Crowd::open(lab.client(), transport, service.at(node, family), count, PATIENCE)
    };
    let exhausted = || -> Result<u64> { Ok(node.drops()?.get("snat_exhausted").copied().unwrap_or(0)) };
    for (family, transport) in Transport::over_all() {
        let what = || format!("{transport}/{family}");
        for service in &services {
            wait_until("the service is there", || Ok(open(service, transport, family, 1)?.opened() == 1))?;
        }
        let before = exhausted()?;
        // The search for one of the last free ports is random, and may rarely miss one.
        let mut crowd = open(&services[0], transport, family, PORTS - PORTS / 16 + 300)?;
        let most = PORTS - PORTS / 16;
        ensure!((most - 200..PORTS).contains(&crowd.opened()), "{}: {} flows", what(), crowd.opened());
        ensure!(exhausted()? > before, "{}: it is not counted: {:?}", what(), node.drops()?);
        // UDP flows that continue after the first reply live longer than this test.
        crowd.check().with_context(what)?;
        // The remaining ports are reserved for other clients.
        let from_node2 = Crowd::open(&lab.node(1).place, transport, services[0].at(node, family), 3, PATIENCE)?;
        ensure!(from_node2.opened() == 3, "{}: another client gets {} of 3 flows", what(), from_node2.opened());
        // For another destination, all ports are available again.
        let mut other = open(&services[1], transport, family, PORTS / 2)?;
        ensure!(other.opened() == PORTS / 2, "{}: {} flows to the other backend", what(), other.opened());
        crowd.check().and_then(|()| other.check()).with_context(what)?;
    }
    // Ports of closed connections are reused at once.
    for _ in 0..3 {
        let crowd = open(&services[1], Transport::Tcp, Family::V4, PORTS / 2)?;
        ensure!(crowd.opened() == PORTS / 2, "{} connections", crowd.opened());
    }
    Ok(())
}

#[test]
fn client_with_too_many_flows_keeps_them_and_leaves_capacity_to_others() -> Result<()> {
    let lab = Lab::builder().client(true).config(|_, config| config.conntrack_max = 4096).build()?;
    all_ports(&lab)?;
    let node = lab.node(0);
    let backends = [lab.node(0).add_server("near", TARGET)?, lab.node(1).add_server("far", TARGET)?];
    let client = lab.node(0).add_pod("client-pod")?;
    let _servers = crowd_servers(&backends[1])?;
    let (near, far) = (service(&lab, 20, TARGET, &backends[0])?, service(&lab, 21, TARGET, &backends[1])?);
    let filling = service(&lab, 22, CROWD, &backends[1])?;

    let mut streams = Vec::new();
    for (family, transport) in Transport::over_all() {
        for (service, server) in [(&near, "near"), (&far, "far")] {
            for (place, to) in [(lab.client(), service.at(node, family)), (&client.place, service.addr(family))] {
                place.reaches(transport, to, &[server])?;
                let what = format!("{transport} from {} to {to}", place.name());
                streams.push((what, Stream::start(place, transport, to, Duration::from_millis(5))?));
            }
        }
    }
    let flow = |messages: u32| -> Result<()> {
        let before: Vec<_> = streams.iter().map(|(_, stream)| stream.answered()).collect();
        for ((what, stream), before) in streams.iter().zip(before) {
            wait_until(&format!("{what} goes on"), || Ok(stream.answered() >= before + messages))?;
        }
        Ok(())
    };
    flow(50)?;
    let refused = || -> Result<u64> { Ok(node.drops()?.get("conntrack_share").copied().unwrap_or(0)) };
    let to = filling.at(node, Family::V4);
    wait_until("the service is there", || {
        Ok(Crowd::open(lab.client(), Transport::Tcp, to, 1, Duration::from_millis(300))?.opened() == 1)
    })?;
    // Exceeds the capacity: a flow has two entries.
    let mut crowd = Crowd::open(lab.client(), Transport::Tcp, to, 2600, Duration::from_millis(500))?;
    ensure!(crowd.failed() > 0 && crowd.opened() > 1000, "{} opened, {} failed", crowd.opened(), crowd.failed());
    ensure!(refused()? > 0, "it is not counted: {:?}", node.drops()?);
    flow(100).context("while hardly anything is left")?;
    for (family, transport) in Transport::over_all() {
        client.place.reaches(transport, near.addr(family), &["near"]).context("a pod beside it")?;
    }
    ensure!(node.drops()?["conntrack_full"] == 0, "{:?}", node.drops()?);
    crowd.check().context("the flows that filled the table")?;
    for (what, stream) in streams {
        let report = stream.stop();
        ensure!(report.is_clean(), "{what}: {report:?}");
    }
    // Closed flows free their entries.
    drop(crowd);
    for (family, transport) in Transport::over_all() {
        wait_until("there is room again", || Ok(lab.client().ask(transport, near.at(node, family)).is_ok()))?;
    }
    Ok(())
}
