//! State of the socket hooks.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Proto};

/// Key of `sock_reverse` (LRU hash): a socket and the backend to which it was connected or has sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SockKey {
    /// Socket cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// Address of the backend.
    pub addr: Addr,
    /// Port of the backend.
    pub port: Port,
    /// Protocol.
    pub proto: Proto,
    /// Zero.
    pub _pad: [u8; 5],
}

/// Value of `sock_reverse`: the frontend that the process addressed. All zeros if it addressed several frontends with
/// this backend; those are then distinguished per packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SockPeer {
    /// Address of the frontend.
    #[cfg(not(feature = "later-layouts"))]
    pub addr: Addr,
    /// Port of the frontend.
    pub port: Port,
    /// Zero.
    pub _pad: [u8; 6],
    /// Address of the frontend.
    #[cfg(feature = "later-layouts")]
    pub addr: Addr,
}

const _: () = {
    assert!(size_of::<SockKey>() == 32);
    assert!(size_of::<SockPeer>() == 24);
};
