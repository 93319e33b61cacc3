//! Classes of packets that belong to no flow.

use crate::verdict::Reason;

/// Purpose of a packet that belongs to no flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// To a port of a service, which is stored for [`begin`](super::begin()). Begins a flow.
    Service,
    /// From a pod to a destination outside the cluster. Begins a flow with the node's source address.
    Masquerade,
    /// Anything else whose replies must be recognised. Begins a flow without translation, except for a new source port
    /// if replies would otherwise match another flow.
    Track,
    /// To a pod on this node, stored in `ToClassify::endpoint`.
    LocalPod,
    /// To another node or a pod there, through the tunnel. Stored in `ToClassify::network`.
    Tunnel,
    /// To a pod on another node, by the route to it.
    RemotePod,
    /// To an external address of a service but to no port of the service: see [`external`](super::external()).
    External,
    /// An echo request to a service address that answers it.
    Echo,
    /// Link-local traffic: neighbour discovery and the like.
    LinkLocal,
    /// For the host's stack.
    Stack,
    /// Dropped, for [`Classified::reason`].
    Drop,
    /// Rejected, for [`Classified::reason`].
    Reject,
}

/// Result of the classification. Every class has a reason, since the verifier rejects copies of uninitialised memory.
#[derive(Clone, Copy)]
pub(super) struct Classified {
    pub class: Class,
    /// Reason of [`Class::Drop`] and [`Class::Reject`].
    pub reason: Reason,
}

impl Classified {
    /// A class that needs no reason.
    #[inline(always)]
    pub const fn only(class: Class) -> Self {
        Self { class, reason: Reason::Internal }
    }

    /// [`Class::Drop`].
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self { class: Class::Drop, reason }
    }
}
