//! Services.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::left_out::LeftOut;
use super::protocol::Protocol;

/// Annotation of a Service that selects the source address its backends see.
pub const SOURCE_IP_ANNOTATION: &str = "podnet.io/source-ip";

/// The `sourceIP` setting, for the cluster and for a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceIp {
    /// The client's, wherever that costs nothing: always for a ClusterIP.
    #[default]
    Auto,
    /// The client's.
    Preserve,
    /// The node's.
    Snat,
}

/// Which endpoints clients may get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Endpoints on all nodes.
    #[default]
    Cluster,
    /// Endpoints on the node that received the connection.
    Local,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its `metadata.uid`; empty in a file.
    pub uid: Box<str>,
    /// Why podnet ignores it, if so.
    pub ignored: Option<Ignored>,
    /// Its type, which determines its frontends.
    pub kind: ServiceType,
    /// Its ClusterIPs, one for each family at most.
    pub cluster_ips: Vec<IpAddr>,
    /// Its families: those of its ClusterIPs; without ClusterIPs, those that it names; if it names none, both.
    pub families: Families,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The addresses of its load balancer, except those that the load balancer serves itself (`ipMode: Proxy`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Further addresses that are routed to the nodes.
    pub external_ips: Vec<IpAddr>,
    /// Clients that may use the load balancer's addresses; `None`: all, an empty list: none.
    pub source_ranges: Option<Vec<IpNetwork>>,
    /// Traffic policy for clients of ClusterIPs.
    pub internal_policy: TrafficPolicy,
    /// Traffic policy for clients of all other frontends.
    pub external_policy: TrafficPolicy,
    /// Duration of client affinity in seconds; 0: no affinity.
    pub affinity: u32,
    /// TCP port of the health check, by which a load balancer learns whether the node has endpoints.
    pub health_check_port: Option<u16>,
    /// Value of the annotation, if present.
    pub source_ip: Option<SourceIp>,
    /// Elements that are left out as invalid.
    pub left_out: LeftOut,
}

/// Why a service has no frontends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ignored {
    /// A DNS name: type ExternalName.
    ExternalName,
    /// No ClusterIP (`None`), or the label of headless services: clients use its endpoints directly.
    Headless,
    /// A label assigns it to another proxy.
    OtherProxy,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// A virtual address in the cluster.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Additionally a port of every node.
    NodePort,
    /// Additionally addresses of a load balancer.
    LoadBalancer,
    /// Only a DNS name.
    ExternalName,
}

/// Address families of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Whether they include the family of an address.
    pub const fn has(self, ip: &IpAddr) -> bool {
        if ip.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// A port of a Service. The target port is in the EndpointSlices, under the port's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, unique in the service; empty only for a single port.
    pub name: String,
    /// The number, never 0.
    pub port: u16,
    /// The node port that leads to it.
    pub node_port: Option<u16>,
    /// The protocol.
    pub protocol: Protocol,
}
