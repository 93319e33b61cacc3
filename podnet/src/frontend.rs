//! The seam between Kubernetes and the datapath.
//!
//! Above it are names, labels and policies; below it addresses, ports and ids. [`select`](crate::select) makes these
//! values, [`compile`](crate::compile) takes them.

use std::fmt;
use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::model::{ObjectName, Protocol};

/// Where clients of a frontend connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddr {
    /// The virtual address and the service's port. The unspecified address stands for all of the node's of its family.
    pub socket: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for FrontendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.socket, self.protocol)
    }
}

/// A service's port by name, shown as `namespace/name:port` or, for a port without a name, `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The service.
    pub service: ObjectName,
    /// The port's name, which may be empty if it is the only one.
    pub port: String,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// What asks for frontends, and has a share of the tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The host ports of this node's pods, all together.
    HostPorts,
    /// A Service.
    Service(ObjectName),
}

impl Owner {
    /// The namespace, if it is in one.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::HostPorts => None,
            Self::Service(name) => Some(&name.namespace),
        }
    }
}

/// What kind of address a frontend has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FrontendKind {
    /// The service's own, for the cluster.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// A port of every node.
    NodePort,
    /// An ingress address of a load balancer.
    LoadBalancer,
    /// Another address that is routed to the nodes.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    /// A port of this node that leads to one pod.
    HostPort,
}

/// Which source address a backend sees (the `sourceIP` setting).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceMode {
    /// The client's, unless it comes from outside and the backend is on another node: then the node's.
    Auto,
    /// The client's, always: by direct server return if need be.
    Preserve,
    /// The node's, always.
    Snat,
}

/// What becomes of connections that have no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IfNone {
    /// They are rejected: there is no endpoint anywhere.
    Reject,
    /// They are dropped: a traffic policy leaves none of the endpoints on this node.
    Drop,
}

/// Where a frontend's connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// Addresses and target ports: sorted, without duplicates, of the frontend's family.
    pub list: Vec<SocketAddr>,
    /// What becomes of connections if the list is empty; else it says nothing and is [`IfNone::Reject`].
    pub if_none: IfNone,
}

/// One address and port of a service, and where its connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Where clients connect to.
    pub key: FrontendAddr,
    /// What kind of address that is.
    pub kind: FrontendKind,
    /// Whose it is.
    pub service: ServicePortName,
    /// Which source address the [`backends`](Self::backends) see. Those of [`outside`](Self::outside) see the client's
    /// in every mode.
    pub source: SourceMode,
    /// For how many seconds a client stays with its backend; 0 for no affinity.
    pub affinity: u32,
    /// Which clients may use it, of the frontend's family; an empty list: nobody; `None`: all.
    pub source_ranges: Option<Vec<IpNetwork>>,
    /// For this node's pods and processes, and for clients from outside unless `outside` is there.
    pub backends: Backends,
    /// For clients that come in by an uplink, where they have others: with externalTrafficPolicy Local those on this
    /// node, which always see the client's address.
    pub outside: Option<Backends>,
    /// This node's, for connections that other nodes send on by direct server return; not a part of `backends` if
    /// hints mean it for other nodes' clients. `None`: none are sent on, here or by this node.
    pub here: Option<Vec<SocketAddr>>,
    /// If other nodes may send on: whether the service has room for a table by which all nodes choose the same backend
    /// also while backends come and go.
    pub spread: bool,
}
