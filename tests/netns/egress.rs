//! Masquerade: pods reach destinations outside the cluster with their node's address; all other traffic is unchanged.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podnet::config::Config;
use podnet_tests::cases;
use podnet_tests::lab::{Endpoint, Lab, Pod, Service, wait_for_cached_routes_to_expire, wait_until};
use podnet_tests::traffic::{Ask, Family, Outcome, Ping, PingAnswer, Server, Stream, Transport};

/// Port of the external servers.
const PORT: u16 = 8080;

/// A pod on each node, and a server on the far machine.
struct Site {
    pods: [Pod; 2],
    _servers: Vec<Server>,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).far(true).build()?;
        let pods = [lab.node(0).add_pod("pod-1")?, lab.node(1).add_server("pod-2", PORT)?];
        let serve = |family| Server::start(lab.far(), "far", far(family));
        let servers = Family::ALL.map(serve).into_iter().collect::<Result<_>>()?;
        Ok(Self { pods, _servers: servers, lab })
    }

    /// Waits until the far server answers the pod and sees this address.
    fn seen_as(&self, pod: &Pod, ip: impl Fn(Family) -> IpAddr) -> Result<()> {
        Transport::over_all().try_for_each(|(family, transport)| {
            pod.place.expect(transport, far(family), &Outcome::answer("far", ip(family)))
        })
    }

    /// Adds routes to the pods on the routers.
    fn route_back(&self) -> Result<()> {
        for node in self.lab.nodes() {
            for (family, cidr) in Family::ALL.into_iter().zip(node.pod_cidrs()) {
                self.lab.fabric().ip(&format!("route add {cidr} via {}\n", node.ip(family)))?;
            }
        }
        Ok(())
    }
}

/// Address of the far server.
fn far(family: Family) -> SocketAddr {
    (far_ip(family), PORT).into()
}

fn far_ip(family: Family) -> IpAddr {
    match family {
        Family::V4 => [172, 31, 2, 2].into(),
        Family::V6 => [0xfd00, 0x31, 2, 0, 0, 0, 0, 2].into(),
    }
}

#[test]
fn egress() -> Result<()> {
    cases!(
        Site::new()?,
        pods_are_masqueraded,
        many_pods_use_one_port_to_one_server,
        icmp_errors_return_to_the_pod,
        traffic_in_the_cluster_is_not_masqueraded,
        masquerade_can_be_disabled_per_network_and_entirely,
        service_with_external_backend_is_masqueraded,
        masquerade_uses_the_source_of_the_route
    )
}

fn pods_are_masqueraded(site: &Site) -> Result<()> {
    for (pod, node) in site.pods.iter().zip(site.lab.nodes()) {
        site.seen_as(pod, |family| node.ip(family))?;
        for family in Family::ALL {
            pod.place.ping(far_ip(family)).context("ping")?;
            let stream = Stream::start(&pod.place, Transport::Tcp, far(family), Duration::from_millis(1))?;
            wait_until("100 messages", || Ok(stream.answered() >= 100))?;
            let report = stream.stop();
            ensure!(report.is_clean(), "{report:?}");
            let large = Ask::new(Transport::Tcp, far(family)).payload("x".repeat(60_000)).reply_of(60_000);
            ensure!(large.from(&pod.place)?.payload.len() == 60_000, "{family}: a large reply");
            let datagram = "y".repeat(5000);
            let answer = Ask::new(Transport::Udp, far(family)).payload(&datagram).from(&pod.place);
            let answer = answer.with_context(|| format!("{family}: a datagram in fragments"))?;
            ensure!(answer.payload == datagram, "{family}: a datagram in fragments");
        }
    }
    Ok(())
}

fn service_with_external_backend_is_masqueraded(site: &Site) -> Result<()> {
    let service = Service::new("abroad", 20, 80, PORT);
    service.set_endpoints(&site.lab, &[Endpoint::at(&Family::ALL.map(far_ip))])?;
    for mode in ["auto", "snat", "preserve"] {
        service.apply(&site.lab, Some(mode))?;
        for (pod, node) in site.pods.iter().zip(site.lab.nodes()) {
            for (family, transport) in Transport::over_all() {
                let seen = Outcome::answer("far", node.ip(family));
                pod.place.expect(transport, service.addr(family), &seen).context(mode)?;
                node.place.expect(transport, service.addr(family), &seen).context(mode)?;
            }
        }
    }
    Ok(())
}

fn many_pods_use_one_port_to_one_server(site: &Site) -> Result<()> {
    let more: Vec<Pod> =
        (0..4).map(|number| site.lab.node(0).add_pod(&format!("more-{number}"))).collect::<Result<_>>()?;
    site.seen_as(&more[0], |family| site.lab.node(0).ip(family))?;
    for (family, transport) in Transport::over_all() {
        let open = |pod: &Pod| Ask::new(transport, far(family)).from_port(20_000).connected().open(&pod.place);
        let flows: Vec<_> = more.iter().map(open).collect::<std::io::Result<_>>()?;
        let mut seen = Vec::new();
        for _ in 0..3 {
            for flow in &flows {
                seen.push(flow.ask().with_context(|| format!("{transport}/{family}"))?.seen.port());
            }
        }
        let (first, later) = seen.split_at(flows.len());
        ensure!(later.chunks(flows.len()).all(|round| round == first), "ports changed: {seen:?}");
        let mut ports = first.to_vec();
        ports.sort_unstable();
        ports.dedup();
        ensure!(ports.len() == flows.len(), "two flows share a port: {seen:?}");
    }
    // The same with the identifiers of echo requests.
    for family in Family::ALL {
        thread::scope(|scope| {
            let ping = |pod: &Pod| {
                for _ in 0..20 {
                    let answer = Ping::new(far_ip(family)).id(4711).from(&pod.place)?;
                    ensure!(answer == PingAnswer::Reply(far_ip(family)), "{} gets {answer:?}", pod.name());
                }
                Ok(())
            };
            let pings: Vec<_> = more.iter().map(|pod| scope.spawn(move || ping(pod))).collect();
            pings.into_iter().try_for_each(|ping| ping.join().expect("pinging doesn't panic"))
        })?;
    }
    Ok(())
}

fn icmp_errors_return_to_the_pod(site: &Site) -> Result<()> {
    site.seen_as(&site.pods[0], |family| site.lab.node(0).ip(family))?;
    for family in Family::ALL {
        let place = &site.pods[0].place;
        // traceroute: node, fabric, router, machine.
        let exceeded = if family == Family::V4 { 11 } else { 3 };
        let v4 = family == Family::V4;
        let hops: [(u32, IpAddr); 3] = [
            (1, site.lab.node(0).ip(family)),
            (2, if v4 { "172.30.0.254" } else { "fd00:30::fe" }.parse()?),
            (3, if v4 { "172.31.1.2" } else { "fd00:31:1::2" }.parse()?),
        ];
        for (ttl, hop) in hops {
            match Ping::new(far_ip(family)).ttl(ttl).from(place).with_context(|| format!("{family}, TTL {ttl}"))? {
                PingAnswer::Error { from, kind, .. } if kind == exceeded => {
                    let right = from == hop || ttl == 1 && site.lab.node(0).owns(from)?;
                    ensure!(right, "{family}, TTL {ttl}: {from} instead of {hop}");
                }
                other => bail!("{family}, TTL {ttl}: {other:?}"),
            }
            let error = Ask::new(Transport::Udp, far(family)).ttl(ttl).connected().from(place);
            let kind = error.as_ref().map_err(std::io::Error::kind);
            ensure!(kind.err() == Some(ErrorKind::HostUnreachable), "UDP/{family}, TTL {ttl}: {error:?}");
        }
        ensure!(Ping::new(far_ip(family)).ttl(4).from(place)? == PingAnswer::Reply(far_ip(family)), "{family}");
        for transport in Transport::ALL {
            let closed = (far_ip(family), PORT + 1).into();
            place.expect(transport, closed, &Outcome::Refused).context("a closed port")?;
        }
    }
    Ok(())
}

fn traffic_in_the_cluster_is_not_masqueraded(site: &Site) -> Result<()> {
    let _host = site.lab.node(1).serve(PORT)?;
    let [pod, other] = &site.pods;
    for (family, transport) in Transport::over_all() {
        let own = pod.ip(family);
        pod.place.expect(transport, other.addr(family, PORT), &Outcome::answer("pod-2", own)).context("a pod")?;
        let node = (site.lab.node(1).ip(family), PORT).into();
        pod.place.expect(transport, node, &Outcome::answer("node2", own)).context("another node")?;
        pod.place.ping(site.lab.node(1).ip(family))?;
        pod.place.ping(site.lab.node(0).ip(family))?;
    }
    // The client on the nodes' link is outside the cluster like any other machine.
    let serve = |family| Server::start(site.lab.client(), "client", client(family));
    let _servers = Family::ALL.map(serve).into_iter().collect::<Result<Vec<_>>>()?;
    for (family, transport) in Transport::over_all() {
        let node = site.lab.node(0).ip(family);
        pod.place.expect(transport, client(family), &Outcome::answer("client", node))?;
    }
    Ok(())
}

fn client(family: Family) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => [172, 30, 0, 100].into(),
        Family::V6 => [0xfd00, 0x30, 0, 0, 0, 0, 0, 0x100].into(),
    };
    (ip, PORT).into()
}

fn masquerade_can_be_disabled_per_network_and_entirely(site: &Site) -> Result<()> {
    site.route_back()?;
    let configure = |change: &dyn Fn(&mut Config)| {
        for node in site.lab.nodes() {
            node.stop_daemon()?;
            node.configure(change)?;
            node.start_daemon()?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let listed = ["172.31.2.0/24", "fd00:31:2::/64"].map(|cidr| cidr.parse().expect("is a CIDR"));
    configure(&|config| config.non_masquerade_cidrs = listed.into())?;
    site.seen_as(&site.pods[0], |family| site.pods[0].ip(family)).context("nonMasqueradeCIDRs")?;
    configure(&|config| config.masquerade = false)?;
    site.seen_as(&site.pods[0], |family| site.pods[0].ip(family)).context("masquerade: false")?;
    configure(&|config| {
        config.masquerade = true;
        config.non_masquerade_cidrs.clear();
    })?;
    site.seen_as(&site.pods[0], |family| site.lab.node(0).ip(family)).context("masquerade, and no nonMasqueradeCIDRs")
}

fn masquerade_uses_the_source_of_the_route(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    // A second uplink to another network, with an address that is not in the Node object.
    let other = site.lab.add_machine("other")?;
    node.place.wire("eth1", &other, "eth0", 1500)?;
    node.place.ip("addr add 192.168.77.1/24 dev eth1\naddr add fd00:77::1/64 dev eth1\n")?;
    other.ip("addr add 192.168.77.2/24 dev eth0\naddr add fd00:77::2/64 dev eth0\n")?;
    other.ip("addr add 192.168.78.2/32 dev lo\naddr add fd00:78::2/128 dev lo\n")?;
    // A preferred source among several addresses.
    node.place.ip("addr add 172.30.0.77/24 dev eth0\naddr add fd00:30::77/64 dev eth0\n")?;
    node.place.ip(
        "route add 192.168.78.0/24 via 192.168.77.2\nroute add fd00:78::/64 via fd00:77::2\n\
         route add 172.31.2.0/24 via 172.30.0.254 src 172.30.0.77\nroute add fd00:31:2::/64 via fd00:30::fe src fd00:30::77\n",
    )?;
    let ip = |v4: &str, v6: &str, family| if family == Family::V4 { v4 } else { v6 }.parse::<IpAddr>();
    let mut servers = Vec::new();
    for family in Family::ALL {
        for net in ["77", "78"] {
            let at = ip(&format!("192.168.{net}.2"), &format!("fd00:{net}::2"), family)?;
            servers.push(Server::start(&other, "other", (at, PORT).into())?);
        }
    }
    // The uplinks are configured explicitly; nothing else identifies eth1 as one.
    node.stop_daemon()?;
    node.configure(|config| config.uplinks = vec!["eth0".into(), "eth1".into()])?;
    node.start_daemon()?;
    let late = node.add_pod("late")?;
    // `far` has been contacted by its former route.
    wait_for_cached_routes_to_expire();
    for pod in [&site.pods[0], &late] {
        for (family, transport) in Transport::over_all() {
            let own = ip("192.168.77.1", "fd00:77::1", family)?;
            for net in ["77", "78"] {
                let at = ip(&format!("192.168.{net}.2"), &format!("fd00:{net}::2"), family)?;
                let expected = Outcome::answer("other", own);
                pod.place.expect(transport, (at, PORT).into(), &expected).context("the second uplink")?;
                pod.place.ping(at)?;
            }
            let preferred = ip("172.30.0.77", "fd00:30::77", family)?;
            pod.place.expect(transport, far(family), &Outcome::answer("far", preferred)).context("a route's source")?;
        }
    }
    site.seen_as(&site.pods[1], |family| site.lab.node(1).ip(family))
}
