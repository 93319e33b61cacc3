//! The field `spec`.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StringDeserializer};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;

use super::lenient::nullable;

/// Fields of NetworkPolicies and ClusterNetworkPolicies.
const OF_POLICIES: [&str; 7] = ["podSelector", "ingress", "egress", "policyTypes", "tier", "priority", "subject"];

/// `spec` of all kinds. No two of them have a field of the same name and another type.
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
    /// Pod: its node.
    #[serde(deserialize_with = "nullable")]
    pub node_name: String,
    /// Pod: whether it uses its node's network.
    #[serde(deserialize_with = "nullable")]
    pub host_network: bool,
    /// Pod: its containers.
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<Container>,
    /// Pod: containers that start before the others.
    #[serde(deserialize_with = "nullable")]
    pub init_containers: Vec<Container>,
    /// NetworkPolicy: the pods that it isolates.
    pub pod_selector: Option<Value>,
    /// NetworkPolicy: what may connect to them.
    pub ingress: Option<Value>,
    /// NetworkPolicy: what they may connect to.
    pub egress: Option<Value>,
    /// NetworkPolicy: the directions in which it isolates.
    pub policy_types: Option<Value>,
    /// ClusterNetworkPolicy: when its rules are evaluated.
    pub tier: Option<Value>,
    /// ClusterNetworkPolicy: its place in the tier.
    pub priority: Option<Value>,
    /// ClusterNetworkPolicy: the pods that it applies to.
    pub subject: Option<Value>,
    /// Names of the fields that neither a NetworkPolicy nor a ClusterNetworkPolicy has.
    #[serde(skip)]
    pub others: Vec<String>,
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

/// An element of a Pod's `containers` or `initContainers`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Init container: `Always` for a sidecar.
    #[serde(deserialize_with = "nullable")]
    pub restart_policy: String,
    /// Its ports.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ContainerPort>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Its name.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Its number.
    pub container_port: Option<i64>,
    /// Its protocol; empty means TCP.
    #[serde(deserialize_with = "nullable")]
    pub protocol: String,
}

/// Reads a `spec`, and notes the fields that are unknown if the object is a policy, which isn't known yet.
pub(super) fn spec<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Spec, D::Error> {
    deserializer.deserialize_option(Fields)
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Spec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_none<E: de::Error>(self) -> Result<Spec, E> {
        Ok(Spec::default())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Spec, E> {
        Ok(Spec::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Spec, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Spec, A::Error> {
        let mut others = Vec::new();
        let spec = Spec::deserialize(MapAccessDeserializer::new(Noting { map, others: &mut others }))?;
        Ok(Spec { others, ..spec })
    }
}

/// A map that notes its keys.
struct Noting<'a, A> {
    map: A,
    others: &'a mut Vec<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Noting<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(key) = self.map.next_key::<String>()? else { return Ok(None) };
        if !OF_POLICIES.contains(&key.as_str()) {
            self.others.push(key.clone());
        }
        seed.deserialize(StringDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.map.size_hint()
    }
}
