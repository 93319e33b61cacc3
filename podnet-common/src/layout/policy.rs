//! Network policy: which pods of this node are isolated, the classes of addresses and ports, and what is allowed.
//!
//! Addresses are divided into classes: those that exactly the same selectors and blocks of the policies in force on
//! this node contain are one class. Ports are divided in the same way. A pod's rule set names the pairs of classes that
//! it allows; everything else is denied. Class 0 of either has no entry: no selector, block or range contains it.

use core::fmt;

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, IfIndex, Port, Proto};

/// Value of `subjects` (hash, key [`Addr`], frozen): the rule sets of a pod of this node that is isolated in at least
/// one direction.
///
/// Each field is [`Subject::OPEN`], [`Subject::CLOSED`], or the id of a set in the low 24 bits with flags above it,
/// which say what kinds of keys the set has in `policy_rules`: [`Subject::CLASS_PORTS`] and the other constants.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Subject {
    /// For connections to the pod.
    pub ingress: u32,
    /// For connections from the pod.
    pub egress: u32,
}

impl Subject {
    /// The pod is not isolated in this direction.
    pub const OPEN: u32 = 0;
    /// Nothing is allowed in this direction, since the pod should be isolated and there is no room for its rules. A set
    /// that allows nothing has an id, by which packets are counted.
    pub const CLOSED: u32 = u32::MAX;
    /// Nothing is allowed, since the pod's policies are not known yet. The plugin writes this for a pod of a namespace
    /// with policies; the daemon then replaces or removes the entry.
    pub const PENDING: Self = Self { ingress: Self::ID, egress: Self::ID };
    /// The bits of the id, which is [`PolicyRule::set`].
    pub const ID: u32 = (1 << 24) - 1;
    /// The set has keys with a class and a port class.
    pub const CLASS_PORTS: u32 = 1 << 24;
    /// The set has keys with a class and a protocol.
    pub const CLASS_PROTOCOL: u32 = 1 << 25;
    /// The set has keys with a class and [`PolicyRule::ALL`].
    pub const CLASS_ALL: u32 = 1 << 26;
    /// The set has keys with [`PolicyRule::ANY`] and a port class.
    pub const ANY_PORTS: u32 = 1 << 27;
    /// The set has keys with [`PolicyRule::ANY`] and a protocol.
    pub const ANY_PROTOCOL: u32 = 1 << 28;
    /// The set has the key with [`PolicyRule::ANY`] and [`PolicyRule::ALL`].
    pub const ANY_ALL: u32 = 1 << 29;
    /// Kinds of keys with a class.
    pub const CLASSES: u32 = Self::CLASS_PORTS | Self::CLASS_PROTOCOL | Self::CLASS_ALL;
    /// Kinds of keys with a port class.
    pub const PORTS: u32 = Self::CLASS_PORTS | Self::ANY_PORTS;
    /// The set has rules of ClusterNetworkPolicies, so the first match decides: [`PolicyVerdict`].
    pub const CLUSTER: u32 = 1 << 30;
    /// With [`Subject::CLUSTER`]: NetworkPolicies isolate the pod, too. Other sets have no other rules than those of
    /// NetworkPolicies.
    pub const ISOLATED: u32 = 1 << 31;

    /// Whether a field is a set with rules of ClusterNetworkPolicies.
    #[inline(always)]
    pub const fn has_cluster_rules(set: u32) -> bool {
        set != Self::CLOSED && set & Self::CLUSTER != 0
    }

    /// The same subject, with nothing allowed in the directions in which it is isolated.
    pub const fn closed(self) -> Self {
        const fn close(set: u32) -> u32 {
            if set == Subject::OPEN { Subject::OPEN } else { Subject::CLOSED }
        }
        Self { ingress: close(self.ingress), egress: close(self.egress) }
    }
}

/// Value of `policy_pods` (array, key: [`PolicyPod::slot`] of the interface): what `subjects` and `policy_peers`
/// contain for the addresses of a pod of this node. Pods may be missing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PolicyPod {
    /// [`Subject::ingress`].
    pub ingress: OfLink,
    /// [`Subject::egress`].
    pub egress: OfLink,
    /// Class of the IPv4 address, if it has an entry in `policy_peers`.
    pub class_v4: OfLink,
    /// Class of the IPv6 address, if it has an entry in `policy_peers`.
    pub class_v6: OfLink,
}

impl PolicyPod {
    /// Number of slots. Of interfaces with the same slot, one has an entry.
    pub const SLOTS: u32 = 4096;

    /// Slot of an interface.
    #[inline(always)]
    pub const fn slot(link: IfIndex) -> u32 {
        link.0 % Self::SLOTS
    }

    /// The entry of a pod with these addresses, of which `sets` and `class` say what `subjects` and `policy_peers`
    /// contain; none if their rule sets differ.
    pub fn of(
        link: IfIndex,
        addrs: impl Iterator<Item = Addr> + Clone,
        sets: impl Fn(&Addr) -> Subject,
        class: impl Fn(&Addr) -> Option<u32>,
    ) -> Option<Self> {
        let Subject { ingress, egress } = common(addrs.clone().map(|addr| sets(&addr)))?;
        let of_link = |number| OfLink::new(link, number);
        let class = |v4: bool| {
            let classes = addrs.clone().filter(|addr| addr.is_v4() == v4).map(|addr| class(&addr));
            common(classes).flatten().map(of_link).unwrap_or_default()
        };
        Some(Self { ingress: of_link(ingress), egress: of_link(egress), class_v4: class(true), class_v6: class(false) })
    }
}

/// What all of these are, if they are the same.
fn common<T: PartialEq>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

/// A number of an interface, for a table whose slots interfaces share: the index of the interface in the upper half,
/// the number in the lower. A reader beside a writer sees both or neither.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct OfLink(u64);

impl OfLink {
    /// A number of an interface.
    #[inline(always)]
    pub const fn new(link: IfIndex, number: u32) -> Self {
        Self((link.0 as u64) << 32 | number as u64)
    }

    /// The number, if it is this interface's.
    #[inline(always)]
    pub fn get(self, link: IfIndex) -> Option<u32> {
        (link.0 != 0 && (self.0 >> 32) as u32 == link.0).then_some(self.0 as u32)
    }
}

impl fmt::Debug for OfLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.0 as u32, self.0 >> 32)
    }
}

/// Key of `policy_rules` (hash, value [`PolicyVerdict`]): something that rules of a set match.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PolicyRule {
    /// Id of the set: a field of [`Subject`] without its flags.
    pub set: u32,
    /// Class of the peer's address, from `policy_peers` or else `policy_blocks`, or [`PolicyRule::ANY`].
    pub class: u32,
    /// Class of the destination's port, from `policy_ports`; [`PolicyRule::protocol`]; or [`PolicyRule::ALL`].
    pub ports: u32,
}

impl PolicyRule {
    /// Class: all addresses.
    pub const ANY: u32 = u32::MAX;
    /// Ports: all protocols and all their ports.
    pub const ALL: u32 = u32::MAX;
    /// Ports: all ports of the protocol whose IP protocol number is in the low 8 bits.
    pub const PROTOCOL: u32 = 1 << 31;

    /// Ports: all ports of a protocol.
    #[inline(always)]
    pub const fn protocol(proto: Proto) -> u32 {
        Self::PROTOCOL | proto.0 as u32
    }
}

/// Value of `policy_rules`: the first rule of each tier that matches everything in the key and nothing else.
///
/// Rules are numbered in the order in which the set has them, from 1; 0: no rule of the tier has this key. A packet
/// has several keys, and the smallest number of a tier decides. The tiers are evaluated one after another.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PolicyVerdict {
    /// The tier `Admin`: number of the rule, with [`PolicyVerdict::DENY`] or [`PolicyVerdict::PASS`] in the lowest two
    /// bits.
    pub admin: u32,
    /// NetworkPolicies: number of a rule that allows it. If they isolate the pod, this decides.
    pub network: u32,
    /// The tier `Baseline`, as `admin`.
    pub baseline: u32,
}

impl PolicyVerdict {
    /// The rule accepts.
    pub const ACCEPT: u32 = 0;
    /// The rule denies.
    pub const DENY: u32 = 1;
    /// The rule leaves the decision to the next tier.
    pub const PASS: u32 = 2;
    /// Number of bits of these.
    pub const ACTION_BITS: u32 = 2;
    /// These bits.
    pub const ACTION: u32 = (1 << Self::ACTION_BITS) - 1;

    /// A field of a tier with actions.
    pub const fn rule(number: u32, action: u32) -> u32 {
        number << Self::ACTION_BITS | action
    }

    /// The verdict of both: in each tier the rule with the smaller number.
    #[inline(always)]
    pub fn first(self, other: Self) -> Self {
        // 0, no rule, becomes the largest number.
        let first = |a: u32, b: u32| if b.wrapping_sub(1) < a.wrapping_sub(1) { b } else { a };
        Self {
            admin: first(self.admin, other.admin),
            network: first(self.network, other.network),
            baseline: first(self.baseline, other.baseline),
        }
    }

    /// What denies a packet with this verdict: number of a rule, [`PolicyDenial::ISOLATION`], or
    /// [`PolicyDenial::NOTHING`]. `isolated`: NetworkPolicies isolate the pod; `exempt`: and yet they allow the packet.
    #[inline(always)]
    pub const fn denied_by(self, isolated: bool, exempt: bool) -> u32 {
        if self.admin != 0 && self.admin & Self::ACTION != Self::PASS {
            let denies = self.admin & Self::ACTION == Self::DENY;
            return if denies { self.admin >> Self::ACTION_BITS } else { PolicyDenial::NOTHING };
        }
        if isolated {
            return if exempt || self.network != 0 { PolicyDenial::NOTHING } else { PolicyDenial::ISOLATION };
        }
        let denies = self.baseline & Self::ACTION == Self::DENY;
        if denies { self.baseline >> Self::ACTION_BITS } else { PolicyDenial::NOTHING }
    }
}

/// Key of `policy_denials` (hash, value `u64`: number of packets): what of a rule set denies packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PolicyDenial {
    /// Id of the set.
    pub set: u32,
    /// Number of a rule, or [`PolicyDenial::ISOLATION`].
    pub rule: u32,
}

impl PolicyDenial {
    /// In place of a rule: NetworkPolicies isolate the pod, and no rule of theirs allows the packet.
    pub const ISOLATION: u32 = 0;
    /// In place of a rule: the packet is allowed.
    pub const NOTHING: u32 = u32::MAX;
}

/// A port of a protocol. Its [index](ProtoPort::index) is the key of `policy_ports` (array, value `u32`): a port class,
/// or 0 if no range contains the port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct ProtoPort {
    /// TCP, UDP or SCTP.
    pub proto: Proto,
    /// Zero.
    pub _pad: u8,
    /// The port.
    pub port: Port,
}

impl ProtoPort {
    /// Number of indexes.
    pub const INDEXES: usize = 3 << PORT_BITS;

    /// A port of a protocol.
    #[inline(always)]
    pub const fn new(proto: Proto, port: Port) -> Self {
        Self { proto, _pad: 0, port }
    }

    /// Index of the port; [`ProtoPort::INDEXES`], where no port is, for a protocol without ports.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        let protocol = match self.proto {
            Proto::TCP => 0,
            Proto::UDP => 1,
            Proto::SCTP => 2,
            _ => return Self::INDEXES as u32,
        };
        protocol << PORT_BITS | self.port.get() as u32
    }

    /// The port with an index.
    pub const fn at(index: u32) -> Option<Self> {
        let proto = match index >> PORT_BITS {
            0 => Proto::TCP,
            1 => Proto::UDP,
            2 => Proto::SCTP,
            _ => return None,
        };
        Some(Self::new(proto, Port::new(index as u16)))
    }
}

/// Number of bits of a port.
const PORT_BITS: u32 = 16;

const _: () = {
    assert!(size_of::<Subject>() == 8);
    assert!(size_of::<PolicyPod>() == 32);
    assert!(size_of::<PolicyRule>() == 12);
    assert!(size_of::<PolicyVerdict>() == 12);
    assert!(size_of::<PolicyDenial>() == 8);
    assert!(size_of::<ProtoPort>() == 4);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_an_index() {
        let ports = [(Proto::TCP, 0), (Proto::TCP, u16::MAX), (Proto::UDP, 80), (Proto::SCTP, u16::MAX)];
        let ports = ports.map(|(proto, port)| ProtoPort::new(proto, Port::new(port)));
        let indexes = ports.map(ProtoPort::index);
        assert_eq!(indexes, [0, 65_535, 65_616, 196_607]);
        assert_eq!(indexes.map(ProtoPort::at), ports.map(Some));
        let none = ProtoPort::new(Proto::ICMP, Port::new(80)).index();
        assert_eq!((none as usize, ProtoPort::at(none)), (ProtoPort::INDEXES, None));
    }
}
