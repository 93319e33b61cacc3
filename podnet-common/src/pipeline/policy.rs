//! Network policy: may these two addresses begin to exchange packets?
//!
//! Policies are evaluated once, for the first packet of a flow, after the service's backend is known and before the
//! source is translated: rules are about real clients and real backends. The policies of a pod are evaluated on its own
//! node; for a flow between two pods of one node, those of both at once. Packets of flows that were admitted, their
//! replies and ICMP errors about them pass without a lookup. Packets from the host's stack to a pod are evaluated on
//! the way there, since they may have arrived at an interface without hooks. User space divides addresses and ports
//! into classes (see [`layout`](crate::layout)). Evaluating a pod's rules takes a constant number of lookups.

use crate::{
    addr::{Addr, IfIndex, Proto},
    layout::{Config, CtEntry, NetworkKind, Out, PolicyDenial, PolicyPod, ProtoPort, Subject, Tuple},
    packet::Tcp,
    verdict::Reason,
};

use super::{HookPoint, Stage, Tables, Verdict, frontend, handover::Handover, headers::Headers, scope};

/// What is denied: the direction in the lowest bits, or nothing; the id of the rule set from bit 8 on; and in the upper
/// half, [`PolicyDenial::rule`]. One register, since the evaluating function is out of line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Denied(u64);

impl Denied {
    const NOTHING: Self = Self(0);
    const EGRESS: u64 = 1;
    const INGRESS: u64 = 2;

    #[inline(always)]
    const fn new(direction: u64, set: u32, rule: u32) -> Self {
        Self(direction | ((set & Subject::ID) as u64) << 8 | (rule as u64) << 32)
    }

    /// Whether the packets may pass.
    #[inline(always)]
    pub const fn is_nothing(self) -> bool {
        self.0 == 0
    }

    /// Counts a denied packet. Returns the reason to drop it.
    #[inline(always)]
    pub fn count<T: Tables>(self, t: &T) -> Reason {
        count_denial(t, self.0 as u32 >> 8, (self.0 >> 32) as u32);
        if self.0 & Self::EGRESS != 0 { Reason::PolicyEgress } else { Reason::PolicyIngress }
    }
}

// Out of line: rarely called, and its key takes stack.
#[inline(never)]
fn count_denial<T: Tables>(t: &T, set: u32, rule: u32) {
    t.count_denial(&PolicyDenial { set, rule });
}

/// Whether the packets of a hook are subject to policies.
#[inline(always)]
pub(super) fn applies<At: HookPoint, T: Tables>(t: &T) -> bool {
    (At::FROM_POD || At::FROM_UPLINK || At::TO_POD)
        && t.config().is_some_and(|config| config.flags & Config::POLICY != 0)
}

/// Whether policies are evaluated for the flows that begin at a hook: besides the others, for those that machines
/// behind interfaces without hooks begin at a service address, whose route leads to podnet0.
#[inline(always)]
pub(super) fn evaluates_flows<At: HookPoint, T: Tables>(t: &T) -> bool {
    applies::<At, T>(t) || (At::FROM_HOST && t.config().is_some_and(|config| config.flags & Config::POLICY != 0))
}

/// Whether policies may deny a packet, or the flow that it belongs to: one end is a pod of this node that is a subject,
/// and the other is not the pod itself, nor, unless [`denied`] evaluates that, the node.
///
/// `from`: the interface that received the packet; `to`: that of the pod to which it goes, or none. Without an entry in
/// `endpoints`, a pod receives only what leaves the stack, for which policies are evaluated there.
// Out of line: called from several places, and its keys take stack.
#[inline(never)]
pub(super) fn concerns<At: HookPoint, T: Tables>(t: &T, tuple: &Tuple, from: IfIndex, to: IfIndex) -> bool {
    let Tuple { src, dst, .. } = tuple;
    let src_sets = sets_of_sender::<At, T>(t, src, from);
    let dst_sets = if to.0 == 0 { Subject::default() } else { sets_of_pod(t, dst, to) };
    let [src_open, dst_open] = [src_sets, dst_sets].map(|sets| sets == Subject::default());
    if (src_open && dst_open) || src.same(dst) {
        return false;
    }
    // A subject is a pod, and thus not the node.
    Subject::has_cluster_rules(src_sets.egress)
        || Subject::has_cluster_rules(dst_sets.egress)
        || !(src_open && is_node(t, src) || dst_open && is_node(t, dst))
}

/// Rule sets of an address.
#[inline(always)]
fn sets_of<T: Tables>(t: &T, addr: &Addr) -> Subject {
    t.subject(addr).unwrap_or_default()
}

/// Rule sets of an address of the pod with this interface.
#[inline(always)]
fn sets_of_pod<T: Tables>(t: &T, addr: &Addr, link: IfIndex) -> Subject {
    if let Some(pod) = t.policy_pod(link)
        && let (Some(ingress), Some(egress)) = (pod.ingress.get(link), pod.egress.get(link))
    {
        return Subject { ingress, egress };
    }
    sets_of(t, addr)
}

/// Rule sets of the sender of a packet from this interface. An uplink's is no pod of this node.
#[inline(always)]
fn sets_of_sender<At: HookPoint, T: Tables>(t: &T, src: &Addr, from: IfIndex) -> Subject {
    if At::FROM_UPLINK {
        Subject::default()
    } else if At::FROM_POD {
        sets_of_pod(t, src, from)
    } else {
        sets_of(t, src)
    }
}

/// Rule sets of the server of a flow. Those that leave the node lead to none of its pods.
#[inline(always)]
fn sets_of_server<T: Tables>(t: &T, config: &Config, entry: &CtEntry) -> Subject {
    let (server, to) = (&entry.dst, entry.out_ifindex);
    if entry.out == Out::Pod as u8 || entry.out == Out::Queue as u8 {
        sets_of_pod(t, server, to)
    } else if config.is_uplink(to) || (to.0 != 0 && to.0 == config.tunnel.0) {
        Subject::default()
    } else {
        sets_of(t, server)
    }
}

/// Rule sets that apply to a flow, and the interfaces of its ends, if they are known to be pods of this node.
struct Ends {
    /// The server's for ingress, the client's for egress.
    sets: Subject,
    /// The client's interface, or none.
    client: IfIndex,
    /// The server's interface, that by which the flow leaves the node, or none.
    server: IfIndex,
}

/// What becomes of a packet that belongs to no flow and leaves the stack for a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// It passes.
    Passes,
    /// It begins a flow, for which policies are evaluated.
    Begins,
    /// It begins no flow; policies are evaluated for this packet alone.
    Evaluated,
}

/// Verdict on a packet that leaves the stack and belongs to no flow, or else, if `again`, begins it again. `key` is
/// memory for a key.
#[inline(always)]
pub(super) fn leaving<At: HookPoint, T: Tables>(t: &T, packet: &Headers, again: bool, key: &mut Tuple) -> Verdict {
    if !At::TO_POD || !applies::<At, T>(t) {
        return Verdict::PASS;
    }
    match leaving_for_pod(t, packet, again, key) {
        Leaving::Passes => Verdict::PASS,
        Leaving::Begins => Verdict::tail(Stage::Begin),
        Leaving::Evaluated => {
            let denied = self::packet(t, packet);
            if denied.is_nothing() { Verdict::PASS } else { Verdict::drop(denied.count(t)) }
        }
    }
}

/// A node always reaches its pods. If rules may keep a pod from its node, the flows of the node are tracked, so that
/// the pod's answers can be told from requests. Packets that a hook has translated and left to the stack belong to a
/// flow for which policies have been evaluated.
// Out of line: rarely called, and its keys take stack.
#[inline(never)]
fn leaving_for_pod<T: Tables>(t: &T, packet: &Headers, again: bool, key: &mut Tuple) -> Leaving {
    let Tuple { src, dst, .. } = &packet.tuple;
    let Some(sets) = t.subject(dst) else { return Leaving::Passes };
    let kind = t.network(src).map_or(NetworkKind::Nothing as u32, |network| network.kind);
    let from_node = kind == NetworkKind::LocalNode as u32;
    // Of link-local addresses, the link has only the node's.
    let of_link = packet.v6() && scope::link_local(src);
    if of_link || src.same(dst) || (from_node && !Subject::has_cluster_rules(sets.egress)) {
        return Leaving::Passes;
    }
    let ports = packet.ports();
    *key = packet.tuple.reversed();
    // Whether it belongs to an admitted flow: a request, translated by a hook, or an answer, of which long and
    // fragmented ones are left to the stack too.
    let opens = packet.tcp_flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN;
    let admitted =
        |entry: &mut CtEntry| entry.out != Out::Denied as u8 && (entry.flags & CtEntry::REPLY != 0 || !opens);
    let answers = if ports && !again { t.flow(key, admitted) } else { None };
    // Nothing has the address of a service, and the stack would send the replies back here.
    let begins = frontend::may_begin_flow(&packet.tuple)
        && !scope::multicast(src)
        && kind != NetworkKind::Services as u32
        && answers.is_none();
    if answers == Some(true) {
        Leaving::Passes
    } else if ports && begins {
        Leaving::Begins
    } else if from_node {
        Leaving::Passes
    } else {
        Leaving::Evaluated
    }
}

/// Whether an address is in a range of this node's pods, but no pod has it. Flows to it would lead into the next pod
/// that gets it.
// Out of line: called from several places, and its keys take stack.
#[inline(never)]
pub(super) fn is_vacant<T: Tables>(t: &T, addr: &Addr) -> bool {
    t.endpoint(addr).is_none() && t.network(addr).is_some_and(|network| network.kind == NetworkKind::LocalPods as u32)
}

/// Evaluates policies for a packet of no flow that begins none: multicast, a protocol without ports, a fragment of an
/// unknown datagram.
#[inline(always)]
pub(super) fn packet<T: Tables>(t: &T, packet: &Headers) -> Denied {
    let Tuple { src, dst, dport, proto, .. } = &packet.tuple;
    if !packet.ports() {
        return without_ports(t, &packet.tuple);
    }
    denied_between(t, src, dst, ProtoPort::new(*proto, *dport))
}

/// Evaluates policies for a packet of a protocol without ports, or a fragment whose ports are unknown. NetworkPolicies
/// allow it only if they allow everything; a rule of a ClusterNetworkPolicy about ports could deny the fragment.
// Out of line: rarely called, and its keys take stack.
#[inline(never)]
fn without_ports<T: Tables>(t: &T, tuple: &Tuple) -> Denied {
    let Tuple { src, dst, .. } = tuple;
    if frontend::is_service_protocol(tuple) {
        let (Subject { egress, .. }, Subject { ingress, .. }) = (sets_of(t, src), sets_of(t, dst));
        if Subject::has_cluster_rules(egress) {
            return Denied::new(Denied::EGRESS, egress, PolicyDenial::ISOLATION);
        }
        if Subject::has_cluster_rules(ingress) {
            return Denied::new(Denied::INGRESS, ingress, PolicyDenial::ISOLATION);
        }
    }
    denied_between(t, src, dst, ProtoPort::default())
}

/// Evaluates policies for the flow that a packet begins, with the backend in the handed-over entry. Returns what is
/// denied, and whether the packet is an answer: an untranslated TCP packet that opens no connection belongs to one from
/// before the pod was isolated, which either end may have opened. The one with the higher port is taken for the client.
/// The other end can't open a connection by such an entry: its SYN begins a flow of its own.
///
/// Datagrams don't tell. If pods have just been isolated, one from a lower port may be the answer to a request from
/// before, and its flow would let in all further ones, or it may be a request: both must be allowed.
#[inline(always)]
pub(super) fn flow<At: HookPoint, T: Tables>(t: &T, config: &Config, h: &Handover) -> (Denied, bool) {
    let Tuple { src, sport, dport, proto, .. } = &h.packet.tuple;
    let (server, entry) = (&h.send.entry.dst, &h.send.entry);
    let opens = h.packet.tcp_flags & (Tcp::SYN | Tcp::ACK);
    let untranslated = entry.flags & (CtEntry::REWRITE_SRC | CtEntry::REWRITE_DST) == 0;
    let tcp = *proto == Proto::TCP;
    let answer = untranslated && tcp && opens != Tcp::SYN && (opens & Tcp::SYN != 0 || sport.get() < dport.get());
    let (from, to) = (if At::FROM_POD { entry.in_ifindex } else { IfIndex(0) }, entry.out_ifindex);
    let (src_sets, server_sets) = (sets_of_sender::<At, T>(t, src, from), sets_of_server(t, config, entry));
    if src_sets == Subject::default() && server_sets == Subject::default() {
        return (Denied::NOTHING, answer);
    }
    let may_answer = untranslated
        && !tcp
        && config.flags & Config::NEW_SUBJECTS != 0
        && frontend::is_service_protocol(&h.packet.tuple)
        && sport.get() <= dport.get();
    if answer || may_answer {
        let sets = Subject { egress: server_sets.egress, ingress: src_sets.ingress };
        let ends = Ends { sets, client: to, server: from };
        let denied = denied(t, &ends, server, src, ProtoPort::new(*proto, *sport));
        if answer || !denied.is_nothing() {
            return (denied, answer);
        }
    }
    let sets = Subject { egress: src_sets.egress, ingress: server_sets.ingress };
    let ends = Ends { sets, client: from, server: to };
    (denied(t, &ends, src, server, ProtoPort::new(*proto, entry.dport)), false)
}

/// Whether the policies deny an existing flow, of which `tuple` and `entry` are a half.
#[inline(always)]
pub(crate) fn denies_flow<T: Tables>(t: &T, tuple: &Tuple, entry: &CtEntry) -> bool {
    !of_flow(t, tuple, entry).is_nothing()
}

/// What is denied of an existing flow.
#[inline(always)]
pub(super) fn of_flow<T: Tables>(t: &T, tuple: &Tuple, entry: &CtEntry) -> Denied {
    if entry.flags & CtEntry::ONE_WAY != 0 {
        return Denied::NOTHING;
    }
    let reply = entry.flags & CtEntry::REPLY != 0;
    let (client, server) = if reply { (&entry.dst, &tuple.src) } else { (&tuple.src, &entry.dst) };
    let port = if reply { tuple.sport } else { entry.dport };
    denied_between(t, client, server, ProtoPort::new(tuple.proto, port))
}

/// What the policies of both ends deny to a client of a server's port.
#[inline(always)]
fn denied_between<T: Tables>(t: &T, client: &Addr, server: &Addr, port: ProtoPort) -> Denied {
    let sets = Subject { egress: sets_of(t, client).egress, ingress: sets_of(t, server).ingress };
    denied(t, &Ends { sets, client: IfIndex(0), server: IfIndex(0) }, client, server, port)
}

/// What the rule sets of both ends deny to a client of a server's port.
///
/// NetworkPolicies never come between a pod and its node, or a pod and itself. ClusterNetworkPolicies may keep a pod
/// from itself as backend of a service, and from its node, but not a node from its pods.
// Out of line: called from several places, and its keys take stack.
#[inline(never)]
fn denied<T: Tables>(t: &T, ends: &Ends, client: &Addr, server: &Addr, port: ProtoPort) -> Denied {
    let Subject { egress, ingress } = ends.sets;
    if (egress | ingress) == Subject::OPEN {
        return Denied::NOTHING;
    }
    let tuple = Tuple { proto: port.proto, ..Tuple::default() };
    let has_port = frontend::is_service_protocol(&tuple) && (egress | ingress) & Subject::PORTS != 0;
    let ports = if has_port { t.policy_port(&port).unwrap_or_default() } else { 0 };
    let by_rules = |exempt: bool| {
        // The sender's own policies come first.
        if egress != Subject::OPEN {
            let rule = t.denied_by(egress, class(t, egress, server, ends.server), ports, port.proto, exempt);
            if rule != PolicyDenial::NOTHING {
                return Denied::new(Denied::EGRESS, egress, rule);
            }
        }
        if ingress != Subject::OPEN {
            let rule = t.denied_by(ingress, class(t, ingress, client, ends.client), ports, port.proto, exempt);
            if rule != PolicyDenial::NOTHING {
                return Denied::new(Denied::INGRESS, ingress, rule);
            }
        }
        Denied::NOTHING
    };
    let denied = by_rules(client.same(server));
    // Whether an end is the node is seldom relevant, and the lookup is slow. A subject is a pod, and thus not the node.
    if denied.is_nothing() || (egress == Subject::OPEN && is_node(t, client)) {
        Denied::NOTHING
    } else if ingress == Subject::OPEN && is_node(t, server) {
        by_rules(true)
    } else {
        denied
    }
}

#[inline(always)]
fn is_node<T: Tables>(t: &T, addr: &Addr) -> bool {
    t.network(addr).is_some_and(|network| network.kind == NetworkKind::LocalNode as u32)
}

/// Class of an address, if the set has keys with classes; 0 if no selector and no block contains it. `link`: the
/// interface of the pod that has it.
#[inline(always)]
fn class<T: Tables>(t: &T, set: u32, addr: &Addr, link: IfIndex) -> u32 {
    if set & Subject::CLASSES == 0 {
        return 0;
    }
    let of_pod = |pod: &PolicyPod| if addr.is_v4() { pod.class_v4 } else { pod.class_v6 }.get(link);
    if let Some(class) = t.policy_pod(link).and_then(of_pod) {
        return class;
    }
    match t.policy_peer(addr) {
        Some(class) => class,
        None => t.policy_block(addr).unwrap_or_default(),
    }
}
