//! Keys of frontends: built from addresses, and formatted.

use std::fmt::{self, Display};
use std::net::SocketAddr;

use podnet_common::addr::{Port, Proto};
use podnet_common::layout::FrontendKey;

use crate::frontend::FrontendAddr;
use crate::model::Protocol;

impl From<Protocol> for Proto {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::TCP,
            Protocol::Udp => Self::UDP,
            Protocol::Sctp => Self::SCTP,
        }
    }
}

/// A frontend's key in the table, with scope [`FrontendKey::ANY`]. The unspecified address becomes the key's wildcard
/// for all addresses of the node.
pub fn key(addr: &FrontendAddr) -> FrontendKey {
    FrontendKey {
        addr: addr.socket.ip().into(),
        port: Port::new(addr.socket.port()),
        proto: addr.protocol.into(),
        scope: FrontendKey::ANY,
    }
}

/// The same key with another scope.
pub fn scoped(key: FrontendKey, scope: u8) -> FrontendKey {
    FrontendKey { scope, ..key }
}

/// Whether a key stands for all addresses of the node.
pub fn of_node(key: &FrontendKey) -> bool {
    key.addr == FrontendKey::NODE_V4 || key.addr == FrontendKey::NODE_V6
}

/// A key in readable form, such as `10.96.0.1:53/UDP` or `0.0.0.0:30080/TCP from outside`.
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
