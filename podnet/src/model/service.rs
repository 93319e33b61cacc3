//! Services.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::left_out::LeftOut;
use super::protocol::Protocol;

/// Annotation of a Service that says which source address its backends see.
pub const SOURCE_IP_ANNOTATION: &str = "podnet.io/source-ip";

/// The `sourceIP` setting, of the cluster and of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceIp {
    /// The client's wherever that costs nothing: always, for a ClusterIP.
    #[default]
    Auto,
    /// The client's.
    Preserve,
    /// The node's.
    Snat,
}

/// Which endpoints a client may be given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Those of all nodes.
    #[default]
    Cluster,
    /// Those on the node that the client has turned to.
    Local,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its `metadata.uid`; empty in a file.
    pub uid: Box<str>,
    /// Why it isn't for podnet, if so.
    pub ignored: Option<Ignored>,
    /// What kind of service it is, by the frontends that it asks for.
    pub kind: ServiceType,
    /// Its ClusterIPs, one for each family at most.
    pub cluster_ips: Vec<IpAddr>,
    /// Which families it has: those of its ClusterIPs; if it has none, those it names; if it names none, both.
    pub families: Families,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The addresses that its load balancer has been given, without those that the load balancer keeps to itself
    /// (`ipMode: Proxy`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Other addresses that are routed to the nodes.
    pub external_ips: Vec<IpAddr>,
    /// Which clients may use the load balancer's addresses; `None`: all, an empty list: nobody.
    pub source_ranges: Option<Vec<IpNetwork>>,
    /// Whose endpoints clients of a ClusterIP get.
    pub internal_policy: TrafficPolicy,
    /// Whose endpoints clients of all other frontends get.
    pub external_policy: TrafficPolicy,
    /// For how many seconds a client stays with its endpoint; 0 for no affinity.
    pub affinity: u32,
    /// The port at which a load balancer asks whether the node has endpoints.
    pub health_check_port: Option<u16>,
    /// The annotation's value, if it has one.
    pub source_ip: Option<SourceIp>,
    /// What of it can't be used.
    pub left_out: LeftOut,
}

/// Why a service has no frontends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ignored {
    /// It is a name in DNS: type ExternalName.
    ExternalName,
    /// It has no ClusterIP (`None`), or a label that says so: clients use its endpoints directly.
    Headless,
    /// It is another proxy's, by a label.
    OtherProxy,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// A virtual address in the cluster.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// A port of every node too.
    NodePort,
    /// Addresses of a load balancer too.
    LoadBalancer,
    /// A name in DNS and nothing else.
    ExternalName,
}

/// The families of addresses that a service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Whether an address's family is among them.
    pub const fn has(self, ip: &IpAddr) -> bool {
        if ip.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// A port of a Service. The target port is the EndpointSlices' matter, which have it by the port's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, unique in the service; empty only if it is the only one.
    pub name: String,
    /// The number, which isn't 0.
    pub port: u16,
    /// The port of every node that leads to it.
    pub node_port: Option<u16>,
    /// The protocol.
    pub protocol: Protocol,
}
