//! The Kubernetes objects that podnet uses, reduced to what it uses and validated.
//!
//! [`raw`] has the shape of the objects in YAML and JSON; `Object::try_from` checks one and turns it into what the
//! rest of the daemon sees. Both tolerate fields that podnet doesn't know. Values are kept for as long as the object
//! exists and there are many of them, so they are small: no label but the few that matter.

mod change;
mod left_out;
pub mod limits;
mod placement;
mod protocol;
pub mod raw;
mod validate;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use change::{Batch, Change, Complaint, Origin};
pub use left_out::LeftOut;
pub use placement::Placement;
pub use protocol::Protocol;
pub use validate::service_range;

/// Annotation of a Service that says which source address its backends see.
pub const SOURCE_IP_ANNOTATION: &str = "podnet.io/source-ip";

/// A namespace and a name in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Empty for objects that have none, such as nodes.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// The kinds of object that podnet reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Node, Self::ServiceCidr];

    /// As an object says it in `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

/// What identifies an object, shown as `Service default/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}

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

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its `metadata.uid`; empty in a file.
    pub uid: Box<str>,
    /// The service in the same namespace that it belongs to; none if it belongs to none or to another proxy.
    pub service: Option<String>,
    /// Ports that every endpoint has: target ports by the service port's name.
    pub ports: Vec<SlicePort>,
    /// The endpoints, all of one family.
    pub endpoints: Vec<Endpoint>,
    /// What of it can't be used.
    pub left_out: LeftOut,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The service port's name.
    pub name: String,
    /// The target port, which isn't 0.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of its addresses, the only one whose meaning is defined.
    pub addr: IpAddr,
    /// Whether it takes connections.
    pub condition: Condition,
    /// Where it is and who should use it.
    pub placement: Arc<Placement>,
}

/// What an endpoint's conditions amount to (KEP-1672), from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// Not to be used.
    Unusable,
    /// On its way out but still serving: to be used if there is nothing better.
    ServingTerminating,
    /// To be used.
    Ready,
}

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

/// A ServiceCIDR (KEP-1880).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Ranges that services' addresses come from.
    pub cidrs: Vec<IpNetwork>,
    /// What of it can't be used.
    pub left_out: LeftOut,
}

/// Any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Node.
    Node(Arc<Node>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
}

/// Why an object can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{object}: {field}: {reason}")]
pub struct Invalid {
    /// Kind and name, as far as they are known.
    pub object: String,
    /// Path of the field in the object, such as `spec.ports[1].name`.
    pub field: String,
    /// What is wrong with it, and what it should be.
    pub reason: String,
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }
}
