//! Hand-made frames, sent and captured on an interface: for packets that no socket would send.

use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::checksum;
use crate::place::Place;

/// A packet socket on an interface: it sends raw frames and sees every frame in both directions.
#[derive(Debug)]
pub struct Frames {
    socket: Socket,
}

impl Frames {
    /// Opens the socket.
    pub fn on(place: &Place, ifname: &str) -> Result<Self> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let what = || format!("cannot open a packet socket on {} of {}", ifname, place.name());
        let socket =
            place.socket(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(all)))).with_context(what)?;
        socket.bind(&link_address(place.ifindex(ifname)?, all)).with_context(what)?;
        Ok(Self { socket })
    }

    /// Opens a socket that sees the frames of all interfaces, also of those that a place gets later.
    pub fn of_all(place: &Place) -> io::Result<Self> {
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        Ok(Self { socket: place.socket(Domain::PACKET, Type::RAW, Some(Protocol::from(all)))? })
    }

    /// The frames that have been seen and not yet been returned, without waiting for more.
    pub fn seen(&self) -> io::Result<Vec<Vec<u8>>> {
        self.socket.set_nonblocking(true)?;
        let mut frames = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(length) => frames.push(buffer[..length].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The interface has been taken down; the socket stays.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) => return Err(error),
            }
        }
        self.socket.set_nonblocking(false)?;
        Ok(frames)
    }

    /// Sends a frame unchanged.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }

    /// Waits for a frame that `wanted` accepts; `None` after the timeout.
    pub fn expect(&self, timeout: Duration, mut wanted: impl FnMut(&[u8]) -> bool) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![MaybeUninit::uninit(); 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let length = match self.socket.recv(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                other => other?,
            };
            // SAFETY: the kernel has written this many bytes.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
            if wanted(bytes) {
                return Ok(Some(bytes.to_vec()));
            }
        }
    }
}

/// UDP packet in an Ethernet frame with correct checksums and a TTL of 64.
///
/// # Panics
/// The addresses are of different families.
pub fn udp_frame(macs: ([u8; 6], [u8; 6]), from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let packet = ip(macs, from, to).udp(from.port(), to.port());
    let mut frame = Vec::with_capacity(packet.size(payload.len()));
    packet.write(&mut frame, payload).expect("a vector takes it");
    frame
}

/// TCP SYN, otherwise like [`udp_frame`].
///
/// # Panics
/// The addresses are of different families.
pub fn syn_frame(macs: ([u8; 6], [u8; 6]), from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let packet = ip(macs, from, to).tcp(from.port(), to.port(), 1, 0xffff).syn();
    let mut frame = Vec::with_capacity(packet.size(0));
    packet.write(&mut frame, &[]).expect("a vector takes it");
    frame
}

fn ip(macs: ([u8; 6], [u8; 6]), from: SocketAddr, to: SocketAddr) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(macs.0, macs.1);
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of different families"),
    }
}

/// Fragments of a frame of [`udp_frame`], with `size` bytes each behind the IP header, a multiple of eight (RFC 791,
/// section 3.2; RFC 8200, section 4.5).
pub fn fragments(frame: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let (ethernet, packet) = frame.split_at(ETHERNET);
    let v4 = packet[0] >> 4 == 4;
    let (header, payload) = packet.split_at(if v4 { 20 } else { 40 });
    let count = payload.chunks(size).count();
    let piece = |(index, part): (usize, &[u8])| {
        let more = index + 1 < count;
        let offset = (index * size / 8) as u16;
        let mut header = header.to_vec();
        if v4 {
            header[2..4].copy_from_slice(&((20 + part.len()) as u16).to_be_bytes());
            header[4..6].copy_from_slice(&id.to_be_bytes());
            header[6..8].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
            header[10..12].fill(0);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            header[4..6].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
            let next = std::mem::replace(&mut header[6], FRAGMENT_HEADER);
            header.extend([next, 0]);
            header.extend((offset << 3 | u16::from(more)).to_be_bytes());
            header.extend(u32::from(id).to_be_bytes());
        }
        [ethernet, &header, part].concat()
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// Next header value of a fragment header.
const FRAGMENT_HEADER: u8 = 44;

fn link_address(ifindex: i32, protocol: u16) -> SockAddr {
    let addr = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: ifindex,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the storage is larger than the address, which is written completely, and the length is that of the
    // address.
    unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(addr);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
        .expect("the closure does not fail")
        .1
    }
}
