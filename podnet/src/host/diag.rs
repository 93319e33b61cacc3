//! Ports of TCP sockets, from the kernel's socket monitoring (sock_diag(7)). To find listeners the kernel scans only
//! these, while a read of `/proc/net/tcp` goes through the table of all connections of the host.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// Reads the ports of listening sockets in the calling thread's network namespace.
///
/// # Errors
/// The kernel lacks `INET_DIAG`, or its reply can't be parsed.
pub(super) fn listening() -> io::Result<BTreeSet<u16>> {
    ports(StateFlags::LISTEN, None)
}

/// Reads the ports of sockets in any state, from `first` upwards.
///
/// # Errors
/// See [`listening`].
pub(super) fn held(first: u16) -> io::Result<BTreeSet<u16>> {
    ports(StateFlags::all(), Some(first))
}

fn ports(states: StateFlags, first: Option<u16>) -> io::Result<BTreeSet<u16>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut ports = BTreeSet::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: states.clone(),
            socket_id,
        };
        let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        if let Some(first) = first {
            bytes.extend(from_port(first));
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
        }
        socket.send(&bytes, 0)?;
        while !take_in(&socket.recv_from_full()?.0, &mut ports)? {}
    }
    Ok(ports)
}

/// Filter by which the kernel reports only sockets whose port isn't lower than `first` (`INET_DIAG_REQ_BYTECODE`): one
/// instruction of `struct inet_diag_bc_op`, `INET_DIAG_BC_S_GE`, with the port in the place of the next instruction,
/// and with the number of bytes to skip if the condition holds (to the end) or not (beyond the end).
fn from_port(first: u16) -> Vec<u8> {
    const BYTECODE: u16 = 1;
    const PORT_NOT_LOWER: [u8; 2] = [2, 8];
    const OTHERWISE: u16 = 12;
    let head = [12, BYTECODE].map(u16::to_ne_bytes).concat();
    [&head[..], &PORT_NOT_LOWER, &OTHERWISE.to_ne_bytes(), &[0, 0], &first.to_ne_bytes()].concat()
}

/// Parses the messages of one datagram. True if the last message has arrived.
fn take_in(datagram: &[u8], ports: &mut BTreeSet<u16>) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                ports.insert(found.header.socket_id.source_port);
            }
            // A failed dump also ends with this message: without the kernel's module for TCP, for example.
            NetlinkPayload::Done(done) if done.code < 0 => return Err(io::Error::from_raw_os_error(-done.code)),
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
        // Messages are aligned to four bytes.
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_dump_that_fails_is_an_error() {
        // struct nlmsghdr of NLMSG_DONE, and -ENOENT.
        let done = |code: i32| [20u32.to_ne_bytes(), [3, 0, 2, 0], [0; 4], [0; 4], code.to_ne_bytes()].concat();
        assert!(take_in(&done(0), &mut BTreeSet::new()).unwrap());
        let error = take_in(&done(-libc::ENOENT), &mut BTreeSet::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn listeners_are_reported_and_connections_are_not() {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|addr| TcpListener::bind(addr).unwrap());
        let ports = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());
        let connection = TcpStream::connect(("127.0.0.1", ports[0])).unwrap();
        let found = listening().unwrap();
        assert!(ports.iter().all(|port| found.contains(port)), "{ports:?}: {found:?}");
        assert!(!found.contains(&connection.local_addr().unwrap().port()), "{found:?}");
        let own = connection.local_addr().unwrap().port();
        let held = |first| held(first).unwrap();
        assert!(held(own).contains(&own), "a connection's too");
        assert!(!held(own + 1).contains(&own) && held(own + 1).iter().all(|port| *port > own));
        drop(listeners);
    }
}
