//! Services at addresses that also belong to something else: which ports they take, and from whom, for the operator.
//!
//! This is allowed and often intended: the address of a load balancer may be on an interface of the node that holds it.
//! But it also explains why a machine doesn't answer at one of its ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podnet_common::layout::FrontendKey;

use crate::compile::{Desired, show};
use crate::model::{Diagnostic, Kind, ObjectKey, ObjectName, Severity};

/// Number of ports of an address that are named.
const NAMED_MAX: usize = 8;

/// What services take of an address that belongs to something else; empty if nothing. `whose` is worded to follow "is".
pub(super) fn at(desired: &Desired, ip: IpAddr, whose: &str) -> Vec<Diagnostic> {
    let mut services: BTreeMap<&ObjectName, Vec<&FrontendKey>> = BTreeMap::new();
    for (key, holder) in desired.at_service_address(ip) {
        services.entry(&holder.service).or_default().push(key);
    }
    let problem = |(service, ports): (&ObjectName, Vec<&FrontendKey>)| {
        let named = ports.iter().take(NAMED_MAX).map(|key| show(key).to_string());
        let others = ports.len().saturating_sub(NAMED_MAX);
        let others = (others > 0).then(|| format!("{others} more ports"));
        let ports = named.chain(others).collect::<Vec<_>>().join(", ");
        Diagnostic::of(
            ObjectKey { kind: Kind::Service, name: service.clone() },
            Severity::Remark,
            format!(
                "{ip} is {whose}: traffic through this node to {ports} goes to the Service; other ports are not \
                 affected"
            ),
        )
    };
    services.into_iter().map(problem).collect()
}
