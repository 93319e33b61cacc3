//! Network policy: may these two addresses begin to exchange packets?
//!
//! Judged once, by the first packet of a flow, after the service's backend is known and before the source is
//! translated: rules are about real clients and real backends. Both ends are judged at the node of the pod concerned;
//! a flow between two pods of one node is judged for both at once. Packets of flows that were admitted, their replies
//! and ICMP errors about them pass without another look. What the host's stack sends to a pod is judged on the way
//! there: it may have come in by an interface without hooks. User space divides the world into classes (see
//! [`layout`](crate::layout)), so all rules of a pod are a handful of lookups, whatever their number.

use crate::{
    addr::{Addr, Proto},
    layout::{Config, CtEntry, NetworkKind, PolicyDenial, PolicyRule, PolicyVerdict, ProtoPort, Subject, Tuple},
    packet::Tcp,
    verdict::Reason,
};

use super::{
    HookPoint, Stage, Tables, Verdict, frontend,
    handover::{Handover, Purpose},
    headers::Headers,
    scope,
};

/// What is denied: the direction in the lowest bits, or nothing; the id of the rule set from bit 8 on; and in the upper
/// half, [`PolicyDenial::rule`]. One register, since the function that judges is out of line.
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

/// Whether policies may deny a packet, or the flow that it belongs to: one end is a pod of this node that is a subject,
/// and the other is not the pod itself, nor, unless [`denied`] judges that, the node.
// Out of line: rarely called, and its keys take stack.
#[inline(never)]
pub(super) fn concerns<T: Tables>(t: &T, tuple: &Tuple) -> bool {
    let Tuple { src, dst, .. } = tuple;
    let [src_sets, dst_sets] = [src, dst].map(|addr| t.subject(addr).unwrap_or_default());
    let [src_open, dst_open] = [src_sets, dst_sets].map(|sets| sets == Subject::default());
    if (src_open && dst_open) || src.same(dst) {
        return false;
    }
    // A subject is a pod, and thus not the node.
    Subject::has_cluster_rules(src_sets.egress)
        || Subject::has_cluster_rules(dst_sets.egress)
        || !(src_open && is_node(t, src) || dst_open && is_node(t, dst))
}

/// What becomes of a packet that belongs to no flow and leaves the stack for a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// It passes.
    Passes,
    /// It begins a flow, for which policies are evaluated.
    Begins,
    /// It begins no flow; policies are evaluated for this packet alone.
    Judged,
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
        Leaving::Judged => {
            let denied = self::packet(t, packet);
            if denied.is_nothing() { Verdict::PASS } else { Verdict::drop(denied.count(t)) }
        }
    }
}

/// A node always reaches its pods. If rules may keep a pod from its node, the flows of the node are tracked, so that
/// the pod's answers can be told from requests. Packets that a hook has translated and left to the stack belong to a
/// flow that was judged.
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
    // Whether the key is that of replies.
    let answers = if ports && !again { t.flow(key, |entry| entry.flags & CtEntry::REPLY != 0) } else { None };
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
        Leaving::Judged
    }
}

/// Whether an address is in a range of this node's pods, but no pod has it. Flows to it would lead into the next pod
/// that gets it.
// Out of line: called from several places, and its keys take stack.
#[inline(never)]
pub(super) fn is_vacant<T: Tables>(t: &T, addr: &Addr) -> bool {
    t.endpoint(addr).is_none() && t.network(addr).is_some_and(|network| network.kind == NetworkKind::LocalPods as u32)
}

/// Judges a packet of no flow that begins none: multicast, a protocol without ports, a fragment of an unknown datagram.
#[inline(always)]
pub(super) fn packet<T: Tables>(t: &T, packet: &Headers) -> Denied {
    let Tuple { src, dst, dport, proto, .. } = &packet.tuple;
    let port = if packet.ports() { ProtoPort::new(*proto, *dport) } else { ProtoPort::default() };
    denied(t, src, dst, port)
}

/// Judges the flow that a packet begins, with the backend in the handed-over entry. Returns what is denied, and whether
/// the packet is an answer: an untranslated TCP packet that opens no connection belongs to one from before the pod was
/// isolated, which either end may have opened. The one with the higher port is taken for the client. The other end
/// can't open a connection by such an entry: its SYN begins a flow of its own.
#[inline(always)]
pub(super) fn flow<T: Tables>(t: &T, h: &Handover) -> (Denied, bool) {
    let Tuple { src, sport, dport, proto, .. } = &h.packet.tuple;
    let (server, entry) = (&h.send.entry.dst, &h.send.entry);
    let opens = h.packet.tcp_flags & (Tcp::SYN | Tcp::ACK);
    let untranslated = h.begin.purpose == Purpose::Track as u8 && *proto == Proto::TCP;
    let answer = untranslated && opens != Tcp::SYN && (opens & Tcp::SYN != 0 || sport.get() < dport.get());
    if answer {
        (denied(t, server, src, ProtoPort::new(*proto, *sport)), true)
    } else {
        (denied(t, src, server, ProtoPort::new(*proto, entry.dport)), false)
    }
}

/// Whether the policies deny an existing flow; `tuple` and `entry` are the client's half.
#[inline(always)]
pub(crate) fn denies_flow<T: Tables>(t: &T, tuple: &Tuple, entry: &CtEntry) -> bool {
    entry.flags & CtEntry::ONE_WAY == 0
        && !denied(t, &tuple.src, &entry.dst, ProtoPort::new(tuple.proto, entry.dport)).is_nothing()
}

/// What the policies of both ends deny to a client of a server's port.
///
/// NetworkPolicies never come between a pod and its node, or a pod and itself. ClusterNetworkPolicies may keep a pod
/// from itself as backend of a service, and from its node, but not a node from its pods.
// Out of line: called from several places, and its keys take stack.
#[inline(never)]
fn denied<T: Tables>(t: &T, client: &Addr, server: &Addr, port: ProtoPort) -> Denied {
    let egress = t.subject(client).map_or(Subject::OPEN, |subject| subject.egress);
    let ingress = t.subject(server).map_or(Subject::OPEN, |subject| subject.ingress);
    if (egress | ingress) == Subject::OPEN {
        return Denied::NOTHING;
    }
    // A subject is a pod, and thus not the node.
    if egress == Subject::OPEN && is_node(t, client) {
        return Denied::NOTHING;
    }
    let exempt = client.same(server) || (ingress == Subject::OPEN && is_node(t, server));
    let cluster = Subject::has_cluster_rules(egress) || Subject::has_cluster_rules(ingress);
    if exempt && !cluster {
        return Denied::NOTHING;
    }
    let tuple = Tuple { proto: port.proto, ..Tuple::default() };
    let has_port = frontend::is_service_protocol(&tuple) && (egress | ingress) & Subject::PORTS != 0;
    let ports = if has_port { t.policy_port(&port).unwrap_or_default() } else { 0 };
    // The sender's own policies come first.
    if egress != Subject::OPEN {
        let rule = denied_by(t, egress, class(t, egress, server), ports, port.proto, exempt);
        if rule != PolicyDenial::NOTHING {
            return Denied::new(Denied::EGRESS, egress, rule);
        }
    }
    if ingress != Subject::OPEN {
        let rule = denied_by(t, ingress, class(t, ingress, client), ports, port.proto, exempt);
        if rule != PolicyDenial::NOTHING {
            return Denied::new(Denied::INGRESS, ingress, rule);
        }
    }
    Denied::NOTHING
}

#[inline(always)]
fn is_node<T: Tables>(t: &T, addr: &Addr) -> bool {
    t.network(addr).is_some_and(|network| network.kind == NetworkKind::LocalNode as u32)
}

/// Class of an address, if the set has keys with classes; 0 if no selector and no block contains it.
#[inline(always)]
fn class<T: Tables>(t: &T, set: u32, addr: &Addr) -> u32 {
    if set & Subject::CLASSES == 0 {
        return 0;
    }
    match t.policy_peer(addr) {
        Some(class) => class,
        None => t.policy_block(addr).unwrap_or_default(),
    }
}

/// What of a rule set denies packets from or to an address of `class`, to a port of the class `ports` (0: no rule names
/// the port); see [`PolicyVerdict::denied_by`]. `exempt`: NetworkPolicies allow them in any case.
// Out of line: called twice.
#[inline(never)]
fn denied_by<T: Tables>(t: &T, set: u32, class: u32, ports: u32, proto: Proto, exempt: bool) -> u32 {
    let cluster = Subject::has_cluster_rules(set);
    if !cluster && (exempt || set == Subject::CLOSED) {
        return if exempt { PolicyDenial::NOTHING } else { PolicyDenial::ISOLATION };
    }
    let protocol = PolicyRule::protocol(proto);
    let mut verdict = PolicyVerdict::default();
    // Most frequent first.
    let mut rule = PolicyRule { set: set & Subject::ID, class, ports };
    if ports != 0 {
        look(t, set, Subject::CLASS_PORTS, &rule, &mut verdict);
    }
    rule.ports = PolicyRule::ALL;
    look(t, set, Subject::CLASS_ALL, &rule, &mut verdict);
    rule.ports = protocol;
    look(t, set, Subject::CLASS_PROTOCOL, &rule, &mut verdict);
    rule.class = PolicyRule::ANY;
    look(t, set, Subject::ANY_PROTOCOL, &rule, &mut verdict);
    rule.ports = PolicyRule::ALL;
    look(t, set, Subject::ANY_ALL, &rule, &mut verdict);
    if ports != 0 {
        rule.ports = ports;
        look(t, set, Subject::ANY_PORTS, &rule, &mut verdict);
    }
    verdict.denied_by(!cluster || set & Subject::ISOLATED != 0, exempt)
}

/// Adds what the rules with a key say, if the set has keys of this kind.
#[inline(always)]
fn look<T: Tables>(t: &T, set: u32, kind: u32, rule: &PolicyRule, verdict: &mut PolicyVerdict) {
    // Rules of NetworkPolicies only allow, so one that matches suffices.
    let decided = verdict.network != 0 && !Subject::has_cluster_rules(set);
    if set & kind != 0
        && !decided
        && let Some(found) = t.policy_rule(rule)
    {
        *verdict = verdict.first(found);
    }
}
