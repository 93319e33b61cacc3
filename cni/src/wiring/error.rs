//! Why a pod could not be wired.

use std::io;

use thiserror::Error;

use crate::netlink::NetlinkError;
use crate::netns::NetnsError;

/// Why a pod could not be wired, or is wired otherwise than recorded.
#[derive(Debug, Error)]
pub enum WiringError {
    /// The kernel refused, or the socket failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The pod's namespace can't be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// One of the two names is taken.
    #[error("interface {ifname} already exists in the pod, or {host_ifname} on the host")]
    InterfaceExists {
        /// The name in the pod.
        ifname: String,
        /// The name on the host.
        host_ifname: String,
    },
    /// The pod has a default route by another interface.
    #[error("the pod already has a default route that does not use {ifname}")]
    DefaultRouteExists {
        /// The new interface.
        ifname: String,
    },
    /// A setting could not be written.
    #[error("cannot change the network settings of {of}: {source}")]
    Sysctl {
        /// Interface or family.
        of: String,
        /// The cause.
        source: io::Error,
    },
    /// No random bytes.
    #[error("cannot read /dev/urandom: {0}")]
    Random(#[source] io::Error),
    /// CHECK found something missing or different.
    #[error("{0}")]
    Mismatch(String),
}
