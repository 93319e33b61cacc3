//! Echo requests through raw sockets: without a ping program, and with ICMP errors as they arrive.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use socket2::{Protocol, Socket, Type};

use super::{Family, checksum, option};
use crate::place::Place;

/// The answer to an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingAnswer {
    /// Echo reply from this address.
    Reply(IpAddr),
    /// An ICMP error about the request.
    Error {
        /// Sender of the error.
        from: IpAddr,
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
        /// Second word of the message: the MTU for "packet too big" and "fragmentation needed".
        info: u32,
    },
}

/// An echo request.
#[derive(Clone, Debug)]
pub struct Ping {
    to: IpAddr,
    from: Option<IpAddr>,
    id: Option<u16>,
    payload: usize,
    ttl: Option<u32>,
    timeout: Duration,
}

impl Ping {
    /// 32 bytes of payload, the default TTL, a timeout of two seconds. Don't-fragment is set.
    pub fn new(to: IpAddr) -> Self {
        Self { to, from: None, id: None, payload: 32, ttl: None, timeout: Duration::from_secs(2) }
    }

    /// Binds to this address.
    pub fn from_ip(mut self, ip: IpAddr) -> Self {
        self.from = Some(ip);
        self
    }

    /// Sets the identifier; by default, one unique in this process.
    pub fn id(mut self, id: u16) -> Self {
        self.id = Some(id);
        self
    }

    /// Number of bytes behind the ICMP header.
    pub fn payload(mut self, bytes: usize) -> Self {
        self.payload = bytes;
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u32) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets the timeout of the answer.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends the request from a place and waits for an answer.
    ///
    /// # Errors
    /// Those of the socket; `TimedOut` without an answer.
    pub fn from(&self, place: &Place) -> io::Result<PingAnswer> {
        static ID: AtomicU16 = AtomicU16::new(1);
        let id = self.id.unwrap_or_else(|| ID.fetch_add(1, Ordering::Relaxed));
        let family = Family::of(self.to);
        let protocol = if family == Family::V4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let to = SocketAddr::new(self.to, 0);
        let socket = place.socket_for(to, Type::RAW, protocol)?;
        self.prepare(&socket, family)?;
        if let Some(ip) = self.from {
            socket.bind(&SocketAddr::new(ip, 0).into())?;
        }
        socket.send_to(&self.request(family, id), &to.into())?;
        let deadline = Instant::now() + self.timeout;
        let mut buffer = vec![MaybeUninit::uninit(); 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} does not answer", self.to)));
            }
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let (length, from) = match socket.recv_from(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                other => other?,
            };
            // SAFETY: the kernel has written this many bytes.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
            let from = from.as_socket().map_or(self.to, |addr| addr.ip());
            if let Some(answer) = parse(family, bytes, id, from) {
                return Ok(answer);
            }
        }
    }

    fn prepare(&self, socket: &Socket, family: Family) -> io::Result<()> {
        // The kernel does not fragment packets, whatever path MTU it has cached.
        match family {
            Family::V4 => {
                option::set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
                self.ttl.map_or(Ok(()), |ttl| socket.set_ttl_v4(ttl))
            }
            Family::V6 => {
                option::set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
                self.ttl.map_or(Ok(()), |ttl| socket.set_unicast_hops_v6(ttl))
            }
        }
    }

    fn request(&self, family: Family, id: u16) -> Vec<u8> {
        let kind = if family == Family::V4 { ECHO_V4 } else { ECHO_V6 };
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(id.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.resize(8 + self.payload, 0x5a);
        if family == Family::V4 {
            // The kernel computes it for IPv6 only.
            let sum = checksum(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }
}

const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;

/// Finds the answer to our request in a received message; for IPv4, messages begin with the IP header.
fn parse(family: Family, bytes: &[u8], id: u16, from: IpAddr) -> Option<PingAnswer> {
    let icmp = match family {
        Family::V4 => bytes.get(usize::from(bytes.first()? & 15) * 4..)?,
        Family::V6 => bytes,
    };
    let ours = |echo: &[u8]| echo.get(4..6) == Some(&id.to_be_bytes()[..]);
    let (reply, first_error, last_error, quote) = match family {
        Family::V4 => (0, 3, 12, icmp.get(8..).and_then(|inner| inner.get(usize::from(inner.first()? & 15) * 4..))),
        Family::V6 => (129, 1, 4, icmp.get(48..)),
    };
    let kind = *icmp.first()?;
    if kind == reply && ours(icmp) {
        return Some(PingAnswer::Reply(from));
    }
    let is_error = (first_error..=last_error).contains(&kind) && !(family == Family::V4 && kind == ECHO_V4);
    (is_error && ours(quote?)).then(|| PingAnswer::Error {
        from,
        kind,
        code: icmp[1],
        info: u32::from_be_bytes(icmp[4..8].try_into().expect("four bytes")),
    })
}

impl Place {
    /// Pings an address with the defaults of [`Ping::new`]; ICMP errors are errors.
    pub fn ping(&self, to: IpAddr) -> io::Result<()> {
        match Ping::new(to).from(self)? {
            PingAnswer::Reply(_) => Ok(()),
            error @ PingAnswer::Error { .. } => Err(io::Error::other(format!("{to}: {error:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_checksum_makes_the_sum_zero() {
        let request = Ping::new("10.0.0.1".parse().unwrap()).payload(33).request(Family::V4, 7);
        assert_eq!(checksum(&request), 0);
    }

    #[test]
    fn answers_are_matched_to_requests() {
        let from: IpAddr = "fd00::1".parse().unwrap();
        let reply = [129, 0, 0, 0, 0, 7, 0, 1];
        assert_eq!(parse(Family::V6, &reply, 7, from), Some(PingAnswer::Reply(from)));
        assert_eq!(parse(Family::V6, &reply, 8, from), None);
        let mut too_big = vec![2, 0, 0, 0, 0, 0, 5, 0];
        too_big.extend([0; 40]);
        too_big.extend([128, 0, 0, 0, 0, 7, 0, 1]);
        let error = PingAnswer::Error { from, kind: 2, code: 0, info: 1280 };
        assert_eq!(parse(Family::V6, &too_big, 7, from), Some(error));
        assert_eq!(parse(Family::V6, &too_big[..50], 7, from), None);
    }
}
