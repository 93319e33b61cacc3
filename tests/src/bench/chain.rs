//! Packets and table entries for repeated test runs.
//!
//! `BPF_PROG_TEST_RUN` with `repeat` passes the packet as modified by one repetition to the next. The entries therefore
//! form a chain: the entry of step `i` rewrites a packet to the key of step `i + 1`, and the last step leads to the
//! first. The final packet shows whether every repetition was processed. Each repetition decrements the TTL, which
//! limits the number of repetitions per call.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use podnet_common::{
    addr::{Addr, IfIndex, Mac, Port, Proto},
    layout::{Backend, CtEntry, Frontend, FrontendKey, Out, Tuple, macs},
};

use crate::traffic::Family;

/// Repetitions of one call.
pub const REPEAT: u32 = 250;
/// Initial TTL of packets.
const TTL: u8 = 255;
/// Payload of a small packet, the most common size.
const PAYLOAD: [u8; 16] = [0; 16];

/// MAC of all interfaces in a test run, so that a forwarded packet looks like a received one.
pub const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// Ports of a chain's steps. Their number is odd, so that a port recurs with the other address.
const FIRST_PORT: u16 = 1024;
const PORTS: u32 = 60_001;
/// Distance of the second port from the first, at an alternating end.
const SECOND_PORT: u16 = 5000;

/// The end of the packet that steps rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Destination: a client's packets to services.
    Destination,
    /// Source: a backend's replies.
    Source,
    /// Both: an external client's packets that leave through the uplink again, with the node as their source.
    Both,
}

/// A chain.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// Address family.
    pub family: Family,
    /// What is rewritten.
    pub rewrite: Rewrite,
    /// Number of steps: even, at most two per port.
    pub steps: u32,
    /// Ingress interface.
    pub in_ifindex: IfIndex,
    /// Egress interface.
    pub out_ifindex: IfIndex,
    /// Port of the pod at the constant end: chains with different ports have no keys in common. If that end alternates
    /// as well, the port of its first step.
    pub pod_port: u16,
}

impl Chain {
    /// The pod at the constant end.
    pub fn pod(&self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::new(10, 244, 1, 9).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 9).into(),
        }
    }

    /// The constant end, or its address and port at a step if it alternates.
    fn near(&self, step: u32) -> (IpAddr, u16) {
        if self.rewrite != Rewrite::Both || step.is_multiple_of(2) {
            return (self.pod(), self.pod_port);
        }
        let second = match self.family {
            Family::V4 => Ipv4Addr::new(10, 244, 1, 10).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 10).into(),
        };
        (second, self.pod_port + SECOND_PORT)
    }

    /// The two addresses between which steps alternate.
    pub fn others(&self) -> [IpAddr; 2] {
        [2, 3].map(|host| match self.family {
            Family::V4 => Ipv4Addr::new(10, 244, 1, host).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, u16::from(host)).into(),
        })
    }

    /// Address and port at a step. Adjacent steps differ in both.
    fn step(&self, step: u32) -> (IpAddr, u16) {
        let step = step % self.steps;
        (self.others()[(step % 2) as usize], FIRST_PORT + (step % PORTS) as u16)
    }

    /// The tuple of a packet at a step.
    pub fn tuple(&self, step: u32) -> Tuple {
        let ((near, near_port), (other, port)) = (self.near(step), self.step(step));
        let tuple = Tuple {
            src: near.into(),
            dst: other.into(),
            sport: Port::new(near_port),
            dport: Port::new(port),
            proto: Proto::TCP,
            ..Tuple::default()
        };
        match self.rewrite {
            Rewrite::Destination | Rewrite::Both => tuple,
            Rewrite::Source => tuple.reversed(),
        }
    }

    /// Established flow of a step: entries of the measured direction and of the other one.
    pub fn entries(&self, step: u32, now: u32) -> [(Tuple, CtEntry); 2] {
        let (key, next) = (self.tuple(step), self.tuple(step + 1));
        let (flags, out) = match self.rewrite {
            Rewrite::Destination => (CtEntry::REWRITE_DST, Out::Pod),
            Rewrite::Source => (CtEntry::REWRITE_SRC | CtEntry::REPLY, Out::Pod),
            Rewrite::Both => (CtEntry::REWRITE_SRC | CtEntry::REWRITE_DST, Out::Link),
        };
        let entry = CtEntry {
            last_seen: now,
            in_ifindex: self.in_ifindex,
            out_ifindex: self.out_ifindex,
            out_mtu: 1500,
            flags: flags | CtEntry::REPLIED,
            out: out as u8,
            sport: next.sport,
            dport: next.dport,
            macs: macs(MAC, MAC),
            service: 0,
            src: next.src,
            dst: next.dst,
        };
        let CtEntry { in_ifindex, out_ifindex, out_mtu, out, macs, .. } = entry;
        let back = CtEntry { in_ifindex, out_ifindex, out_mtu, out, macs, ..entry.reverse(&key) };
        [(key, entry), (entry.reply_key(Proto::TCP), back)]
    }

    /// Keys of the flow begun by a step's first packet.
    pub fn keys(&self, step: u32) -> [Tuple; 2] {
        [self.tuple(step), self.tuple(step + 1).reversed()]
    }

    /// Service of a step. Its only backend is the next step, so that every repetition begins another flow. `base` is
    /// the first of the chain's slots; each slot has the backend of the same number.
    pub fn service(&self, step: u32, base: u32) -> (FrontendKey, Frontend, Backend) {
        let (addr, port) = self.step(step);
        let (next, next_port) = self.step(step + 1);
        let key = FrontendKey { addr: addr.into(), port: Port::new(port), proto: Proto::TCP, scope: FrontendKey::ANY };
        let frontend =
            Frontend { service: base + step + 1, slot_base: base + step, slot_count: 1, ..Frontend::default() };
        (key, frontend, Backend { addr: Addr::from(next), port: Port::new(next_port), proto: Proto::TCP, _pad: 0 })
    }

    /// Packet of a step: an ACK with some data, or a SYN.
    pub fn packet(&self, step: u32, opens: bool) -> Result<Vec<u8>> {
        let tuple = self.tuple(step);
        let (sport, dport) = (tuple.sport.get(), tuple.dport.get());
        let builder = PacketBuilder::ethernet2(MAC.0, MAC.0);
        let builder = match (IpAddr::from(tuple.src), IpAddr::from(tuple.dst)) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => builder.ipv4(src.octets(), dst.octets(), TTL),
            (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), TTL),
            _ => unreachable!("both are of the chain's family"),
        };
        let builder = builder.tcp(sport, dport, 1, 64_000);
        let builder = if opens { builder.syn() } else { builder.ack(1) };
        let payload = if opens { &[][..] } else { &PAYLOAD[..] };
        let mut packet = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut packet, payload)?;
        Ok(packet)
    }

    /// Checks that a packet is that of a step, which only the right number of rewrites can produce.
    pub fn check(&self, packet: &[u8], step: u32) -> Result<()> {
        let parsed = SlicedPacket::from_ethernet(packet)?;
        let (src, dst): (IpAddr, IpAddr) = match parsed.net.context("no IP header is left")? {
            etherparse::NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            etherparse::NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            etherparse::NetSlice::Arp(_) => anyhow::bail!("an ARP packet came out"),
        };
        let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { anyhow::bail!("no TCP header is left") };
        let found = Tuple {
            src: src.into(),
            dst: dst.into(),
            sport: Port::new(tcp.source_port()),
            dport: Port::new(tcp.destination_port()),
            proto: Proto::TCP,
            ..Tuple::default()
        };
        ensure!(found == self.tuple(step), "the packet is not at step {step}: {found:?}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn chain(family: Family, rewrite: Rewrite, steps: u32) -> Chain {
        Chain { family, rewrite, steps, in_ifindex: IfIndex(7), out_ifindex: IfIndex(8), pod_port: 40_000 }
    }

    #[test]
    fn every_entry_leads_to_the_next_key() {
        for rewrite in [Rewrite::Destination, Rewrite::Source, Rewrite::Both] {
            let chain = chain(Family::V6, rewrite, 10);
            for step in 0..10 {
                let [(_, entry), _] = chain.entries(step, 1);
                let [(next, _), _] = chain.entries(step + 1, 1);
                assert_eq!(
                    (entry.src, entry.dst, entry.sport, entry.dport),
                    (next.src, next.dst, next.sport, next.dport)
                );
            }
        }
    }

    #[test]
    fn keys_of_both_directions_are_unique() {
        for rewrite in [Rewrite::Destination, Rewrite::Both] {
            let chain = chain(Family::V4, rewrite, 100_000);
            let keys: BTreeSet<_> = (0..100_000).flat_map(|step| chain.entries(step, 1)).map(|(key, _)| key).collect();
            assert_eq!(keys.len(), 200_000);
        }
    }

    #[test]
    fn packets_are_identified_by_their_step() {
        for family in Family::ALL {
            let chain = chain(family, Rewrite::Source, 4);
            let packet = chain.packet(3, true).unwrap();
            chain.check(&packet, 7).unwrap();
            assert!(chain.check(&packet, 2).is_err());
        }
    }
}
