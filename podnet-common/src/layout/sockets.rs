//! What the socket hooks remember.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Proto};

/// Key of `sock_reverse` (LRU hash): what a socket was connected or has sent to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SockKey {
    /// The kernel's socket cookie.
    pub cookie: u64,
    /// The backend's address.
    pub addr: Addr,
    /// The backend's port.
    pub port: Port,
    /// The protocol.
    pub proto: Proto,
    /// Zero.
    pub _pad: [u8; 5],
}

/// Value of `sock_reverse`: the frontend that the program meant; zeros if it meant several that lead to this backend, which
/// are then told apart per packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SockPeer {
    /// The frontend's address.
    #[cfg(not(feature = "later-layouts"))]
    pub addr: Addr,
    /// The frontend's port.
    pub port: Port,
    /// Zero.
    pub _pad: [u8; 6],
    /// The frontend's address.
    #[cfg(feature = "later-layouts")]
    pub addr: Addr,
}

const _: () = {
    assert!(size_of::<SockKey>() == 32);
    assert!(size_of::<SockPeer>() == 24);
};
