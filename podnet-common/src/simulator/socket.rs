//! System calls on sockets in memory.

use crate::{
    addr::{Addr, Port, Proto},
    pipeline::SocketCtx,
};

/// A system call on a socket, in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSocket {
    /// Peer address in the call.
    pub addr: Addr,
    /// Peer port in the call.
    pub port: Port,
    /// Protocol of the socket.
    pub proto: Proto,
    /// Whether the process has bound the socket to a port.
    pub bound: bool,
    /// Whether the socket is connected.
    pub connected: bool,
    /// Socket cookie.
    pub cookie: u64,
    /// Cookie of the socket's network namespace.
    pub netns_cookie: u64,
    /// Random number to return.
    pub random: u32,
    /// Whether the program can choose the errno of a refused call.
    pub chooses_errno: bool,
}

impl SocketCtx for HostSocket {
    fn addr(&self) -> Addr {
        self.addr
    }

    fn port(&self) -> Port {
        self.port
    }

    fn set_peer(&mut self, addr: &Addr, port: Port) {
        (self.addr, self.port) = (*addr, port);
    }

    fn proto(&self) -> Proto {
        self.proto
    }

    fn bound(&self) -> bool {
        self.bound
    }

    fn connected(&self) -> bool {
        self.connected
    }

    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    fn random(&self) -> u32 {
        self.random
    }

    fn chooses_errno(&self) -> bool {
        self.chooses_errno
    }
}
