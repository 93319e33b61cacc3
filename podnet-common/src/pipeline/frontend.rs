//! Frontend lookup: which service port a packet is addressed to.

use crate::{
    addr::{Addr, Port, Proto},
    layout::{Frontend, FrontendKey, Network, NetworkKind, Tuple},
    packet::{Ethernet, Tcp},
    verdict::Reason,
};

use super::{Place, Tables};

/// The service port that a packet is addressed to.
pub(super) struct Addressed<'t> {
    /// The entry that counts for its client: see [`FrontendKey::scope`].
    pub frontend: &'t Frontend,
    /// Another node has chosen this one for the packet and sent it on.
    pub sent_on: bool,
    /// Another node has sent the packet here; only asked where the frontend has direct server return.
    pub from_peer: bool,
}

/// Finds the frontend of exactly a packet's destination, or among those that are there at all of a node's addresses.
/// `network` is what the destination is, which is needed for the second.
///
/// At an address of the node what doesn't open a connection, and belongs to none, answers a process that has sent from a
/// port with this number. `Err`: there is a frontend, but not for this packet.
#[inline(always)]
pub(super) fn find<'t, At: Place, T: Tables>(
    t: &'t T,
    ethernet: &Ethernet,
    tuple: &Tuple,
    tcp_flags: u8,
) -> Option<Result<Addressed<'t>, Reason>> {
    if let Some(frontend) = exact(t, tuple, FrontendKey::ANY) {
        return at_exact::<At, T>(t, ethernet, tuple, tcp_flags, frontend);
    }
    node_port::<At, T>(t, ethernet, tuple, tcp_flags, t.network(&tuple.dst)?)
}

/// Judges the frontend of exactly a packet's destination: see [`find`].
#[inline(always)]
pub(super) fn at_exact<'t, At: Place, T: Tables>(
    t: &'t T,
    ethernet: &Ethernet,
    tuple: &Tuple,
    tcp_flags: u8,
    frontend: &'t Frontend,
) -> Option<Result<Addressed<'t>, Reason>> {
    let direct_return = At::FROM_UPLINK && frontend.flags & Frontend::DIRECT_RETURN != 0;
    // The network is looked up only where it matters.
    let own = (direct_return || !opens(tcp_flags))
        && t.network(&tuple.dst).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
    if own && !opens(tcp_flags) {
        return None;
    }
    let from_peer = direct_return && t.is_peer(&ethernet.src);
    Some(scoped::<At, T>(t, tuple, &tuple.dst, Addressed { frontend, sent_on: from_peer && !own, from_peer }))
}

/// Finds the frontend among those that are there at all of a node's addresses: see [`find`].
#[inline(always)]
pub(super) fn node_port<'t, At: Place, T: Tables>(
    t: &'t T,
    ethernet: &Ethernet,
    tuple: &Tuple,
    tcp_flags: u8,
    network: &Network,
) -> Option<Result<Addressed<'t>, Reason>> {
    let own = network.kind == NetworkKind::LocalNode as u32;
    let other = network.kind == NetworkKind::RemoteNode as u32 && At::FROM_UPLINK;
    if !(other || own && opens(tcp_flags)) {
        return None;
    }
    let addr = of_node(&tuple.dst);
    let frontend = at(t, addr, tuple.dport, tuple.proto, FrontendKey::ANY)?;
    let from_peer = At::FROM_UPLINK && frontend.flags & Frontend::DIRECT_RETURN != 0 && t.is_peer(&ethernet.src);
    let sent_on = other && from_peer;
    if !(serves(frontend, network) || sent_on) {
        return None;
    }
    Some(scoped::<At, T>(t, tuple, addr, Addressed { frontend, sent_on, from_peer }))
}

/// Whether a frontend that is there at all of the node's addresses serves at an address in this network.
#[inline(always)]
fn serves(frontend: &Frontend, network: &Network) -> bool {
    network.kind == NetworkKind::LocalNode as u32
        && (frontend.flags & Frontend::NODE_PORT == 0 || network.flags & Network::NODE_PORTS != 0)
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
    let node = of_node(addr);
    let loopback = addr.is_loopback();
    // To a socket the unspecified address is the way to itself.
    if addr.same(node) || (loopback && of_pod) {
        return None;
    }
    if let Some(frontend) = at(t, addr, port, proto, FrontendKey::ANY) {
        return Some(frontend);
    }
    let frontend = at(t, node, port, proto, FrontendKey::ANY)?;
    // Few ports lead so far.
    if loopback {
        return (frontend.flags & Frontend::NODE_PORT == 0).then_some(frontend);
    }
    serves(frontend, t.network(addr)?).then_some(frontend)
}

/// Replaces the entry that every frontend has by the one that counts for the packet's client.
#[inline(always)]
fn scoped<'t, At: Place, T: Tables>(
    t: &'t T,
    tuple: &Tuple,
    addr: &Addr,
    addressed: Addressed<'t>,
) -> Result<Addressed<'t>, Reason> {
    let scope = if !At::FROM_UPLINK {
        return Ok(addressed);
    } else if addressed.sent_on {
        FrontendKey::PEER
    } else if addressed.frontend.flags & Frontend::OUTSIDE_DIFFERS != 0 {
        FrontendKey::OUTSIDE
    } else {
        return Ok(addressed);
    };
    match at(t, addr, tuple.dport, tuple.proto, scope) {
        Some(frontend) if !addressed.sent_on || frontend.slot_count != 0 => Ok(Addressed { frontend, ..addressed }),
        _ if addressed.sent_on => Err(Reason::NotForThisNode),
        _ => Err(Reason::StaleTable),
    }
}

/// The entry with exactly a packet's destination.
#[inline(always)]
pub(super) fn exact<'t, T: Tables>(t: &'t T, tuple: &Tuple, scope: u8) -> Option<&'t Frontend> {
    at(t, &tuple.dst, tuple.dport, tuple.proto, scope)
}

/// What stands for all addresses of the node that are of an address's family.
#[inline(always)]
const fn of_node(addr: &Addr) -> &'static Addr {
    if addr.is_v4() { &FrontendKey::NODE_V4 } else { &FrontendKey::NODE_V6 }
}

/// The entry with a key.
// Out of line, since each key on the stack would have a place of its own there.
#[inline(never)]
fn at<'t, T: Tables>(t: &'t T, addr: &Addr, port: Port, proto: Proto, scope: u8) -> Option<&'t Frontend> {
    t.frontend(&FrontendKey { addr: *addr, port, proto, scope })
}

/// Whether a packet of a process of the host has a source that is a frontend too, in a protocol whose packets don't show
/// whether they answer: the answers would be taken for the service's. What answers in the service's name itself, since
/// another hook has translated it, doesn't count. `key` is memory for one.
#[inline(never)]
pub(super) fn speaks_for_itself<T: Tables>(t: &T, tuple: &Tuple, key: &mut Tuple) -> bool {
    if tuple.proto != Proto::UDP && tuple.proto != Proto::SCTP {
        return false;
    }
    *key = tuple.reversed();
    let is_frontend = |addr| at(t, addr, tuple.sport, tuple.proto, FrontendKey::ANY).is_some();
    (is_frontend(&tuple.src) || is_frontend(of_node(&tuple.src)))
        && t.network(&tuple.src).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32)
        && t.flow(key, |_| ()).is_none()
}

/// Whether some service has this address: it then has an entry without port and protocol.
#[inline(always)]
pub(super) fn of_address<'t, T: Tables>(t: &'t T, addr: &Addr) -> Option<&'t Frontend> {
    at(t, addr, Port::new(0), Proto(0), FrontendKey::ANY)
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
