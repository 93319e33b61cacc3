//! Nodes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::left_out::LeftOut;

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its `metadata.uid`; empty in a file.
    pub uid: Box<str>,
    /// Its addresses of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// Its addresses of type ExternalIP.
    pub external_ips: Vec<IpAddr>,
    /// The ranges that its pods' addresses come from, one for each family at most.
    pub pod_cidrs: Vec<IpNetwork>,
    /// When it was made, in RFC 3339 and UTC; empty in a file.
    pub created: Box<str>,
    /// Whether a label says that it is a node of the control plane.
    pub control_plane: bool,
    /// The zone that it is in, if a label says so.
    pub zone: Option<String>,
    /// It is on its way out: its object is being deleted, or the cluster autoscaler has marked the node for removal.
    /// Load balancers should send it no new connections (KEP-3836).
    pub leaving: bool,
    /// What of it can't be used.
    pub left_out: LeftOut,
}
