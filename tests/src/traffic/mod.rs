//! Traffic for the lab, from threads of the harness: servers that report their name and the client's address, clients,
//! long-lived streams that detect every lost packet, crowds of connections, echo requests, hand-made frames, HTTP, and
//! iperf3.

mod client;
mod crowd;
mod flood;
mod frame;
mod http;
mod iperf;
mod load;
mod option;
mod outcome;
mod ping;
mod segments;
mod server;
mod stream;
mod streams;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use socket2::{Domain, Socket};

pub use client::{Answer, Ask, Flow, OWN_PORTS};
pub use crowd::{Crowd, CrowdServer};
pub use flood::Flood;
pub use frame::{Frames, fragments, syn_frame, udp_frame};
pub use http::{Response, http_get};
pub use iperf::{IperfLoad, IperfServer, iperf};
pub use load::{Load, LoadReport};
pub use outcome::Outcome;
pub use ping::{Ping, PingAnswer};
pub use server::Server;
pub use stream::{Stream, StreamReport};
pub use streams::Streams;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Family of an address.
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The loopback address.
    pub const fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }

    /// As in Kubernetes: `IPv4` or `IPv6`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// As in Kubernetes: `TCP` or `UDP`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// Every combination of family and protocol.
    pub fn over_all() -> impl Iterator<Item = (Family, Self)> {
        Family::ALL.into_iter().flat_map(|family| Self::ALL.map(|transport| (family, transport)))
    }

    const fn kind(self) -> socket2::Type {
        match self {
            Self::Tcp => socket2::Type::STREAM,
            Self::Udp => socket2::Type::DGRAM,
        }
    }

    const fn protocol(self) -> socket2::Protocol {
        match self {
            Self::Tcp => socket2::Protocol::TCP,
            Self::Udp => socket2::Protocol::UDP,
        }
    }
}

impl FromStr for Transport {
    type Err = String;

    /// As in Kubernetes.
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|transport| transport.name() == name).ok_or(format!("{name} is neither TCP nor UDP"))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A socket in this process's own network namespace; IPv6 sockets are IPv6-only.
fn socket_here(transport: Transport, addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), transport.kind(), Some(transport.protocol()))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// The unspecified address of this family.
fn unspecified(to: SocketAddr) -> IpAddr {
    match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum >> 16) + (sum & 0xffff);
    !((folded + (folded >> 16)) as u16)
}
