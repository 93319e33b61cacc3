//! Classification: what a packet that belongs to no flow is for. It is decided once, from the packet's headers and the
//! tables; [`admit`](super::admit) then says whether it may, and the rest follows from the class.

use crate::{
    addr::Addr,
    layout::{Config, CtEntry, Frontend, FrontendKey, Network, NetworkKind, Tuple},
    packet::{Ethernet, Packet, Tcp},
    verdict::Reason,
};

use super::{
    Place, Stage, Tables, Verdict,
    admit::{self, Sender},
    balance, direct,
    family::Piece,
    forward::{self, Forwarded},
    frontend::{self, Addressed},
    handover::{Departure, Handover, Purpose, ToBegin, ToInsert},
    headers::Headers,
    next_hop, scope, staged,
};

/// What a packet that belongs to no flow is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A port of a service, which is noted for [`begin`](super::begin()): it begins a flow.
    Service,
    /// The outside, from a pod: it begins a flow with the node's address as source.
    Masquerade,
    /// Anything else whose answers have to be known: it begins a flow that isn't translated, unless that is needed to tell
    /// its answers from another's.
    Track,
    /// A pod of this node, which is noted as [`ToClassify::endpoint`].
    LocalPod,
    /// Another node, or a pod there, through the tunnel; noted as [`ToClassify::network`].
    Tunnel,
    /// A pod of another node, by the route to it.
    RemotePod,
    /// An external address of a service, but no port of it: see [`external`](super::external()).
    External,
    /// A service's address, which answers echo requests.
    Echo,
    /// Its own link: neighbour discovery and the like.
    Link,
    /// The host's stack.
    Stack,
    /// Nothing that is there: it is dropped for [`Classified::reason`].
    Drop,
    /// The same, and the sender gets an answer.
    Reject,
}

/// A class, with a reason whatever the class is: the verifier refuses to copy what has no value.
#[derive(Clone, Copy)]
pub(super) struct Classified {
    pub class: Class,
    /// Why a packet is dropped or rejected.
    pub reason: Reason,
}

impl Classified {
    /// A class for which the reason doesn't matter.
    #[inline(always)]
    const fn only(class: Class) -> Self {
        Self { class, reason: Reason::Internal }
    }

    /// To nothing that is there.
    #[inline(always)]
    const fn drop(reason: Reason) -> Self {
        Self { class: Class::Drop, reason }
    }
}

/// Judges a packet that belongs to no flow: says what it is for, whether it may, and does what follows: begins a flow,
/// forwards, answers, or leaves it to the stack. Follows [`enter`](super::enter()), [`track`](super::track()) or
/// [`icmp`](super::icmp()) at the same hook.
#[inline(always)]
pub fn classify<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    staged::<At, T>(t, |h| {
        let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::drop(Reason::Malformed) };
        judge::<At, P, T>(p, t, &ethernet, h)
    })
}

#[inline(always)]
fn judge<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet, h: &mut Handover) -> Verdict {
    if h.packet.icmp_error() && At::FROM_UPLINK && balance::sends_on_error::<At, T>(t, ethernet, h) {
        next_hop::find::<T>(t, p.ifindex(), &h.packet.tuple.src, &mut h.send);
        return Verdict::tail(Stage::Quotation);
    }
    let sender = Sender::of::<At, T>(t, &h.packet.tuple);
    // What comes from outside of the cluster is tracked or not by its protocol.
    h.classify.direct = (!At::FROM_UPLINK || sender.network.is_some()) as u32;
    let classified = classified::<At, T>(t, ethernet, h, &sender);
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
        && admit::tunnelled::<T>(t, &h.packet.tuple)
    {
        direct::note(t, p.ifindex(), ethernet.src, &h.packet, &Departure::default(), u32::MAX, &[0; 3]);
    }
    if h.classify.left != 0 {
        remove_left(t, h);
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

/// Removes what a flow that is over has left, which would else have the packets that follow one that begins no flow.
#[inline(never)]
fn remove_left<T: Tables>(t: &T, h: &mut Handover) {
    let (left, key) = (&h.packet.tuple, &mut h.insert.key);
    if t.flow(left, |entry| *key = entry.reply_key(left.proto)).is_some() {
        t.remove_flow(left);
        t.remove_flow(key);
    }
}

/// What a packet is for that comes in by a hook and belongs to no flow.
#[inline(always)]
fn classified<At: Place, T: Tables>(t: &T, ethernet: &Ethernet, h: &mut Handover, sender: &Sender<'_>) -> Classified {
    let Headers { tuple, tcp_flags, .. } = h.packet;
    if h.packet.ports()
        && let Some(frontend) = frontend::exact(t, &h.packet.tuple, FrontendKey::ANY)
        && let Some(found) = frontend::at_exact::<At, T>(t, ethernet, &h.packet.tuple, tcp_flags, frontend)
    {
        return service(&mut h.begin, found);
    }
    if h.packet.v6() && scope::link(&tuple.src, &tuple.dst, tuple.proto) && !admit::tunnelled::<T>(t, &tuple) {
        return Classified::only(Class::Link);
    }
    let mut classified = match t.endpoint(&h.packet.tuple.dst) {
        Some(_) if h.packet.ports() && answers_need_flow::<At, T>(t, &h.packet.tuple, sender) => {
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
    if untranslated && answers_collide::<At, T>(t, &h.packet.tuple, tcp_flags, &mut h.insert) {
        classified.class = Class::Track;
    }
    classified
}

/// The class of a packet that isn't to a pod of this node.
#[inline(always)]
fn elsewhere<At: Place, T: Tables>(t: &T, ethernet: &Ethernet, h: &mut Handover) -> Classified {
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
        // The hairpin address, for which there are answers only: the host's routes would lead here again.
        Some(n) if n.kind == NetworkKind::LocalPods as u32 && At::FROM_HOST => {
            return Classified::drop(Reason::NoRoute);
        }
        Some(n) => {
            if frontend::carried(tuple)
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
            return if packet.ports() && frontend::begins(tuple) {
                Classified::only(Class::Masquerade)
            } else if packet.piece() == Piece::Later {
                Classified::drop(Reason::OrphanFragment)
            } else if packet.v6() && scope::link_local(&tuple.dst) {
                Classified::only(Class::Stack)
            } else {
                // An answer to its own address wouldn't come here, or to another host that has that address there.
                Classified::drop(Reason::NotMasqueraded)
            };
        }
        None => {}
    }
    if (At::FROM_UPLINK || At::FROM_HOST) && prefix.is_some_and(|n| n.flags & Network::SERVICE_ADDRESS != 0) {
        return Classified::only(Class::External);
    }
    // The host would take what it carries for another node's.
    if At::FROM_POD && admit::tunnelled::<T>(t, tuple) {
        return Classified::drop(Reason::TunnelFromOutside);
    }
    Classified::only(Class::Stack)
}

/// The class of a packet to a port of a service, which is noted, or, for a reason, not to it.
#[inline(always)]
fn service(begin: &mut ToBegin, found: Result<Addressed<'_>, Reason>) -> Classified {
    match found {
        Ok(Addressed { frontend, sent_on, from_peer }) => {
            begin.frontend = *frontend;
            (begin.sent_on, begin.from_peer) = (sent_on as u8, from_peer as u8);
            Classified::only(Class::Service)
        }
        Err(reason) => Classified::drop(reason),
    }
}

/// The class of a packet to a service's address without the frontend that it wants.
#[inline(always)]
pub(super) fn no_frontend<T: Tables>(t: &T, packet: &Headers) -> Classified {
    let Some(address) = frontend::of_address(t, &packet.tuple.dst) else {
        return Classified::drop(Reason::UnallocatedService);
    };
    if packet.echo_request() && packet.piece() == Piece::Whole && address.flags & Frontend::ANSWERS_ECHO != 0 {
        return Classified::only(Class::Echo);
    }
    if packet.piece() == Piece::Later {
        Classified::drop(Reason::OrphanFragment)
    } else if packet.ports() && frontend::carried(&packet.tuple) {
        Classified { class: Class::Reject, reason: Reason::UndefinedPort }
    } else {
        Classified::drop(Reason::NotTranslatable)
    }
}

/// Whether a pod's packet to an address that isn't the cluster's shows the node's.
#[inline(always)]
fn masquerades<At: Place, T: Tables>(t: &T, dst: &Addr) -> bool {
    At::FROM_POD && !scope::multicast(dst) && t.config().is_some_and(|config| config.flags & Config::MASQUERADE != 0)
}

/// Whether a packet to a pod is from where its answers would get the node's address if they were not known as such.
#[inline(always)]
fn answers_need_flow<At: Place, T: Tables>(t: &T, tuple: &Tuple, sender: &Sender<'_>) -> bool {
    At::FROM_UPLINK
        && sender.network.is_none()
        && frontend::begins(tuple)
        && t.config().is_some_and(|config| config.flags & Config::MASQUERADE != 0)
}

/// Whether the answers of a connection that a packet opens look like those of a flow that is translated: its client uses one
/// source port towards a service and to the very backend that it was given. If that flow is over it is removed; else a
/// pod's connection gets another port. Keys are put into `memory`, of which no stage has been told anything yet: stack is
/// scarce.
#[inline(always)]
pub(super) fn answers_collide<At: Place, T: Tables>(
    t: &T,
    tuple: &Tuple,
    tcp_flags: u8,
    memory: &mut ToInsert,
) -> bool {
    if tcp_flags & (Tcp::SYN | Tcp::ACK) != Tcp::SYN {
        return false;
    }
    match answered_by::<T>(t, tuple) {
        Answered::Over => {
            remove_answered::<T>(t, tuple, memory);
            false
        }
        Answered::Translated => At::FROM_POD,
        Answered::Otherwise => false,
    }
}

/// What answers to a packet would be taken for.
#[derive(Clone, Copy)]
enum Answered {
    /// Those of a translated flow.
    Translated,
    /// Those of a translated flow that is over.
    Over,
    /// What they are, or those of a flow that isn't translated.
    Otherwise,
}

/// What answers to a packet with this tuple would be taken for.
#[inline(never)]
fn answered_by<T: Tables>(t: &T, tuple: &Tuple) -> Answered {
    let flow = t.flow(&tuple.reversed(), |entry| (entry.flags & CtEntry::REPLY != 0, entry.closed()));
    match flow {
        Some((true, true)) => Answered::Over,
        Some((true, false)) => Answered::Translated,
        Some((false, _)) | None => Answered::Otherwise,
    }
}

/// Removes both halves of the flow that has answers to a packet with this tuple.
#[inline(never)]
fn remove_answered<T: Tables>(t: &T, tuple: &Tuple, memory: &mut ToInsert) {
    let ToInsert { owner: answer, key: flow, .. } = memory;
    (*answer, *flow) = (tuple.reversed(), tuple.reversed());
    if t.flow(answer, |entry| entry.write_reply_key(flow)).is_some() {
        t.remove_flow(flow);
        t.remove_flow(answer);
    }
}
