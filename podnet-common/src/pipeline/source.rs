//! Source translation: which source address a flow's packets get.

use crate::{
    addr::Addr,
    layout::{Config, Frontend, NetworkKind},
};

use super::{Place, Tables};

/// The source that a flow's packets get.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The client's own.
    Own,
    /// The hairpin address. `shared`: all processes of the host have it.
    Hairpin { shared: bool },
    /// The node's.
    Node,
}

/// The source that the packets of a flow from a client to a backend of a service get.
#[inline(always)]
pub(super) fn choose<At: Place, T: Tables>(
    t: &T,
    config: &Config,
    frontend: &Frontend,
    client: &Addr,
    backend: &Addr,
) -> Source {
    // The backend is the client: its stack would take a packet from its own address for a forgery.
    if !At::FROM_UPLINK && backend.same(client) {
        return Source::Hairpin { shared: false };
    }
    let snat = frontend.flags & Frontend::SNAT != 0;
    if !At::FROM_HOST && !At::FROM_UPLINK && !snat {
        return Source::Own;
    }
    let here = t.network(backend).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
    // From outside to another node's pod, whose answer would otherwise go past this node.
    let through = At::FROM_UPLINK && !here && t.endpoint(backend).is_none();
    if !At::FROM_HOST && !snat && !through {
        return Source::Own;
    }
    if here {
        // From the host's address to the host's address the answer would never come by here.
        return Source::Hairpin { shared: true };
    }
    // A process that asks one of the host's addresses has that one itself, which others needn't know a way to.
    let known = client.same(&config.node_v4) || client.same(&config.node_v6) || t.endpoint(backend).is_some();
    if At::FROM_HOST && known { Source::Own } else { Source::Node }
}

/// The node's address towards a destination: the one that the route has for the host, or else the node's first.
#[inline(always)]
pub(super) fn node(config: &Config, of_route: &Addr, v4: bool) -> Addr {
    if of_route.is_none() { *config.node(!v4) } else { *of_route }
}
