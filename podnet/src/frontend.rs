//! The interface between Kubernetes objects and the datapath.
//!
//! Names, labels and policies are above it; addresses, ports and ids below. [`select`](crate::select) produces these
//! values, [`compile`](crate::compile) consumes them.

use std::fmt;
use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::model::{Kind, ObjectKey, ObjectName, Protocol};

/// Address of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddr {
    /// The virtual address and the service port. The unspecified address stands for all addresses of the node of its
    /// family.
    pub socket: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for FrontendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.socket, self.protocol)
    }
}

/// Follows a pod's name where a frontend of its host ports is named. No Service's name contains a space.
const HOST_PORT: &str = " hostPort";

/// A service port by name, shown as `namespace/name:port` or, for a port without a name, `namespace/name`; or the host
/// ports of a pod, shown as `namespace/name hostPort`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The service.
    pub service: ObjectName,
    /// Name of the port, which may be empty if it is the only one.
    pub port: String,
}

impl ServicePortName {
    /// The host ports of a pod.
    pub fn of_host_ports(pod: ObjectName) -> Self {
        Self { service: ObjectName { name: pod.name + HOST_PORT, ..pod }, port: String::new() }
    }

    /// The object that wants the port: a Service or a Pod.
    pub fn object(&self) -> ObjectKey {
        let ObjectName { namespace, name } = &self.service;
        match name.strip_suffix(HOST_PORT) {
            Some(pod) => ObjectKey::new(Kind::Pod, namespace, pod),
            None => ObjectKey::new(Kind::Service, namespace, name),
        }
    }
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// An owner of frontends, which has a share of the tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The host ports of this node's pods, all together.
    HostPorts,
    /// A Service.
    Service(ObjectName),
}

impl Owner {
    /// The namespace; `None` for host ports.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::HostPorts => None,
            Self::Service(name) => Some(&name.namespace),
        }
    }
}

/// Kind of a frontend's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FrontendKind {
    /// A ClusterIP.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// A port of every node.
    NodePort,
    /// An ingress address of a load balancer.
    LoadBalancer,
    /// An external IP, routed to the nodes.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    /// A host port: a port of this node that leads to one pod.
    HostPort,
}

/// Source address that backends see (the `sourceIP` setting).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceMode {
    /// The client's, except if the client is outside and the backend on another node: then the node's.
    Auto,
    /// Always the client's, by direct server return if necessary.
    Preserve,
    /// Always the node's.
    Snat,
}

/// Verdict on connections without a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IfNone {
    /// Rejected: there are no endpoints on any node.
    Reject,
    /// Dropped: there are endpoints, but the traffic policy allows none of those on this node.
    Drop,
}

/// Backends of a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// Addresses and target ports: sorted, without duplicates, of the frontend's family.
    pub list: Vec<SocketAddr>,
    /// Verdict on connections if the list is empty; else meaningless and [`IfNone::Reject`].
    pub if_none: IfNone,
}

/// One address and port of a service, and its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Address, port and protocol.
    pub key: FrontendAddr,
    /// Kind of the address.
    pub kind: FrontendKind,
    /// The service port.
    pub service: ServicePortName,
    /// Source address that the [`backends`](Self::backends) see. Those of [`outside`](Self::outside) see the client's
    /// in every mode.
    pub source: SourceMode,
    /// Duration of client affinity in seconds; 0: no affinity.
    pub affinity: u32,
    /// Clients that may use it, in ranges of the frontend's family; an empty list: none; `None`: all.
    pub source_ranges: Option<Vec<IpNetwork>>,
    /// For this node's pods and processes, and for clients from outside unless `outside` is set.
    pub backends: Backends,
    /// For clients that arrive by an uplink, if these have other backends: with externalTrafficPolicy Local those on
    /// this node, which always see the client's address.
    pub outside: Option<Backends>,
    /// Endpoints on this node for connections that other nodes forward by direct server return; not a part of
    /// `backends` if hints assign them to clients of other nodes. `None`: connections are never forwarded, to this node
    /// or by it.
    pub here: Option<Vec<SocketAddr>>,
    /// If other nodes may forward: whether the service has room for a Maglev table, by which all nodes choose the same
    /// backend even while backends are added and removed.
    pub spread: bool,
}
