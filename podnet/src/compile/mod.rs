//! From frontends to table contents: keys, flags and backends, then ids and positions.
//!
//! ```text
//! Frontend ── Claim ──→ Desired (owner of each key) ── Entry ──→ reconcile
//!                       BackendIds, Segments, ServiceNames: reconcile allocates ids and slots from these
//!                       maglev: the backend of each slot of a segment, where nodes must agree
//! ```
//! Ids are stable: a backend keeps its id as long as any frontend uses it, a service port keeps its id for ever. Freed
//! ids and slots are quarantined before reuse, so that a reader in flight never finds something else in their place.
//! This module doesn't access the tables.

mod claim;
mod desired;
mod ids;
mod key;
pub mod maglev;
mod names;
mod segments;

pub use claim::Entry;
pub use desired::{Conflict, Desired};
pub use ids::{BackendId, BackendIds};
pub use key::{key, of_node, scoped, show};
pub use names::{NamesError, ServiceId, ServiceNames};
pub use segments::{Segment, Segments};

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use podnet_common::addr::Proto;
    use podnet_common::layout::FrontendKey;

    use super::*;
    use crate::frontend::{Backends, Frontend, FrontendAddr, FrontendKind, IfNone, ServicePortName, SourceMode};
    use crate::model::{ObjectName, Protocol};

    /// A service in the default namespace.
    pub(crate) fn service(name: &str) -> ObjectName {
        ObjectName { namespace: "default".into(), name: name.into() }
    }

    /// Backends 10.0.0.n:80.
    pub(crate) fn backends(list: &[u8], if_none: IfNone) -> Backends {
        Backends { list: list.iter().map(|n| SocketAddr::from(([10, 0, 0, *n], 80))).collect(), if_none }
    }

    /// A ClusterIP's TCP port with these backends.
    pub(crate) fn frontend(owner: &str, at: &str, list: &[u8]) -> Frontend {
        Frontend {
            key: FrontendAddr { socket: at.parse().unwrap(), protocol: Protocol::Tcp },
            kind: FrontendKind::ClusterIp,
            service: ServicePortName { service: service(owner), port: String::new() },
            source: SourceMode::Auto,
            affinity: 0,
            source_ranges: None,
            backends: backends(list, IfNone::Reject),
            outside: None,
            here: None,
            spread: true,
        }
    }

    #[test]
    fn keys_in_readable_form() {
        let key = key(&frontend("", "[fd00::1]:53", &[]).key);
        assert_eq!(show(&key).to_string(), "[fd00::1]:53/TCP");
        let outside = FrontendKey { scope: FrontendKey::OUTSIDE, proto: Proto(9), ..key };
        assert_eq!(show(&outside).to_string(), "[fd00::1]:53/9 from outside");
        assert_eq!(show(&FrontendKey::address(key.addr)).to_string(), "fd00::1");
        assert!(
            !of_node(&key) && ["0.0.0.0:1", "[::]:1"].iter().all(|at| of_node(&super::key(&frontend("", at, &[]).key)))
        );
    }
}
