//! Network policy: no flow begins that the rules of either end deny, and no packet is denied that concerns no subject.

use std::net::IpAddr;

use podnet_common::{
    addr::{Addr, Proto},
    layout::{Config, CtEntry, Hook, NetworkKind, PolicyRule, PolicyVerdict, ProtoPort, Subject, Tuple},
    pipeline::Tables as _,
    simulator::HostTables,
};

use super::Outcome;
use crate::{
    frame::{ACK, SYN},
    view::View,
    world::World,
};

/// Whether an address is a subject's, at a hook where policies apply.
pub fn concerns(t: &HostTables, addr: &Addr) -> bool {
    t.config.flags & Config::POLICY != 0 && t.subjects.contains_key(addr)
}

/// Checks a flow that a packet has begun; `entry` is the client's half.
pub fn check_flow(world: &World, o: &Outcome<'_>, key: &Tuple, entry: &CtEntry) {
    let t = &o.before;
    let link_local = match IpAddr::from(key.src) {
        IpAddr::V4(src) => src.is_link_local(),
        IpAddr::V6(src) => src.is_unicast_link_local(),
    };
    let own = o.entry.hook == Hook::FromHost && link_local;
    let hook = matches!(o.entry.hook, Hook::FromPod | Hook::FromUplink | Hook::FromHost | Hook::ToPod) && !own;
    let evaluated = hook && entry.flags & CtEntry::ONE_WAY == 0;
    let node = |addr: &Addr| world.kind(addr) == Some(NetworkKind::LocalNode);
    if !evaluated || t.config.flags & Config::POLICY == 0 || node(&key.src) {
        return;
    }
    let exempt = key.src == entry.dst || node(&entry.dst);
    let port = ProtoPort::new(key.proto, entry.dport);
    let subject = |addr: &Addr| t.subjects.get(addr).copied().unwrap_or_default();
    let (egress, ingress) = (subject(&key.src).egress, subject(&entry.dst).ingress);
    assert!(allows(t, egress, &entry.dst, &port, exempt), "{o}the client's policies deny it: {entry:?}");
    assert!(allows(t, ingress, &key.src, &port, exempt), "{o}the server's policies deny it: {entry:?}");
}

/// Whether a packet that the stack sends to a pod begins a flow because of policies.
pub fn begins_at_pod(world: &World, o: &Outcome<'_>, key: &Tuple) -> bool {
    let t = &o.before;
    let node = world.kind(&key.src) == Some(NetworkKind::LocalNode);
    let cluster = t.subjects.get(&key.dst).is_some_and(|subject| subject.egress & Subject::CLUSTER != 0);
    o.entry.hook == Hook::ToPod && concerns(t, &key.dst) && (!node || cluster)
}

/// Checks that the stack sends nothing to a pod that its policies deny.
pub fn check_passed(world: &World, o: &Outcome<'_>, packet: &View<'_>) {
    let t = &o.before;
    let (Some(ports), None) = (packet.ports(), packet.fragment) else { return };
    let key = packet.tuple(ports);
    let conntrack = t.conntrack.borrow();
    let syn = packet.tcp_flags().is_some_and(|flags| flags & (SYN | ACK) == SYN);
    // A translated request, or an answer to the pod.
    let of_flow = |entry: &CtEntry| entry.flags & CtEntry::REPLY != 0 || !syn;
    let known = conntrack.get(&key.reversed()).is_some_and(of_flow) || conntrack.contains_key(&key);
    let opens = packet.tcp_flags().is_none_or(|flags| flags & (SYN | ACK) == SYN);
    // Of link-local addresses, the link has only the node's.
    let link_local = matches!(packet.src, IpAddr::V6(src) if src.is_unicast_link_local());
    let node = link_local || world.kind(&key.src) == Some(NetworkKind::LocalNode);
    if o.entry.hook != Hook::ToPod || !concerns(t, &key.dst) || known || !opens || node || key.src == key.dst {
        return;
    }
    let ingress = t.subjects[&key.dst].ingress;
    let port = ProtoPort::new(key.proto, key.dport);
    assert!(allows(t, ingress, &key.src, &port, false), "{o}the pod's policies deny it");
}

/// Checks that a denied packet could concern a subject: its own addresses, or a backend's.
pub fn check_denied(o: &Outcome<'_>, packet: &View<'_>) {
    let t = &o.before;
    let backend = t.backends.values().any(|backend| concerns(t, &backend.addr));
    let own = concerns(t, &packet.src.into()) || concerns(t, &packet.dst.into());
    assert!(own || backend, "{o}no policy concerns it");
}

/// Whether the rules of a set allow a peer and a port. `exempt`: NetworkPolicies do. Follows the documentation of the
/// tables, not the flags for kinds of keys.
fn allows(t: &HostTables, set: u32, peer: &Addr, port: &ProtoPort, exempt: bool) -> bool {
    if set == Subject::OPEN {
        return true;
    }
    let class = t.policy_peers.get(peer).copied().or_else(|| t.policy_block(peer)).unwrap_or_default();
    let has_ports = [Proto::TCP, Proto::UDP, Proto::SCTP].contains(&port.proto);
    let ports = t.policy_port(port).filter(|_| has_ports);
    let matches = |rule: &PolicyRule| {
        let peer = rule.class == PolicyRule::ANY || rule.class == class;
        let protocol = has_ports && rule.ports == PolicyRule::protocol(port.proto);
        let everything = rule.ports == PolicyRule::ALL;
        rule.set == set & Subject::ID
            && peer
            && (everything || protocol || ports.is_some_and(|class| class == rule.ports))
    };
    if set == Subject::CLOSED {
        return exempt;
    }
    let found = || t.policy_rules.iter().filter(|(rule, _)| matches(rule)).map(|(_, verdict)| verdict);
    let first =
        |rules: Vec<u32>| rules.into_iter().filter(|rule| *rule != 0).min().map(|rule| rule & PolicyVerdict::ACTION);
    let cluster = set & Subject::CLUSTER != 0;
    match first(found().map(|verdict| verdict.admin).collect()) {
        Some(PolicyVerdict::ACCEPT) if cluster => return true,
        Some(PolicyVerdict::DENY) if cluster => return false,
        _ => {}
    }
    if !cluster || set & Subject::ISOLATED != 0 {
        return exempt || found().any(|verdict| verdict.network != 0);
    }
    first(found().map(|verdict| verdict.baseline).collect()) != Some(PolicyVerdict::DENY)
}
