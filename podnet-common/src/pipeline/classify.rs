//! Classification: the purpose of a packet that belongs to no flow.
//!
//! Decided once, from the headers and the tables. [`admit`] then checks whether the packet may go there;
//! the rest follows from the class.

use crate::{
    addr::{Addr, IfIndex, Proto},
    layout::{Config, CtEntry, Frontend, FrontendKey, Network, NetworkKind, Tuple},
    packet::{Ethernet, Packet, Tcp},
    verdict::Reason,
};

use super::{
    HookPoint, Stage, Tables, Verdict,
    admit::{self, Sender},
    balance,
    class::{Class, Classified},
    direct,
    family::FragmentKind,
    forward::{self, Forwarded},
    frontend::{self, Addressed},
    handover::{Departure, Handover, Purpose, ToBegin, ToInsert},
    headers::Headers,
    next_hop, policy,
    run::run_stage,
    scope, shares,
};

/// Classifies and admits a packet that belongs to no flow, and carries out the result: begins a flow, forwards,
/// answers, or leaves the packet to the stack. Follows [`enter`](super::enter()), [`track`](super::track()) or
/// [`icmp`](super::icmp()) at the same hook.
#[inline(always)]
pub fn classify<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    run_stage::<At, T>(t, |h| {
        let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::drop(Reason::Malformed) };
        classify_and_admit::<At, P, T>(p, t, &ethernet, h)
    })
}

#[inline(always)]
fn classify_and_admit<At: HookPoint, P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    ethernet: &Ethernet,
    h: &mut Handover,
) -> Verdict {
    if h.packet.icmp_error() && At::FROM_UPLINK && balance::forwards_error::<At, T>(t, ethernet, h) {
        next_hop::find::<T>(t, p.ifindex(), &h.packet.tuple.src, &mut h.send);
        return Verdict::tail(Stage::Quotation);
    }
    let sender = Sender::of::<At, T>(t, &h.packet.tuple);
    // Direct paths don't distinguish protocols, but whether packets from outside the cluster are tracked depends on
    // theirs.
    h.classify.direct = (!At::FROM_UPLINK || sender.network.is_some()) as u32;
    let classified = class_of::<At, T>(t, ethernet, h, &sender, p.ifindex());
    if let Err(verdict) = admit::admit::<At, P, T>(p, t, ethernet, h, &sender, classified) {
        return verdict;
    }
    let purpose = match classified.class {
        Class::Service => Some(Purpose::Service),
        Class::Masquerade => Some(Purpose::Masquerade),
        Class::Track => Some(Purpose::Track),
        _ => None,
    };
    if let Some(purpose) = purpose {
        h.begin.purpose = purpose as u8;
        return Verdict::tail(Stage::Begin);
    }
    let forwarded = match classified.class {
        Class::LocalPod => forward::into_pod(p, t, h),
        Class::Tunnel => forward::into_tunnel(p, t, h),
        Class::RemotePod => forward::to_node(p, t, h),
        _ => Forwarded::ToStack,
    };
    if At::FROM_UPLINK
        && classified.class == Class::Stack
        && h.classify.direct != 0
        && admit::is_tunnel_packet::<T>(t, &h.packet.tuple)
    {
        direct::store(t, p.ifindex(), ethernet.src, &h.packet, &Departure::default(), u32::MAX, &[0; 3]);
    }
    if h.classify.stale_flow != 0 {
        remove_stale_flow(t, h);
    }
    match (classified.class, forwarded) {
        (Class::External, _) => Verdict::tail(Stage::External),
        (Class::Echo, _) => Verdict::tail(Stage::Reject),
        (_, Forwarded::ToStack) => Verdict::PASS,
        (_, Forwarded::Sent) => h.departure.verdict(),
        (_, Forwarded::TooBig) => Verdict::reject(Reason::TooBig),
        (_, Forwarded::Failed) => Verdict::drop(Reason::PacketWriteFailed),
    }
}

/// Removes the entries of a closed flow. Packets that follow one that begins no flow would otherwise match them.
#[inline(never)]
fn remove_stale_flow<T: Tables>(t: &T, h: &mut Handover) {
    let (stale, key) = (&h.packet.tuple, &mut h.insert.key);
    if t.flow(stale, |entry| *key = entry.reply_key(stale.proto)).is_some() {
        t.remove_flow(stale);
        t.remove_flow(key);
    }
}

/// Class of a packet that belongs to no flow.
#[inline(always)]
fn class_of<At: HookPoint, T: Tables>(
    t: &T,
    ethernet: &Ethernet,
    h: &mut Handover,
    sender: &Sender<'_>,
    from: IfIndex,
) -> Classified {
    let Headers { tuple, tcp_flags, .. } = h.packet;
    if h.packet.ports()
        && let Some(frontend) = frontend::exact(t, &h.packet.tuple, FrontendKey::ANY)
        && let Some(found) = frontend::at_exact::<At, T>(t, ethernet, &h.packet.tuple, tcp_flags, frontend)
    {
        return service(&mut h.begin, found);
    }
    if h.packet.v6() && scope::link(&tuple.src, &tuple.dst, tuple.proto) && !admit::is_tunnel_packet::<T>(t, &tuple) {
        return Classified::only(Class::LinkLocal);
    }
    let mut classified = match t.endpoint(&h.packet.tuple.dst) {
        Some(_) if h.packet.ports() && replies_need_flow::<At, T>(t, &h.packet.tuple, sender) => {
            return Classified::only(Class::Track);
        }
        Some(endpoint) => {
            h.classify.endpoint = *endpoint;
            Classified::only(Class::LocalPod)
        }
        None => elsewhere::<At, T>(t, ethernet, h),
    };
    let untranslated =
        matches!(classified.class, Class::LocalPod | Class::Tunnel | Class::RemotePod | Class::External | Class::Stack);
    // Tracked flows need no check of their replies: their entries for them are reserved, with another port if need be.
    let to = if classified.class == Class::LocalPod { h.classify.endpoint.ifindex } else { IfIndex(0) };
    if untranslated && policy::applies::<At, T>(t) && policy::concerns::<At, T>(t, &h.packet.tuple, from, to) {
        return isolated(t, h, classified);
    }
    if untranslated
        && (replies_collide::<At, T>(t, &h.packet.tuple, tcp_flags, &mut h.insert)
            || reserves_replies::<At, T>(t, &h.packet.tuple, tcp_flags, classified.class))
    {
        classified.class = Class::Track;
    }
    classified
}

/// Whether a pod opens a TCP connection to a pod or to its node, which is tracked without translation. While it lasts,
/// the client's kernel may use the same source port for a connection to a service, which may choose the same server:
/// without an entry for the replies of the first connection, they would be taken for those of the second. If the table
/// fills up, services come first.
#[inline(always)]
fn reserves_replies<At: HookPoint, T: Tables>(t: &T, tuple: &Tuple, tcp_flags: u8, class: Class) -> bool {
    if !At::FROM_POD || tuple.proto != Proto::TCP || tcp_flags & (Tcp::SYN | Tcp::ACK) != Tcp::SYN {
        return false;
    }
    let node = |n: &Network| n.kind == NetworkKind::LocalNode as u32;
    let to_server = matches!(class, Class::LocalPod | Class::RemotePod | Class::Tunnel)
        || (class == Class::Stack && t.network(&tuple.dst).is_some_and(node));
    to_server && !tuple.src.same(&tuple.dst) && shares::has_room(t)
}

/// Class of an untranslated packet from or to a pod that network policy isolates. Its flow is tracked: policies are
/// about who begins, and must not hinder the answers.
#[inline(always)]
fn isolated<T: Tables>(t: &T, h: &mut Handover, classified: Classified) -> Classified {
    let tuple = &h.packet.tuple;
    let begins = h.packet.ports() && frontend::may_begin_flow(tuple) && !scope::multicast(&tuple.dst);
    if begins && !(classified.class == Class::Stack && policy::is_vacant(t, &tuple.dst)) {
        return Classified::only(Class::Track);
    }
    h.classify.direct = 0;
    let denied = policy::packet(t, &h.packet);
    if denied.is_nothing() { classified } else { Classified::drop(denied.count(t)) }
}

/// Class of a packet that is for no pod on this node.
#[inline(always)]
fn elsewhere<At: HookPoint, T: Tables>(t: &T, ethernet: &Ethernet, h: &mut Handover) -> Classified {
    let packet = &h.packet;
    let tuple = &packet.tuple;
    let prefix = t.prefix(&tuple.dst);
    match prefix.filter(|n| n.kind != NetworkKind::Nothing as u32) {
        Some(n) if n.kind == NetworkKind::Services as u32 => {
            return if admit::may_use_cluster_ip::<At, T>(t) {
                no_frontend(t, packet)
            } else {
                Classified::drop(Reason::ClusterIpFromOutside)
            };
        }
        // The hairpin address, which only receives replies. The host's routes would lead the packet back here.
        Some(n) if n.kind == NetworkKind::LocalPods as u32 && At::FROM_HOST => {
            return Classified::drop(Reason::NoRoute);
        }
        Some(n) => {
            if frontend::is_service_protocol(tuple)
                && let Some(found) = frontend::node_port::<At, T>(t, ethernet, tuple, packet.tcp_flags, n)
            {
                return service(&mut h.begin, found);
            }
            if n.flags & Network::TUNNEL != 0 && At::FROM_POD {
                h.classify.network = *n;
                return Classified::only(Class::Tunnel);
            }
            if n.kind == NetworkKind::RemotePods as u32 && At::FROM_POD {
                return Classified::only(Class::RemotePod);
            }
        }
        None if masquerades::<At, T>(t, &tuple.dst) => {
            return if packet.ports() && frontend::may_begin_flow(tuple) {
                Classified::only(Class::Masquerade)
            } else if packet.fragment() == FragmentKind::Later {
                Classified::drop(Reason::OrphanFragment)
            } else if packet.v6() && scope::link_local(&tuple.dst) {
                Classified::only(Class::Stack)
            } else {
                // With the pod's own source address there would be no reply, or it would reach another host that has
                // this address.
                Classified::drop(Reason::NotMasqueraded)
            };
        }
        None => {}
    }
    if (At::FROM_UPLINK || At::FROM_HOST) && prefix.is_some_and(|n| n.flags & Network::SERVICE_ADDRESS != 0) {
        return Classified::only(Class::External);
    }
    // The host would decapsulate the packet and take its content for that of another node.
    if At::FROM_POD && admit::is_tunnel_packet::<T>(t, tuple) {
        return Classified::drop(Reason::TunnelFromOutside);
    }
    Classified::only(Class::Stack)
}

/// Class of a packet to a port of a service, which is stored; [`Class::Drop`] if the frontend isn't for this packet.
#[inline(always)]
fn service(begin: &mut ToBegin, found: Result<Addressed<'_>, Reason>) -> Classified {
    match found {
        Ok(Addressed { frontend, forwarded, from_peer }) => {
            begin.frontend = *frontend;
            (begin.forwarded, begin.from_peer) = (forwarded as u8, from_peer as u8);
            Classified::only(Class::Service)
        }
        Err(reason) => Classified::drop(reason),
    }
}

/// Class of a packet to a service address without a matching frontend.
#[inline(always)]
pub(super) fn no_frontend<T: Tables>(t: &T, packet: &Headers) -> Classified {
    let Some(address) = frontend::of_address(t, &packet.tuple.dst) else {
        return Classified::drop(Reason::UnallocatedService);
    };
    if packet.echo_request()
        && packet.fragment() == FragmentKind::Unfragmented
        && address.flags & Frontend::ANSWERS_ECHO != 0
    {
        return Classified::only(Class::Echo);
    }
    if packet.fragment() == FragmentKind::Later {
        Classified::drop(Reason::OrphanFragment)
    } else if packet.ports() && frontend::is_service_protocol(&packet.tuple) {
        Classified { class: Class::Reject, reason: Reason::UndefinedPort }
    } else {
        Classified::drop(Reason::NotTranslatable)
    }
}

/// Whether a pod's packet to a destination outside the cluster gets the node's source address.
#[inline(always)]
fn masquerades<At: HookPoint, T: Tables>(t: &T, dst: &Addr) -> bool {
    At::FROM_POD && !scope::multicast(dst) && t.config().is_some_and(|config| config.flags & Config::MASQUERADE != 0)
}

/// Whether replies to a packet to a pod would be masqueraded if they weren't recognised as replies.
#[inline(always)]
fn replies_need_flow<At: HookPoint, T: Tables>(t: &T, tuple: &Tuple, sender: &Sender<'_>) -> bool {
    At::FROM_UPLINK
        && sender.network.is_none()
        && frontend::may_begin_flow(tuple)
        && t.config().is_some_and(|config| config.flags & Config::MASQUERADE != 0)
}

/// Whether replies to the connection opened by this packet would match a translated flow. This happens if a client uses
/// one source port both for a service and, directly, for the backend chosen for it. If that flow is closed, it is
/// removed; otherwise a pod's new connection gets another source port.
///
/// Keys are built in `scratch`, which no stage has received yet, because the stack is too small.
#[inline(always)]
pub(super) fn replies_collide<At: HookPoint, T: Tables>(
    t: &T,
    tuple: &Tuple,
    tcp_flags: u8,
    scratch: &mut ToInsert,
) -> bool {
    if tcp_flags & (Tcp::SYN | Tcp::ACK) != Tcp::SYN {
        return false;
    }
    match flow_matching_replies::<T>(t, tuple) {
        ReplyMatch::Closed => {
            remove_matching_flow::<T>(t, tuple, scratch);
            false
        }
        ReplyMatch::Translated => At::FROM_POD,
        ReplyMatch::Untranslated => false,
    }
}

/// The flow that replies to a packet would match.
#[derive(Clone, Copy)]
enum ReplyMatch {
    /// A translated flow.
    Translated,
    /// A translated flow that is closed.
    Closed,
    /// None, or one without translation.
    Untranslated,
}

/// The flow that replies to a packet with this tuple would match.
#[inline(never)]
fn flow_matching_replies<T: Tables>(t: &T, tuple: &Tuple) -> ReplyMatch {
    let flow = t.flow(&tuple.reversed(), |entry| (entry.flags & CtEntry::REPLY != 0, entry.closed()));
    match flow {
        Some((true, true)) => ReplyMatch::Closed,
        Some((true, false)) => ReplyMatch::Translated,
        Some((false, _)) | None => ReplyMatch::Untranslated,
    }
}

/// Removes both halves of the flow that replies to a packet with this tuple would match.
#[inline(never)]
fn remove_matching_flow<T: Tables>(t: &T, tuple: &Tuple, scratch: &mut ToInsert) {
    let ToInsert { owner: answer, key: flow, .. } = scratch;
    (*answer, *flow) = (tuple.reversed(), tuple.reversed());
    if t.flow(answer, |entry| entry.write_reply_key(flow)).is_some() {
        t.remove_flow(flow);
        t.remove_flow(answer);
    }
}
