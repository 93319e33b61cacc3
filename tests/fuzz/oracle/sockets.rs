//! Properties of every socket call, in an implementation independent of the pipeline's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use podnet_common::{
    addr::{Addr, Port, Proto},
    layout::{Config, Frontend, FrontendKey, Network, NetworkKind, SockKey, SockPeer},
    pipeline::{Call, Tables as _},
    simulator::{HostSocket, HostTables},
    verdict::{Counter, Reason},
};

use crate::world::World;

/// A system call that a socket hook sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Connect,
    SendMsg,
    /// `recvmsg` and `getpeername`.
    Peer,
}

/// A call and its result.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub operation: Operation,
    pub before: HostSocket,
    pub after: HostSocket,
    pub call: Call,
}

impl Outcome {
    /// The result in one word.
    pub fn kind(&self) -> &'static str {
        match (self.operation, self.call) {
            (_, Call::Refuse { .. }) => "refused",
            (Operation::Peer, _) if self.changed() => "frontend",
            (_, _) if self.changed() => "backend",
            _ => "as it was",
        }
    }

    fn changed(&self) -> bool {
        (self.before.addr, self.before.port) != (self.after.addr, self.after.port)
    }
}

/// Frontends that sockets have used per backend address: for UDP to non-loopback addresses all of them, otherwise the
/// last one.
#[derive(Default)]
pub struct State {
    meant: BTreeMap<SockKey, BTreeSet<(Addr, Port)>>,
}

/// Checks everything. `before`: tables before the call.
pub fn check(world: &World, before: &HostTables, o: &Outcome, state: &mut State) {
    assert_eq!(
        HostSocket { addr: o.after.addr, port: o.after.port, ..o.before },
        o.after,
        "{o:?}: more than the peer has changed"
    );
    match o.operation {
        Operation::Peer => check_peer(world, before, o, state),
        Operation::Connect | Operation::SendMsg => check_call(world, before, o, state),
    }
}

fn check_peer(world: &World, before: &HostTables, o: &Outcome, state: &State) {
    let key = key(&o.before, o.before.proto, (o.before.addr, o.before.port));
    let shown = (o.after.addr, o.after.port);
    match state.meant.get(&key) {
        // The socket uses one frontend with this backend address.
        Some(meant) if meant.len() == 1 => assert!(meant.contains(&shown), "{o:?}: it means {meant:?}"),
        // It uses several, or none.
        _ => assert!(!o.changed(), "{o:?}: nothing tells what it means"),
    }
    assert_eq!(counts(before), counts(&world.tables), "{o:?}: it is no translation");
}

fn check_call(world: &World, before: &HostTables, o: &Outcome, state: &mut State) {
    let (counters, drops) = counts(&world.tables);
    let (mut expected_counters, mut expected_drops) = counts(before);
    // `sendmsg` applies to UDP only.
    let proto = if o.operation == Operation::SendMsg { Proto::UDP } else { o.before.proto };
    let service = eligible(before, o).then(|| frontend(before, o, proto)).flatten();
    match service.filter(|service| at_socket(before, o, service)) {
        None => {
            assert!(
                !o.changed() && o.call == Call::Allow,
                "{o:?}: its packets are to be translated, or belong to no service"
            )
        }
        Some(service) if service.slot_count == 0 => {
            assert!(!o.changed(), "{o:?}: there is no backend");
            let refused = o.before.chooses_errno;
            assert_eq!(o.call, if refused { Call::Refuse { service: service.service } } else { Call::Allow }, "{o:?}");
            if refused {
                *expected_drops.entry(Reason::NoEndpoint).or_default() += 1;
            }
        }
        Some(service) => {
            assert_eq!(o.call, Call::Allow, "{o:?}: there are backends");
            let backends = backends(before, &service);
            if drops != expected_drops {
                assert!(world.broken && !o.changed(), "{o:?}: the tables are complete");
                *expected_drops.entry(Reason::StaleTable).or_default() += 1;
            } else if translated(before, &world.tables, o, proto, &backends, state) {
                let counter =
                    if o.operation == Operation::Connect { Counter::SocketConnects } else { Counter::SocketDatagrams };
                *expected_counters.entry(counter).or_default() += 1;
            }
        }
    }
    assert_eq!((counters, drops), (expected_counters, expected_drops), "{o:?}: counted otherwise");
}

/// Checks a call that should be translated; `false` if it was rightly left untranslated.
fn translated(
    before: &HostTables,
    after: &HostTables,
    o: &Outcome,
    proto: Proto,
    backends: &BTreeSet<(Addr, Port)>,
    state: &mut State,
) -> bool {
    let asked = (o.before.addr, o.before.port);
    let got = (o.after.addr, o.after.port);
    // The record proves a translation even if backend and frontend have the same address and port.
    let noted: Vec<_> = changes(before, after).collect();
    if let [(key, peer)] = noted.as_slice()
        && peer.addr.is_none()
    {
        // The socket uses a second frontend with the same backend.
        assert!(!o.changed() && proto == Proto::UDP, "{o:?}: it can't be told what it means");
        let meant = state.meant.get_mut(key).expect("an earlier one");
        assert!(meant.insert(asked), "{o:?}: it means the same as before");
        return false;
    }
    if !o.changed() && noted.is_empty() {
        let own = |(addr, _): &(Addr, Port)| owns(before, o, addr);
        let ambiguous = |backend: &(Addr, Port)| {
            let meant = state.meant.get(&key(&o.before, proto, *backend));
            proto == Proto::UDP && meant.is_some_and(|meant| meant.len() > 1 || !meant.contains(&asked))
        };
        let same = |backend: &(Addr, Port)| *backend == asked;
        assert!(
            backends.iter().any(|b| own(b) || ambiguous(b) || same(b)),
            "{o:?}: it has not been translated to any of {backends:?}"
        );
        // Only a translation to an identical address that was recorded before is counted.
        return counts(before) != counts(after);
    }
    assert!(backends.contains(&got), "{o:?}: it is none of {backends:?}");
    assert!(!owns(before, o, &got.0), "{o:?}: a pod has been led to itself");
    let key = key(&o.before, proto, got);
    let peer = after.sock_peer(&key).expect("a note of what it means");
    assert_eq!((peer.addr, peer.port), asked, "{o:?}: it is noted as another frontend");
    let meant = state.meant.entry(key).or_default();
    if proto != Proto::UDP {
        meant.clear();
    }
    meant.insert(asked);
    assert_eq!(meant.len(), 1, "{o:?}: what answers is to mean can't be told");
    true
}

/// Entries of `sock_reverse` changed by a call.
fn changes<'a>(before: &'a HostTables, after: &'a HostTables) -> impl Iterator<Item = (SockKey, SockPeer)> {
    let before = before.sock_reverse.borrow().clone();
    let after = after.sock_reverse.borrow().clone();
    after.into_iter().filter(move |(key, peer)| before.get(key) != Some(peer))
}

fn counts(t: &HostTables) -> (BTreeMap<Counter, u64>, BTreeMap<Reason, u64>) {
    (t.counters.borrow().clone(), t.drops.borrow().clone())
}

fn key(socket: &HostSocket, proto: Proto, (addr, port): (Addr, Port)) -> SockKey {
    SockKey { cookie: socket.cookie, addr, port, proto, _pad: [0; 5] }
}

/// Whether the address is that of the socket's own pod.
fn owns(t: &HostTables, o: &Outcome, addr: &Addr) -> bool {
    of_pod(t, o) && t.sandboxes.get(&o.before.netns_cookie).is_some_and(|pod| [pod.v4, pod.v6].contains(addr))
}

fn of_pod(t: &HostTables, o: &Outcome) -> bool {
    o.before.netns_cookie != t.config.netns_cookie
}

/// Whether the socket's destination may be replaced.
fn eligible(t: &HostTables, o: &Outcome) -> bool {
    let loopback = IpAddr::from(o.before.addr).is_loopback();
    let free = match o.operation {
        Operation::Connect => o.before.proto == Proto::TCP && !o.before.bound,
        _ => !o.before.connected,
    };
    let served = !of_pod(t, o)
        || (t.config.flags & Config::SOCKET_PODS != 0 && t.sandboxes.contains_key(&o.before.netns_cookie));
    (free || loopback) && served
}

/// The frontend at the socket's destination.
fn frontend(t: &HostTables, o: &Outcome, proto: Proto) -> Option<Frontend> {
    let (addr, port) = (o.before.addr, o.before.port);
    let ip = IpAddr::from(addr);
    if ip.is_unspecified() || (ip.is_loopback() && of_pod(t, o)) {
        return None;
    }
    let at = |addr: Addr| t.frontends.get(&FrontendKey { addr, port, proto, scope: FrontendKey::ANY }).copied();
    at(addr).or_else(|| {
        let all = at(if ip.is_ipv4() { FrontendKey::NODE_V4 } else { FrontendKey::NODE_V6 })?;
        let node_port = all.flags & Frontend::NODE_PORT != 0;
        let there = match t.network(&addr) {
            _ if ip.is_loopback() => !node_port,
            Some(n) => n.kind == NetworkKind::LocalNode as u32 && (!node_port || n.flags & Network::NODE_PORTS != 0),
            None => false,
        };
        there.then_some(all)
    })
}

/// Whether the service can be resolved in the socket hooks.
fn at_socket(t: &HostTables, o: &Outcome, service: &Frontend) -> bool {
    let has = |flag: u16| service.flags & flag != 0;
    let evaluated = has(Frontend::SOURCE_RANGES) || service.affinity != 0;
    let nat = has(Frontend::SNAT) && of_pod(t, o) && service.slot_count != 0;
    let dropped = has(Frontend::DROP) && service.slot_count == 0;
    !evaluated && !nat && !dropped
}

fn backends(t: &HostTables, service: &Frontend) -> BTreeSet<(Addr, Port)> {
    let slots = (0..service.slot_count.min(1000)).filter_map(|n| t.slots.get(&service.slot_base.wrapping_add(n)));
    slots.filter_map(|id| t.backends.get(id)).map(|backend| (backend.addr, backend.port)).collect()
}
