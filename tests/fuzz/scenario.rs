//! A sequence of packets through the hooks of a node: new packets, replies to earlier output, errors about it, and
//! repetitions. Between packets, time passes, entries are lost, and the daemon changes tables.

use std::net::IpAddr;

use podnet_common::{
    addr::{Addr, IfIndex, Port, Proto},
    layout::{FrontendKey, Hook, NetworkKind},
    pipeline::Tables as _,
    simulator::{self, HostPacket},
};

use crate::{
    choices::Choices,
    frame::{ACK, FIN, Fragment, Frame, RST, SYN, Transport},
    oracle::{self, Outcome},
    view::View,
    world::{
        Addresses, CLIENT_PORTS, LOOPBACK, NODE2_MAC, NODE3_MAC, OWN_MAC, PODNET1, ROUTER_MAC, SERVICE_PORTS,
        SNAT_BASE, TARGET_PORTS, TUNNEL, UPLINKS, World, host_end_mac, pod_interface, pod_mac,
    },
};

/// Plays the scenario encoded in the bytes and checks the outcome of every packet. Panics on a violation.
pub fn play(bytes: &[u8], mut tell: impl FnMut(&Outcome<'_>)) {
    let mut c = Choices::new(bytes);
    let mut world = World::new(&mut c);
    let mut state = oracle::State::default();
    let mut sent: Vec<Sent> = Vec::new();
    // Short scenarios: several of them find more than one long scenario.
    for _ in 0..60 {
        if c.spent() {
            break;
        }
        match c.below(16) {
            0 => {
                let ticks = c.of(&[1, 1, 30, 100_000]);
                world.tables.now.set(world.tables.now.get().wrapping_add(ticks));
            }
            1 => state.lose(&world, &mut c),
            2 if c.once_in(2) => world.change(&mut c),
            n => {
                let before = sent.get(c.below(sent.len().max(1)));
                let (entry, frame) = match before {
                    Some(earlier) if n > 7 => follow(&world, &mut c, earlier),
                    _ => new(&world, &mut c),
                };
                let bytes = damage(&mut c, frame.bytes());
                let outcome = run(&world, entry, &bytes, &mut state);
                tell(&outcome);
                sent.push(Sent { entry, frame, output: outcome.output });
            }
        }
    }
}

/// Hook and interface at which a packet arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub hook: Hook,
    pub ifindex: IfIndex,
}

/// An earlier packet.
struct Sent {
    entry: Entry,
    frame: Frame,
    /// Its output.
    output: Vec<u8>,
}

/// Runs a packet and checks the outcome.
pub fn run<'a>(world: &World, entry: Entry, input: &'a [u8], state: &mut oracle::State) -> Outcome<'a> {
    let before = world.tables.clone();
    let mut packet = HostPacket { data: input.to_vec(), ifindex: entry.ifindex };
    let end = simulator::run(entry.hook, &mut packet, &world.tables);
    let outcome = Outcome { entry, input, end, output: packet.data, before };
    oracle::check(world, &outcome, state);
    outcome
}

/// A packet unrelated to earlier ones.
fn new(world: &World, c: &mut Choices<'_>) -> (Entry, Frame) {
    // To a frontend, or to any address.
    let frontends: Vec<_> = world.tables.frontends.keys().filter(|key| key.port != Port::new(0)).collect();
    let to_service = !frontends.is_empty() && !c.once_in(3);
    let frontend = if to_service { Some(c.of(&frontends)) } else { None };
    let a = Addresses::of(frontend.map_or_else(|| c.once_in(2), |key| !key.addr.is_v4()));
    let pod = c.below(a.pods.len());
    let hook = c.of(&[
        Hook::FromPod,
        Hook::FromUplink,
        Hook::FromPod,
        Hook::FromUplink,
        Hook::FromHost,
        Hook::ToPod,
        Hook::ToUplink,
        Hook::UplinkXdp,
        Hook::FromLoopback,
    ]);
    let (mut src, mut dst) = (a.any(c), a.any(c));
    let mut transport = transport(c);
    if let Some(key) = frontend {
        let of_node = key.addr == FrontendKey::NODE_V4 || key.addr == FrontendKey::NODE_V6;
        dst = if of_node { c.of(&[a.node[0], a.node[0], a.node[1], a.peers[0]]) } else { key.addr.into() };
        transport = to_port(c, key);
    }
    let forged = c.once_in(8);
    if !forged {
        match hook {
            Hook::FromPod => src = a.pods[pod],
            Hook::FromUplink | Hook::FromRaw | Hook::UplinkXdp => {
                src = c.of(&[a.outside[0], a.outside[1], a.outside[2], a.remote[0]]);
            }
            Hook::FromHost | Hook::ToUplink | Hook::ToRaw => src = c.of(&a.node),
            Hook::ToPod => dst = a.pods[pod],
            Hook::FromLoopback => src = c.of(&a.node),
        }
    }
    let mut frame = Frame::new(src, dst, transport);
    let ifindex = match hook {
        Hook::FromPod | Hook::ToPod => pod_interface(pod),
        Hook::FromUplink if world.through_tunnel(&src.into()) => TUNNEL,
        Hook::FromUplink | Hook::FromRaw | Hook::ToUplink | Hook::ToRaw | Hook::UplinkXdp => c.of(&UPLINKS),
        Hook::FromHost => PODNET1,
        Hook::FromLoopback => LOOPBACK,
    };
    let entry = Entry { hook, ifindex };
    frame.macs = macs(world, entry, src);
    if c.once_in(6) {
        frame.macs[1] = c.of(&[NODE2_MAC, NODE3_MAC, ROUTER_MAC, pod_mac(1)]);
    }
    vary(c, &mut frame);
    (entry, frame)
}

/// Transport header of a packet to a frontend.
fn to_port(c: &mut Choices<'_>, key: &FrontendKey) -> Transport {
    let (sport, dport) = (c.of(&CLIENT_PORTS), key.port.get());
    match key.proto {
        Proto::TCP => Transport::Tcp { sport, dport, flags: c.of(&[SYN, SYN, SYN, ACK, RST]) },
        Proto::UDP => Transport::Udp { sport, dport, checksum: !c.once_in(4) },
        _ => Transport::Sctp { sport, dport },
    }
}

/// Transport header of a packet to any address.
fn transport(c: &mut Choices<'_>) -> Transport {
    let sport = c.of(&CLIENT_PORTS);
    let dport = if c.once_in(4) { c.of(&TARGET_PORTS) } else { c.of(&SERVICE_PORTS) };
    match c.below(12) {
        0..=3 => Transport::Tcp { sport, dport, flags: c.of(&[SYN, SYN, ACK, SYN | ACK, FIN | ACK, RST, 0, 0xff]) },
        4..=6 => Transport::Udp { sport, dport, checksum: !c.once_in(4) },
        7 => Transport::Sctp { sport, dport },
        8 | 9 => Transport::Echo { request: !c.once_in(4), identifier: c.of(&[7, 0, SNAT_BASE, 40_000]) },
        10 => Transport::Control { kind: c.number() as u8, code: 0, rest: 0, quoted: vec![0x45; c.below(64)] },
        _ => Transport::Other(c.of(&[47, 50, 132, 6, 17, 1, 58, 59, 60, 255])),
    }
}

/// Varies properties that do not affect the packet's flow.
fn vary(c: &mut Choices<'_>, frame: &mut Frame) {
    if !c.once_in(3) {
        return;
    }
    frame.ttl = c.of(&[64, 64, 255, 2, 1, 0]);
    frame.extra = c.of(&[0, 0, 1, 2, 6, 7]);
    frame.whole_only = !c.once_in(3);
    frame.payload = c.of(&[12, 0, 1, 13, 1200, 1400, 1600]);
    frame.trailer = c.of(&[0, 0, 6, 17]);
    if c.once_in(2) {
        frame.fragment = Some(Fragment {
            offset: c.of(&[0, 0, 1, 2, 185]),
            more: !c.once_in(3),
            id: c.of(&[1, 2, 0x0001_0002, u32::MAX]),
        });
    }
}

/// A packet related to an earlier one.
fn follow(world: &World, c: &mut Choices<'_>, earlier: &Sent) -> (Entry, Frame) {
    let mut frame = earlier.frame.clone();
    let entry = match c.below(8) {
        // Repetition, or the next packet of the flow.
        0 | 1 => earlier.entry,
        // Arrives elsewhere.
        2 => Entry { ifindex: c.of(&UPLINKS), hook: c.of(&[Hook::FromUplink, Hook::UplinkXdp]) },
        3 => error(world, c, earlier, &mut frame).unwrap_or(earlier.entry),
        _ => answer(world, earlier, &mut frame).unwrap_or(earlier.entry),
    };
    if let Transport::Tcp { flags, .. } = &mut frame.transport {
        *flags = c.of(&[ACK, SYN | ACK, SYN, FIN | ACK, RST, RST | ACK]);
    }
    vary(c, &mut frame);
    (entry, frame)
}

/// Turns the frame into a reply to an earlier output; `None` if there is none.
fn answer(world: &World, earlier: &Sent, frame: &mut Frame) -> Option<Entry> {
    let output = View::of(&earlier.output)?;
    (frame.src, frame.dst, frame.ttl) = (output.dst, output.src, 64);
    let ports = output.ports();
    match (&mut frame.transport, ports) {
        (
            Transport::Tcp { sport, dport, .. }
            | Transport::Udp { sport, dport, .. }
            | Transport::Sctp { sport, dport },
            Some((from, to)),
        ) => {
            (*sport, *dport) = (to, from);
        }
        (Transport::Echo { request, identifier }, Some((from, to))) => {
            (*request, *identifier) = (!*request, from | to);
        }
        _ => {}
    }
    let entry = origin(world, frame.src, frame.dst)?;
    frame.macs = macs(world, entry, frame.src);
    Some(entry)
}

/// Turns the frame into an ICMP error about an earlier output.
fn error(world: &World, c: &mut Choices<'_>, earlier: &Sent, frame: &mut Frame) -> Option<Entry> {
    let output = View::of(&earlier.output)?;
    let a = Addresses::of(output.v6());
    // From the destination, a router, or this node.
    let from = c.of(&[output.dst, output.dst, a.outside[2], a.node[0], a.peers[0]]);
    let quoted = &earlier.output[14..output.end];
    let kind = if output.v6() { c.of(&[1, 2, 3, 4]) } else { c.of(&[3, 11, 12]) };
    let len = c.of(&[quoted.len(), 28, 36, 48, 60, 19]).min(quoted.len());
    *frame = Frame::new(
        from,
        output.src,
        Transport::Control { kind, code: c.below(5) as u8, rest: 1280, quoted: quoted[..len].to_vec() },
    );
    let entry = origin(world, from, output.src)?;
    frame.macs = macs(world, entry, from);
    Some(entry)
}

/// Where a packet with these addresses arrives, if anywhere.
pub fn origin(world: &World, src: IpAddr, dst: IpAddr) -> Option<Entry> {
    let tables = &world.tables;
    let at = |hook, ifindex| Some(Entry { hook, ifindex });
    if let Some(pod) = tables.endpoints.get(&src.into()) {
        return at(Hook::FromPod, pod.ifindex);
    }
    let a = Addresses::of(src.is_ipv6());
    match world.kind(&src.into()) {
        Some(NetworkKind::LocalNode) => {
            let service = world.kind(&dst.into()) == Some(NetworkKind::Services);
            if dst == a.hairpin || service || tables.is_service_address(&dst.into()) {
                at(Hook::FromHost, PODNET1)
            } else if let Some(pod) = tables.endpoints.get(&dst.into()) {
                at(Hook::ToPod, pod.ifindex)
            } else if world.kind(&dst.into()) == Some(NetworkKind::LocalNode) {
                at(Hook::FromLoopback, LOOPBACK)
            } else {
                at(Hook::ToUplink, uplink(world, &dst.into())?)
            }
        }
        Some(NetworkKind::LocalPods | NetworkKind::Services) => None,
        _ => at(Hook::FromUplink, uplink(world, &src.into())?),
    }
}

/// The uplink towards an address.
fn uplink(world: &World, addr: &Addr) -> Option<IfIndex> {
    if world.through_tunnel(addr) {
        return Some(TUNNEL);
    }
    let route = world.tables.route_to(addr)?;
    UPLINKS.contains(&route.ifindex).then_some(route.ifindex)
}

/// Destination and source MAC of a packet that arrives there.
pub fn macs(world: &World, entry: Entry, src: IpAddr) -> [[u8; 6]; 2] {
    let a = Addresses::of(src.is_ipv6());
    match entry.hook {
        Hook::FromPod => {
            let pod = (0..a.pods.len()).find(|n| pod_interface(*n) == entry.ifindex).unwrap_or(0);
            [host_end_mac(pod), pod_mac(pod)]
        }
        Hook::FromUplink | Hook::UplinkXdp => {
            let node = world.tables.network(&src.into()).map(|network| network.mac.0).filter(|mac| *mac != [0; 6]);
            [OWN_MAC, node.unwrap_or(ROUTER_MAC)]
        }
        _ => [[2; 6], [4; 6]],
    }
}

/// Truncates a few frames, and changes bytes of others.
fn damage(c: &mut Choices<'_>, mut bytes: Vec<u8>) -> Vec<u8> {
    if c.once_in(12) {
        match c.below(4) {
            0 => bytes.truncate(c.below(bytes.len() + 1)),
            1 => bytes.truncate(14 + c.below(80)),
            _ => {
                for _ in 0..=c.below(3) {
                    let at = c.below(bytes.len().min(90));
                    bytes[at] = c.number() as u8;
                }
            }
        }
    }
    bytes
}
