//! The evaluation of a rule set, as a global function of BPF.
//!
//! The verifier checks a global function once for each program, for any arguments. It follows every other function from
//! each call in each state, and each of the rules' six kinds of keys multiplies the states.

use podnet_common::{
    addr::Proto,
    layout::{PolicyRule, PolicyVerdict},
    pipeline::rules,
};

use crate::maps;

/// See [`rules::denied_by`]. Global since its symbol is exported; all arguments are scalars, since the verifier knows
/// nothing about them but their types.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn policy_denied_by(set: u32, class: u32, ports: u32, proto: u32, exempt: u32) -> u32 {
    rules::denied_by(set, class, ports, Proto(proto as u8), exempt != 0, rule)
}

/// An entry of `policy_rules`.
#[inline(always)]
pub(crate) fn rule(rule: &PolicyRule) -> Option<PolicyVerdict> {
    // SAFETY: the memory of an entry stays valid until the program ends (RCU). A concurrent reuse of the entry is
    // inherent in kernel hash tables, and the value is plain data.
    unsafe { maps::POLICY_RULES.get(rule) }.copied()
}
