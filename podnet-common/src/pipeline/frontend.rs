//! Whom a packet addresses.

use crate::{
    addr::{Addr, Port, Proto},
    layout::{Frontend, FrontendKey, Hook, Network, NetworkKind, Tuple},
    packet::{Ethernet, Tcp},
};

use super::{Place, Tables};

/// A frontend that a packet addresses.
pub(super) struct Found<'t> {
    /// Where its entries are, whatever the scope.
    pub key: FrontendKey,
    /// The entry that every frontend has.
    pub frontend: &'t Frontend,
    /// Another node has chosen this one for the packet and sent it on.
    pub sent_on: bool,
}

/// The frontend with exactly the packet's destination.
#[inline(always)]
pub(super) fn exact(tuple: &Tuple) -> FrontendKey {
    FrontendKey { addr: tuple.dst, port: tuple.dport, proto: tuple.proto, scope: FrontendKey::ANY }
}

/// The key of the same port at all of the node's addresses of the family.
#[inline(always)]
fn of_node(key: &FrontendKey) -> FrontendKey {
    let addr = if key.addr.is_v4() { FrontendKey::NODE_V4 } else { FrontendKey::NODE_V6 };
    FrontendKey { addr, ..*key }
}

/// Whether a frontend that is there at all of the node's addresses serves at an address in this network.
#[inline(always)]
fn serves(frontend: &Frontend, network: &Network) -> bool {
    network.kind == NetworkKind::LocalNode as u32
        && (frontend.flags & Frontend::NODE_PORT == 0 || network.flags & Network::NODE_PORTS != 0)
}

/// Finds the frontend that a packet addresses. At an address of the node what doesn't open a connection, and belongs to
/// none, answers a process that has sent from a port with this number.
#[inline(always)]
pub(super) fn find<'t, At: Place, T: Tables>(
    t: &'t T,
    ethernet: &Ethernet,
    tuple: &Tuple,
    tcp_flags: u8,
) -> Option<Found<'t>> {
    let network = t.network(&tuple.dst);
    let own = network.is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
    let key = exact(tuple);
    if own && !opens(tcp_flags) {
        return None;
    }
    if let Some(frontend) = t.frontend(&key) {
        let sent_on = !own && sent_on::<At, T>(t, ethernet, frontend);
        return Some(Found { key, frontend, sent_on });
    }
    node_port::<At, T>(t, ethernet, tuple, tcp_flags, network?)
}

/// Finds the frontend among those that are there at all of a node's addresses. `network` is what the packet's destination
/// is.
#[inline(always)]
pub(super) fn node_port<'t, At: Place, T: Tables>(
    t: &'t T,
    ethernet: &Ethernet,
    tuple: &Tuple,
    tcp_flags: u8,
    network: &Network,
) -> Option<Found<'t>> {
    let own = network.kind == NetworkKind::LocalNode as u32;
    let other = network.kind == NetworkKind::RemoteNode as u32 && At::HOOK as u32 == Hook::FromUplink as u32;
    if !(other || own && opens(tcp_flags)) {
        return None;
    }
    let key = of_node(&exact(tuple));
    let frontend = t.frontend(&key)?;
    let sent_on = other && sent_on::<At, T>(t, ethernet, frontend);
    (serves(frontend, network) || sent_on).then_some(Found { key, frontend, sent_on })
}

/// Finds the frontend that a socket addresses: as [`find`] does for the packet that would open the connection. To a pod its
/// loopback addresses are its own; to the host they are those of the node that hostPorts have and NodePorts don't.
#[inline(always)]
pub(super) fn of_socket<'t, T: Tables>(
    t: &'t T,
    addr: &Addr,
    port: Port,
    proto: Proto,
    of_pod: bool,
) -> Option<&'t Frontend> {
    let key = FrontendKey { addr: *addr, port, proto, scope: FrontendKey::ANY };
    let node = of_node(&key);
    let loopback = addr.is_loopback();
    // To a socket the unspecified address is the way to itself.
    if addr.same(&node.addr) || (loopback && of_pod) {
        return None;
    }
    if let Some(frontend) = t.frontend(&key) {
        return Some(frontend);
    }
    let frontend = t.frontend(&node)?;
    // Few ports lead so far.
    if loopback {
        return (frontend.flags & Frontend::NODE_PORT == 0).then_some(frontend);
    }
    serves(frontend, t.network(addr)?).then_some(frontend)
}

/// Whether a packet of a process of the host has a source that is a frontend too, in a protocol whose packets don't show
/// whether they answer: the answers would be taken for the service's. What answers in the service's name itself, since
/// another hook has translated it, doesn't count.
#[inline(never)]
pub(super) fn speaks_for_itself<T: Tables>(t: &T, tuple: &Tuple) -> bool {
    if tuple.proto != Proto::UDP && tuple.proto != Proto::SCTP {
        return false;
    }
    let mut key = FrontendKey { addr: tuple.src, port: tuple.sport, proto: tuple.proto, scope: FrontendKey::ANY };
    if t.frontend(&key).is_none() {
        key.addr = if tuple.src.is_v4() { FrontendKey::NODE_V4 } else { FrontendKey::NODE_V6 };
        if t.frontend(&key).is_none() {
            return false;
        }
    }
    t.network(&tuple.src).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32)
        && t.flow(&tuple.reversed(), |_| ()).is_none()
}

/// Whether a packet to this frontend was sent on by another node, for direct server return.
#[inline(always)]
fn sent_on<At: Place, T: Tables>(t: &T, ethernet: &Ethernet, frontend: &Frontend) -> bool {
    At::HOOK as u32 == Hook::FromUplink as u32
        && frontend.flags & Frontend::DIRECT_RETURN != 0
        && t.is_peer(&ethernet.src)
}

/// Whether some service has this address: it then has an entry without port and protocol.
#[inline(always)]
pub(super) fn of_address<'t, T: Tables>(t: &'t T, addr: &Addr) -> Option<&'t Frontend> {
    t.frontend(&FrontendKey::address(*addr))
}

/// Whether a packet can be a flow's first by its TCP flags, which are zero in other protocols.
#[inline(always)]
fn opens(tcp_flags: u8) -> bool {
    tcp_flags == 0 || tcp_flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN
}

/// Whether a packet may begin a flow. The answer to an echo, which has the other port only, may not.
#[inline(always)]
pub(super) fn begins(tuple: &Tuple) -> bool {
    carried(tuple) || tuple.dport.wire() == 0
}

/// Whether the protocol's packets can be for a frontend. Echoes have ports in tuples only.
#[inline(always)]
pub(super) fn carried(tuple: &Tuple) -> bool {
    tuple.proto == Proto::TCP || tuple.proto == Proto::UDP || tuple.proto == Proto::SCTP
}
