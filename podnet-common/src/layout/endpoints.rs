//! What the plugin writes of local pods. Frozen: an old plugin works with a new daemon.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, IfIndex, Mac};

/// `endpoints` (hash, frozen): a local pod's address → where it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// The host-side end of the pod's veth pair.
    pub ifindex: IfIndex,
    /// The pod interface's MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// The pod interface's MAC.
    pub mac: Mac,
    /// The host end's MAC.
    pub host_mac: Mac,
    /// [`Endpoint::NO_PEER`] and reserved bits, which are zero.
    pub flags: u32,
    /// Zero.
    pub _reserved: u32,
    /// Zero.
    pub _pad: u32,
}

impl Endpoint {
    /// The endpoint has traffic shaping, so packets must pass the host end's queue.
    pub const NO_PEER: u32 = 1;
}

/// `sandboxes` (hash, frozen): cookie of a pod's network namespace → the pod's addresses, by which a socket's program
/// knows whether it would reach itself.
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
