//! The parts that rules consist of, by content: what they say about addresses and ports, with the policy's namespace
//! and the pod's named ports already put in.

use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::intern::{AtomId, Interner, PolicyId};
use super::selector::{selects, selects_namespace};
use crate::model::{
    Action, ClusterRule, Labels, NamedPort, ObjectName, PolicyPeer, PolicyRule, PortMatch, Protocol, Selector, Tier,
};

/// Something that is true or false of an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Atom {
    /// It belongs to one of these pods of a namespace.
    Own { namespace: Arc<str>, pods: Selector },
    /// It belongs to one of these pods of these namespaces.
    Pods { namespaces: Selector, pods: Selector },
    /// It belongs to one of these nodes.
    Nodes(Selector),
    /// It belongs to a block.
    Block { cidr: IpNetwork, except: Vec<IpNetwork> },
    /// It belongs to a pod with ports of this name, which have numbers too.
    Named { protocol: Protocol, name: Box<str> },
}

/// What policies can tell pods apart by, and nodes. Those with the same profile are in the same atoms, except for
/// blocks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Profile {
    /// `None`: a node.
    pub(super) namespace: Option<Arc<str>>,
    pub(super) labels: Labels,
    pub(super) ports: Vec<NamedPort>,
}

impl Profile {
    /// The numbers of a named port: several if containers use the same name.
    pub(super) fn ports(&self, protocol: Protocol, name: &str) -> impl Iterator<Item = u16> {
        self.ports.iter().filter(move |port| port.protocol == protocol && *port.name == *name).map(|port| port.port)
    }

    /// Whether pods or nodes with this profile are in an atom of selectors. `labels`: those of their namespace, if
    /// known.
    pub(super) fn is_in(&self, atom: &Atom, labels: Option<&Labels>) -> bool {
        match (atom, &self.namespace) {
            (Atom::Own { namespace, pods }, Some(own)) => **own == **namespace && selects(pods, &self.labels),
            (Atom::Pods { namespaces, pods }, Some(own)) => {
                selects(pods, &self.labels) && selects_namespace(namespaces, own, labels)
            }
            (Atom::Nodes(nodes), None) => selects(nodes, &self.labels),
            _ => false,
        }
    }
}

/// Addresses that are in the same atoms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Class {
    /// The atoms, ascending, without [`Atom::Named`].
    pub(super) atoms: Vec<AtomId>,
    /// The atoms of named ports, ascending, with their numbers.
    pub(super) named: Vec<(AtomId, u16)>,
}

impl Class {
    /// Whether it is that of all addresses without an entry.
    pub(super) fn is_none(&self) -> bool {
        self.atoms.is_empty() && self.named.is_empty()
    }

    /// Number of atoms.
    pub(super) fn len(&self) -> usize {
        self.atoms.len() + self.named.len()
    }

    /// Whether it is in one of these atoms.
    pub(super) fn is_in_any(&self, atoms: &[AtomId]) -> bool {
        atoms.iter().any(|atom| self.atoms.binary_search(atom).is_ok())
    }

    /// Numbers of a named port.
    pub(super) fn ports(&self, named: AtomId) -> impl Iterator<Item = u16> {
        let first = self.named.partition_point(|(atom, _)| *atom < named);
        self.named[first..].iter().take_while(move |(atom, _)| *atom == named).map(|(_, port)| *port)
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PortRange {
    pub(super) protocol: Protocol,
    pub(super) first: u16,
    pub(super) last: u16,
}

/// An element of a rule's ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ports {
    /// All of a protocol.
    Protocol(Protocol),
    /// A range.
    Range(PortRange),
    /// The numbers that the destination has for this [`Atom::Named`].
    Named(Protocol, AtomId),
}

/// When a rule is evaluated: `Admin`, then NetworkPolicies, then `Baseline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    /// Before NetworkPolicies.
    Admin,
    /// Rules of NetworkPolicies, which only accept.
    Network,
    /// For pods that no NetworkPolicy isolates.
    Baseline,
}

impl From<Tier> for Stage {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Admin => Self::Admin,
            Tier::Baseline => Self::Baseline,
        }
    }
}

/// Direction of connections, as a pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Its name, as in the objects' fields.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Who denies what an entry of `policy_denials` counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedBy {
    /// Direction of the connections, as the pods that the policies apply to see it.
    pub direction: Direction,
    /// The policies: one if a rule denies, otherwise those that isolate the pods together.
    pub policies: Vec<ObjectName>,
}

/// What the policies of some pods say about connections in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RuleSet {
    pub(super) direction: Direction,
    /// In the order in which they are evaluated.
    pub(super) rules: Vec<Rule>,
    /// The NetworkPolicies that isolate the pods.
    pub(super) isolating: Vec<PolicyId>,
}

/// A rule of a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    /// The policy that has it.
    pub(super) policy: PolicyId,
    pub(super) stage: Stage,
    pub(super) action: Action,
    /// The other end is in one of these; `None`: any address.
    pub(super) peers: Option<Vec<AtomId>>,
    /// `None`: all protocols and ports.
    pub(super) ports: Option<Vec<Ports>>,
}

impl Rule {
    /// The rules of one direction of a NetworkPolicy.
    pub(super) fn of_network(
        policy: PolicyId,
        namespace: &Arc<str>,
        rules: &[PolicyRule],
        atoms: &mut Interner<Atom, AtomId>,
    ) -> Vec<Self> {
        let accept = (Stage::Network, Action::Accept);
        rules.iter().map(|rule| Self::new(policy, namespace, accept, rule, atoms)).collect()
    }

    /// The rules of one direction of a ClusterNetworkPolicy.
    pub(super) fn of_cluster(
        policy: PolicyId,
        tier: Tier,
        rules: &[ClusterRule],
        atoms: &mut Interner<Atom, AtomId>,
    ) -> Vec<Self> {
        // Its peers name their namespaces.
        let none = Arc::from("");
        let rule = |rule: &ClusterRule| Self::new(policy, &none, (tier.into(), rule.action), &rule.matches, atoms);
        rules.iter().map(rule).collect()
    }

    fn new(
        policy: PolicyId,
        namespace: &Arc<str>,
        (stage, action): (Stage, Action),
        rule: &PolicyRule,
        atoms: &mut Interner<Atom, AtomId>,
    ) -> Self {
        let mut peer = |peer: &PolicyPeer| {
            atoms.intern(match peer.clone() {
                PolicyPeer::Pods { namespaces: None, pods } => Atom::Own { namespace: namespace.clone(), pods },
                PolicyPeer::Pods { namespaces: Some(namespaces), pods } => Atom::Pods { namespaces, pods },
                PolicyPeer::Block { cidr, except } => Atom::Block { cidr, except },
                PolicyPeer::Nodes(nodes) => Atom::Nodes(nodes),
            })
        };
        let peers = rule.peers.as_ref().map(|peers| peers.iter().map(&mut peer).collect());
        let ports = rule.ports.as_ref().map(|ports| {
            let port = |port: &crate::model::PolicyPort| match &port.ports {
                PortMatch::All => Ports::Protocol(port.protocol),
                PortMatch::Range(first, last) => {
                    Ports::Range(PortRange { protocol: port.protocol, first: *first, last: *last })
                }
                PortMatch::Name(name) => {
                    let atom = Atom::Named { protocol: port.protocol, name: name.clone() };
                    Ports::Named(port.protocol, atoms.intern(atom))
                }
            };
            ports.iter().map(port).collect()
        });
        Self { policy, stage, action, peers, ports }
    }

    /// The rule for connections to a pod with this profile, where named ports have numbers; `None` if it matches
    /// nothing because the pod has none of its named ports.
    pub(super) fn to(&self, profile: &Profile, atoms: &Interner<Atom, AtomId>) -> Option<Self> {
        let Some(ports) = &self.ports else { return Some(self.clone()) };
        let numbers = |ports: &Ports| match ports {
            Ports::Named(protocol, atom) => {
                let Some(Atom::Named { name, .. }) = atoms.content(*atom) else { return Vec::new() };
                let range = |port| Ports::Range(PortRange { protocol: *protocol, first: port, last: port });
                profile.ports(*protocol, name).map(range).collect()
            }
            other => vec![other.clone()],
        };
        let ports: Vec<_> = ports.iter().flat_map(numbers).collect();
        (!ports.is_empty()).then(|| Self { ports: Some(ports), ..self.clone() })
    }

    /// Its named ports.
    pub(super) fn named(&self) -> impl Iterator<Item = (Protocol, AtomId)> {
        let named =
            |ports: &Ports| if let Ports::Named(protocol, atom) = ports { Some((*protocol, *atom)) } else { None };
        self.ports.iter().flatten().filter_map(named)
    }

    /// Its ranges of ports.
    pub(super) fn ranges(&self) -> impl Iterator<Item = PortRange> {
        let range = |ports: &Ports| if let Ports::Range(range) = ports { Some(*range) } else { None };
        self.ports.iter().flatten().filter_map(range)
    }

    /// Ids of all atoms in it.
    pub(super) fn atoms(&self) -> impl Iterator<Item = AtomId> {
        self.peers.iter().flatten().copied().chain(self.named().map(|(_, atom)| atom))
    }
}
