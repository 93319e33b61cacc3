//! The pods that the plugin has connected, by its records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podnet_common::addr::{Addr, IfIndex};
use podnet_common::layout::Subject;

use crate::model::{ObjectName, Pod};

/// Stands for a value of `subjects` that may be in the table or not, so that the next sync writes or removes it.
pub(super) const WRITTEN_BY_THE_PLUGIN: Subject = Subject { ingress: Subject::CLOSED, egress: Subject::ID };
/// Entries that only the plugin writes, or may have written.
pub(super) const BY_THE_PLUGIN: [Subject; 2] = [Subject::PENDING, WRITTEN_BY_THE_PLUGIN];

/// An interface of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attached {
    /// The pod's uid; empty if the runtime hasn't passed it.
    pub uid: Box<str>,
    /// The container id of its sandbox.
    pub container: Box<str>,
    /// The interface's addresses.
    pub ips: BTreeSet<IpAddr>,
    /// Its host end. The kernel gives a new interface an index that none has had before.
    pub link: IfIndex,
}

impl Attached {
    /// Whether an object is that of this pod, not of another one that has had, or will have, the same name.
    pub(super) fn is_of(&self, pod: &Pod) -> bool {
        self.uid.is_empty() || pod.uid.is_empty() || [&pod.uid, &pod.static_uid].contains(&&self.uid)
    }
}

/// The interfaces by pod name. Several have the same name if a pod has several, or while the sandbox of a predecessor
/// with that name still exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachments(BTreeMap<ObjectName, BTreeSet<Attached>>);

impl Attachments {
    /// Adds an interface of a pod.
    pub fn insert(&mut self, pod: ObjectName, attached: Attached) {
        self.0.entry(pod).or_default().insert(attached);
    }

    /// All interfaces, with the names of their pods.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Attached)> {
        self.0.iter().flat_map(|(name, all)| all.iter().map(move |attached| (name, attached)))
    }

    /// Names of pods with an interface.
    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.0.keys()
    }

    /// The interfaces of pods with a name; `None` if there are none.
    pub(super) fn of(&self, name: &ObjectName) -> Option<&BTreeSet<Attached>> {
        self.0.get(name)
    }

    /// Whether an address is that of an interface.
    pub(super) fn have(&self, ip: &IpAddr) -> bool {
        self.iter().any(|(_, attached)| attached.ips.contains(ip))
    }

    /// All addresses.
    pub(super) fn addresses(&self) -> BTreeSet<Addr> {
        self.iter().flat_map(|(_, attached)| &attached.ips).map(|ip| Addr::from(*ip)).collect()
    }
}
