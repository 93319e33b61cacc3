//! Looking up the tables as the datapath does.

use podnet_common::addr::{Addr, Port};
use podnet_common::layout::{PolicyRule, PolicyVerdict, ProtoPort, Subject};

use super::{Direction, Question};
use crate::policy::Desired;

/// The longest prefix that contains something, or class 0.
fn longest<'a, K: 'a>(
    table: impl IntoIterator<Item = (&'a K, &'a u32)>,
    contains: impl Fn(&K) -> bool,
    len: impl Fn(&K) -> u32,
) -> u32 {
    let found = table.into_iter().filter(|(key, _)| contains(key)).max_by_key(|(key, _)| len(key));
    found.map_or(0, |(_, class)| *class)
}

/// Whether the tables allow a connection.
pub(super) fn allows(tables: &Desired, question: &Question) -> bool {
    let Question { subject, direction, peer, proto, port } = *question;
    let Some(found) = tables.subjects.get(&Addr::from(subject)) else { return true };
    let field = if direction == Direction::Ingress { found.ingress } else { found.egress };
    if field == Subject::OPEN || subject == peer {
        return true;
    }
    if field == Subject::CLOSED {
        return false;
    }
    let addr = Addr::from(peer);
    let block = || longest(&tables.blocks, |key| key.contains(&addr), |key| key.len);
    let class = tables.peers.get(&addr).copied().unwrap_or_else(block);
    let port = tables.ports.get(&ProtoPort::new(proto, Port::new(port))).copied().unwrap_or_default();
    let found: Vec<PolicyVerdict> = [
        (Subject::CLASS_PORTS, class, port),
        (Subject::CLASS_PROTOCOL, class, PolicyRule::protocol(proto)),
        (Subject::CLASS_ALL, class, PolicyRule::ALL),
        (Subject::ANY_PORTS, PolicyRule::ANY, port),
        (Subject::ANY_PROTOCOL, PolicyRule::ANY, PolicyRule::protocol(proto)),
        (Subject::ANY_ALL, PolicyRule::ANY, PolicyRule::ALL),
    ]
    .into_iter()
    .filter(|(flag, ..)| field & flag != 0)
    .filter_map(|(_, class, ports)| tables.rules.get(&PolicyRule { set: field & Subject::ID, class, ports }).copied())
    .collect();
    let first = |tier: fn(&PolicyVerdict) -> u32| found.iter().map(tier).filter(|rule| *rule != 0).min();
    match first(|verdict| verdict.admin).map(|rule| rule & PolicyVerdict::ACTION) {
        Some(PolicyVerdict::ACCEPT) => return true,
        Some(PolicyVerdict::DENY) => return false,
        _ => {}
    }
    if field & Subject::CLUSTER == 0 || field & Subject::ISOLATED != 0 {
        return first(|verdict| verdict.network).is_some();
    }
    first(|verdict| verdict.baseline).is_none_or(|rule| rule & PolicyVerdict::ACTION != PolicyVerdict::DENY)
}
