//! Sockets that are used in unusual ways: for several requests or several services, for IPv4-mapped addresses,
//! connected and still naming the peer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};

use anyhow::{Context, Result, bail, ensure};
use podnet::config::SocketLb;
use podnet_tests::lab::{Pod, Service, eventually};
use podnet_tests::traffic::{Ask, Family, Transport};
use socket2::{Domain, Protocol, Socket, Type};

use crate::site::{Counts, PATIENCE, Site, TARGET, TIMES, kind, protocol};

#[test]
fn one_socket_sends_repeatedly() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    for (family, transport) in Transport::over_all() {
        let to = site.service.addr(family);
        let flow = Ask::new(transport, to).open(&site.client.place)?;
        let first = flow.ask()?;
        let (_, added) = Counts::added(site.node(), || {
            for _ in 0..TIMES {
                let answer = flow.ask()?;
                ensure!((answer.peer, &answer.server) == (to, &first.server), "{answer:?} after {first:?}");
            }
            Ok(())
        })?;
        let expected = if transport == Transport::Tcp { Counts::default() } else { Counts::DATAGRAMS };
        ensure!(added.is(expected), "{transport}/{family}: {added:?}");
    }
    Ok(())
}

/// Two services with one backend, from one client port: replies are not confused.
#[test]
fn services_can_share_a_backend() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    let services = [Service::new("a", 11, 80, TARGET), Service::new("b", 12, 80, TARGET)];
    services.iter().try_for_each(|service| site.serve(service, None, &site.web[..1]))?;
    for place in [&site.client.place, &site.node().place] {
        for family in Family::ALL {
            let [a, b] = services.each_ref().map(|service| service.addr(family));
            let flows = [a, b].map(|to| Ask::new(Transport::Tcp, to).from_port(5001).open(place));
            for (flow, to) in flows.into_iter().zip([a, b]) {
                let answer = flow?.ask().with_context(|| format!("TCP from {} to {to}", place.name()))?;
                ensure!(answer.peer == to, "the peer is {} instead of {to}", answer.peer);
            }
            let socket = place.socket_for(a, Type::DGRAM, Protocol::UDP)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let socket: UdpSocket = socket.into();
            for to in [a, b, a, a, b, b, a] {
                let what = || format!("UDP from {} to {to}", place.name());
                socket.send_to(b"?", to).with_context(what)?;
                let (_, from) = socket.recv_from(&mut [0; 100]).with_context(what)?;
                ensure!(from == to, "{}: the answer came from {from}", what());
            }
            // At the same time.
            [a, b].iter().try_for_each(|to| socket.send_to(b"?", to).map(drop))?;
            let from = [(); 2].map(|()| socket.recv_from(&mut [0; 100]).map(|(_, from)| from));
            let from = from.into_iter().collect::<std::io::Result<BTreeSet<_>>>()?;
            ensure!(from == [a, b].into(), "UDP from {}: the answers came from {from:?}", place.name());
        }
    }
    Ok(())
}

/// An IPv6 socket with an IPv4-mapped destination.
#[test]
fn mapped_addresses_are_translated() -> Result<()> {
    let site = Site::new(SocketLb::All)?;
    let IpAddr::V4(ip) = site.service.ip(Family::V4) else { bail!("not IPv4") };
    let to = SocketAddr::from(SocketAddrV6::new(ip.to_ipv6_mapped(), site.service.port(), 0, 0));
    for place in [&site.client.place, &site.node().place] {
        let socket = |transport: Transport| -> Result<Socket> {
            let socket = place.socket(Domain::IPV6, kind(transport), Some(protocol(transport)))?;
            socket.set_only_v6(false)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        let (_, added) = Counts::added(site.node(), || {
            let tcp = socket(Transport::Tcp)?;
            tcp.connect(&to.into())?;
            ensure!(tcp.peer_addr()?.as_socket() == Some(to), "TCP: the peer is {:?}", tcp.peer_addr()?);
            let udp: UdpSocket = socket(Transport::Udp)?.into();
            udp.send_to(b"?", to)?;
            let (_, from) = udp.recv_from(&mut [0; 100])?;
            ensure!(from == to, "UDP: the answer came from {from}");
            Ok(())
        })
        .with_context(|| format!("from {}", place.name()))?;
        ensure!(added.is(Counts { connects: 1, datagrams: 1, flows: 0 }), "from {}: {added:?}", place.name());
    }
    Ok(())
}

/// A connected socket accepts datagrams from its peer only, even if it names the peer with each datagram it sends. It
/// is also not tied to a removed endpoint.
#[test]
fn connected_sockets_that_send_with_an_address_receive_replies() -> Result<()> {
    for mode in [SocketLb::Host, SocketLb::All] {
        let site = Site::new(mode)?;
        for place in [&site.node().place, &site.client.place] {
            for (family, mapped) in [(Family::V4, false), (Family::V6, false), (Family::V4, true)] {
                let to = match (site.service.addr(family), mapped) {
                    (SocketAddr::V4(v4), true) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
                    (to, _) => to,
                };
                let what = || format!("{} to {to}, {mode:?}", place.name());
                let socket = place.socket(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(&to.into()).with_context(what)?;
                let socket = UdpSocket::from(socket);
                let ask = |named: bool| -> Result<String> {
                    let sent = if named { socket.send_to(b"?", to) } else { socket.send(b"?") };
                    sent.with_context(what)?;
                    let mut buffer = [0; 256];
                    let (length, from) = socket.recv_from(&mut buffer).with_context(what)?;
                    ensure!(from == to, "{}: {from} has answered", what());
                    Ok(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap_or_default().to_owned())
                };
                for named in [true, false, true] {
                    ask(named).with_context(|| format!("named: {named}"))?;
                }
                // The endpoint that has answered is removed.
                let gone = ask(true)?;
                let rest: Vec<&Pod> = site.web.iter().filter(|pod| pod.name() != gone).collect();
                site.service.set_endpoints(&site.lab, &rest)?;
                eventually("another answers", || {
                    let server = ask(true)?;
                    ensure!(server != gone, "{server} still answers");
                    Ok(())
                })?;
                site.service.set_endpoints(&site.lab, &site.web.iter().collect::<Vec<_>>())?;
            }
        }
    }
    Ok(())
}
