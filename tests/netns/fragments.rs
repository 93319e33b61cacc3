//! Fragments follow the first fragment of their datagram on every path.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Place, Pod, Service, client_ip, eventually, vips};
use podnet_tests::traffic::{Ask, Family, Frames, Transport, fragments, udp_frame};
use socket2::{Protocol, Type};

/// Port of the servers.
const TARGET: u16 = 8080;

/// A backend on each node, each with a NodePort and a ClusterIP in every mode.
struct Site {
    clients: [Pod; 2],
    backends: [Pod; 2],
    services: Vec<Case>,
    lab: Lab,
}

/// A Service: mode and backend.
struct Case {
    mode: &'static str,
    backend: usize,
    service: Service,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mode {}, {} backend", self.mode, ["near", "far"][self.backend])
    }
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).build()?;
        let backends = [lab.node(0).add_server("near", TARGET)?, lab.node(1).add_server("far", TARGET)?];
        let clients = [lab.node(0).add_pod("client-1")?, lab.node(1).add_pod("client-2")?];
        let mut services = Vec::new();
        for mode in ["auto", "snat", "preserve"] {
            for _ in &backends {
                let number = 20 + services.len() as u8;
                let service = Service::new(&format!("s{number}"), number, 80, TARGET);
                let service = service.node_port(30_000 + u16::from(number));
                services.push(Case { mode, backend: services.len() % 2, service });
            }
        }
        Ok(Self { clients, backends, services, lab })
    }

    /// Applies the services.
    fn up(&self) -> Result<()> {
        for Case { mode, backend, service } in &self.services {
            service.apply(&self.lab, Some(mode))?;
            service.set_endpoints(&self.lab, &[&self.backends[*backend]])?;
        }
        for family in Family::ALL {
            for Case { service, .. } in &self.services {
                self.lab.client().reaches(Transport::Udp, self.at(service, family), &["near", "far"])?;
                self.clients[0].place.reaches(Transport::Udp, service.addr(family), &["near", "far"])?;
            }
        }
        Ok(())
    }

    fn at(&self, service: &Service, family: Family) -> SocketAddr {
        service.at(self.lab.node(0), family)
    }
}

#[test]
fn fragments_of_datagrams() -> Result<()> {
    cases!(
        Site::new()?,
        large_datagrams_pass_every_kind_of_frontend,
        large_datagrams_reach_hosts_and_pods_directly,
        later_fragments_may_arrive_in_any_order,
        orphan_fragments_are_dropped_and_counted
    )
}

/// A datagram of four fragments is echoed unchanged.
fn whole(place: &Place, to: SocketAddr, connected: bool) -> Result<()> {
    let payload = "f".repeat(5000);
    let ask = Ask::new(Transport::Udp, to).payload(&payload).timeout(Duration::from_millis(500));
    let ask = if connected { ask.connected() } else { ask };
    eventually("a large datagram's answer", || {
        let answer = ask.from(place)?;
        ensure!(answer.payload == payload && answer.peer == to, "{} bytes from {}", answer.payload.len(), answer.peer);
        Ok(())
    })
    .with_context(|| format!("{} to {to}, connected {connected}", place.name()))
}

fn large_datagrams_pass_every_kind_of_frontend(site: &Site) -> Result<()> {
    site.up()?;
    let pods = site.clients.iter().map(|pod| &pod.place);
    let inside: Vec<&Place> = pods.chain(site.lab.nodes().iter().map(|node| &node.place)).collect();
    let mut failures = Vec::new();
    for case @ Case { service, .. } in &site.services {
        for family in Family::ALL {
            for connected in [false, true] {
                let outside = [(site.lab.client(), site.at(service, family))];
                let inside = inside
                    .iter()
                    .flat_map(|place| [(*place, service.addr(family)), (*place, site.at(service, family))]);
                for (place, to) in outside.into_iter().chain(inside) {
                    // Nothing is fragmented towards the host itself: the loopback interface carries a datagram whole,
                    // while podnet0 does not.
                    if connected && place.name() == site.lab.node(0).name() && to == site.at(service, family) {
                        continue;
                    }
                    failures.extend(whole(place, to, connected).err().map(|error| format!("{case}: {error:#}")));
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{} ways fail:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// podnet leaves fragments of the hosts' own traffic alone.
fn large_datagrams_reach_hosts_and_pods_directly(site: &Site) -> Result<()> {
    site.up()?;
    let _servers = site.lab.nodes().iter().map(|node| node.serve(8081)).collect::<Result<Vec<_>>>()?;
    for family in Family::ALL {
        for node in site.lab.nodes() {
            for place in [site.lab.client(), &site.clients[0].place, &site.clients[1].place] {
                whole(place, (node.ip(family), 8081).into(), true)?;
            }
        }
    }
    Ok(())
}

/// Sends hand-made fragments, and receives the replies on a socket.
struct ByHand<'a> {
    site: &'a Site,
    frames: Frames,
    macs: ([u8; 6], [u8; 6]),
}

impl<'a> ByHand<'a> {
    fn new(site: &'a Site) -> Result<Self> {
        let lab = &site.lab;
        let macs = (lab.client().mac("eth0")?, lab.node(0).place.mac("eth0")?);
        Ok(Self { site, frames: Frames::on(lab.client(), "eth0")?, macs })
    }

    /// A socket on a port of the client's address, with a timeout longer than any reply takes.
    fn socket(&self, to: SocketAddr, port: u16) -> Result<UdpSocket> {
        let socket = self.site.lab.client().socket_for(to, Type::DGRAM, Protocol::UDP)?;
        socket.bind(&SocketAddr::new(client_ip(Family::of(to.ip())), port).into())?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(socket.into())
    }

    /// Three fragments of a datagram of 1100 bytes.
    fn pieces(&self, to: SocketAddr, port: u16, id: u16, letter: u8) -> Vec<Vec<u8>> {
        let from = SocketAddr::new(client_ip(Family::of(to.ip())), port);
        let pieces = fragments(&udp_frame(self.macs, from, to, &[letter; 1100]), 400, id);
        assert_eq!(pieces.len(), 3);
        pieces
    }

    fn send<'b>(&self, pieces: impl IntoIterator<Item = &'b Vec<u8>>) -> Result<()> {
        Ok(pieces.into_iter().try_for_each(|piece| self.frames.send(piece))?)
    }
}

/// Whether a datagram of 1100 copies of the letter is answered.
fn answered(socket: &UdpSocket, letter: u8) -> Result<bool> {
    let mut buffer = [0; 4096];
    match socket.recv(&mut buffer) {
        Ok(length) => {
            let right = buffer[..length].ends_with(&[letter; 1100]);
            ensure!(right, "another answer: {:?}", String::from_utf8_lossy(&buffer[..length]));
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => bail!(error),
    }
}

fn later_fragments_may_arrive_in_any_order(site: &Site) -> Result<()> {
    site.up()?;
    let by_hand = ByHand::new(site)?;
    let mut id = 100;
    for family in Family::ALL {
        for case @ Case { service, .. } in &site.services {
            let to = site.at(service, family);
            let socket = by_hand.socket(to, 5000 + id)?;
            let local = socket.local_addr()?.port();
            let what = |order: &str| format!("{case}, {family}: {order}");
            for order in [[0, 1, 2], [0, 2, 1]] {
                id += 1;
                let pieces = by_hand.pieces(to, local, id, b'a');
                by_hand.send(order.iter().map(|index| &pieces[*index]))?;
                ensure!(answered(&socket, b'a')?, "{}", what(&format!("{order:?} is not answered")));
            }
            // Two datagrams, interleaved.
            let (a, b) = (by_hand.pieces(to, local, id + 1, b'b'), by_hand.pieces(to, local, id + 2, b'b'));
            id += 2;
            by_hand.send(a.iter().zip(&b).flat_map(|(a, b)| [a, b]))?;
            ensure!(answered(&socket, b'b')? && answered(&socket, b'b')?, "{}", what("two packets in turns"));
        }
    }
    Ok(())
}

fn orphan_fragments_are_dropped_and_counted(site: &Site) -> Result<()> {
    site.up()?;
    let by_hand = ByHand::new(site)?;
    let count = || -> Result<u64> { Ok(site.lab.node(0).drops()?.get("orphan_fragment").copied().unwrap_or(0)) };
    let balanced = Service::new("balanced", 40, 80, TARGET).load_balancer(&vips(1), 0);
    balanced.apply(&site.lab, None)?;
    balanced.set_endpoints(&site.lab, &[&site.backends[1]])?;
    site.lab.route_vips(site.lab.client(), site.lab.node(0))?;
    for (family, id) in Family::ALL.into_iter().zip([300, 310]) {
        let to = (vips(1)[family as usize], 80).into();
        site.lab.client().reaches(Transport::Udp, to, &["far"])?;
        let socket = by_hand.socket(to, 6000 + id)?;
        let local = socket.local_addr()?.port();
        let before = count()?;
        let pieces = by_hand.pieces(to, local, id, b'c');
        by_hand.send([&pieces[1], &pieces[2], &pieces[0]])?;
        ensure!(!answered(&socket, b'c')?, "{family}: the first came last and yet there is an answer");
        ensure!(count()? == before + 2, "{family}: {before} → {}", count()?);
        by_hand.send(&by_hand.pieces(to, local, id + 1, b'd'))?;
        ensure!(answered(&socket, b'd')?, "{family}: the next packet");
    }
    Ok(())
}
