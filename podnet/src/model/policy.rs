//! NetworkPolicies.

use ipnetwork::IpNetwork;

use super::left_out::LeftOut;
use super::protocol::Protocol;

/// A NetworkPolicy (`networking.k8s.io/v1`).
///
/// Nothing that podnet can't understand widens what is allowed: a rule with such a part allows nothing, a selector of
/// the policy's pods selects more pods rather than fewer, and both are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its `metadata.uid`; empty in a file.
    pub uid: Box<str>,
    /// The pods of its namespace that it isolates.
    pub pods: Selector,
    /// What may connect to these pods; `None`: it doesn't isolate them in this direction.
    pub ingress: Option<Vec<PolicyRule>>,
    /// What these pods may connect to; `None`: it doesn't isolate them in this direction.
    pub egress: Option<Vec<PolicyRule>>,
    /// Rules and other elements that are left out as invalid.
    pub left_out: LeftOut,
}

/// A rule: allows what both of its lists match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// The other ends; `None`: all addresses.
    pub peers: Option<Vec<PolicyPeer>>,
    /// Ports of the destination; `None`: all protocols and ports.
    pub ports: Option<Vec<PolicyPort>>,
}

/// An element of a rule's `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyPeer {
    /// Pods.
    Pods {
        /// The namespaces of these pods; `None`: the policy's own.
        namespaces: Option<Selector>,
        /// The pods in these namespaces.
        pods: Selector,
    },
    /// Addresses of any kind: of pods, nodes and others.
    Block {
        /// The range, without bits after its prefix.
        cidr: IpNetwork,
        /// Ranges in it that don't belong to the block.
        except: Vec<IpNetwork>,
    },
    /// Addresses of nodes; in egress rules of ClusterNetworkPolicies.
    Nodes(Selector),
}

/// An element of a rule's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPort {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its ports.
    pub ports: PortMatch,
}

/// Ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortMatch {
    /// All.
    All,
    /// A range, from 1 up to 65535; both ends belong to it.
    Range(u16, u16),
    /// The port with this name in the destination pod's containers.
    Name(Box<str>),
}

/// A selector: all of its requirements must be met. Without any, it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(pub Vec<Requirement>);

/// A requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// Key of the label.
    pub key: Box<str>,
    /// What must be true of it.
    pub condition: LabelCondition,
}

/// Condition on the label of a requirement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelCondition {
    /// It has one of these values.
    In(Vec<Box<str>>),
    /// It is missing, or has none of these values.
    NotIn(Vec<Box<str>>),
    /// It is present.
    Exists,
    /// It is missing.
    DoesNotExist,
}
