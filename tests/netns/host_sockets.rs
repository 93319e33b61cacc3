//! Host processes use services through the socket hooks, and per packet through podnet0.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podnet::config::SocketLb;
use podnet_tests::lab::{Lab, Pod, Service, eventually, wait_until};
use podnet_tests::traffic::{Ask, Family, Stream, Transport};

/// Timeout of an answer: long enough for TCP to retransmit several times.
const PATIENCE: Duration = Duration::from_secs(5);

fn site(mode: SocketLb) -> Result<(Lab, Vec<Pod>, Service)> {
    let lab = Lab::builder().config(move |_, config| config.socket_lb = mode).build()?;
    let mut web = vec![lab.node(0).add_pod("web-0")?, lab.node(1).add_pod("web-1")?];
    web.iter_mut().try_for_each(|pod| pod.serve(8080))?;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &[&web[0].ips[..], &web[1].ips[..]].concat())?;
    for family in Family::ALL {
        for transport in Transport::ALL {
            let what = format!("{transport}/{family}");
            eventually(&what, || Ok(lab.node(0).place.ask(transport, service.addr(family))?))?;
        }
    }
    Ok((lab, web, service))
}

/// With either kind of translation, a host process sees the service as its peer and is seen with its node's address.
fn host_processes_work(mode: SocketLb) -> Result<()> {
    let (lab, _web, service) = site(mode)?;
    let place = &lab.node(0).place;
    for family in Family::ALL {
        for ask in [
            Ask::new(Transport::Tcp, service.addr(family)),
            Ask::new(Transport::Udp, service.addr(family)),
            Ask::new(Transport::Udp, service.addr(family)).connected(),
        ] {
            let mut servers = std::collections::BTreeSet::new();
            for _ in 0..30 {
                let answer = ask.clone().timeout(PATIENCE).from(place).with_context(|| format!("{ask:?}"))?;
                ensure!(answer.peer == service.addr(family), "{ask:?}: the peer is {}", answer.peer);
                ensure!(answer.seen.ip() == lab.node(0).ip(family), "{ask:?}: seen as {}", answer.seen);
                servers.insert(answer.server);
            }
            ensure!(servers.len() == 2, "{ask:?}: only {servers:?} answered");
        }
        // Several requests over one unconnected socket.
        let flow = Ask::new(Transport::Udp, service.addr(family)).open(place)?;
        for _ in 0..10 {
            let answer = flow.ask()?;
            ensure!(answer.peer == service.addr(family), "the answer came from {}", answer.peer);
        }
    }
    Ok(())
}

#[test]
fn host_processes_reach_services_through_socket_hooks() -> Result<()> {
    host_processes_work(SocketLb::Host)
}

#[test]
fn host_processes_reach_services_through_podnet0() -> Result<()> {
    host_processes_work(SocketLb::Off)
}

fn refusals(mode: SocketLb) -> Result<()> {
    let (lab, _web, used) = site(mode)?;
    let empty = Service::new("empty", 11, 80, 8080);
    empty.apply(&lab, None)?;
    for family in Family::ALL {
        for transport in Transport::ALL {
            for addr in [empty.addr(family), (used.ip(family), 81).into()] {
                let what = format!("{transport} to {addr}");
                eventually(&what, || match Ask::new(transport, addr).connected().from(&lab.node(0).place) {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                    other => bail!("{other:?}"),
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn service_without_endpoints_is_refused_by_socket_hooks() -> Result<()> {
    refusals(SocketLb::Host)
}

#[test]
fn service_without_endpoints_is_refused_per_packet() -> Result<()> {
    refusals(SocketLb::Off)
}

#[test]
fn socket_hooks_translate_tcp_and_not_connected_udp() -> Result<()> {
    let (lab, _web, service) = site(SocketLb::Host)?;
    let place = &lab.node(0).place;
    // Packets of a connected UDP socket are addressed to the service; TCP connects to the pod.
    let udp = Stream::start(place, Transport::Udp, service.addr(Family::V4), Duration::from_millis(2))?;
    let tcp = Stream::start(place, Transport::Tcp, service.addr(Family::V4), Duration::from_millis(2))?;
    wait_until("both flow", || Ok(udp.answered() > 5 && tcp.answered() > 5))?;
    let sockets = |table: &str| -> Result<Vec<String>> {
        let text = place.netns().run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")))??;
        // Established connections only: a request made before the service existed leaves a socket that is still being
        // closed.
        let remote = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, _, remote, "01", ..] => Some(remote.to_owned()),
            _ => None,
        };
        Ok(text.lines().skip(1).filter_map(remote).collect())
    };
    // /proc/net prints addresses in host byte order: 10.96.0.10 port 80.
    let frontend = "0A00600A:0050".to_owned();
    ensure!(sockets("udp")?.contains(&frontend), "connected UDP: {:?}", sockets("udp")?);
    ensure!(!sockets("tcp")?.contains(&frontend), "TCP: {:?}", sockets("tcp")?);
    ensure!(udp.stop().is_clean() && tcp.stop().is_clean(), "the streams were not clean");
    Ok(())
}

#[test]
fn pod_sockets_are_left_alone() -> Result<()> {
    let (lab, _web, service) = site(SocketLb::Host)?;
    let client = lab.node(0).add_pod("client")?;
    let tcp = Stream::start(&client.place, Transport::Tcp, service.addr(Family::V4), Duration::from_millis(2))?;
    wait_until("it flows", || Ok(tcp.answered() > 5))?;
    let table = client.place.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
    ensure!(table.contains("0A00600A:0050"), "translated at the socket though a pod's: {table}");
    ensure!(tcp.stop().is_clean(), "the stream was not clean");
    Ok(())
}
