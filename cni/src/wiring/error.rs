//! Errors of wiring a pod, and differences that CHECK finds.

use std::io;

use thiserror::Error;

use crate::netlink::NetlinkError;
use crate::netns::NetnsError;

/// Why a pod could not be wired, or differs from its record.
#[derive(Debug, Error)]
pub enum WiringError {
    /// The kernel rejected a request, or the socket failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The pod's namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// One of the two names is in use.
    #[error("interface {ifname} already exists in the pod, or {host_ifname} on the host")]
    InterfaceExists {
        /// The name in the pod.
        ifname: String,
        /// The name on the host.
        host_ifname: String,
    },
    /// The pod already has a default route through another interface.
    #[error("the pod already has a default route that does not use {ifname}")]
    DefaultRouteExists {
        /// The new interface.
        ifname: String,
    },
    /// A sysctl could not be read or written.
    #[error("cannot set the sysctl {of}: {source}")]
    Sysctl {
        /// Its path.
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
