//! Objects as in YAML and JSON: only the fields that podnet uses, with no validation except of types.
//!
//! One structure serves all kinds, since the kind may follow the fields that depend on it (`kubectl get -o yaml` sorts
//! keys).

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
    /// Node: creation time.
    #[serde(deserialize_with = "text")]
    pub creation_timestamp: Option<String>,
    /// Node: since when it is being deleted.
    pub deletion_timestamp: Option<IgnoredAny>,
    /// The labels that podnet uses.
    #[serde(deserialize_with = "nullable")]
    pub labels: Labels,
    /// The annotations that podnet uses.
    #[serde(deserialize_with = "nullable")]
    pub annotations: Annotations,
}

/// `metadata.labels`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// EndpointSlice: name of its Service.
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Option<String>,
    /// Assigns a service to another proxy, whatever its value.
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    pub service_proxy_name: Option<String>,
    /// Marks a headless service, whatever its value.
    #[serde(rename = "service.kubernetes.io/headless")]
    pub headless: Option<String>,
    /// Node: marks a control plane node, whatever its value.
    #[serde(rename = "node-role.kubernetes.io/control-plane")]
    pub control_plane: Option<String>,
    /// Node: its zone.
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
    /// EndpointSlice: when the cause of the last change of its endpoints occurred, in RFC 3339.
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
    /// Service: all its ClusterIPs.
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
    /// Service: the affinity's duration.
    #[serde(deserialize_with = "nullable")]
    pub session_affinity_config: SessionAffinityConfig,
    /// Service: `Cluster` or `Local`.
    #[serde(deserialize_with = "nullable")]
    pub internal_traffic_policy: String,
    /// Service: the same for other frontends than ClusterIPs.
    #[serde(deserialize_with = "nullable")]
    pub external_traffic_policy: String,
    /// Service: further addresses.
    #[serde(rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<String>,
    /// Service: clients that may use the load balancer's addresses.
    #[serde(deserialize_with = "nullable")]
    pub load_balancer_source_ranges: Vec<String>,
    /// Service: port of the health check, by which a load balancer learns whether the node has endpoints.
    pub health_check_node_port: Option<i64>,
    /// Node: its taints.
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
    /// Node: its first pod CIDR.
    #[serde(rename = "podCIDR", deserialize_with = "nullable")]
    pub pod_cidr: String,
    /// Node: all its pod CIDRs.
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
    /// For affinity by client IP.
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
    /// Its key.
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
    /// Service: state of its load balancer.
    #[serde(deserialize_with = "nullable")]
    pub load_balancer: LoadBalancer,
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

/// A port of a Service or an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Port {
    /// Its name.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Its number.
    pub port: Option<i64>,
    /// Service: the node port; 0 means none.
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

/// Reads null as the default, as the Kubernetes API does, which writes `endpoints: null` for an empty list.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads a string, and any other type as `None`: a file may have any type in fields without a meaning for its kind.
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
