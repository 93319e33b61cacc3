//! Evaluation of a rule set. It needs no other table than `policy_rules`: the kernel's programs have it as a global
//! function.

use crate::{
    addr::Proto,
    layout::{PolicyDenial, PolicyRule, PolicyVerdict, Subject},
};

/// What of a rule set denies packets from or to an address of `class`, to a port of the class `ports` (0: no rule names
/// the port); see [`PolicyVerdict::denied_by`]. `exempt`: NetworkPolicies allow them in any case. `find` looks up an
/// entry of `policy_rules`.
#[inline(always)]
pub fn denied_by(
    set: u32,
    class: u32,
    ports: u32,
    proto: Proto,
    exempt: bool,
    find: impl Fn(&PolicyRule) -> Option<PolicyVerdict>,
) -> u32 {
    let cluster = Subject::has_cluster_rules(set);
    if !cluster && (exempt || set == Subject::CLOSED) {
        return if exempt { PolicyDenial::NOTHING } else { PolicyDenial::ISOLATION };
    }
    let mut verdict = PolicyVerdict::default();
    let mut look = |kind: u32, rule: &PolicyRule| look(set & kind, cluster, rule, &find, &mut verdict);
    // Most frequent first.
    let mut rule = PolicyRule { set: set & Subject::ID, class, ports };
    if ports != 0 {
        look(Subject::CLASS_PORTS, &rule);
    }
    rule.ports = PolicyRule::ALL;
    look(Subject::CLASS_ALL, &rule);
    rule.ports = PolicyRule::protocol(proto);
    look(Subject::CLASS_PROTOCOL, &rule);
    rule.class = PolicyRule::ANY;
    look(Subject::ANY_PROTOCOL, &rule);
    rule.ports = PolicyRule::ALL;
    look(Subject::ANY_ALL, &rule);
    if ports != 0 {
        rule.ports = ports;
        look(Subject::ANY_PORTS, &rule);
    }
    verdict.denied_by(!cluster || set & Subject::ISOLATED != 0, exempt)
}

/// Adds what the rules with a key say, if the set has keys of this kind.
#[inline(always)]
fn look(
    has_kind: u32,
    cluster: bool,
    rule: &PolicyRule,
    find: &impl Fn(&PolicyRule) -> Option<PolicyVerdict>,
    verdict: &mut PolicyVerdict,
) {
    // Rules of NetworkPolicies only allow, so one that matches suffices.
    let decided = verdict.network != 0 && !cluster;
    if has_kind != 0
        && !decided
        && let Some(found) = find(rule)
    {
        *verdict = verdict.first(found);
    }
}
