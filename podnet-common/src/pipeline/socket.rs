//! Socket hooks: load balancing at `connect` and `sendmsg`.
//!
//! A process that connects or sends to a frontend gets a backend immediately, and sees the frontend again when it asks
//! for its peer, so its packets need no translation. The owner of a socket is identified by its network namespace: the
//! host's or, if sockets of pods are translated too, one recorded by the plugin in `sandboxes`. Sockets in other
//! namespaces are left alone.
//!
//! Some calls keep the frontend as destination, and their packets are translated instead: connected UDP, so that it
//! moves to another backend when its own is removed (except at loopback addresses, whose packets can't be translated);
//! and anything that needs another source address or a check of the client.

use crate::{
    addr::{Addr, Port, Proto},
    hash::mix,
    layout::{Config, Frontend, Sandbox, SockKey, SockPeer},
    verdict::{Counter, Reason},
};

use super::{Tables, balance::pick, frontend};

/// A system call on a socket, as seen by a socket hook.
pub trait SocketCtx {
    /// Peer address in the call; IPv6 sockets have IPv4 addresses mapped.
    fn addr(&self) -> Addr;
    /// Peer port in the call.
    fn port(&self) -> Port;
    /// Replaces the peer address and port in the call.
    fn set_peer(&mut self, addr: &Addr, port: Port);
    /// Protocol of the socket.
    fn proto(&self) -> Proto;
    /// Whether the process has bound the socket to a port.
    fn bound(&self) -> bool;
    /// Whether the socket is connected; the kernel then delivers only datagrams of its peer.
    fn connected(&self) -> bool;
    /// Socket cookie (`SO_COOKIE`).
    fn cookie(&self) -> u64;
    /// Cookie of the socket's network namespace (`SO_NETNS_COOKIE`).
    fn netns_cookie(&self) -> u64;
    /// Returns a random number.
    fn random(&self) -> u32;
    /// Whether the program can choose the errno of a refused call (`bpf_set_retval`).
    fn chooses_errno(&self) -> bool;
}

/// Verdict on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Continue, with the peer now in the context.
    Allow,
    /// Fail with ECONNREFUSED. Has been counted.
    Refuse {
        /// [`Frontend::service`] of the service port without endpoints.
        service: u32,
    },
}

/// Handles `connect`.
#[inline(always)]
pub fn connect<S: SocketCtx, T: Tables>(s: &mut S, t: &T) -> Call {
    // A socket bound to a port may already have a connection from this port to the same backend through another
    // service. Its packets are translated instead, which gives the second connection another source port. Packets to a
    // loopback address can't be translated.
    let proto = s.proto();
    if !s.addr().is_loopback() && (proto != Proto::TCP || s.bound()) {
        return Call::Allow;
    }
    let Some(owner) = owner(s, t) else { return Call::Allow };
    let random = s.random();
    to_backend(s, t, &owner, proto, s.cookie(), random, Counter::SocketConnects)
}

/// Handles `sendmsg` with an address on a datagram socket.
#[inline(always)]
pub fn sendmsg<S: SocketCtx, T: Tables>(s: &mut S, t: &T) -> Call {
    // A socket connected to the frontend accepts no datagrams from a backend. Its calls have an address nevertheless,
    // given by the process or, for an IPv4-mapped peer, by the kernel. Packets to a loopback address can't be
    // translated.
    if s.connected() && !s.addr().is_loopback() {
        return Call::Allow;
    }
    let Some(owner) = owner(s, t) else { return Call::Allow };
    let cookie = s.cookie();
    // All datagrams of a socket go to one backend as long as the set of backends doesn't change.
    to_backend(s, t, &owner, Proto::UDP, cookie, mix(cookie as u32), Counter::SocketDatagrams)
}

/// Handles `recvmsg` and `getpeername`: replaces a backend with the frontend that the process addressed.
#[inline(always)]
pub fn peer<S: SocketCtx, T: Tables>(s: &mut S, t: &T) {
    let key = key(s.cookie(), &s.addr(), s.port(), s.proto());
    if let Some(peer) = t.sock_peer(&key)
        && !peer.addr.is_none()
    {
        s.set_peer(&peer.addr, peer.port);
    }
}

/// Owner of a socket.
enum Owner<'t> {
    /// A process of the host.
    Host,
    /// A process in a pod.
    Pod(&'t Sandbox),
}

impl Owner<'_> {
    #[inline(always)]
    fn is_pod(&self) -> bool {
        matches!(self, Self::Pod(_))
    }

    /// Whether the owner is a pod with this address.
    #[inline(always)]
    fn has_address(&self, addr: &Addr) -> bool {
        match self {
            Self::Host => false,
            Self::Pod(Sandbox { v4, v6 }) => v4.same(addr) | v6.same(addr),
        }
    }
}

/// Owner of the socket, if its sockets are translated.
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

/// Whether packets to the frontend must be translated instead: its clients must be checked, or need another source
/// address.
#[inline(always)]
fn needs_translation(frontend: &Frontend, owner: &Owner<'_>) -> bool {
    // Without a backend, all clients are rejected alike, unless their packets are to be dropped.
    let flags = if frontend.slot_count == 0 {
        Frontend::SOURCE_RANGES | Frontend::DROP
    } else if owner.is_pod() {
        Frontend::SOURCE_RANGES | Frontend::SNAT
    } else {
        Frontend::SOURCE_RANGES
    };
    frontend.flags & flags != 0 || frontend.affinity != 0
}

/// Key of a socket and backend.
#[inline(always)]
fn key(cookie: u64, addr: &Addr, port: Port, proto: Proto) -> SockKey {
    SockKey { cookie, addr: *addr, port, proto, _pad: [0; 5] }
}

/// Replaces a frontend with the backend selected by `hash`.
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
    if needs_translation(frontend, owner) {
        return Call::Allow;
    }
    if frontend.slot_count == 0 {
        // The process would get EPERM. Let its packets be rejected instead.
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
    // The pod would see its own address as the client's; if its packets are translated, they get the hairpin address.
    // The backend is then chosen once more, so a pod reaches itself less often than other backends.
    if owner.has_address(&backend.addr) {
        return Call::Allow;
    }
    if !remember(t, &key(cookie, &backend.addr, backend.port, proto), &SockPeer { addr, port, _pad: [0; 6] }) {
        return Call::Allow;
    }
    s.set_peer(&backend.addr, backend.port);
    t.count(counter);
    Call::Allow
}

/// Stores the frontend that the process addressed when it gets this backend. False if it can't be stored, or if a
/// datagram socket uses several frontends with this backend. Replies can then only be told apart by the ports of their
/// packets, so all datagrams are translated per packet from then on.
#[inline(always)]
fn remember<T: Tables>(t: &T, key: &SockKey, peer: &SockPeer) -> bool {
    if let Some(known) = t.sock_peer(key)
        && key.proto == Proto::UDP
    {
        let same = known.addr.same(&peer.addr) & (known.port == peer.port);
        if !same && !known.addr.is_none() {
            // If there is no room, the next datagram tries again.
            t.set_sock_peer(key, &SockPeer::default());
        }
        return same;
    }
    t.set_sock_peer(key, peer)
}
