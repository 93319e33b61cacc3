//! Path MTU discovery through every kind of frontend: no link is a black hole for large packets.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Place, Pod, Service, eventually};
use podnet_tests::traffic::{Ask, Family, Server, Transport, checksum};
use socket2::{Domain, Protocol, Type};

/// Port of the servers.
const TARGET: u16 = 8080;
/// MTU of a narrow link on the path.
const SMALL: u32 = 1400;

/// A backend on each node with its own NodePort, and the far machine.
struct Site {
    near: Pod,
    far: Pod,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).far(true).build()?;
        let near = lab.node(0).add_server("near", TARGET)?;
        let far = lab.node(1).add_server("far", TARGET)?;
        Ok(Self { near, far, lab })
    }

    /// A Service with this mode and backend, reached at its NodePort on node1.
    fn service(&self, number: u8, mode: &str, backend: &Pod) -> Result<Service> {
        let service = Service::new(&format!("s{number}"), number, 80, TARGET).node_port(30_000 + u16::from(number));
        service.apply(&self.lab, Some(mode))?;
        service.set_endpoints(&self.lab, &[backend])?;
        Ok(service)
    }

    fn at(&self, service: &Service, family: Family) -> SocketAddr {
        service.at(self.lab.node(0), family)
    }

    /// Sets the MTU of the link between the two routers, on the path to the far machine.
    fn outside(&self, mtu: u32) -> Result<()> {
        self.lab.fabric().ip(&format!("link set router mtu {mtu}\n"))?;
        self.lab.router().ip(&format!("link set eth0 mtu {mtu}\n"))
    }

    /// Makes node1's path to node2's pods narrow.
    fn narrow_inside(&self) -> Result<()> {
        let node = self.lab.node(0);
        for family in Family::ALL {
            let (pod, via) = (self.far.ip(family), self.lab.node(1).ip(family));
            node.place.ip(&format!("route add {pod} via {via} dev eth0 mtu lock {SMALL}\n"))?;
        }
        Ok(())
    }
}

/// Exchanges much more than one packet over TCP, in both directions.
fn exchange(place: &Place, to: SocketAddr) -> Result<()> {
    for ask in
        [Ask::new(Transport::Tcp, to).payload("y".repeat(100_000)), Ask::new(Transport::Tcp, to).reply_of(100_000)]
    {
        eventually("a large exchange", || {
            let answer = ask.clone().from(place)?;
            ensure!(answer.payload.len() == 100_000, "{} bytes came", answer.payload.len());
            Ok(())
        })
        .with_context(|| format!("{} with {to}", place.name()))?;
    }
    Ok(())
}

/// A UDP socket with don't-fragment learns the MTU of the narrow link, and packets of that size pass.
fn learns(place: &Place, to: SocketAddr) -> Result<()> {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let ask = |bytes: usize| {
        let ask = Ask::new(Transport::Udp, to).payload("z".repeat(bytes)).connected().whole();
        ask.timeout(Duration::from_millis(500))
    };
    eventually("the path MTU is learnt", || {
        // Replies are larger than requests by the names of server and client, so the limit applies to the request.
        let flow = ask(SMALL as usize - headers + 1).open(place)?;
        let error = flow.ask().err().context("a datagram that is too large was answered")?;
        ensure!(error.raw_os_error() == Some(libc::EMSGSIZE), "{error}");
        ensure!(flow.path_mtu()? == SMALL, "it is {}", flow.path_mtu()?);
        Ok(())
    })
    .with_context(|| format!("{} to {to}", place.name()))?;
    let fits = ask(SMALL as usize - headers - 100).open(place)?;
    fits.ask().with_context(|| format!("{} to {to}: what fits", place.name()))?;
    Ok(())
}

#[test]
fn path_mtu() -> Result<()> {
    cases!(
        Site::new()?,
        node_ports_behind_a_narrow_link,
        pods_to_destinations_behind_a_narrow_link,
        path_mtus_cached_by_the_host_do_not_apply_to_pods,
        services_across_a_narrow_link_between_nodes
    )
}

fn node_ports_behind_a_narrow_link(site: &Site) -> Result<()> {
    let mut services = Vec::new();
    for (number, (mode, backend)) in
        (20..).zip([("auto", &site.near), ("auto", &site.far), ("snat", &site.near), ("preserve", &site.far)])
    {
        services.push((mode, backend.name(), site.service(number, mode, backend)?));
    }
    for (family, transport) in Transport::over_all() {
        for (_, backend, service) in &services {
            site.lab.far().reaches(transport, site.at(service, family), &[*backend])?;
        }
    }
    site.outside(SMALL)?;
    for family in Family::ALL {
        for (mode, backend, service) in &services {
            let what = || format!("mode {mode}, {backend} backend");
            exchange(site.lab.far(), site.at(service, family)).with_context(what)?;
        }
    }
    site.outside(1500)
}

fn services_across_a_narrow_link_between_nodes(site: &Site) -> Result<()> {
    let client = site.lab.node(0).add_pod("client-pod")?;
    let (auto, snat) = (site.service(30, "auto", &site.far)?, site.service(31, "snat", &site.far)?);
    let direct = site.service(32, "preserve", &site.far)?;
    for (family, transport) in Transport::over_all() {
        for service in [&auto, &snat, &direct] {
            site.lab.far().reaches(transport, site.at(service, family), &["far"])?;
            client.place.reaches(transport, service.addr(family), &["far"])?;
        }
    }
    site.narrow_inside()?;
    for family in Family::ALL {
        for service in [&auto, &snat] {
            // New pods, because the kernel caches path MTUs by destination address.
            let fresh = site.lab.node(0).add_pod("fresh")?;
            learns(&fresh.place, service.addr(family)).context("a ClusterIP, from a pod")?;
            let fresh = site.lab.node(0).add_pod("fresh")?;
            exchange(&fresh.place, service.addr(family)).context("a ClusterIP, from a pod")?;
            exchange(&site.lab.node(0).place, service.addr(family)).context("a ClusterIP, from a host")?;
            exchange(site.lab.far(), site.at(service, family)).context("a NodePort, from outside")?;
        }
        learns(site.lab.client(), site.at(&auto, family)).context("a NodePort, from outside")?;
    }
    Ok(())
}

fn pods_to_destinations_behind_a_narrow_link(site: &Site) -> Result<()> {
    let ips: [IpAddr; 2] = [[172, 31, 2, 2].into(), [0xfd00, 0x31, 2, 0, 0, 0, 0, 2].into()];
    let serve = |ip: IpAddr| Server::start(site.lab.far(), "outside", (ip, TARGET).into());
    let _servers = ips.map(serve).into_iter().collect::<Result<Vec<_>>>()?;
    for (family, transport) in Transport::over_all() {
        site.near.place.reaches(transport, (ips[family as usize], TARGET).into(), &["outside"])?;
    }
    site.outside(SMALL)?;
    for family in Family::ALL {
        let to = (ips[family as usize], TARGET).into();
        learns(&site.near.place, to).context("a pod that learns")?;
        exchange(&site.lab.node(0).add_pod("fresh")?.place, to).context("a pod that knows nothing")?;
    }
    let closed = Ask::new(Transport::Tcp, (ips[0], TARGET + 1).into()).from(&site.near.place);
    ensure!(closed.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused), "errors still come through");
    site.outside(1500)
}

/// Anyone can send a host a forged "packet too big", which the host obeys for ten minutes. Linux ignores such MTUs for
/// forwarded packets (`net.ipv4.ip_forward_use_pmtu`), and so must pods' flows.
fn path_mtus_cached_by_the_host_do_not_apply_to_pods(site: &Site) -> Result<()> {
    const FORGED: u16 = 1280;
    let node = site.lab.node(0);
    let far: [IpAddr; 2] = [[172, 31, 2, 2].into(), [0xfd00, 0x31, 2, 0, 0, 0, 0, 2].into()];
    let _servers = far.map(|ip| Server::start(site.lab.far(), "outside", (ip, TARGET).into()));
    for family in Family::ALL {
        let (own, to) = (node.ip(family), far[family as usize]);
        eventually("the host believes it", || {
            forge_too_big(site.lab.client(), own, to, FORGED)?;
            let route = node.place.run("ip", &["route", "get", &to.to_string()])?;
            ensure!(route.contains(&format!("mtu {FORGED}")), "{route}");
            Ok(())
        })?;
        let fresh = node.add_pod("fresh")?;
        let large = Ask::new(Transport::Udp, (to, TARGET).into()).payload("z".repeat(1300)).connected().whole();
        let flow = large.open(&fresh.place)?;
        // Repeated, since a datagram may be lost.
        eventually("what fits the way is answered after a forged error", || flow.ask().map(drop).map_err(Into::into))?;
        ensure!(flow.path_mtu()? == 1500, "it is {}", flow.path_mtu()?);
    }
    Ok(())
}

/// Sends a host a forged ICMP error which claims that its reply to an echo request from `to` was too big. The host
/// accepts it without a matching socket.
fn forge_too_big(place: &Place, host: IpAddr, to: IpAddr, mtu: u16) -> Result<()> {
    let echo = match to {
        IpAddr::V4(_) => [0, 0, 0, 0, 0, 1, 0, 1],
        IpAddr::V6(_) => [129, 0, 0, 0, 0, 1, 0, 1],
    };
    let (domain, protocol, head, quoted) = match (host, to) {
        (IpAddr::V4(host), IpAddr::V4(to)) => {
            let header = [&[0x45, 0, 5, 0xdc, 0, 1, 0x40, 0, 64, 1, 0, 0][..], &host.octets(), &to.octets()].concat();
            (Domain::IPV4, Protocol::ICMPV4, [3, 4, 0, 0, 0, 0], header)
        }
        (IpAddr::V6(host), IpAddr::V6(to)) => {
            let header = [&[0x60, 0, 0, 0, 5, 0xb4, 58, 64][..], &host.octets(), &to.octets()].concat();
            (Domain::IPV6, Protocol::ICMPV6, [2, 0, 0, 0, 0, 0], header)
        }
        _ => bail!("{host} and {to} are of different families"),
    };
    let mut message = [&head[..], &mtu.to_be_bytes(), &quoted, &echo].concat();
    if host.is_ipv4() {
        // The kernel computes the checksum of ICMPv6.
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
    }
    let socket = place.socket(domain, Type::RAW, Some(protocol))?;
    socket.send_to(&message, &SocketAddr::new(host, 0).into())?;
    Ok(())
}
