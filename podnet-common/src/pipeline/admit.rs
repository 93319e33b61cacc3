//! Admission: may a packet go where it is addressed?
//!
//! Source checks, source ranges, and ClusterIPs from outside: checks that need only the packet and its frontend.
//! Network policy and shares follow in [`begin`](super::begin()), once the backend is known.

use crate::{
    addr::{Addr, IfIndex, Proto},
    layout::{Config, Endpoint, Frontend, Hook, Network, NetworkKind, ServiceClient, TUNNEL_PORT, Tuple},
    packet::{Arp, ETH, Ethernet, Packet},
    verdict::Reason,
};

use super::{
    HookPoint, Tables, Verdict,
    class::{Class, Classified},
    handover::Handover,
    scope,
};

/// What the tables know about a packet's source, at hooks that check it.
pub(super) struct Sender<'t> {
    /// For packets sent by pods: the pod with this address.
    pub endpoint: Option<&'t Endpoint>,
    /// For packets from outside the node: the range of the cluster that contains this address.
    pub network: Option<&'t Network>,
}

impl<'t> Sender<'t> {
    /// Looks up a packet's source.
    #[inline(always)]
    pub fn of<At: HookPoint, T: Tables>(t: &'t T, tuple: &Tuple) -> Self {
        match At::HOOK {
            Hook::FromPod => Self { endpoint: t.endpoint(&tuple.src), network: None },
            Hook::FromUplink | Hook::UplinkXdp => Self { endpoint: None, network: t.network(&tuple.src) },
            _ => Self { endpoint: None, network: None },
        }
    }
}

/// Admits a packet that belongs to no flow, according to its class. `Err` is the verdict on a packet that isn't
/// admitted.
#[inline(always)]
pub(super) fn admit<At: HookPoint, P: Packet, T: Tables>(
    p: &P,
    t: &T,
    ethernet: &Ethernet,
    h: &Handover,
    sender: &Sender<'_>,
    classified: Classified,
) -> Result<(), Verdict> {
    let packet = &h.packet;
    if classified.class == Class::LinkLocal {
        let harmless = !At::FROM_POD || is_duplicate_address_detection::<P>(p, &packet.tuple, packet.l4());
        return if harmless { Ok(()) } else { Err(Verdict::drop(Reason::LinkScope)) };
    }
    check_sender::<At, P, T>(p, t, ethernet, &packet.tuple, packet.v6(), sender).map_err(Verdict::drop)?;
    match classified.class {
        Class::Service => check_client::<At, T>(t, &packet.tuple, &h.begin.frontend),
        Class::Drop => Err(Verdict::drop(classified.reason)),
        Class::Reject => Err(Verdict::reject(classified.reason)),
        _ => Ok(()),
    }
}

/// Whether the client may use a service port, and the port has a backend.
#[inline(always)]
fn check_client<At: HookPoint, T: Tables>(t: &T, tuple: &Tuple, frontend: &Frontend) -> Result<(), Verdict> {
    if frontend.flags & Frontend::EXTERNAL == 0 && !may_use_cluster_ip::<At, T>(t) {
        return Err(Verdict::drop(Reason::ClusterIpFromOutside));
    }
    if frontend.flags & Frontend::SOURCE_RANGES != 0 && !in_source_ranges::<At, T>(t, tuple, frontend) {
        return Err(Verdict::drop(Reason::SourceRange));
    }
    if frontend.slot_count == 0 {
        let dropped = frontend.flags & Frontend::DROP != 0;
        return Err(if dropped { Verdict::drop(Reason::NoLocalEndpoint) } else { Verdict::reject(Reason::NoEndpoint) });
    }
    Ok(())
}

/// Whether the client is in the source ranges of a service.
// Out of line: rarely called, and its key takes stack.
#[inline(never)]
fn in_source_ranges<At: HookPoint, T: Tables>(t: &T, tuple: &Tuple, frontend: &Frontend) -> bool {
    // A process of the host that connects to an address of the host has this address as its source.
    let itself = At::FROM_HOST && tuple.src.same(&tuple.dst);
    let Some(config) = t.config() else { return false };
    let client = if itself { config.node(!tuple.src.is_v4()) } else { &tuple.src };
    t.in_source_ranges(&ServiceClient::new(frontend.service, *client))
}

/// Checks the source of a packet against its hook, for stages that know the flow. `Err` is the reason to drop it.
#[inline(always)]
pub(super) fn check_source<At: HookPoint, P: Packet, T: Tables>(
    p: &P,
    t: &T,
    ethernet: &Ethernet,
    tuple: &Tuple,
    v6: bool,
) -> Result<(), Reason> {
    check_sender::<At, P, T>(p, t, ethernet, tuple, v6, &Sender::of::<At, T>(t, tuple))
}

#[inline(always)]
fn check_sender<At: HookPoint, P: Packet, T: Tables>(
    p: &P,
    t: &T,
    ethernet: &Ethernet,
    tuple: &Tuple,
    v6: bool,
    sender: &Sender<'_>,
) -> Result<(), Reason> {
    if v6 && (tuple.src.is_v4() || tuple.dst.is_v4()) {
        return Err(Reason::MappedAddress);
    }
    // Also a wildcard in `frontends`.
    if scope::unspecified(&tuple.dst) {
        return Err(Reason::Martian);
    }
    match At::HOOK {
        // A pod may use only its own addresses and its own MAC.
        Hook::FromPod => match sender.endpoint {
            Some(e) if e.ifindex == p.ifindex() && e.mac == ethernet.src => Ok(()),
            _ => Err(Reason::SpoofedSource),
        },
        Hook::FromUplink | Hook::UplinkXdp => from_outside::<T>(t, ethernet, tuple, sender.network),
        Hook::FromHost | Hook::ToPod | Hook::ToUplink | Hook::FromLoopback | Hook::ToRaw | Hook::FromRaw => Ok(()),
    }
}

/// Rejects packets that may not enter the node whatever their destination. `network` is the range of the source.
#[inline(always)]
fn from_outside<T: Tables>(t: &T, ethernet: &Ethernet, tuple: &Tuple, network: Option<&Network>) -> Result<(), Reason> {
    if scope::martian(&tuple.src, &tuple.dst) {
        return Err(Reason::Martian);
    }
    match network {
        Some(n) if n.kind == NetworkKind::LocalPods as u32 => Err(Reason::LocalPodFromOutside),
        Some(n) if n.kind == NetworkKind::RemotePods as u32 && wrong_node(n, ethernet) => Err(Reason::PodFromWrongNode),
        Some(n) if n.kind == NetworkKind::Services as u32 || n.kind == NetworkKind::LocalNode as u32 => {
            Err(Reason::Martian)
        }
        Some(n) if n.kind == NetworkKind::RemoteNode as u32 => Ok(()),
        _ if is_tunnel_packet::<T>(t, tuple) && !is_known_elsewhere::<T>(t, &tuple.dst) => {
            Err(Reason::TunnelFromOutside)
        }
        _ => Ok(()),
    }
}

/// Whether a packet is an encapsulated one for the tunnel of its receiver.
#[inline(always)]
pub(super) fn is_tunnel_packet<T: Tables>(t: &T, tuple: &Tuple) -> bool {
    tuple.dport.wire() == TUNNEL_PORT.to_be()
        && tuple.proto == Proto::UDP
        && t.config().is_some_and(|config| config.tunnel.0 != 0)
}

/// Whether an address is known to belong to a pod, another node or a service. The host has more addresses than those in
/// the tables: broadcast and link-local ones.
#[inline(always)]
fn is_known_elsewhere<T: Tables>(t: &T, dst: &Addr) -> bool {
    t.prefix(dst).is_some_and(|n| {
        let others = n.kind != NetworkKind::LocalNode as u32 && n.kind != NetworkKind::NonMasquerade as u32;
        (n.kind != NetworkKind::Nothing as u32 && others) || n.flags & Network::SERVICE_ADDRESS != 0
    })
}

/// Whether a packet of a remote pod was sent by another node than that pod's. Always false if the node's MAC is
/// unknown.
#[inline(always)]
fn wrong_node(network: &Network, ethernet: &Ethernet) -> bool {
    network.mac.0 != [0; 6] && network.mac != ethernet.src
}

/// Whether ClusterIPs may be used by packets at this hook: only from inside the cluster, unless
/// [`Config::EXTERNAL_CLUSTER_IP`].
#[inline(always)]
pub(super) fn may_use_cluster_ip<At: HookPoint, T: Tables>(t: &T) -> bool {
    match At::HOOK {
        Hook::FromUplink | Hook::UplinkXdp => t.config().is_some_and(|c| c.flags & Config::EXTERNAL_CLUSTER_IP != 0),
        _ => true,
    }
}

/// Whether an interface is an uplink.
#[inline(always)]
pub(super) fn is_uplink<T: Tables>(t: &T, ifindex: IfIndex) -> bool {
    // After an upgrade, `config` is there before the daemon has written `interfaces`.
    t.config().is_some_and(|config| config.is_uplink(ifindex)) || t.interface(&ifindex).is_some()
}

/// Whether a link-local packet is part of duplicate address detection: a neighbour solicitation without a source
/// address (RFC 4862, section 5.4.2). The link of a pod needs nothing else, since neighbour entries are permanent on
/// both sides. With spoofed sources a pod could fill the host's neighbour table, and with router advertisements change
/// the host's routes.
#[inline(always)]
fn is_duplicate_address_detection<P: Packet>(p: &P, tuple: &Tuple, l4: usize) -> bool {
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    // Type and code: the verifier can't follow the bounds check of a single byte.
    let kind = || p.load::<[u8; 2]>(l4).map(|[kind, _]| kind);
    tuple.src.is_none() && tuple.proto == Proto::ICMPV6 && kind() == Some(NEIGHBOUR_SOLICITATION)
}

/// Checks that an ARP packet sent by a pod has the pod's own sender address, or none, as in a probe (RFC 5227).
#[inline(always)]
pub(super) fn arp<P: Packet, T: Tables>(p: &P, t: &T, ethernet: &Ethernet) -> Result<(), Reason> {
    let Some(arp) = p.load::<Arp>(ETH) else { return Err(Reason::Malformed) };
    let [low, high] = arp.sender_ip.map(u16::to_ne_bytes);
    let sender = u32::from_ne_bytes([low[0], low[1], high[0], high[1]]);
    if sender == 0 && arp.sender_mac == ethernet.src {
        return Ok(());
    }
    match t.endpoint(&Addr::v4(sender)) {
        Some(e) if e.ifindex == p.ifindex() && e.mac == ethernet.src && e.mac == arp.sender_mac => Ok(()),
        _ => Err(Reason::SpoofedSource),
    }
}
