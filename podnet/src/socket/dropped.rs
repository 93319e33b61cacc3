//! Dropped packets in the form used by logs and by clients of the socket.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytemuck::{Pod, pod_read_unaligned};
use nix::time::{ClockId, clock_gettime};
use podnet_common::{
    addr::Proto,
    layout::{EVENT_HEADS, Event, Hook},
    packet::{ETH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, Ipv6},
    verdict::Reason,
};
use serde::{Deserialize, Serialize};

use crate::policy::Denial;

/// Mask of the fragment offset in IPv4's field of flags and offset, in host byte order.
const OFFSET: u16 = 0x1fff;

/// A dropped packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Dropped {
    /// Time in milliseconds since 1970, with the resolution of the kernel's coarse clock.
    pub time_ms: u64,
    /// Drop reason, named as in `podnet drops` and the metrics; `unknown` for reasons that only a newer datapath has.
    pub reason: String,
    /// Hook that dropped the packet, or `unknown` likewise.
    pub hook: String,
    /// Index of the interface that the hook is attached to.
    pub ifindex: u32,
    /// Length of the frame in bytes.
    pub length: u32,
    /// IP protocol number; `None`, like all fields below, if the packet is not IP.
    pub protocol: Option<u8>,
    /// Source address.
    pub source: Option<IpAddr>,
    /// Source port, if the protocol has ports and the packet is not a later fragment.
    pub source_port: Option<u16>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// Destination port.
    pub destination_port: Option<u16>,
    /// The network policies that have denied it, as `namespace/name`, or the name of a ClusterNetworkPolicy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
}

impl Dropped {
    /// Converts an event of the ring buffer.
    pub fn of(event: &Event) -> Self {
        let reason = Reason::ALL.iter().find(|reason| **reason as u16 == event.reason);
        let hook = Hook::ALL.into_iter().find(|hook| *hook as u16 == event.hook);
        let dropped = Self {
            time_ms: unix_ms(event.time),
            reason: reason.map_or("unknown", |reason| reason.name()).to_owned(),
            hook: hook.map_or("unknown", Hook::name).to_owned(),
            ifindex: event.ifindex.0,
            length: event.len,
            ..Self::default()
        };
        // Frames without an Ethernet header are reported with one.
        let header = if event.hook == Hook::ToRaw as u16 { ETH } else { 0 };
        let length = header.saturating_add(event.len as usize);
        let copied = EVENT_HEADS.into_iter().find(|copied| *copied <= length).unwrap_or_default();
        dropped.with_packet(&event.head[..copied])
    }

    /// Keys for looking up the policies that have denied it, the more probable first; none if no policy has. The packet
    /// may be an answer of a flow that is denied.
    pub(super) fn denials(&self) -> impl Iterator<Item = Denial> {
        let request = self.denial();
        let answer = request.map(|Denial { egress, source, destination, protocol, .. }| Denial {
            egress,
            source: destination,
            destination: source,
            protocol,
            port: self.source_port,
        });
        request.into_iter().chain(answer)
    }

    fn denial(&self) -> Option<Denial> {
        let is = |reason: Reason| self.reason == reason.name();
        let (Some(source), Some(destination), Some(protocol)) = (self.source, self.destination, self.protocol) else {
            return None;
        };
        let egress = is(Reason::PolicyEgress);
        let port = self.destination_port;
        (egress || is(Reason::PolicyIngress)).then_some(Denial {
            egress,
            source,
            destination,
            protocol: Proto(protocol),
            port,
        })
    }

    /// Adds the packet's addresses and ports, as far as `frame` contains them.
    fn with_packet(self, frame: &[u8]) -> Self {
        let Some(ethernet) = read::<Ethernet>(frame, 0) else { return self };
        match ethernet.ethertype {
            ETHERTYPE_IPV4 => {
                let Some(ip) = read::<Ipv4>(frame, ETH) else { return self };
                let [source, destination] = [ip.src, ip.dst].map(|addr| Ipv4Addr::from(addr.to_ne_bytes()).into());
                let transport = ETH + usize::from(ip.version_ihl & 0xf) * 4;
                let later = u16::from_be(ip.fragment) & OFFSET != 0;
                self.with_ends(Proto(ip.proto), source, destination, frame.get(transport..).filter(|_| !later))
            }
            ETHERTYPE_IPV6 => {
                let Some(ip) = read::<Ipv6>(frame, ETH) else { return self };
                let addr = |words: [u32; 4]| Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(words)).into();
                let transport = frame.get(ETH + size_of::<Ipv6>()..);
                self.with_ends(Proto(ip.next_header), addr(ip.src), addr(ip.dst), transport)
            }
            _ => self,
        }
    }

    fn with_ends(self, proto: Proto, source: IpAddr, destination: IpAddr, transport: Option<&[u8]>) -> Self {
        let has_ports = matches!(proto, Proto::TCP | Proto::UDP | Proto::SCTP);
        let ports = transport.filter(|_| has_ports).and_then(|transport| read::<[u16; 2]>(transport, 0));
        let [source_port, destination_port] = [0, 1].map(|end| ports.map(|ports| u16::from_be(ports[end])));
        let (source, destination) = (Some(source), Some(destination));
        Self { protocol: Some(proto.0), source, source_port, destination, destination_port, ..self }
    }
}

/// Protocol, source and destination.
impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(protocol), Some(source), Some(destination)) = (self.protocol, self.source, self.destination) else {
            return f.write_str("not IP");
        };
        match Proto(protocol) {
            Proto::TCP => f.write_str("TCP")?,
            Proto::UDP => f.write_str("UDP")?,
            Proto::SCTP => f.write_str("SCTP")?,
            Proto::ICMP => f.write_str("ICMP")?,
            Proto::ICMPV6 => f.write_str("ICMPv6")?,
            Proto(number) => write!(f, "protocol {number}")?,
        }
        let end = |addr: IpAddr, port: Option<u16>| {
            port.map_or_else(|| addr.to_string(), |port| SocketAddr::new(addr, port).to_string())
        };
        let (source, destination) = (end(source, self.source_port), end(destination, self.destination_port));
        write!(f, " {source} → {destination}")
    }
}

/// Converts a time of `CLOCK_MONOTONIC`, in nanoseconds, to milliseconds since 1970.
fn unix_ms(monotonic: u64) -> u64 {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Into::into).unwrap_or_default();
    let ago = now.saturating_sub(Duration::from_nanos(monotonic));
    let then = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(ago);
    u64::try_from(then.as_millis()).unwrap_or(u64::MAX)
}

fn read<T: Pod>(bytes: &[u8], at: usize) -> Option<T> {
    Some(pod_read_unaligned(bytes.get(at..at + size_of::<T>())?))
}

#[cfg(test)]
pub(super) mod tests {
    use podnet_common::{addr::IfIndex, layout::EVENT_HEAD};

    use super::*;

    /// A SYN to a service without endpoints.
    pub(in crate::socket) fn event(frame: &[u8]) -> Event {
        let mut head = [0; EVENT_HEAD];
        head[..frame.len()].copy_from_slice(frame);
        let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into();
        Event {
            time: now.as_nanos() as u64,
            ifindex: IfIndex(7),
            reason: Reason::NoEndpoint as u16,
            hook: Hook::FromPod as u16,
            len: 74,
            head,
        }
    }

    fn v4(proto: u8, fragment: [u8; 2]) -> Vec<u8> {
        let ip = [0x45, 0, 0, 60, 0, 0, fragment[0], fragment[1], 64, proto, 0, 0, 10, 244, 1, 9, 10, 96, 0, 10];
        [&[0; 12][..], &[8, 0], &ip, &[0x9c, 0x40, 0, 80]].concat()
    }

    fn v6(next_header: u8) -> Vec<u8> {
        let addr = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        [&[0; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, next_header, 64], &addr(1), &addr(2), &[0x9c, 0x40, 0, 80]]
            .concat()
    }

    #[test]
    fn a_packet_is_described_on_one_line() {
        let shown = |frame: &[u8]| Dropped::of(&event(frame)).to_string();
        assert_eq!(shown(&v4(6, [0x40, 0])), "TCP 10.244.1.9:40000 → 10.96.0.10:80");
        assert_eq!(shown(&v4(17, [0, 1])), "UDP 10.244.1.9 → 10.96.0.10", "a later fragment has no ports");
        assert_eq!(shown(&v4(1, [0, 0])), "ICMP 10.244.1.9 → 10.96.0.10");
        assert_eq!(shown(&v6(132)), "SCTP [fd00::1]:40000 → [fd00::2]:80");
        assert_eq!(shown(&v6(44)), "protocol 44 fd00::1 → fd00::2");
        assert_eq!(shown(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 6]), "not IP");
        let short = |frame: &[u8], len| Dropped::of(&Event { len, ..event(frame) }).to_string();
        assert_eq!(short(&v6(17), 62), "UDP [fd00::1]:40000 → [fd00::2]:80");
        assert_eq!(short(&v6(17), 61), "UDP fd00::1 → fd00::2", "the ports aren't copied");
        assert_eq!(short(&v6(17), 53), "not IP", "nor the destination");
        assert_eq!(short(&v4(17, [0, 0]), 42), "UDP 10.244.1.9:40000 → 10.96.0.10:80");
        assert_eq!(short(&v4(17, [0, 0]), 34), "UDP 10.244.1.9 → 10.96.0.10");
    }

    #[test]
    fn events_have_names_and_a_wall_clock_time() {
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let dropped = Dropped::of(&event(&v4(6, [0x40, 0])));
        assert!(dropped.time_ms.abs_diff(before) < 10_000, "{} is not {before}", dropped.time_ms);
        assert_eq!((dropped.reason.as_str(), dropped.hook.as_str(), dropped.ifindex), ("no_endpoint", "from_pod", 7));
        let newer = Event { reason: 999, hook: 999, ..event(&[]) };
        let newer = Dropped::of(&newer);
        assert_eq!((newer.reason.as_str(), newer.hook.as_str()), ("unknown", "unknown"));
    }
}
