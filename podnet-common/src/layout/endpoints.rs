//! Local pods, as recorded by the plugin. Frozen: an old plugin must work with a new daemon.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, IfIndex, Mac};

/// Value of `endpoints` (hash, key [`Addr`], frozen): the interface of a local pod, by pod address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// Host end of the pod's veth pair.
    pub ifindex: IfIndex,
    /// MTU of the pod's interface in bytes, without the Ethernet header.
    pub mtu: u32,
    /// MAC of the pod's interface.
    pub mac: Mac,
    /// MAC of the host end.
    pub host_mac: Mac,
    /// Flag bits: [`Endpoint::NO_PEER`]; the others are reserved and zero.
    pub flags: u32,
    /// Zero.
    pub _reserved: u32,
    /// Zero.
    pub _pad: u32,
}

impl Endpoint {
    /// Traffic to the pod is shaped, so packets must pass the queueing discipline of the host end.
    pub const NO_PEER: u32 = 1;
}

/// Value of `sandboxes` (hash, key: cookie of a pod's network namespace, frozen): the pod's addresses. Socket programs
/// use them to recognise connections of a pod to itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Sandbox {
    /// The pod's IPv4 address, mapped, or none.
    pub v4: Addr,
    /// The pod's IPv6 address, or none.
    pub v6: Addr,
}

const _: () = {
    assert!(size_of::<Endpoint>() == 32);
    assert!(size_of::<Sandbox>() == 32);
};
