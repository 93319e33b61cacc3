//! Errors of the host's network.

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podnet_cni::text;

use super::sysctl::SettingError;

/// A failed operation on the host's network.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket: {}", text::refusal(.0))]
    Socket(#[source] io::Error),
    /// The system's random number generator failed.
    #[error("cannot read /dev/urandom for a MAC: {0}")]
    Random(#[source] io::Error),
    /// A dump failed.
    #[error("cannot read the host's {what}: {}", refusal(.source))]
    Read {
        /// What was read: links, addresses, routes or neighbours.
        what: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// The kernel rejected a change.
    #[error("cannot {action}: {}", refusal(.source))]
    Change {
        /// What was attempted.
        action: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// The neighbour table of the kernel is full.
    #[error(
        "the kernel's neighbour table is full, and some nodes on this link are unreachable: raise \
         net.ipv4.neigh.default.gc_thresh3 and net.ipv6.neigh.default.gc_thresh3 (and gc_thresh1, gc_thresh2) above \
         the number of nodes"
    )]
    NeighboursFull,
    /// There is a route to the same destination that podnet didn't make.
    #[error(
        "another program's route to {dst} exists and takes precedence: find its origin with `ip route show {dst}`, or \
         choose another CIDR"
    )]
    ForeignRoute {
        /// Its destination.
        dst: IpNetwork,
    },
    /// An interface has the name of one of podnet's, but another kind.
    #[error("an interface {name} exists that does not belong to podnet: rename or delete it (`ip link delete {name}`)")]
    ForeignLink {
        /// Its name.
        name: String,
    },
    /// Two nodes would have the same MAC in the tunnel.
    #[error("the tunnel MAC derived from the name of node {node} collides with another node's: rename the node")]
    SameMac {
        /// Name of one of them.
        node: String,
    },
    /// No interface of the node has one of its addresses.
    #[error(
        "this node's address {addr} is on none of its interfaces: correct the InternalIP of the Node object, or add \
         the address"
    )]
    NoSuchAddress {
        /// The address.
        addr: IpAddr,
    },
    /// Duplicate address detection for a node address hasn't finished.
    #[error("this node's address {addr} is not usable yet (duplicate address detection); retrying")]
    Tentative {
        /// The address.
        addr: IpAddr,
    },
    /// A link disappeared during its setup.
    #[error("interface {name} disappeared during its set-up; retrying")]
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

/// The kernel's error as text and number, followed by advice.
fn refusal(error: &rtnetlink::Error) -> String {
    match errno(error) {
        Some(errno) => format!("{}; {}", io::Error::from_raw_os_error(errno), text::advice(errno)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use super::*;

    #[test]
    fn the_error_number_and_advice_follow_the_kernels_message() {
        for (errno, part) in [(libc::EPERM, "CAP_NET_ADMIN"), (libc::EOPNOTSUPP, "module"), (libc::EBUSY, "dmesg")] {
            let mut message = rtnetlink::packet_core::ErrorMessage::default();
            message.code = NonZeroI32::new(-errno);
            let text = refusal(&rtnetlink::Error::NetlinkError(message));
            assert!(text.contains(&format!("(os error {errno}); ")) && text.contains(part), "{text}");
        }
        assert_eq!(refusal(&rtnetlink::Error::RequestFailed), rtnetlink::Error::RequestFailed.to_string());
    }
}
