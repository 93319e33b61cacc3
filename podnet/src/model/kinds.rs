//! The kinds of objects that podnet reads, each declared once.

use std::sync::Arc;

use super::cluster_policy::ClusterNetworkPolicy;
use super::endpoint_slice::EndpointSlice;
use super::left_out::LeftOut;
use super::namespace::Namespace;
use super::node::Node;
use super::pod::Pod;
use super::policy::NetworkPolicy;
use super::service::Service;
use super::service_cidr::ServiceCidr;

/// Declares the kinds: name and list as in the field `kind`, group, `apiVersion`, plural name in API paths, and whether
/// objects are namespaced. The order is also the sort order of objects.
macro_rules! kinds {
    ($($(#[$doc:meta])*
    $kind:ident: $name:literal, $list:literal, $group:literal, $api_version:literal, $plural:literal, $namespaced:literal;)*) => {
        /// The kinds of object that podnet reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// All of them.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$kind),*];

            /// Name of the kind, as in the field `kind`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// Name of its list, as in the field `kind`.
            pub const fn list(self) -> &'static str {
                match self { $(Self::$kind => $list,)* }
            }

            /// The API group; empty for the core group.
            pub const fn group(self) -> &'static str {
                match self { $(Self::$kind => $group,)* }
            }

            /// Group and version, as in the field `apiVersion`.
            pub const fn api_version(self) -> &'static str {
                match self { $(Self::$kind => $api_version,)* }
            }

            /// Plural name in API paths.
            pub const fn plural(self) -> &'static str {
                match self { $(Self::$kind => $plural,)* }
            }

            /// Whether an API server may lack the kind: ServiceCIDR is served since Kubernetes 1.33 only,
            /// ClusterNetworkPolicy where its definition is installed.
            pub const fn may_be_missing(self) -> bool {
                matches!(self, Self::ServiceCidr | Self::ClusterNetworkPolicy)
            }

            /// Whether a CustomResourceDefinition defines the kind.
            pub const fn is_custom(self) -> bool {
                matches!(self, Self::ClusterNetworkPolicy)
            }

            /// Whether objects matter for network policy only.
            pub const fn is_of_policies(self) -> bool {
                matches!(self, Self::NetworkPolicy | Self::ClusterNetworkPolicy | Self::Namespace | Self::Pod)
            }

            /// Whether objects are namespaced.
            pub const fn is_namespaced(self) -> bool {
                match self { $(Self::$kind => $namespaced,)* }
            }
        }

        /// An object of any kind.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Object { $($(#[$doc])* $kind(Arc<$kind>),)* }

        impl Object {
            /// Its kind.
            pub const fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// Its elements that are left out as invalid.
            pub fn left_out(&self) -> &LeftOut {
                match self { $(Self::$kind(object) => &object.left_out,)* }
            }
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Arc::new(object))
            }
        })*
    };
}

kinds! {
    /// `v1` Service.
    Service: "Service", "ServiceList", "", "v1", "services", true;
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice: "EndpointSlice", "EndpointSliceList", "discovery.k8s.io", "discovery.k8s.io/v1", "endpointslices", true;
    /// `v1` Node.
    Node: "Node", "NodeList", "", "v1", "nodes", false;
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr: "ServiceCIDR", "ServiceCIDRList", "networking.k8s.io", "networking.k8s.io/v1", "servicecidrs", false;
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy: "NetworkPolicy", "NetworkPolicyList", "networking.k8s.io", "networking.k8s.io/v1", "networkpolicies", true;
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy: "ClusterNetworkPolicy", "ClusterNetworkPolicyList", "policy.networking.k8s.io", "policy.networking.k8s.io/v1alpha2", "clusternetworkpolicies", false;
    /// `v1` Namespace.
    Namespace: "Namespace", "NamespaceList", "", "v1", "namespaces", false;
    /// `v1` Pod.
    Pod: "Pod", "PodList", "", "v1", "pods", true;
}
