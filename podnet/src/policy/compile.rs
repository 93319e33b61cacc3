//! From rule sets and classes to entries of `policy_rules`.

use std::collections::BTreeMap;

use podnet_common::addr::{Addr, Proto};
use podnet_common::layout::{PolicyRule, PolicyVerdict, Prefix, ProtoPort, Subject};

use super::atoms::{Class, PortRange, Ports, Rule, Stage};
use super::intern::{ClassId, SetId};
use super::ports::PortClasses;
use crate::model::Action;

/// What the tables of network policy should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// `subjects`: the pods of this node that are isolated.
    pub subjects: BTreeMap<Addr, Subject>,
    /// `policy_peers`: classes of pods.
    pub peers: BTreeMap<Addr, u32>,
    /// `policy_blocks`: classes of all other addresses.
    pub blocks: BTreeMap<Prefix, u32>,
    /// `policy_ports`: classes of ports.
    pub ports: BTreeMap<ProtoPort, u32>,
    /// `policy_rules`: what rules match, and what they say.
    pub rules: BTreeMap<PolicyRule, PolicyVerdict>,
}

/// The flags in a field of [`Subject`]: the kinds of keys that rules may have. They depend on the rules only, not on
/// the classes that exist now, so a set keeps them.
pub(super) fn flags(rules: &[Rule]) -> u32 {
    rules.iter().fold(0, |all, rule| all | kinds(rule))
}

fn kinds(rule: &Rule) -> u32 {
    let of = |everything: u32, protocol: u32, ports: u32| match &rule.ports {
        None => everything,
        Some(list) => list.iter().fold(0, |flags, one| {
            flags
                | match one {
                    Ports::Protocol(_) => protocol,
                    Ports::Range(_) => ports,
                    Ports::Named(..) => Subject::CLASS_PORTS,
                }
        }),
    };
    match rule.peers {
        Some(_) => of(Subject::CLASS_ALL, Subject::CLASS_PROTOCOL, Subject::CLASS_PORTS),
        None => of(Subject::ANY_ALL, Subject::ANY_PROTOCOL, Subject::ANY_PORTS),
    }
}

/// Number of the rule at a place of a set.
pub(super) fn number(place: usize) -> u32 {
    u32::try_from(place + 1).unwrap_or(u32::MAX)
}

/// What the rule at a place of a set says, as a value of `policy_rules`.
pub(super) fn verdict(place: usize, rule: &Rule) -> PolicyVerdict {
    let number = number(place);
    let action = match rule.action {
        Action::Accept => PolicyVerdict::ACCEPT,
        Action::Deny => PolicyVerdict::DENY,
        Action::Pass => PolicyVerdict::PASS,
    };
    let none = PolicyVerdict::default();
    match rule.stage {
        Stage::Admin => PolicyVerdict { admin: PolicyVerdict::rule(number, action), ..none },
        Stage::Network => PolicyVerdict { network: number, ..none },
        Stage::Baseline => PolicyVerdict { baseline: PolicyVerdict::rule(number, action), ..none },
    }
}

/// Calls `put` with each entry that a rule of a set has for all addresses.
pub(super) fn entries_for_any(set: SetId, rule: &Rule, ports: &PortClasses, mut put: impl FnMut(PolicyRule)) {
    if rule.peers.is_none() {
        keys(rule, None, ports, |ports| put(PolicyRule { set: set.0, class: PolicyRule::ANY, ports }));
    }
}

/// Calls `put` with each entry that a rule of a set has for a class of addresses.
pub(super) fn entries_for_class(
    set: SetId,
    rule: &Rule,
    (id, class): (ClassId, &Class),
    ports: &PortClasses,
    mut put: impl FnMut(PolicyRule),
) {
    let put = |ports| put(PolicyRule { set: set.0, class: id.0, ports });
    match &rule.peers {
        Some(peers) if class.is_in_any(peers) => keys(rule, Some(class), ports, put),
        Some(_) => {}
        // All but named ports have entries for all addresses.
        None => named(rule, class, ports, put),
    }
}

/// Calls `put` with the ports that a rule matches, named ones for the class only.
fn keys(rule: &Rule, class: Option<&Class>, classes: &PortClasses, mut put: impl FnMut(u32)) {
    let Some(list) = &rule.ports else { return put(PolicyRule::ALL) };
    for one in list {
        match one {
            Ports::Protocol(protocol) => put(PolicyRule::protocol(Proto::from(*protocol))),
            Ports::Range(range) => classes.of(range).iter().for_each(|id| put(id.0)),
            Ports::Named(..) => {}
        }
    }
    if let Some(class) = class {
        named(rule, class, classes, put);
    }
}

/// Calls `put` with the named ports that a rule matches for a class.
fn named(rule: &Rule, class: &Class, classes: &PortClasses, mut put: impl FnMut(u32)) {
    for (protocol, atom) in rule.named() {
        for port in class.ports(atom) {
            classes.of(&PortRange { protocol, first: port, last: port }).iter().for_each(|id| put(id.0));
        }
    }
}
