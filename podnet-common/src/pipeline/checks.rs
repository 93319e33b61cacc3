//! Whether a packet may come from where it came from.

use crate::{
    addr::{Addr, IfIndex, Proto},
    layout::{Config, FrontendKey, Hook, Network, NetworkKind, TUNNEL_PORT, Tuple},
    packet::{Arp, ETH, Ethernet, Packet},
    verdict::Reason,
};

use super::{Place, Tables, family::Family, frontend};

/// Checks a packet's source against its hook. `Err` is the reason to drop it.
#[inline(always)]
pub(super) fn source<At: Place, F: Family, P: Packet, T: Tables>(
    p: &P,
    t: &T,
    ethernet: &Ethernet,
    tuple: &Tuple,
) -> Result<(), Reason> {
    if F::mapped(&tuple.src) || F::mapped(&tuple.dst) {
        return Err(Reason::MappedAddress);
    }
    // No packet has it as its destination (RFC 1122, section 3.2.1.3; RFC 4291, section 2.5.2), and in `frontends` it
    // stands for others.
    if tuple.dst.same(&FrontendKey::NODE_V4) || tuple.dst.same(&FrontendKey::NODE_V6) {
        return Err(Reason::Martian);
    }
    match At::HOOK {
        Hook::FromPod => from_pod::<P, T>(p, t, ethernet, tuple),
        Hook::FromUplink | Hook::UplinkXdp => from_outside::<T>(t, ethernet, tuple),
        Hook::FromHost | Hook::ToPod | Hook::ToUplink | Hook::FromLoopback | Hook::ToRaw | Hook::FromRaw => Ok(()),
    }
}

/// A pod sends from its own addresses and its own MAC.
#[inline(always)]
fn from_pod<P: Packet, T: Tables>(p: &P, t: &T, ethernet: &Ethernet, tuple: &Tuple) -> Result<(), Reason> {
    match t.endpoint(&tuple.src) {
        Some(e) if e.ifindex == p.ifindex() && e.mac == ethernet.src => Ok(()),
        _ => Err(Reason::SpoofedSource),
    }
}

/// What may not come in from outside the node, whoever it is for.
#[inline(always)]
fn from_outside<T: Tables>(t: &T, ethernet: &Ethernet, tuple: &Tuple) -> Result<(), Reason> {
    if martian(&tuple.src, &tuple.dst) {
        return Err(Reason::Martian);
    }
    match t.network(&tuple.src) {
        Some(n) if n.kind == NetworkKind::LocalPods as u32 => Err(Reason::LocalPodFromOutside),
        Some(n) if n.kind == NetworkKind::RemotePods as u32 && wrong_node(n, ethernet) => Err(Reason::PodFromWrongNode),
        Some(n) if n.kind == NetworkKind::Services as u32 || n.kind == NetworkKind::LocalNode as u32 => {
            Err(Reason::Martian)
        }
        Some(n) if n.kind == NetworkKind::RemoteNode as u32 => Ok(()),
        _ if tunnelled::<T>(t, tuple) && !for_others::<T>(t, &tuple.dst) => Err(Reason::TunnelFromOutside),
        _ => Ok(()),
    }
}

/// Whether a packet carries another one, for whoever gets it.
#[inline(always)]
pub(super) fn tunnelled<T: Tables>(t: &T, tuple: &Tuple) -> bool {
    tuple.dport.wire() == TUNNEL_PORT.to_be()
        && tuple.proto == Proto::UDP
        && t.config().is_some_and(|config| config.tunnel.0 != 0)
}

/// Whether an address is known to be a pod's, another node's or a service's. The host has others than its own: broadcasts,
/// the link's.
#[inline(always)]
fn for_others<T: Tables>(t: &T, dst: &Addr) -> bool {
    t.network(dst)
        .is_some_and(|n| n.kind != NetworkKind::LocalNode as u32 && n.kind != NetworkKind::NonMasquerade as u32)
        || t.is_service_address(dst)
}

/// Whether a remote pod's packet was not sent by that pod's node. Unknown MACs are not judged.
#[inline(always)]
fn wrong_node(network: &Network, ethernet: &Ethernet) -> bool {
    network.mac.0 != [0; 6] && network.mac != ethernet.src
}

/// Whether services may be used by a packet that comes in here: ClusterIPs are the cluster's own, unless
/// [`Config::EXTERNAL_CLUSTER_IP`].
#[inline(always)]
pub(super) fn may_use_cluster_ip<At: Place, T: Tables>(t: &T) -> bool {
    match At::HOOK {
        Hook::FromUplink | Hook::UplinkXdp => t.config().is_some_and(|c| c.flags & Config::EXTERNAL_CLUSTER_IP != 0),
        _ => true,
    }
}

/// Whether an interface leads out of the node.
#[inline(always)]
pub(super) fn is_uplink<T: Tables>(t: &T, ifindex: IfIndex) -> bool {
    // An upgraded node has the first before its daemon has written the second.
    t.config().is_some_and(|config| config.is_uplink(ifindex)) || t.interface(&ifindex).is_some()
}

/// Whether a packet that belongs to no service leaves the cluster from a pod, with the node's address.
#[inline(always)]
pub(super) fn masquerades<At: Place, T: Tables>(t: &T, config: &Config, tuple: &Tuple) -> bool {
    frontend::begins(tuple) && leaves_in_nodes_name::<At, T>(t, config, tuple)
}

/// Whether a packet leaves the cluster from a pod, so that it may do so with the node's address only.
#[inline(always)]
pub(super) fn leaves_in_nodes_name<At: Place, T: Tables>(t: &T, config: &Config, tuple: &Tuple) -> bool {
    !multicast(&tuple.dst) && leaves_cluster::<At, T>(t, config, &tuple.dst)
}

/// Whether a pod's packet to this address shows the node's.
#[inline(always)]
pub(super) fn leaves_cluster<At: Place, T: Tables>(t: &T, config: &Config, to: &Addr) -> bool {
    At::HOOK as u32 == Hook::FromPod as u32
        && config.flags & Config::MASQUERADE != 0
        && t.network(to).is_none()
        && t.endpoint(to).is_none()
}

/// Whether an address is that of a group, or of all (RFC 1112, section 4; RFC 4291, section 2.7).
#[inline(always)]
fn multicast(addr: &Addr) -> bool {
    let [four, ..] = addr.0[3].to_ne_bytes();
    let [six, ..] = addr.0[0].to_ne_bytes();
    (addr.is_v4() && four >= 224) || six == 0xff
}

/// Addresses that can't be on a link between hosts (RFC 1812, section 5.3.7; RFC 4291, sections 2.5.2 and 2.5.3). A host
/// without an address speaks to all (DHCP, duplicate address detection).
#[inline(always)]
fn martian(src: &Addr, dst: &Addr) -> bool {
    if src.is_v4() {
        let [from, ..] = src.0[3].to_ne_bytes();
        let [to, ..] = dst.0[3].to_ne_bytes();
        return from == 127 || from >= 224 || to == 127 || (from == 0 && to < 224);
    }
    let [from, ..] = src.0[0].to_ne_bytes();
    let [to, ..] = dst.0[0].to_ne_bytes();
    let loopback = src.same(&Addr::LOOPBACK_V6) || dst.same(&Addr::LOOPBACK_V6);
    loopback || from == 0xff || (src.is_none() && to != 0xff)
}

/// Whether an IPv6 packet speaks to the link only: neighbour discovery, duplicate address detection, multicast
/// listeners (RFC 4861, RFC 4862, RFC 3810). Such a packet has a link-local or no source, and no pod is reached by it.
#[inline(always)]
pub(super) fn link_scope(src: &Addr, dst: &Addr, proto: Proto) -> bool {
    let [first, second, ..] = dst.0[0].to_ne_bytes();
    let to_link = link_local(dst) || (first == 0xff && second & 0xf <= 2);
    to_link && (link_local(src) || (src.is_none() && proto == Proto::ICMPV6))
}

/// Whether an IPv6 address counts on its link only (RFC 4291, section 2.5.6).
#[inline(always)]
pub(super) fn link_local(addr: &Addr) -> bool {
    let [first, second, ..] = addr.0[0].to_ne_bytes();
    first == 0xfe && second & 0xc0 == 0x80
}

/// Whether a packet that speaks to the link is part of duplicate address detection, a solicitation without a source
/// (RFC 4862, section 5.4.2). A pod's link needs no more: neighbours are permanent on both sides. With invented sources a
/// pod could fill the host's neighbour table, and a router's advertisement could change the host's routes.
#[inline(always)]
pub(super) fn detects_duplicates<P: Packet>(p: &P, tuple: &Tuple, l4: usize) -> bool {
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    tuple.src.is_none() && tuple.proto == Proto::ICMPV6 && p.load::<u8>(l4) == Some(NEIGHBOUR_SOLICITATION)
}

/// Checks that an ARP packet of a pod speaks for that pod (or, as a probe of RFC 5227, for nobody).
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
