//! Objects as in YAML and JSON: only the fields that podnet uses, with no validation except of types.
//!
//! One structure serves all kinds, since the kind may follow the fields that depend on it (`kubectl get -o yaml` sorts
//! keys).

mod lenient;
mod spec;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::labels::Labels as Complete;
use lenient::{nullable, text};
use spec::spec;
pub use spec::{ClientIpConfig, Container, ContainerPort, Port, SessionAffinityConfig, Spec, Taint};

/// Any object, or a list of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Manifest {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name, namespace, labels, annotations.
    #[serde(deserialize_with = "nullable")]
    pub metadata: Metadata,
    /// All but EndpointSlice and Namespace.
    #[serde(deserialize_with = "spec")]
    pub spec: Spec,
    /// Service, Node and Pod.
    #[serde(deserialize_with = "nullable")]
    pub status: Status,
    /// EndpointSlice: the addresses' family.
    #[serde(deserialize_with = "nullable")]
    pub address_type: String,
    /// EndpointSlice.
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
    /// EndpointSlice.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
    /// List: its objects.
    #[serde(deserialize_with = "nullable")]
    pub items: Vec<Self>,
}

/// The identity of an object, for errors in the rest of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Header {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name, namespace.
    #[serde(deserialize_with = "nullable")]
    pub metadata: HeaderMetadata,
}

/// [`Metadata`] without fields that could have another type in an object of another kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HeaderMetadata {
    /// Its name.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Its namespace.
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    /// See [`Metadata`].
    #[serde(rename = "resourceVersion", deserialize_with = "text")]
    pub resource_version: Option<String>,
    /// See [`Metadata`].
    #[serde(deserialize_with = "text")]
    pub uid: Option<String>,
}

/// `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Its name.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Its namespace; empty means `default`.
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    /// The API server's version of this object.
    #[serde(deserialize_with = "text")]
    pub resource_version: Option<String>,
    /// The API server's id of this object, unique among all objects of its name over time.
    #[serde(deserialize_with = "text")]
    pub uid: Option<String>,
    /// Node and Pod: creation time.
    #[serde(deserialize_with = "text")]
    pub creation_timestamp: Option<String>,
    /// Node: since when it is being deleted.
    pub deletion_timestamp: Option<IgnoredAny>,
    /// Its labels.
    #[serde(deserialize_with = "nullable")]
    pub labels: Labels,
    /// The annotations that podnet uses.
    #[serde(deserialize_with = "nullable")]
    pub annotations: Annotations,
}

/// `metadata.labels`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<String, Option<String>>);

impl Labels {
    /// EndpointSlice: name of its Service.
    pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
    /// Assigns a service to another proxy, whatever its value.
    pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
    /// Marks a headless service, whatever its value.
    pub const HEADLESS: &str = "service.kubernetes.io/headless";
    /// Node: marks a control plane node, whatever its value.
    pub const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
    /// Node: its zone.
    pub const ZONE: &str = "topology.kubernetes.io/zone";

    /// Value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_deref()
    }

    /// Whether there is a label, whatever its value.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// All of them. A label without a value has an empty one, as in the API.
    pub fn complete(self) -> Complete {
        self.0.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect()
    }
}

/// `metadata.annotations`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// [`super::SOURCE_IP_ANNOTATION`].
    #[serde(rename = "podnet.io/source-ip")]
    pub source_ip: Option<String>,
    /// EndpointSlice: when the cause of the last change of its endpoints occurred, in RFC 3339.
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub last_change_trigger_time: Option<String>,
    /// Pod: the uid of a static pod at its kubelet.
    #[serde(rename = "kubernetes.io/config.hash")]
    pub config_hash: Option<String>,
}

/// `status` of Service, Node and Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Node: its addresses.
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<NodeAddress>,
    /// Service: state of its load balancer.
    #[serde(deserialize_with = "nullable")]
    pub load_balancer: LoadBalancer,
    /// Pod: its phase.
    #[serde(deserialize_with = "nullable")]
    pub phase: String,
    /// Pod: its first address.
    #[serde(rename = "podIP", deserialize_with = "nullable")]
    pub pod_ip: String,
    /// Pod: all its addresses.
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pub pod_ips: Vec<PodIp>,
}

/// An element of a Pod's `status.podIPs`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    #[serde(deserialize_with = "nullable")]
    pub ip: String,
}

/// A Service's `status.loadBalancer`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    /// Its addresses and host names.
    #[serde(deserialize_with = "nullable")]
    pub ingress: Vec<Ingress>,
}

/// An element of a Service's `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// An address; empty for an element with a host name.
    #[serde(deserialize_with = "nullable")]
    pub ip: String,
    /// `VIP` or `Proxy`; empty means VIP.
    #[serde(deserialize_with = "nullable")]
    pub ip_mode: String,
}

/// An element of a Node's `status.addresses`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// Its type: `InternalIP` or others.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address or host name.
    pub address: String,
}

/// An element of an EndpointSlice's `endpoints`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Its addresses.
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// Its state.
    #[serde(deserialize_with = "nullable")]
    pub conditions: Conditions,
    /// Its node.
    #[serde(deserialize_with = "nullable")]
    pub node_name: String,
    /// Its zone.
    #[serde(deserialize_with = "nullable")]
    pub zone: String,
    /// The clients that should use it.
    #[serde(deserialize_with = "nullable")]
    pub hints: Hints,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// Clients in these zones.
    #[serde(deserialize_with = "nullable")]
    pub for_zones: Vec<Named>,
    /// Clients on these nodes.
    #[serde(deserialize_with = "nullable")]
    pub for_nodes: Vec<Named>,
}

/// A zone or node in a hint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    /// Its name.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

/// `conditions` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// None means true.
    pub ready: Option<bool>,
    /// None means true.
    pub serving: Option<bool>,
    /// None means false.
    pub terminating: Option<bool>,
}
