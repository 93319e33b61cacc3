//! Sockets of arbitrary processes over arbitrary tables: connect, send, receive and getpeername, while the daemon
//! changes tables.

use std::net::IpAddr;

use podnet_common::{
    addr::{Addr, Port, Proto},
    layout::{Config, FrontendKey, Sandbox},
    pipeline::{self, Call},
    simulator::HostSocket,
};

use crate::{
    choices::Choices,
    oracle::sockets::{self, Operation, Outcome},
    world::{Addresses, CLIENT_PORTS, SERVICE_PORTS, World},
};

/// Cookie of the host's network namespace.
const HOST: u64 = 1;
/// Cookie of the first pod's network namespace; the others follow.
const POD: u64 = 0x10;
/// Cookie of any other network namespace.
const STRANGER: u64 = 0x99;

/// Plays the scenario encoded in the bytes and checks the outcome of every call. Panics on a violation.
pub fn play(bytes: &[u8], mut tell: impl FnMut(&Outcome)) {
    let mut c = Choices::new(bytes);
    let mut world = World::new(&mut c);
    world.tables.config.netns_cookie = HOST;
    world.tables.config.flags |= c.of(&[Config::SOCKET_PODS, Config::SOCKET_PODS, 0]);
    let (four, six) = (Addresses::of(false), Addresses::of(true));
    for (n, (v4, v6)) in four.pods.iter().zip(&six.pods).enumerate() {
        let v6 = if c.once_in(4) { Addr::NONE } else { (*v6).into() };
        world.tables.sandboxes.insert(POD + n as u64, Sandbox { v4: (*v4).into(), v6 });
    }
    let mut state = sockets::State::default();
    let mut sockets: Vec<HostSocket> = Vec::new();
    for _ in 0..60 {
        if c.spent() {
            break;
        }
        if c.once_in(12) {
            world.change(&mut c);
        }
        let earlier = sockets.get(c.below(sockets.len().max(1))).copied();
        let mut socket = match earlier {
            Some(socket) if !c.once_in(3) => socket,
            _ => new(&mut c),
        };
        let operation = match c.below(6) {
            0 | 1 => Operation::Connect,
            2 | 3 if socket.proto == Proto::UDP => Operation::SendMsg,
            // The peer that the kernel knows: the result of the last call.
            _ => Operation::Peer,
        };
        if operation != Operation::Peer {
            let asked = destination(&world, &mut c, socket.proto);
            (socket.addr, socket.port) = asked;
            socket.random = c.number();
        }
        let outcome = run(&world, operation, socket, &mut state);
        tell(&outcome);
        socket.addr = outcome.after.addr;
        socket.port = outcome.after.port;
        if operation == Operation::Connect && outcome.call == Call::Allow {
            socket.connected = socket.proto != Proto::TCP || socket.connected;
        }
        // The socket stays connected to the translated address, whatever it is shown.
        if operation != Operation::Peer {
            sockets.push(socket);
        }
    }
}

/// Makes a call and checks the outcome.
fn run(world: &World, operation: Operation, before: HostSocket, state: &mut sockets::State) -> Outcome {
    let tables = world.tables.clone();
    let mut after = before;
    let call = match operation {
        Operation::Connect => pipeline::connect(&mut after, &world.tables),
        Operation::SendMsg => pipeline::sendmsg(&mut after, &world.tables),
        Operation::Peer => {
            pipeline::peer(&mut after, &world.tables);
            Call::Allow
        }
    };
    let outcome = Outcome { operation, before, after, call };
    sockets::check(world, &tables, &outcome, state);
    outcome
}

/// A socket of some process.
fn new(c: &mut Choices<'_>) -> HostSocket {
    let netns_cookie = match c.below(8) {
        0..=3 => HOST,
        4..=6 => POD + c.below(4) as u64,
        _ => STRANGER,
    };
    HostSocket {
        proto: c.of(&[Proto::TCP, Proto::UDP, Proto::UDP, Proto::SCTP]),
        bound: c.once_in(5),
        connected: c.once_in(6),
        // Few cookies, so that they are reused.
        cookie: c.of(&[100, 101, 102, 103, 1 << 40]),
        netns_cookie,
        chooses_errno: !c.once_in(5),
        ..HostSocket::default()
    }
}

/// Destination of a process: a frontend, or any address.
fn destination(world: &World, c: &mut Choices<'_>, proto: Proto) -> (Addr, Port) {
    let frontends: Vec<_> =
        world.tables.frontends.keys().filter(|key| key.port != Port::new(0) && key.proto == proto).collect();
    if !frontends.is_empty() && !c.once_in(3) {
        let key = c.of(&frontends);
        let a = Addresses::of(!key.addr.is_v4());
        let loopback: IpAddr = if key.addr.is_v4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() };
        let of_node = key.addr == FrontendKey::NODE_V4 || key.addr == FrontendKey::NODE_V6;
        let addr =
            if of_node { c.of(&[a.node[0], a.node[1], a.peers[0], loopback, loopback]).into() } else { key.addr };
        return (addr, key.port);
    }
    let a = Addresses::of(c.once_in(2));
    let ports = [SERVICE_PORTS.as_slice(), CLIENT_PORTS.as_slice()].concat();
    (a.any(c).into(), Port::new(c.of(&ports)))
}
