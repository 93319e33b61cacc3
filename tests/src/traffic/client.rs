//! A request to a [server](super::Server), and its answer.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::server::answer_to;
use super::{Family, Transport, option, socket_here, unspecified};
use crate::place::Place;

/// The server's answer, and the addresses of the client's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Name of the server.
    pub server: String,
    /// The client's address as seen by the server.
    pub seen: SocketAddr,
    /// The client's own address.
    pub local: SocketAddr,
    /// The server's address as seen by the client: from getpeername for connected sockets, otherwise the source of the
    /// answer.
    pub peer: SocketAddr,
    /// The part of the request returned by the server.
    pub payload: String,
}

/// Source ports of UDP requests. Not ephemeral, so no other socket has them.
pub const OWN_PORTS: Range<u16> = 20_000..30_000;

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    transport: Transport,
    to: SocketAddr,
    from_ip: Option<IpAddr>,
    from_port: u16,
    payload: String,
    timeout: Duration,
    connected: bool,
    whole: bool,
    ttl: Option<u32>,
}

impl Ask {
    /// A short request with a timeout of ten seconds, in which TCP retransmits three times. UDP sockets are not
    /// connected.
    pub fn new(transport: Transport, to: SocketAddr) -> Self {
        let (payload, timeout) = ("?".to_owned(), Duration::from_secs(10));
        let (from_ip, from_port, connected) = (None, 0, transport == Transport::Tcp);
        Self { transport, to, from_ip, from_port, payload, timeout, connected, whole: false, ttl: None }
    }

    /// Binds to this port.
    pub fn from_port(mut self, port: u16) -> Self {
        self.from_port = port;
        self
    }

    /// UDP: binds to a port that no such request of this process has had, unless a port was set. The kernel chooses
    /// ports at random, so a new socket may get that of a former one, and with it the former one's flow.
    pub(super) fn own_port(mut self) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        if self.transport == Transport::Udp && self.from_port == 0 {
            self.from_port = OWN_PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % OWN_PORTS.len() as u16;
        }
        self
    }

    /// Binds to this address.
    pub fn from_ip(mut self, ip: IpAddr) -> Self {
        self.from_ip = Some(ip);
        self
    }

    /// Requests an answer of this many bytes; the request itself stays short.
    pub fn reply_of(self, bytes: usize) -> Self {
        self.payload(super::server::send(bytes))
    }

    /// UDP: sets don't-fragment, and reports all ICMP errors on the socket.
    pub fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// UDP: sets the TTL or hop limit, and reports all ICMP errors on the socket.
    pub fn ttl(mut self, ttl: u32) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sends this payload, which must not contain a line break.
    pub fn payload(mut self, payload: impl Into<String>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Sets the timeout of the answer.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects the UDP socket, so that the kernel accepts answers from that address only.
    pub fn connected(mut self) -> Self {
        self.connected = true;
        self
    }

    /// Sends the request from a place.
    ///
    /// # Errors
    /// Those of the socket (`ConnectionRefused` if the other side rejects), `TimedOut` without a timely answer,
    /// `InvalidData` if the answer is not that of a [server](super::Server).
    pub fn from(&self, place: &Place) -> io::Result<Answer> {
        self.open(place)?.ask()
    }

    /// Sends the request from this process's network namespace.
    ///
    /// # Errors
    /// See [`Ask::from`].
    pub fn from_here(&self) -> io::Result<Answer> {
        self.open_on(socket_here(self.transport, self.to)?)?.ask()
    }

    /// Opens the socket, and connects it if requested, for one or more requests.
    ///
    /// # Errors
    /// See [`Ask::from`].
    pub fn open(&self, place: &Place) -> io::Result<Flow> {
        self.open_on(place.socket_for(self.to, self.transport.kind(), self.transport.protocol())?)
    }

    fn open_on(&self, socket: Socket) -> io::Result<Flow> {
        if self.from_port != 0 || self.from_ip.is_some() {
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(self.from_ip.unwrap_or(unspecified(self.to)), self.from_port).into())?;
        }
        self.prepare(&socket)?;
        if self.transport == Transport::Tcp {
            socket.connect_timeout(&self.to.into(), self.timeout)?;
            socket.set_tcp_nodelay(true)?;
        } else if self.connected {
            socket.connect(&self.to.into())?;
        }
        // 0 would mean no timeout.
        let timeout = Some(self.timeout.max(Duration::from_millis(1)));
        socket.set_read_timeout(timeout)?;
        socket.set_write_timeout(timeout)?;
        let socket = match self.transport {
            Transport::Tcp => Wire::Tcp(socket.into()),
            Transport::Udp => Wire::Udp(socket.into()),
        };
        Ok(Flow { ask: self.clone(), socket })
    }
}

impl Ask {
    fn prepare(&self, socket: &Socket) -> io::Result<()> {
        let family = Family::of(self.to.ip());
        let (level, report, discover, hops) = match family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_RECVERR, libc::IP_MTU_DISCOVER, libc::IP_TTL),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, libc::IPV6_MTU_DISCOVER, libc::IPV6_UNICAST_HOPS),
        };
        if self.whole {
            // "Always set DF" has the same value for both families.
            option::set(socket, level, discover, libc::IP_PMTUDISC_DO)?;
        }
        if let Some(ttl) = self.ttl {
            option::set(socket, level, hops, ttl as i32)?;
        }
        if self.whole || self.ttl.is_some() {
            option::set(socket, level, report, 1)?;
        }
        Ok(())
    }
}

/// An open socket for requests.
#[derive(Debug)]
pub struct Flow {
    ask: Ask,
    socket: Wire,
}

#[derive(Debug)]
enum Wire {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Flow {
    /// The path MTU in bytes cached by the kernel for this connection.
    pub fn path_mtu(&self) -> io::Result<u32> {
        let (level, name) = match Family::of(self.ask.to.ip()) {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        };
        let mtu = match &self.socket {
            Wire::Tcp(stream) => option::get(stream, level, name),
            Wire::Udp(socket) => option::get(socket, level, name),
        };
        mtu.map(|mtu| mtu as u32)
    }

    /// The socket's own address.
    pub fn local(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Wire::Tcp(stream) => stream.local_addr(),
            Wire::Udp(socket) => socket.local_addr(),
        }
    }

    /// Sends the request once.
    ///
    /// # Errors
    /// See [`Ask::from`].
    pub fn ask(&self) -> io::Result<Answer> {
        let result = match &self.socket {
            Wire::Tcp(stream) => self.over_tcp(stream),
            Wire::Udp(socket) => self.over_udp(socket),
        };
        // A timeout of a socket is reported as "would block".
        result.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer"),
            _ => error,
        })
    }

    fn over_tcp(&self, mut stream: &TcpStream) -> io::Result<Answer> {
        stream.write_all(format!("{}\n", self.ask.payload).as_bytes())?;
        let mut line = String::new();
        // The server sends one line per request, so this buffer contains nothing of a later answer.
        BufReader::new(stream).read_line(&mut line)?;
        parse(line.trim_end(), stream.local_addr()?, stream.peer_addr()?)
    }

    fn over_udp(&self, socket: &UdpSocket) -> io::Result<Answer> {
        let Ask { payload, to, connected, timeout, .. } = &self.ask;
        let expected = answer_to(payload);
        if *connected {
            socket.send(payload.as_bytes())?;
        } else {
            socket.send_to(payload.as_bytes(), to)?;
        }
        let deadline = Instant::now() + *timeout;
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = socket.recv_from(&mut buffer)?;
            let peer = if *connected { socket.peer_addr()? } else { from };
            let answer = parse(&String::from_utf8_lossy(&buffer[..length]), socket.local_addr()?, peer)?;
            // An answer to an earlier request from the same port may still arrive.
            if answer.payload == expected {
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// Parses a server's answer.
fn parse(text: &str, local: SocketAddr, peer: SocketAddr) -> io::Result<Answer> {
    let answer = || {
        let mut parts = text.splitn(3, ' ');
        let server = parts.next()?.to_owned();
        let seen = parts.next()?.parse().ok()?;
        Some(Answer { server, seen, local, peer, payload: parts.next()?.to_owned() })
    };
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("not an answer: {text:?} from {peer}"));
    answer().ok_or_else(invalid)
}

impl Place {
    /// Sends a request with the defaults of [`Ask::new`].
    pub fn ask(&self, transport: Transport, to: SocketAddr) -> io::Result<Answer> {
        Ask::new(transport, to).from(self)
    }
}
