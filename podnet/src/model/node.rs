//! Nodes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::labels::Labels;
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
    /// Its pod CIDRs, one for each family at most.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Creation time, in RFC 3339 and UTC; empty in a file.
    pub created: Box<str>,
    /// Its labels, as peers of ClusterNetworkPolicies are selected by them.
    pub labels: Labels,
    /// Whether a label marks it as a control plane node.
    pub control_plane: bool,
    /// Its zone, by a label.
    pub zone: Option<String>,
    /// Whether the node is being removed: its object is being deleted, or the cluster autoscaler has marked the node
    /// for removal. Load balancers should send no new connections to it (KEP-3836).
    pub leaving: bool,
    /// Elements that are left out as invalid.
    pub left_out: LeftOut,
}
