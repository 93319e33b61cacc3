//! Frontend lookup: which service port a packet is addressed to.

use crate::{
    addr::{Addr, Port, Proto},
    layout::{Frontend, FrontendKey, Network, NetworkKind, Tuple},
    packet::{Ethernet, Tcp},
    verdict::Reason,
};

use super::{HookPoint, Tables};

/// A service port to which a packet is addressed.
pub(super) struct Addressed<'t> {
    /// Entry that applies to the client: see [`FrontendKey::scope`].
    pub frontend: &'t Frontend,
    /// Another node has forwarded the packet to a backend on this node.
    pub forwarded: bool,
    /// The packet comes from another node; only determined if the frontend has direct server return.
    pub from_peer: bool,
}

/// Finds the frontend for a packet: the entry of exactly its destination, or else a wildcard entry if the destination
/// is a node address.
///
/// `Err` if there is a frontend, but not for this packet. At an address of this node, a TCP packet that belongs to no
/// flow and doesn't open a connection is a reply to a process that has sent from a port of the same number, not for a
/// service.
#[inline(always)]
pub(super) fn find<'t, At: HookPoint, T: Tables>(
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

/// Evaluates the entry of exactly a packet's destination: see [`find`].
#[inline(always)]
pub(super) fn at_exact<'t, At: HookPoint, T: Tables>(
    t: &'t T,
    ethernet: &Ethernet,
    tuple: &Tuple,
    tcp_flags: u8,
    frontend: &'t Frontend,
) -> Option<Result<Addressed<'t>, Reason>> {
    let direct_return = At::FROM_UPLINK && frontend.flags & Frontend::DIRECT_RETURN != 0;
    // Look up the network only if the result depends on it.
    let own = (direct_return || !opens(tcp_flags))
        && t.network(&tuple.dst).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
    if own && !opens(tcp_flags) {
        return None;
    }
    let from_peer = direct_return && t.is_peer(&ethernet.src);
    Some(scoped::<At, T>(t, tuple, &tuple.dst, Addressed { frontend, forwarded: from_peer && !own, from_peer }))
}

/// Finds a wildcard entry for a packet to a node address in `network`: see [`find`].
#[inline(always)]
pub(super) fn node_port<'t, At: HookPoint, T: Tables>(
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
    let forwarded = other && from_peer;
    if !(serves(frontend, network) || forwarded) {
        return None;
    }
    Some(scoped::<At, T>(t, tuple, addr, Addressed { frontend, forwarded, from_peer }))
}

/// Whether a wildcard entry applies to addresses in this network.
#[inline(always)]
fn serves(frontend: &Frontend, network: &Network) -> bool {
    network.kind == NetworkKind::LocalNode as u32
        && (frontend.flags & Frontend::NODE_PORT == 0 || network.flags & Network::NODE_PORTS != 0)
}

/// Finds the frontend for the address of a socket call, as [`find`] does for the packet that would open the connection.
/// A pod's loopback addresses are its own. Those of the host have the hostPorts of the node but not its NodePorts.
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
    // For a socket, the unspecified address means the host itself.
    if addr.same(node) || (loopback && of_pod) {
        return None;
    }
    if let Some(frontend) = at(t, addr, port, proto, FrontendKey::ANY) {
        return Some(frontend);
    }
    let frontend = at(t, node, port, proto, FrontendKey::ANY)?;
    // Checked last: few ports have a wildcard entry.
    if loopback {
        return (frontend.flags & Frontend::NODE_PORT == 0).then_some(frontend);
    }
    serves(frontend, t.network(addr)?).then_some(frontend)
}

/// Replaces the entry with scope [`FrontendKey::ANY`] with the one that applies to the client.
#[inline(always)]
fn scoped<'t, At: HookPoint, T: Tables>(
    t: &'t T,
    tuple: &Tuple,
    addr: &Addr,
    addressed: Addressed<'t>,
) -> Result<Addressed<'t>, Reason> {
    let scope = if !At::FROM_UPLINK {
        return Ok(addressed);
    } else if addressed.forwarded {
        FrontendKey::PEER
    } else if addressed.frontend.flags & Frontend::OUTSIDE_DIFFERS != 0 {
        FrontendKey::OUTSIDE
    } else {
        return Ok(addressed);
    };
    match at(t, addr, tuple.dport, tuple.proto, scope) {
        Some(frontend) if !addressed.forwarded || frontend.slot_count != 0 => Ok(Addressed { frontend, ..addressed }),
        _ if addressed.forwarded => Err(Reason::NotForThisNode),
        _ => Err(Reason::StaleTable),
    }
}

/// Entry of exactly a packet's destination.
#[inline(always)]
pub(super) fn exact<'t, T: Tables>(t: &'t T, tuple: &Tuple, scope: u8) -> Option<&'t Frontend> {
    at(t, &tuple.dst, tuple.dport, tuple.proto, scope)
}

/// Wildcard for all node addresses of an address's family.
#[inline(always)]
const fn of_node(addr: &Addr) -> &'static Addr {
    if addr.is_v4() { &FrontendKey::NODE_V4 } else { &FrontendKey::NODE_V6 }
}

/// Looks up an entry.
// Out of line: inlined, each key would occupy stack of its own.
#[inline(never)]
fn at<'t, T: Tables>(t: &'t T, addr: &Addr, port: Port, proto: Proto, scope: u8) -> Option<&'t Frontend> {
    t.frontend(&FrontendKey { addr: *addr, port, proto, scope })
}

/// Whether a process of the host sends from an address and port of a frontend, in a protocol whose packets don't tell
/// replies from requests (UDP, SCTP): replies to the process would be taken for packets to the service. Replies of the
/// service itself, translated by another hook, don't count. `key` is memory for a key.
#[inline(never)]
pub(super) fn source_is_frontend<T: Tables>(t: &T, tuple: &Tuple, key: &mut Tuple) -> bool {
    if tuple.proto != Proto::UDP && tuple.proto != Proto::SCTP {
        return false;
    }
    *key = tuple.reversed();
    let is_frontend = |addr| at(t, addr, tuple.sport, tuple.proto, FrontendKey::ANY).is_some();
    (is_frontend(&tuple.src) || is_frontend(of_node(&tuple.src)))
        && t.network(&tuple.src).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32)
        && t.flow(key, |_| ()).is_none()
}

/// Entry without port and protocol of a service address; `None` if no service has the address.
#[inline(always)]
pub(super) fn of_address<'t, T: Tables>(t: &'t T, addr: &Addr) -> Option<&'t Frontend> {
    at(t, addr, Port::new(0), Proto(0), FrontendKey::ANY)
}

/// Whether a packet can be the first of a flow, by its TCP flags (zero for other protocols).
#[inline(always)]
fn opens(tcp_flags: u8) -> bool {
    tcp_flags == 0 || tcp_flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN
}

/// Whether a packet may begin a flow. Echo replies, which have a destination port only, may not.
#[inline(always)]
pub(super) fn may_begin_flow(tuple: &Tuple) -> bool {
    is_service_protocol(tuple) || tuple.dport.wire() == 0
}

/// Whether services support the protocol. Echoes have ports in tuples, but are not for frontends.
#[inline(always)]
pub(super) fn is_service_protocol(tuple: &Tuple) -> bool {
    tuple.proto == Proto::TCP || tuple.proto == Proto::UDP || tuple.proto == Proto::SCTP
}
