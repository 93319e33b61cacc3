//! What can go wrong with the host's network.

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::sysctl::SettingError;

/// A failed operation on the host's network.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The netlink socket could not be opened.
    #[error("can't open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The system's source of random numbers failed.
    #[error("can't read /dev/urandom for a MAC: {0}")]
    Random(#[source] io::Error),
    /// A dump failed.
    #[error("can't read the host's {what}: {source}")]
    Read {
        /// What was read: links, addresses, routes or neighbours.
        what: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A change was refused.
    #[error("can't {action}: {source}")]
    Change {
        /// What was attempted.
        action: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// The kernel has no room for another neighbour.
    #[error(
        "the kernel's table of neighbours is full, so that not all nodes on this link can be reached: raise \
         net.ipv4.neigh.default.gc_thresh3 and net.ipv6.neigh.default.gc_thresh3 (and gc_thresh1 and 2) beyond their number"
    )]
    NeighboursFull,
    /// A route to the same destination exists that podnet hasn't made.
    #[error(
        "a route to {dst} exists that podnet has not made, and what is sent there goes that way: see `ip route show {dst}` who has \
         made it, or choose another CIDR"
    )]
    ForeignRoute {
        /// Its destination.
        dst: IpNetwork,
    },
    /// An interface with the name of one of podnet's is something else.
    #[error("interface {name} exists and is not podnet's: rename or delete it (`ip link delete {name}`)")]
    ForeignLink {
        /// Its name.
        name: String,
    },
    /// Two nodes would be one in the tunnel.
    #[error("the name of the node {node} gives it the MAC of another one in the tunnel: give it another name")]
    SameMac {
        /// Its name.
        node: String,
    },
    /// A node address is on none of the node's interfaces.
    #[error(
        "this node's address {addr} is on none of its interfaces: correct the InternalIP of the Node object, or add \
         the address"
    )]
    NoSuchAddress {
        /// The address.
        addr: IpAddr,
    },
    /// A node address is still being examined.
    #[error("this node's address {addr} is not usable yet (duplicate address detection); it is tried again")]
    Tentative {
        /// The address.
        addr: IpAddr,
    },
    /// A link vanished while it was set up.
    #[error("interface {name} has disappeared while it was set up; it is tried again")]
    Vanished {
        /// Its name.
        name: &'static str,
    },
    /// Settings could not be written.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// The error number in the kernel's answer, positive.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(e) => e.code.map(|c| -c.get()),
        _ => None,
    }
}
