//! The Kubernetes objects that podnet uses, reduced to the fields that it needs and validated.
//!
//! [`raw`] has the structure of the objects in YAML and JSON; `Object::try_from` validates one and converts it for the
//! rest of the daemon. Both ignore unknown fields, except in a [`NetworkPolicy`] and a [`ClusterNetworkPolicy`], where
//! they may narrow what a rule matches. Values live as long as their objects and are numerous, so they are small: only
//! namespaces, pods and nodes keep all of their labels.

mod change;
mod cluster_policy;
mod diagnostic;
mod endpoint_slice;
mod invalid;
mod key;
mod kinds;
mod labels;
mod left_out;
pub mod limits;
mod namespace;
mod node;
mod placement;
mod pod;
mod policy;
mod protocol;
pub mod raw;
mod service;
mod service_cidr;
mod validate;

pub use change::{Batch, Change, Complaint, Origin};
pub use cluster_policy::{Action, ClusterNetworkPolicy, ClusterRule, Tier};
pub use diagnostic::{Diagnostic, Place, Severity};
pub use endpoint_slice::{Condition, Endpoint, EndpointSlice, SlicePort};
pub use invalid::Invalid;
pub use key::{ObjectKey, ObjectName};
pub use kinds::{Kind, Object};
pub use labels::Labels;
pub use left_out::LeftOut;
pub use namespace::{NAMESPACE_NAME_LABEL, Namespace};
pub use node::Node;
pub use placement::Placement;
pub use pod::{NamedPort, Pod};
pub use policy::{LabelCondition, NetworkPolicy, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Requirement, Selector};
pub use protocol::Protocol;
pub use service::{
    Families, Ignored, SOURCE_IP_ANNOTATION, Service, ServicePort, ServiceType, SourceIp, TrafficPolicy,
};
pub use service_cidr::ServiceCidr;
pub use validate::service_range;
