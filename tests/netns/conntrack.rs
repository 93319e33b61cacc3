//! Tracked flows: which follow a change of their service, which keep their backend, and which must not be confused.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Place, Pod, Service, eventually, wait_until};
use podnet_tests::traffic::{Ask, Family, Stream, Transport};

/// Interval between messages of a stream.
const PAUSE: Duration = Duration::from_millis(10);
/// Port of the pods.
const TARGET: u16 = 8080;
/// Source address modes.
const MODES: [&str; 3] = ["auto", "snat", "preserve"];

/// An external client, a backend on each node, and client pods.
struct Site {
    near: Pod,
    far: Pod,
    inside: Pod,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).build()?;
        let near = lab.node(0).add_server("near", TARGET)?;
        let far = lab.node(1).add_server("far", TARGET)?;
        let inside = lab.node(0).add_pod("inside")?;
        Ok(Self { near, far, inside, lab })
    }

    fn apply(&self, service: &Service, mode: &str, backend: &Pod) -> Result<()> {
        service.apply(&self.lab, Some(mode))?;
        service.set_endpoints(&self.lab, &[backend])
    }

    /// One client of every kind, with the address at which it reaches the service.
    fn clients(&self, service: &Service, family: Family) -> [(&Place, SocketAddr); 5] {
        let node = service.at(self.lab.node(0), family);
        [
            (self.lab.client(), node),
            (&self.inside.place, service.addr(family)),
            (&self.inside.place, node),
            (&self.lab.node(0).place, service.addr(family)),
            (&self.lab.node(1).place, node),
        ]
    }
}

fn numbered(number: u8) -> Service {
    Service::new(&format!("s{number}"), number, 80, TARGET).node_port(30_000 + u16::from(number))
}

/// Description, transport and a running stream.
type Named = (String, Transport, Stream);

fn start(place: &Place, to: SocketAddr, transport: Transport) -> Result<Named> {
    let what = format!("{transport} from {} to {to}", place.name());
    let stream = Stream::start(place, transport, to, PAUSE).with_context(|| what.clone())?;
    Ok((what, transport, stream))
}

/// Waits until all streams have received this many further answers.
fn flow(streams: &[Named], messages: u32) -> Result<()> {
    let before: Vec<_> = streams.iter().map(|(_, _, stream)| stream.answered()).collect();
    for ((what, _, stream), before) in streams.iter().zip(before) {
        wait_until(&format!("{what} goes on"), || Ok(stream.answered() >= before + messages))?;
    }
    Ok(())
}

#[test]
fn flows() -> Result<()> {
    cases!(
        Site::new()?,
        udp_flows_follow_the_service_and_connections_do_not,
        connected_socket_reaches_endpoints_added_later,
        one_port_uses_two_services_with_the_same_backend,
        one_port_alternates_between_pod_and_service,
        flows_survive_restarts_and_upgrades_of_the_daemons
    )
}

fn udp_flows_follow_the_service_and_connections_do_not(site: &Site) -> Result<()> {
    for (number, mode) in (20..).zip(MODES) {
        let service = numbered(number);
        for (from, to) in [(&site.near, &site.far), (&site.far, &site.near)] {
            site.apply(&service, mode, from)?;
            let mut streams = Vec::new();
            for (family, transport) in Transport::over_all() {
                for (place, addr) in site.clients(&service, family) {
                    place.reaches(transport, addr, &[from.name()]).context(mode)?;
                    streams.push(start(place, addr, transport)?);
                }
            }
            flow(&streams, 20)?;
            site.apply(&service, mode, to)?;
            for (family, transport) in Transport::over_all() {
                for (place, addr) in site.clients(&service, family) {
                    place.reaches(transport, addr, &[to.name()]).context(mode)?;
                }
            }
            flow(&streams, 40)?;
            for (what, transport, stream) in streams {
                let report = stream.stop();
                // A packet forwarded to the backend's node is lost if that node applies the change first.
                let sent_on = mode == "preserve" && from.name() == "far" && what.contains("from client to");
                let what = || format!("mode {mode}, from {} to {}: {what}: {report:?}", from.name(), to.name());
                match transport {
                    Transport::Tcp => ensure!(report.is_clean() && report.answers.len() == 1, "{}", what()),
                    Transport::Udp => {
                        ensure!((sent_on || report.lost == 0) && report.errors.is_empty(), "{}", what());
                        // The sweep that removes the stream's flow may come shortly after a new socket's first answer.
                        ensure!(report.answers.get(to.name()).is_some_and(|count| *count >= 20), "{}", what());
                    }
                }
            }
        }
    }
    Ok(())
}

fn connected_socket_reaches_endpoints_added_later(site: &Site) -> Result<()> {
    let service = numbered(30);
    service.apply(&site.lab, None)?;
    for family in Family::ALL {
        for (place, to) in site.clients(&service, family) {
            service.set_endpoints(&site.lab, &[] as &[&Pod])?;
            let ask = Ask::new(Transport::Udp, to).connected().timeout(Duration::from_millis(200));
            let flow = eventually("refused without endpoints", || match ask.open(place) {
                // The socket hook already refuses in connect.
                Err(_) => Ok(None),
                Ok(flow) => {
                    ensure!(flow.ask().is_err(), "{} is answered without endpoints", place.name());
                    Ok(Some(flow))
                }
            })?;
            service.set_endpoints(&site.lab, &[&site.far])?;
            let flow = match flow {
                Some(flow) => flow,
                None => eventually("it can connect", || Ok(ask.open(place)?))?,
            };
            let what = || format!("{} to {to}", place.name());
            let answer = eventually("an answer on the same socket", || Ok(flow.ask()?)).with_context(what)?;
            ensure!(answer.server == "far", "{}: {} answered", what(), answer.server);
        }
    }
    Ok(())
}

fn one_port_uses_two_services_with_the_same_backend(site: &Site) -> Result<()> {
    let mut number = 60;
    for mode in MODES {
        for backend in [&site.near, &site.far] {
            let services = [numbered(number), numbered(number + 1)];
            number += 2;
            services.iter().try_for_each(|service| site.apply(service, mode, backend))?;
            for (family, transport) in Transport::over_all() {
                let addrs = services.each_ref().map(|service| site.clients(service, family));
                for ((place, one), (_, two)) in addrs[0].into_iter().zip(addrs[1]) {
                    let what = || format!("mode {mode}, {} backend: {transport} from {}", backend.name(), place.name());
                    for to in [one, two] {
                        place.reaches(transport, to, &[backend.name()]).with_context(what)?;
                    }
                    let open = |to| Ask::new(transport, to).from_port(20_000).connected().open(place);
                    let flows = [open(one).with_context(what)?, open(two).with_context(what)?];
                    for _ in 0..3 {
                        for flow in &flows {
                            let answer = flow.ask().with_context(what)?;
                            ensure!(answer.server == backend.name(), "{}: {} answered", what(), answer.server);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn one_port_alternates_between_pod_and_service(site: &Site) -> Result<()> {
    // Lets the external client reach pods directly.
    for (node, pod) in site.lab.nodes().iter().zip([&site.near, &site.far]) {
        for family in Family::ALL {
            site.lab.client().ip(&format!("route add {} via {}\n", pod.ip(family), node.ip(family)))?;
        }
    }
    let (mut number, mut port) = (80, 21_000);
    for mode in MODES {
        for backend in [&site.near, &site.far] {
            let service = numbered(number);
            number += 1;
            site.apply(&service, mode, backend)?;
            for family in Family::ALL {
                // A datagram does not show whether it begins a flow.
                let transport = Transport::Tcp;
                let direct = backend.addr(family, TARGET);
                for (place, through) in site.clients(&service, family) {
                    let what = || format!("mode {mode}, {} backend: {transport} from {}", backend.name(), place.name());
                    place.reaches(transport, through, &[backend.name()]).with_context(what)?;
                    // Each flow is closed before the next one begins from the same port.
                    for pair in [[direct, through], [through, direct]] {
                        port += 1;
                        for to in pair {
                            let answer = Ask::new(transport, to).from_port(port).from(place);
                            let answer = answer.with_context(|| format!("{} to {to}, one of {pair:?}", what()))?;
                            ensure!(answer.server == backend.name(), "{}: {} answered", what(), answer.server);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn flows_survive_restarts_and_upgrades_of_the_daemons(site: &Site) -> Result<()> {
    let mut streams = Vec::new();
    for (number, mode) in (90..).zip(MODES) {
        let service = numbered(number);
        service.apply(&site.lab, Some(mode))?;
        service.set_endpoints(&site.lab, &[&site.near, &site.far])?;
        for (family, transport) in Transport::over_all() {
            for (place, addr) in site.clients(&service, family) {
                place.reaches(transport, addr, &["near", "far"]).context(mode)?;
                streams.push(start(place, addr, transport).context(mode)?);
            }
        }
    }
    flow(&streams, 50)?;
    for upgrade in [true, false, true] {
        site.lab.nodes().iter().try_for_each(|node| node.kill_daemon())?;
        if upgrade {
            site.lab.nodes().iter().try_for_each(|node| node.disown_programs())?;
        }
        flow(&streams, 50)?;
        site.lab.nodes().iter().try_for_each(|node| node.start_daemon())?;
        flow(&streams, 50)?;
    }
    for (what, _, stream) in streams {
        let report = stream.stop();
        ensure!(report.is_clean(), "{what}: {report:?}");
    }
    Ok(())
}
