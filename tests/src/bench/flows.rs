//! UDP packets of many flows in turn: the cost of a packet on the whole path with large connection tables.
//!
//! A raw socket sends them, so that one process can use every source port. Sending on a veth pair executes the whole
//! path, up to the receiving socket, in the sender's context. The receiving socket is never read. The sender's clock is
//! the measurement, and the receiver's counters show whether the packets arrived.

use std::{
    fs,
    io::{self, IoSlice},
    net::SocketAddrV4,
    os::fd::AsRawFd,
    time::Instant,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, connect, sendmmsg, socket,
};
use serde::{Deserialize, Serialize};

/// Parameters of a measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The sender's address.
    pub source: std::net::Ipv4Addr,
    /// Destinations, over which the flows are distributed.
    pub targets: Vec<SocketAddrV4>,
    /// Number of flows.
    pub flows: u32,
    /// Total number of packets, round-robin over the flows.
    pub packets: u32,
}

/// First source port; servers use lower ones.
const FIRST_PORT: u16 = 1024;
/// Maximum number of flows per target.
pub const FLOWS_PER_TARGET: u32 = 65_536 - FIRST_PORT as u32;
const BATCH: usize = 64;
const LENGTH: usize = 46;

/// Sends the packets and returns the nanoseconds per packet.
pub fn send(plan: &Plan) -> io::Result<f64> {
    let fd = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let any_port = SocketAddrV4::new(*plan.targets[0].ip(), 0);
    connect(fd.as_raw_fd(), &SockaddrIn::from(any_port))?;
    let per_target = plan.flows.div_ceil(plan.targets.len() as u32);
    let mut buffers = vec![[0u8; LENGTH]; BATCH];
    let mut flow = 0;
    let mut left = plan.packets as usize;
    let start = Instant::now();
    while left > 0 {
        let batch = left.min(BATCH);
        for buffer in &mut buffers[..batch] {
            let target = plan.targets[(flow / per_target) as usize];
            write_packet(buffer, SocketAddrV4::new(plan.source, FIRST_PORT + (flow % per_target) as u16), target);
            flow = if flow + 1 >= plan.flows { 0 } else { flow + 1 };
        }
        let slices: Vec<[IoSlice<'_>; 1]> = buffers[..batch].iter().map(|b| [IoSlice::new(b)]).collect();
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(batch, None);
        let none = vec![None; batch];
        let sent = sendmmsg(fd.as_raw_fd(), &mut headers, &slices, &none, [], MsgFlags::empty())?.count();
        if sent < batch {
            return Err(io::Error::other(format!("only {sent} of {batch} packets were sent")));
        }
        left -= batch;
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(plan.packets))
}

/// IPv4 UDP packet. The kernel fills in length, identification and header checksum; UDP has no checksum here (RFC 768).
fn write_packet(buffer: &mut [u8; LENGTH], from: SocketAddrV4, to: SocketAddrV4) {
    buffer[0] = 0x45;
    buffer[8] = 64;
    buffer[9] = 17;
    buffer[12..16].copy_from_slice(&from.ip().octets());
    buffer[16..20].copy_from_slice(&to.ip().octets());
    buffer[20..22].copy_from_slice(&from.port().to_be_bytes());
    buffer[22..24].copy_from_slice(&to.port().to_be_bytes());
    buffer[24..26].copy_from_slice(&((LENGTH - 20) as u16).to_be_bytes());
}

/// Datagrams delivered to this namespace's sockets since its creation, including those dropped by full buffers.
pub fn arrived() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/net/snmp")?;
    let mut udp = text.lines().filter(|l| l.starts_with("Udp:"));
    let (names, values) = (udp.next().unwrap_or_default(), udp.next().unwrap_or_default());
    let count: u64 = names
        .split_whitespace()
        .zip(values.split_whitespace())
        .filter(|(name, _)| ["InDatagrams", "RcvbufErrors"].contains(name))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum();
    Ok(count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_parsed_correctly() {
        let mut buffer = [0; LENGTH];
        write_packet(&mut buffer, "10.244.1.3:1024".parse().unwrap(), "10.96.0.10:80".parse().unwrap());
        // The kernel fills in the total length.
        buffer[2..4].copy_from_slice(&(LENGTH as u16).to_be_bytes());
        let packet = etherparse::SlicedPacket::from_ip(&buffer).unwrap();
        let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("not UDP") };
        assert_eq!((udp.source_port(), udp.destination_port(), udp.length()), (1024, 80, 26));
    }
}
