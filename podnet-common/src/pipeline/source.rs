//! Source translation: which source address the packets of a flow get.

use crate::{
    addr::Addr,
    layout::{Config, Frontend, NetworkKind},
};

use super::{HookPoint, Tables};

/// Source address of a flow's packets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The client's own address.
    Own,
    /// The hairpin address. `shared`: all processes of the host use it.
    Hairpin { shared: bool },
    /// An address of the node.
    Node,
}

/// Source address for the packets of a flow from a client to a backend of a service.
#[inline(always)]
pub(super) fn choose<At: HookPoint, T: Tables>(
    t: &T,
    config: &Config,
    frontend: &Frontend,
    client: &Addr,
    backend: &Addr,
) -> Source {
    // The backend is the client: its stack would treat packets from its own address as spoofed.
    if !At::FROM_UPLINK && backend.same(client) {
        return Source::Hairpin { shared: false };
    }
    let snat = frontend.flags & Frontend::SNAT != 0;
    if !At::FROM_HOST && !At::FROM_UPLINK && !snat {
        return Source::Own;
    }
    let here = t.network(backend).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
    // From outside to a pod on another node: replies would otherwise bypass this node.
    let through = At::FROM_UPLINK && !here && t.endpoint(backend).is_none();
    if !At::FROM_HOST && !snat && !through {
        return Source::Own;
    }
    if here {
        // Between two addresses of the host, replies would bypass this hook.
        return Source::Hairpin { shared: true };
    }
    // A process that connects to an address of the host has this address as its source; other nodes may have no route
    // to it.
    let known = client.same(&config.node_v4) || client.same(&config.node_v6) || t.endpoint(backend).is_some();
    if At::FROM_HOST && known { Source::Own } else { Source::Node }
}

/// Source address of the node towards a destination: that of the route, or else the node's first.
#[inline(always)]
pub(super) fn node(config: &Config, of_route: &Addr, v4: bool) -> Addr {
    if of_route.is_none() { *config.node(!v4) } else { *of_route }
}
