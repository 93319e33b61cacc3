//! Entries of the tables of network policy in readable form.

use podnet_common::addr::Proto;
use podnet_common::layout::{PolicyRule, Subject};

use crate::cli::output::protocol;

/// A rule set in words.
pub(super) fn rule_set(set: u32) -> String {
    match set {
        Subject::OPEN => "open".to_owned(),
        Subject::CLOSED => "closed".to_owned(),
        set => format!("rule set {}", set & Subject::ID),
    }
}

/// A class in words.
pub(super) fn class(class: u32) -> String {
    format!("class {class}")
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
