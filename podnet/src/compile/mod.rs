//! From frontends to what the tables hold: keys, flags and backends, then ids and places.
//!
//! ```text
//! Frontend ── Claim ──→ Desired (who has which key) ── Entry ──→ reconcile
//!                       BackendIds, Segments, ServiceNames: what reconcile gives out ids and places from
//!                       maglev: which backend each slot of a segment leads to, where nodes must agree
//! ```
//! Ids are stable: a backend keeps its id for as long as any frontend uses it, a service port its own for ever.
//! What is given back rests before it is given out again, so that a reader that is still on its way never meets
//! something else in its place. Nothing here touches a table.

mod claim;
mod desired;
mod ids;
pub mod maglev;
mod names;
mod segments;

use std::fmt::{self, Display};
use std::net::SocketAddr;

use podnet_common::addr::{Port, Proto};
use podnet_common::layout::FrontendKey;

pub use claim::Entry;
pub use desired::{Conflict, Desired, host_ports};
pub use ids::{BackendId, BackendIds};
pub use names::{NamesError, ServiceId, ServiceNames};
pub use segments::{Segment, Segments};

use crate::frontend::{FrontendAddr, Protocol};

impl From<Protocol> for Proto {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::TCP,
            Protocol::Udp => Self::UDP,
            Protocol::Sctp => Self::SCTP,
        }
    }
}

/// A frontend's key in the table, for clients that have none of their own. The unspecified address is what stands
/// there for all of the node's.
pub fn key(addr: &FrontendAddr) -> FrontendKey {
    FrontendKey {
        addr: addr.socket.ip().into(),
        port: Port::new(addr.socket.port()),
        proto: addr.protocol.into(),
        scope: FrontendKey::ANY,
    }
}

/// A frontend's key for other clients.
pub fn scoped(key: FrontendKey, scope: u8) -> FrontendKey {
    FrontendKey { scope, ..key }
}

/// Whether a key is for all addresses of the node.
pub fn of_node(key: &FrontendKey) -> bool {
    key.addr == FrontendKey::NODE_V4 || key.addr == FrontendKey::NODE_V6
}

/// A key for people, such as `10.96.0.1:53/UDP` or `0.0.0.0:30080/TCP from outside`.
pub fn show(key: &FrontendKey) -> impl Display {
    let FrontendKey { addr, port, proto, scope } = *key;
    fmt::from_fn(move |f| {
        if *key == FrontendKey::address(addr) {
            return write!(f, "{}", std::net::IpAddr::from(addr));
        }
        write!(f, "{}/", SocketAddr::new(addr.into(), port.get()))?;
        match proto {
            Proto::TCP => f.write_str("TCP")?,
            Proto::UDP => f.write_str("UDP")?,
            Proto::SCTP => f.write_str("SCTP")?,
            Proto(number) => write!(f, "{number}")?,
        }
        f.write_str(match scope {
            FrontendKey::OUTSIDE => " from outside",
            FrontendKey::PEER => " sent on",
            _ => "",
        })
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::frontend::{Backends, Frontend, FrontendKind, IfNone, ServicePortName, SourceMode};
    use crate::model::ObjectName;

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
    fn keys_for_people() {
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
