//! Entries of the tables of network policy in readable form.

use podnet_common::addr::{IfIndex, Proto};
use podnet_common::layout::{OfLink, PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, Subject};

use crate::cli::output::protocol;

/// The rule sets of a pod in words.
pub(super) fn rule_sets(sets: Subject) -> String {
    format!("ingress {}, egress {}", rule_set(sets.ingress), rule_set(sets.egress))
}

/// What `policy_pods` contains for an interface, in words.
pub(super) fn policy_pod(link: IfIndex, pod: &PolicyPod) -> String {
    let number = |number: OfLink| number.get(link);
    let set = |of_link| number(of_link).unwrap_or_default();
    let classes = [("IPv4", pod.class_v4), ("IPv6", pod.class_v6)].into_iter();
    let classes = classes.filter_map(|(family, class)| Some(format!("{family} class {}", number(class)?)));
    let sets = rule_sets(Subject { ingress: set(pod.ingress), egress: set(pod.egress) });
    std::iter::once(sets).chain(classes).collect::<Vec<_>>().join(", ")
}

/// A rule set in words.
fn rule_set(set: u32) -> String {
    match set {
        Subject::OPEN => "open".to_owned(),
        Subject::CLOSED => "closed".to_owned(),
        set if set == Subject::PENDING.ingress => "closed: its policies are not known yet".to_owned(),
        set => format!("rule set {}", set & Subject::ID),
    }
}

/// The part of a rule set that denies packets, in words.
pub(super) fn denial(denial: &PolicyDenial) -> String {
    let PolicyDenial { set, rule } = denial;
    match *rule {
        PolicyDenial::ISOLATION => format!("rule set {set}: no rule allows it"),
        rule => format!("rule set {set}: rule {rule} denies"),
    }
}

/// A class in words.
pub(super) fn class(class: u32) -> String {
    format!("class {class}")
}

/// A value of `policy_rules` in words: in each tier the rule of the set that comes first.
pub(super) fn verdict(found: PolicyVerdict) -> String {
    let rule = |tier: &str, field: u32| {
        let action = match field & PolicyVerdict::ACTION {
            PolicyVerdict::ACCEPT => "accepts",
            PolicyVerdict::DENY => "denies",
            _ => "passes",
        };
        (field != 0).then(|| format!("{tier} rule {} {action}", field >> PolicyVerdict::ACTION_BITS))
    };
    let network = (found.network != 0).then(|| format!("rule {} allows", found.network));
    let parts = [rule("Admin", found.admin), network, rule("Baseline", found.baseline)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A key of `policy_rules` in words.
pub(super) fn policy_rule(rule: &PolicyRule) -> String {
    let peer = if rule.class == PolicyRule::ANY { "any peer".to_owned() } else { class(rule.class) };
    let ports = match rule.ports {
        PolicyRule::ALL => "everything".to_owned(),
        ports if ports & PolicyRule::protocol(Proto(0)) != 0 => {
            format!("all ports of {}", protocol(Proto(ports as u8)))
        }
        ports => format!("port {}", class(ports)),
    };
    format!("rule set {}, {peer}, {ports}", rule.set)
}
