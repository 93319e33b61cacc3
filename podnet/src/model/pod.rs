//! Pods, as far as network policies need them.

use std::net::IpAddr;

use super::labels::Labels;
use super::left_out::LeftOut;
use super::protocol::Protocol;

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its `metadata.uid`; empty in a file.
    pub uid: Box<str>,
    /// The uid that its kubelet has given it, if it is a static pod, whose object has another one; else empty.
    pub static_uid: Box<str>,
    /// Its `metadata.creationTimestamp` in RFC 3339, which sorts by time; empty in a file.
    pub created: Box<str>,
    /// Its labels.
    pub labels: Labels,
    /// Name of its node; empty until it is scheduled.
    pub node: Box<str>,
    /// Its addresses, of either family; none until it has started.
    pub ips: Vec<IpAddr>,
    /// Whether it uses the network of its node, whose addresses it has.
    pub host_network: bool,
    /// Whether all its containers have ended for good (phase Succeeded or Failed), so that its addresses may already
    /// belong to another pod.
    pub ended: bool,
    /// The named ports of its containers and its init sidecars.
    pub ports: Vec<NamedPort>,
    /// Elements that are left out as invalid.
    pub left_out: LeftOut,
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number, never 0.
    pub port: u16,
}
