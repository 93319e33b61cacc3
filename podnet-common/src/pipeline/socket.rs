//! Sockets: processes that connect or send to a frontend are given a backend at once, and see the frontend when they ask
//! for their peer, so their packets need no translation. The owner of a socket is known by its network namespace: the
//! host's, or, where pods are served too, one that the plugin has noted in `sandboxes`; all others are left alone.
//!
//! What a socket's address can't decide stays addressed to the frontend and is translated packet by packet: connected UDP,
//! so that it moves to a live backend when its own is removed (except at loopback addresses, whose packets can't be translated);
//! what needs another source, or a judgement of the client.

use crate::{
    addr::{Addr, Port, Proto},
    layout::{Config, Frontend, Sandbox, SockKey, SockPeer},
    verdict::{Counter, Reason},
};

use super::{
    Tables,
    balance::{mix, pick},
    frontend,
};

/// A system call on a socket, as a socket hook sees it.
pub trait SocketCtx {
    /// The peer's address in the call; an IPv6 socket has IPv4 addresses mapped.
    fn addr(&self) -> Addr;
    /// The peer's port in the call.
    fn port(&self) -> Port;
    /// Replaces the peer in the call.
    fn set_peer(&mut self, addr: &Addr, port: Port);
    /// The socket's protocol.
    fn proto(&self) -> Proto;
    /// Whether the process has chosen the socket's own port.
    fn bound(&self) -> bool;
    /// Whether the socket is connected: the kernel delivers datagrams of its peer only.
    fn connected(&self) -> bool;
    /// The kernel's cookie of the socket (`SO_COOKIE`).
    fn cookie(&self) -> u64;
    /// The kernel's cookie of the socket's network namespace (`SO_NETNS_COOKIE`).
    fn netns_cookie(&self) -> u64;
    /// A random number.
    fn random(&self) -> u32;
    /// Whether a call that is refused can fail with an error of our own (`bpf_set_retval`).
    fn chooses_errno(&self) -> bool;
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// It goes on, with the peer that its context has now.
    Allow,
    /// It fails with ECONNREFUSED, and is counted.
    Refuse {
        /// [`Frontend::service`] of the service that has no endpoint.
        service: u32,
    },
}

/// Handles `connect`.
#[inline(always)]
pub fn connect<S: SocketCtx, T: Tables>(s: &mut S, t: &T) -> Call {
    // A socket bound to a port may have a connection from it to the same backend by another service: its packets are
    // translated, where the second gets another port. Packets to a loopback address can't be.
    let proto = s.proto();
    if !s.addr().is_loopback() && (proto != Proto::TCP || s.bound()) {
        return Call::Allow;
    }
    let Some(owner) = owner(s, t) else { return Call::Allow };
    let random = s.random();
    to_backend(s, t, &owner, proto, s.cookie(), random, Counter::SocketConnects)
}

/// Handles `sendmsg` with an address, on a socket for datagrams.
#[inline(always)]
pub fn sendmsg<S: SocketCtx, T: Tables>(s: &mut S, t: &T) -> Call {
    // A socket that is connected to the frontend takes no answer from a backend. Its owner, or for an IPv4-mapped peer the
    // kernel, names the address all the same. Packets to a loopback address can't be translated.
    if s.connected() && !s.addr().is_loopback() {
        return Call::Allow;
    }
    let Some(owner) = owner(s, t) else { return Call::Allow };
    let cookie = s.cookie();
    // A socket's datagrams stay with one backend while the set of backends is the same.
    to_backend(s, t, &owner, Proto::UDP, cookie, mix(cookie as u32), Counter::SocketDatagrams)
}

/// Handles `recvmsg` and `getpeername`: puts the frontend back where the process would see the backend.
#[inline(always)]
pub fn peer<S: SocketCtx, T: Tables>(s: &mut S, t: &T) {
    let key = key(s.cookie(), &s.addr(), s.port(), s.proto());
    if let Some(peer) = t.sock_peer(&key)
        && !peer.addr.is_none()
    {
        s.set_peer(&peer.addr, peer.port);
    }
}

/// The owner of a socket.
enum Owner<'t> {
    /// A process of the host.
    Host,
    /// A pod's process.
    Pod(&'t Sandbox),
}

impl Owner<'_> {
    #[inline(always)]
    fn is_pod(&self) -> bool {
        matches!(self, Self::Pod(_))
    }

    /// Whether it is a pod with this address.
    #[inline(always)]
    fn has(&self, addr: &Addr) -> bool {
        match self {
            Self::Host => false,
            Self::Pod(Sandbox { v4, v6 }) => v4.same(addr) | v6.same(addr),
        }
    }
}

/// The owner, if it is one whose sockets are translated.
#[inline(always)]
fn owner<'t, S: SocketCtx, T: Tables>(s: &S, t: &'t T) -> Option<Owner<'t>> {
    let cookie = s.netns_cookie();
    let config = t.config()?;
    if config.netns_cookie == cookie {
        return Some(Owner::Host);
    }
    if config.flags & Config::SOCKET_PODS == 0 {
        return None;
    }
    t.sandbox(cookie).map(Owner::Pod)
}

/// Whether packets to the frontend must be judged, or get another source.
#[inline(always)]
fn needs_packets(frontend: &Frontend, owner: &Owner<'_>) -> bool {
    // What has no backend is refused in the same way to all, unless it is to be dropped.
    let flags = if frontend.slot_count == 0 {
        Frontend::SOURCE_RANGES | Frontend::DROP
    } else if owner.is_pod() {
        Frontend::SOURCE_RANGES | Frontend::SNAT
    } else {
        Frontend::SOURCE_RANGES
    };
    frontend.flags & flags != 0 || frontend.affinity != 0
}

/// The key of a socket's peer.
#[inline(always)]
fn key(cookie: u64, addr: &Addr, port: Port, proto: Proto) -> SockKey {
    SockKey { cookie, addr: *addr, port, proto, _pad: [0; 5] }
}

/// Replaces a frontend by one of its backends, which `hash` picks.
#[inline(always)]
fn to_backend<S: SocketCtx, T: Tables>(
    s: &mut S,
    t: &T,
    owner: &Owner<'_>,
    proto: Proto,
    cookie: u64,
    hash: u32,
    counter: Counter,
) -> Call {
    let (addr, port) = (s.addr(), s.port());
    let Some(frontend) = frontend::of_socket(t, &addr, port, proto, owner.is_pod()) else { return Call::Allow };
    if needs_packets(frontend, owner) {
        return Call::Allow;
    }
    if frontend.slot_count == 0 {
        // Without an errno of our own the process would see EPERM: its packets are refused instead.
        if !s.chooses_errno() {
            return Call::Allow;
        }
        t.count_drop(Reason::NoEndpoint);
        return Call::Refuse { service: frontend.service };
    }
    let Some(backend) = pick(t, frontend, hash) else {
        t.count_drop(Reason::StaleTable);
        return Call::Allow;
    };
    // The pod would see its own address as its client's: its packets get the hairpin address. They are for any backend
    // again, so a pod meets itself less often than it meets others.
    if owner.has(&backend.addr) {
        return Call::Allow;
    }
    if !remember(t, &key(cookie, &backend.addr, backend.port, proto), &SockPeer { addr, port, _pad: [0; 6] }) {
        return Call::Allow;
    }
    s.set_peer(&backend.addr, backend.port);
    t.count(counter);
    Call::Allow
}

/// Notes the frontend that the process means by a backend's address. False if that can't be noted, or if a socket for
/// datagrams means several services by it: only their packets' ports tell the answers apart, so from then on all are
/// translated packet by packet.
#[inline(always)]
fn remember<T: Tables>(t: &T, key: &SockKey, peer: &SockPeer) -> bool {
    if let Some(known) = t.sock_peer(key)
        && key.proto == Proto::UDP
    {
        let same = known.addr.same(&peer.addr) & (known.port == peer.port);
        if !same && !known.addr.is_none() {
            // If it can't be noted, the next datagram tries again.
            t.set_sock_peer(key, &SockPeer::default());
        }
        return same;
    }
    t.set_sock_peer(key, peer)
}
