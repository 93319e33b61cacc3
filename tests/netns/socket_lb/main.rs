//! `socketLB: all`: pods' connections are translated in the socket hooks, or per packet where a hook cannot decide;
//! only the counters show the difference.

mod site;
mod sockets;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet::config::SocketLb;
use podnet_cni::datapath::{PinDir, Sandboxes, netns_cookie};
use podnet_tests::lab::{Service, eventually, vips, wait_until};
use podnet_tests::traffic::{Ask, Family, Outcome, Server, Stream, Transport};
use serde_json::json;
use socket2::SockAddr;

use site::{Counts, Site, TARGET, ask_often, kind, kinds, protocol};

#[test]
fn pods_reach_services_through_socket_hooks() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    let host = &site.node().place;
    for family in Family::ALL {
        let to = site.service.addr(family);
        for (place, source) in [(&site.client.place, site.client.ip(family)), (host, site.node().ip(family))] {
            for (kind, ask, expected) in kinds(to) {
                let what = || format!("{kind}/{family} from {}", place.name());
                let ((seen, servers), added) =
                    Counts::added(site.node(), || ask_often(place, &ask, to)).with_context(what)?;
                ensure!(added.is(expected), "{}: {added:?}", what());
                ensure!(seen == [source].into(), "{}: the servers see {seen:?}", what());
                ensure!(servers.len() == 2, "{}: only {servers:?} answered", what());
            }
        }
    }
    Ok(())
}

/// Services that need what only packets have or allow: source NAT, session affinity, source ranges, a source port
/// chosen by the client.
#[test]
fn services_that_need_packets_are_translated_per_packet() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    let snat = Service::new("snat", 11, 80, TARGET);
    site.serve(&snat, Some("snat"), &site.web)?;
    let sticky = Service::new("sticky", 12, 80, TARGET).affinity(600);
    site.serve(&sticky, None, &site.web)?;
    let (open_vip, guarded_vip) = (vips(1), vips(2));
    let open = Service::new("open", 13, 80, TARGET).load_balancer(&open_vip, 0);
    site.serve(&open, None, &site.web)?;
    let ranges = ["10.244.1.0/24", "fd00:244:1::/64"];
    let guarded = Service::new("guarded", 14, 80, TARGET).load_balancer(&guarded_vip, 0).source_ranges(&ranges);
    site.serve(&guarded, None, &site.web)?;
    // Apart, since a datagram that is translated at the socket may otherwise use the port of an earlier per-packet flow
    // to the same backend, whose replies are translated (see Known limits).
    let ports = |range: &str| site.client.place.set_sysctl("net.ipv4.ip_local_port_range", range);
    for family in Family::ALL {
        ports("20000 39999")?;
        for (service, source, answering) in [(&snat, site.node().ip(family), 2), (&sticky, site.client.ip(family), 1)] {
            let to = service.addr(family);
            for (kind, ask, _) in kinds(to) {
                let what = || format!("{kind}/{family} to {}", service.name());
                let ((seen, servers), added) =
                    Counts::added(site.node(), || ask_often(&site.client.place, &ask, to)).with_context(what)?;
                ensure!(added.is(Counts::FLOWS), "{}: {added:?}", what());
                ensure!(seen == [source].into(), "{}: the servers see {seen:?}", what());
                ensure!(servers.len() == answering, "{}: {servers:?} answered", what());
            }
        }
        // Load balancer addresses are treated alike, unless source ranges apply.
        ports("40000 60999")?;
        for (service, vip, at_socket) in [(&open, open_vip, true), (&guarded, guarded_vip, false)] {
            let to = SocketAddr::from((vip[family as usize], service.port()));
            site.client.place.reaches(Transport::Tcp, to, &["web-0", "web-1"])?;
            for (kind, ask, expected) in kinds(to) {
                let what = || format!("{kind}/{family} to {}", service.name());
                let (_, added) =
                    Counts::added(site.node(), || ask_often(&site.client.place, &ask, to)).with_context(what)?;
                ensure!(added.is(if at_socket { expected } else { Counts::FLOWS }), "{}: {added:?}", what());
            }
        }
        let guarded = SocketAddr::from((guarded_vip[family as usize], guarded.port()));
        site.web[1].place.expect(Transport::Tcp, guarded, &Outcome::Silence)?;
        let to = site.service.addr(family);
        let bound = Ask::new(Transport::Tcp, to).from_port(5000);
        let (answer, added) = Counts::added(site.node(), || Ok(bound.from(&site.client.place)?))?;
        ensure!(answer.peer == to && answer.seen == (site.client.ip(family), 5000).into(), "bound: {answer:?}");
        ensure!(added.is(Counts { flows: 1, ..Counts::default() }), "bound: {added:?}");
    }
    Ok(())
}

#[test]
fn pod_reaches_itself() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    let own = Service::new("own", 11, 80, TARGET);
    site.serve(&own, None, &site.web[..1])?;
    let pod = &site.web[0];
    for family in Family::ALL {
        for (kind, ask, _) in kinds(own.addr(family)) {
            let what = || format!("{kind}/{family}");
            let ((seen, _), added) =
                Counts::added(site.node(), || ask_often(&pod.place, &ask, own.addr(family))).with_context(what)?;
            ensure!(added.is(Counts::FLOWS), "{}: {added:?}", what());
            ensure!(!seen.contains(&pod.ip(family)), "{}: the pod sees its own address", what());
        }
        // Either of the two backends may be selected; each must answer.
        let to = site.service.addr(family);
        for (kind, ask, _) in kinds(to) {
            let (_, servers) = ask_often(&pod.place, &ask, to).with_context(|| format!("{kind}/{family}"))?;
            ensure!(servers.contains_key("web-1"), "{kind}/{family}: {servers:?}");
        }
    }
    Ok(())
}

#[test]
fn service_without_endpoints_is_refused_and_without_local_ones_is_silent() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    let empty = Service::new("empty", 11, 80, TARGET);
    empty.apply(&site.lab, None)?;
    let elsewhere = Service::new("elsewhere", 12, 80, TARGET).internal_local();
    elsewhere.apply(&site.lab, None)?;
    elsewhere.set_endpoints(&site.lab, &[&site.web[1]])?;
    for (family, transport) in Transport::over_all() {
        let place = &site.client.place;
        place.expect(transport, empty.addr(family), &Outcome::Refused)?;
        place.expect(transport, elsewhere.addr(family), &Outcome::Silence)?;
        // The error is immediate: from connect or sendto.
        let socket = place.socket_for(empty.addr(family), kind(transport), protocol(transport))?;
        let to = SockAddr::from(empty.addr(family));
        let refused = match transport {
            Transport::Tcp => socket.connect(&to),
            Transport::Udp => socket.send_to(b"?", &to).map(drop),
        };
        ensure!(
            refused.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused),
            "{transport}/{family}: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn datagrams_reach_a_live_backend() -> Result<()> {
    let mut site = Site::new(SocketLb::All)?;
    for family in Family::ALL {
        let to = site.service.addr(family);
        let ask = Ask::new(Transport::Udp, to).timeout(Duration::from_millis(200));
        let flows = [ask.clone().open(&site.client.place)?, ask.connected().open(&site.client.place)?];
        // Each backend in turn is the only one, so each flow has to move at least once.
        for index in [0, 1] {
            site.service.set_endpoints(&site.lab, &[&site.web[index]])?;
            for flow in &flows {
                eventually("the backend that is left answers", || {
                    let answer = flow.ask()?;
                    ensure!(answer.server == site.web[index].name(), "{} answered", answer.server);
                    ensure!(answer.peer == to, "the answer came from {}", answer.peer);
                    Ok(())
                })?;
            }
        }
    }
    // A backend that disappears without closing its connections.
    site.service.set_endpoints(&site.lab, &[&site.web[0], &site.web[1]])?;
    let gone = site.web.remove(0);
    let addresses = gone.ips.clone();
    gone.delete()?;
    site.service.set_endpoints(&site.lab, &[&site.web[0]])?;
    eventually("it is no endpoint any more", || {
        let name = format!("default/{}", site.service.name());
        let shown = site.node().podnet(&["service", "show", &name])?;
        ensure!(
            !addresses.iter().any(|ip| shown.contains(&format!("{ip}:")) || shown.contains(&format!("[{ip}]:"))),
            "{shown}"
        );
        Ok(())
    })?;
    for (family, transport) in Transport::over_all() {
        site.client.place.reaches(transport, site.service.addr(family), &["web-1"])?;
    }
    Ok(())
}

#[test]
fn node_ports_are_translated_by_socket_hooks() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    let service = Service::new("nodes", 11, 80, TARGET).node_port(30_080);
    site.serve(&service, None, &site.web)?;
    for family in Family::ALL {
        let to = service.at(site.node(), family);
        let unspecified =
            SocketAddr::from((if family == Family::V4 { "0.0.0.0" } else { "::" }.parse::<IpAddr>()?, to.port()));
        for place in [&site.client.place, &site.node().place] {
            place.reaches(Transport::Tcp, to, &["web-0", "web-1"])?;
            for (kind, ask, expected) in kinds(to) {
                let what = || format!("{kind}/{family} from {}", place.name());
                let (_, added) = Counts::added(site.node(), || ask_often(place, &ask, to)).with_context(what)?;
                ensure!(added.is(expected), "{}: {added:?}", what());
            }
            // A process uses this address to reach itself.
            place.expect(Transport::Tcp, unspecified, &Outcome::Refused)?;
        }
        // NodePorts of another node are translated there.
        let to = service.at(site.lab.node(1), family);
        let (_, added) =
            Counts::added(site.node(), || site.client.place.reaches(Transport::Tcp, to, &["web-0", "web-1"]))?;
        ensure!(added.connects == 0, "to another node: {added:?}");
    }
    Ok(())
}

#[test]
fn loopback_addresses_belong_to_the_pod() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    let local = |family: Family| SocketAddr::from((family.loopback(), 9000));
    let mappings: Vec<_> = Transport::over_all()
        .map(|(family, transport)| {
            let (ip, protocol) = (family.loopback().to_string(), transport.name().to_lowercase());
            json!({"hostPort": 9000, "containerPort": TARGET, "protocol": protocol, "hostIP": ip})
        })
        .collect();
    let mut bound = site.lab.node(0).add_pod_with("bound", json!({ "portMappings": mappings }))?;
    bound.serve(TARGET)?;
    let own = site.lab.node(0).add_pod("own")?;
    let start = |family| Server::start(&own.place, "own", local(family));
    let _servers = Family::ALL.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    for (family, transport) in Transport::over_all() {
        site.node().place.reaches(transport, local(family), &["bound"])?;
        own.place.reaches(transport, local(family), &["own"])?;
        site.client.place.expect(transport, local(family), &Outcome::Refused)?;
        site.lab.node(1).place.expect(transport, local(family), &Outcome::Refused).context("the other node")?;
    }
    Ok(())
}

#[test]
fn per_packet_translation_gives_equal_results() -> Result<()> {
    let site = Site::new(SocketLb::Off)?;
    for (place, source) in [
        (&site.client.place, Family::ALL.map(|f| site.client.ip(f))),
        (&site.node().place, Family::ALL.map(|f| site.node().ip(f))),
    ] {
        for family in Family::ALL {
            let to = site.service.addr(family);
            for (kind, ask, _) in kinds(to) {
                let what = || format!("{kind}/{family} from {}", place.name());
                let ((seen, servers), added) =
                    Counts::added(site.node(), || ask_often(place, &ask, to)).with_context(what)?;
                ensure!(added.is(Counts::FLOWS), "{}: {added:?}", what());
                ensure!(seen == [source[family as usize]].into(), "{}: the servers see {seen:?}", what());
                ensure!(servers.len() == 2, "{}: only {servers:?} answered", what());
            }
        }
    }
    Ok(())
}

#[test]
fn mode_can_be_changed_under_traffic() -> Result<()> {
    let site = Site::new(SocketLb::Off)?;
    let to = site.service.addr(Family::V4);
    let places = [&site.client.place, &site.node().place];
    let mut streams = Vec::new();
    for (mode, translated) in [
        (SocketLb::Off, [false, false]),
        (SocketLb::All, [true, true]),
        (SocketLb::Host, [false, true]),
        (SocketLb::All, [true, true]),
        (SocketLb::Off, [false, false]),
    ] {
        let node = site.node();
        node.stop_daemon()?;
        node.configure(|config| config.socket_lb = mode)?;
        node.start_daemon()?;
        for (place, at_socket) in places.into_iter().zip(translated) {
            for (kind, ask, expected) in kinds(to) {
                let what = || format!("{mode:?}: {kind} from {}", place.name());
                // Running streams begin no flows, and send no datagrams that the socket hooks translate.
                let (_, added) = Counts::added(node, || ask_often(place, &ask, to)).with_context(what)?;
                ensure!(added.is(if at_socket { expected } else { Counts::FLOWS }), "{}: {added:?}", what());
            }
        }
        for (place, transport) in
            places.into_iter().flat_map(|place| Transport::ALL.map(|transport| (place, transport)))
        {
            streams.push(Stream::start(place, transport, to, Duration::from_millis(5))?);
        }
        wait_until("the streams flow", || Ok(streams.iter().all(|stream| stream.answered() > 5)))?;
    }
    for report in streams.into_iter().map(Stream::stop) {
        ensure!(report.is_clean() && report.answers.len() == 1, "a stream was not clean: {report:?}");
    }
    Ok(())
}

#[test]
fn unknown_network_namespace_is_left_alone() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    let to = site.service.addr(Family::V4);
    let ask = Ask::new(Transport::Tcp, to);
    let cookie = site.client.place.netns().run(netns_cookie)??;
    // The table, opened as the plugin opens it.
    let mut sandboxes = Sandboxes::open(&PinDir::new(&site.node().bpffs()))?;
    let sandbox = sandboxes.get(cookie)?.context("the pod's namespace is not known")?;
    ensure!([sandbox.v4, sandbox.v6].map(IpAddr::from)[..] == site.client.ips[..], "its addresses are {sandbox:?}");
    // A daemon checks at its start, periodically, and whenever the pod's link is reported.
    site.node().stop_daemon()?;
    sandboxes.remove(cookie, &sandbox)?;
    let (_, added) = Counts::added(site.node(), || ask_often(&site.client.place, &ask, to))?;
    ensure!(added.is(Counts::FLOWS), "{added:?}");
    site.node().start_daemon()?;
    eventually("the entry is restored", || sandboxes.get(cookie)?.context("it is missing"))?;
    let (_, added) = Counts::added(site.node(), || ask_often(&site.client.place, &ask, to))?;
    ensure!(added.is(Counts::CONNECTS), "{added:?}");
    site.client.delete()?;
    ensure!(sandboxes.get(cookie)?.is_none(), "the entry is still there");
    Ok(())
}
