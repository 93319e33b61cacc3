//! The objects as they are in YAML and JSON: only fields that podnet uses, nothing checked but their types.
//!
//! One structure for all kinds, since the kind may come after what depends on it (`kubectl get -o yaml` sorts keys).

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

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
    /// Service, Node and ServiceCIDR.
    #[serde(deserialize_with = "nullable")]
    pub spec: Spec,
    /// Node.
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

/// What says which object this is; for reading the rest's errors.
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

/// [`Metadata`] without what could have a wrong type in an object of another kind.
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
    /// What an API server calls this state of it.
    #[serde(deserialize_with = "text")]
    pub resource_version: Option<String>,
    /// What an API server calls it, and no other of its name.
    #[serde(deserialize_with = "text")]
    pub uid: Option<String>,
    /// Node: when it was made.
    #[serde(deserialize_with = "text")]
    pub creation_timestamp: Option<String>,
    /// Node: since when it has been on its way out.
    pub deletion_timestamp: Option<IgnoredAny>,
    /// The labels that podnet looks at.
    #[serde(deserialize_with = "nullable")]
    pub labels: Labels,
    /// The annotations that podnet looks at.
    #[serde(deserialize_with = "nullable")]
    pub annotations: Annotations,
}

/// `metadata.labels`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// Of an EndpointSlice: its Service.
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Option<String>,
    /// Leaves a service to another proxy, whatever its value.
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    pub service_proxy_name: Option<String>,
    /// Marks a headless service, whatever its value.
    #[serde(rename = "service.kubernetes.io/headless")]
    pub headless: Option<String>,
    /// Of a Node: it is one of the control plane, whatever its value.
    #[serde(rename = "node-role.kubernetes.io/control-plane")]
    pub control_plane: Option<String>,
    /// Of a Node: the zone that it is in.
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub zone: Option<String>,
}

/// `metadata.annotations`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// [`super::SOURCE_IP_ANNOTATION`].
    #[serde(rename = "podnet.io/source-ip")]
    pub source_ip: Option<String>,
    /// Of an EndpointSlice: when what made its endpoints change happened, in RFC 3339.
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub last_change_trigger_time: Option<String>,
}

/// `spec` of Service, Node and ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Service: its type; empty means ClusterIP.
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    /// Service: its first ClusterIP.
    #[serde(rename = "clusterIP", deserialize_with = "nullable")]
    pub cluster_ip: String,
    /// Service: all of them.
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    /// Service: its ports.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
    /// Service: `IPv4`, `IPv6`.
    #[serde(deserialize_with = "nullable")]
    pub ip_families: Vec<String>,
    /// Service: `None` or `ClientIP`.
    #[serde(deserialize_with = "nullable")]
    pub session_affinity: String,
    /// Service: for how long.
    #[serde(deserialize_with = "nullable")]
    pub session_affinity_config: SessionAffinityConfig,
    /// Service: `Cluster` or `Local`.
    #[serde(deserialize_with = "nullable")]
    pub internal_traffic_policy: String,
    /// Service: the same for clients that don't use the ClusterIP.
    #[serde(deserialize_with = "nullable")]
    pub external_traffic_policy: String,
    /// Service: more addresses.
    #[serde(rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<String>,
    /// Service: who may use the load balancer's addresses.
    #[serde(deserialize_with = "nullable")]
    pub load_balancer_source_ranges: Vec<String>,
    /// Service: where a load balancer asks whether the node has endpoints.
    pub health_check_node_port: Option<i64>,
    /// Node: what keeps pods away from it.
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
    /// Node: its first pod CIDR.
    #[serde(rename = "podCIDR", deserialize_with = "nullable")]
    pub pod_cidr: String,
    /// Node: all of them.
    #[serde(rename = "podCIDRs", deserialize_with = "nullable")]
    pub pod_cidrs: Vec<String>,
    /// ServiceCIDR: its ranges.
    #[serde(deserialize_with = "nullable")]
    pub cidrs: Vec<String>,
}

/// `sessionAffinityConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// For affinity by client address.
    #[serde(rename = "clientIP", deserialize_with = "nullable")]
    pub client_ip: ClientIpConfig,
}

/// `sessionAffinityConfig.clientIP`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// In seconds.
    pub timeout_seconds: Option<i64>,
}

/// An element of a Node's `spec.taints`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// What it is about.
    #[serde(deserialize_with = "nullable")]
    pub key: String,
}

/// `status` of Service and Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Node: its addresses.
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<NodeAddress>,
    /// Service: what its load balancer has been given.
    #[serde(deserialize_with = "nullable")]
    pub load_balancer: LoadBalancer,
}

/// A Service's `status.loadBalancer`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    /// Its addresses and names.
    #[serde(deserialize_with = "nullable")]
    pub ingress: Vec<Ingress>,
}

/// An element of a Service's `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// An address; empty for an element that is a name.
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
    /// `InternalIP` and others.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address or name.
    pub address: String,
}

/// A port of a Service or an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Port {
    /// Its name.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Its number.
    pub port: Option<i64>,
    /// Service: the same port of every node; 0 means none.
    #[serde(rename = "nodePort")]
    pub node_port: Option<i64>,
    /// Its protocol; empty means TCP.
    #[serde(deserialize_with = "nullable")]
    pub protocol: String,
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
    /// The node that it is on.
    #[serde(deserialize_with = "nullable")]
    pub node_name: String,
    /// The zone that it is in.
    #[serde(deserialize_with = "nullable")]
    pub zone: String,
    /// Who should use it.
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

/// Null is the same as absent, as for the Kubernetes API, which writes `endpoints: null` for an empty list.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A text, or nothing for anything else: in a file, what has no meaning there may be of any type.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Any {
        Text(String),
        Other(IgnoredAny),
    }
    Ok(match Any::deserialize(deserializer)? {
        Any::Text(text) => Some(text),
        Any::Other(IgnoredAny) => None,
    })
}
