//! Flows, reconstructed from their halves in the connection table, for the commands that list flows.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use clap::Args;
use podnet_common::addr::{Addr, Port, Proto};
use podnet_common::layout::{CtEntry, Out, Tuple};
use podnet_common::time::TICK_SHIFT;
use serde::{Serialize, Serializer};

use crate::compile::{ServiceId, ServiceNames};
use crate::datapath::inspect::{View, ViewError};

/// Which flows to list.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Only flows of this Service.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(super) service: Option<String>,
    /// Only flows with this address as client, frontend, backend or translated source.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) ip: Option<IpAddr>,
    /// Only flows of this protocol: tcp, udp, sctp, icmp, icmpv6, or a number.
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    pub(super) proto: Option<Proto>,
}

/// Parses the name or number of a protocol.
pub(super) fn parse_protocol(text: &str) -> Result<Proto, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Proto::TCP),
        "udp" => Ok(Proto::UDP),
        "sctp" => Ok(Proto::SCTP),
        "icmp" => Ok(Proto::ICMP),
        "icmpv6" => Ok(Proto::ICMPV6),
        number => number.parse().map(Proto).map_err(|_| "expected tcp, udp, sctp, icmp, icmpv6 or a number".to_owned()),
    }
}

impl Filter {
    /// Whether a flow passes the filter.
    fn admits(&self, flow: &Flow, names: &ServiceNames) -> bool {
        let Tuple { src, dst, .. } = flow.tuple;
        let sides = [src, dst, flow.entry.src, flow.entry.dst].map(IpAddr::from);
        self.ip.is_none_or(|ip| sides.contains(&ip))
            && self.service.as_ref().is_none_or(|wanted| {
                names.name(ServiceId(flow.entry.service)).is_some_and(|name| name.service.to_string() == *wanted)
            })
    }
}

/// Why a flow is tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Kind {
    /// Addressed to a frontend, and translated to a backend.
    Service,
    /// Addressed to a frontend, and forwarded to another node for direct server return.
    DirectReturn,
    /// From a pod to a destination outside the cluster.
    Masquerade,
    /// Not translated: of a pod to which network policies apply, or of one whose replies could be mistaken for those of
    /// a translated flow.
    Direct,
}

/// State of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum State {
    /// No reply yet, or the client hasn't answered the reply yet.
    New,
    /// Packets in both directions.
    Established,
    /// Replies don't pass this node.
    OneWay,
    /// One side has ended it, or an RST has come from outside, which may be forged.
    Closing,
    /// Both sides have ended it, or one has reset it.
    Closed,
}

impl State {
    fn of(entry: &CtEntry) -> Self {
        if entry.closed() && !entry.doubtful() {
            Self::Closed
        } else if entry.doubtful() || entry.flags & CtEntry::CLOSED != 0 {
            Self::Closing
        } else if entry.flags & CtEntry::ONE_WAY != 0 {
            Self::OneWay
        } else if entry.flags & (CtEntry::REPLIED | CtEntry::OPENING) == CtEntry::REPLIED {
            Self::Established
        } else {
            Self::New
        }
    }

    /// In readable form.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::OneWay => "one-way",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// An end of a flow: an address with a port, or with the identifier of an ICMP echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    /// The address.
    pub(super) ip: IpAddr,
    /// Port or identifier; 0 if there is none, as for the receiver of an echo.
    port: u16,
    echo: bool,
}

impl End {
    pub(super) fn new(addr: Addr, port: Port, proto: Proto) -> Self {
        Self { ip: addr.into(), port: port.get(), echo: proto == Proto::ICMP || proto == Proto::ICMPV6 }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.echo) {
            (0, _) => self.ip.fmt(f),
            (identifier, true) => write!(f, "{} id {identifier}", self.ip),
            (port, false) => SocketAddr::new(self.ip, port).fmt(f),
        }
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// The client's packets, as they arrive.
    pub(super) tuple: Tuple,
    /// Their translation, with the latest times and flags of both halves.
    pub(super) entry: CtEntry,
    /// Whether the client's half exists: only this half contains the egress.
    pub(super) own_half: bool,
}

impl Flow {
    pub(super) fn kind(&self) -> Kind {
        if self.entry.flags & CtEntry::ONE_WAY != 0 {
            Kind::DirectReturn
        } else if self.entry.service != 0 {
            Kind::Service
        } else if self.entry.flags & CtEntry::REWRITE_SRC != 0 {
            Kind::Masquerade
        } else {
            Kind::Direct
        }
    }

    pub(super) fn state(&self) -> State {
        State::of(&self.entry)
    }

    /// Seconds since the last packet, accurate to about a second. `now` is in ticks.
    pub(super) fn idle(&self, now: u32) -> u64 {
        seconds_between(self.entry.last_seen, now)
    }

    pub(super) fn client(&self) -> End {
        End::new(self.tuple.src, self.tuple.sport, self.tuple.proto)
    }

    /// Destination that the client has addressed.
    pub(super) fn frontend(&self) -> End {
        End::new(self.tuple.dst, self.tuple.dport, self.tuple.proto)
    }

    /// Receiver of the packets; for [`Kind::DirectReturn`] the node to which they are forwarded.
    pub(super) fn backend(&self) -> End {
        End::new(self.entry.dst, self.entry.dport, self.tuple.proto)
    }

    /// The client, as seen by the receiver.
    pub(super) fn source(&self) -> End {
        End::new(self.entry.src, self.entry.sport, self.tuple.proto)
    }

    /// Egress of the client's packets; `None` while only the other half exists.
    pub(super) fn egress(&self) -> Option<&'static str> {
        /// Names of egress kinds.
        const NAMES: [(Out, &str); 9] = [
            (Out::Stack, "stack"),
            (Out::Pod, "pod"),
            (Out::Uplink, "uplink"),
            (Out::Host, "host"),
            (Out::Link, "link"),
            (Out::Via, "via"),
            (Out::Tunnel, "tunnel"),
            (Out::Queue, "queue"),
            (Out::Denied, "denied"),
        ];
        let way = NAMES.iter().find(|(out, _)| *out as u8 == self.entry.out)?;
        self.own_half.then_some(way.1)
    }
}

/// Reads the flows that pass a filter, without duplicates, ordered by destination and then by client.
pub(super) fn read(view: &dyn View, names: &ServiceNames, filter: &Filter) -> Result<Vec<Flow>, ViewError> {
    let mut flows: BTreeMap<Tuple, Flow> = BTreeMap::new();
    view.conntrack(&mut |tuple, entry| {
        if filter.proto.is_some_and(|proto| proto != tuple.proto) {
            return;
        }
        let half = client_half(tuple, entry);
        flows
            .entry(half.tuple)
            .and_modify(|known| {
                let mut both = if half.own_half { half } else { *known };
                both.entry.flags = known.entry.flags | half.entry.flags;
                both.entry.last_seen = later(known.entry.last_seen, half.entry.last_seen);
                *known = both;
            })
            .or_insert(half);
    })?;
    let mut flows: Vec<Flow> = flows.into_values().filter(|flow| filter.admits(flow, names)).collect();
    flows.sort_by_key(|flow| (flow.frontend(), flow.client(), flow.tuple.proto));
    Ok(flows)
}

/// The client's direction of a flow, from either half: each contains all that is needed to derive the other.
fn client_half(tuple: &Tuple, entry: &CtEntry) -> Flow {
    if entry.flags & CtEntry::REPLY == 0 {
        return Flow { tuple: *tuple, entry: *entry, own_half: true };
    }
    let half = entry.reverse(tuple);
    Flow { tuple: entry.reply_key(tuple.proto), entry: half, own_half: false }
}

/// The later of two ticks.
fn later(a: u32, b: u32) -> u32 {
    if (a.wrapping_sub(b) as i32) > 0 { a } else { b }
}

/// Seconds from one tick to another; 0 if the first is later, since packets may arrive after the clock was read.
pub(super) fn seconds_between(then: u32, now: u32) -> u64 {
    let ticks = (now.wrapping_sub(then) as i32).max(0) as u64;
    (ticks << TICK_SHIFT) / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::memory::{MemoryTables, samples::names};

    const WEB: [&str; 4] = ["10.244.1.9:40000", "10.96.0.10:80", "172.30.0.1:2000", "10.244.2.5:8080"];
    const DNS: [&str; 4] = ["[fd00:244:1::9]:41000", "[fd00:96::53]:53", "[fd00:244:1::9]:41000", "[fd00:244:1::7]:53"];

    fn view() -> MemoryTables {
        let mut view = MemoryTables::default();
        view.flow(1, Proto::TCP, WEB, CtEntry::REPLIED, 1000 - 56);
        view.flow(2, Proto::UDP, DNS, 0, 1000);
        view
    }

    /// Keys of the first flow's halves.
    fn halves() -> [Tuple; 2] {
        let mut view = MemoryTables::default();
        let forward = view.flow(1, Proto::TCP, WEB, CtEntry::REPLIED, 1000 - 56);
        [forward, view.entry(&forward).reply_key(Proto::TCP)]
    }

    fn all(view: &MemoryTables) -> Vec<Flow> {
        read(view, &names(), &Filter::default()).unwrap()
    }

    #[test]
    fn either_half_suffices_and_the_later_packet_counts() {
        let told = |view: &MemoryTables| {
            let flows = all(view);
            let ends = flows.iter().map(|f| [f.client(), f.frontend(), f.source(), f.backend()].map(|e| e.to_string()));
            let rest = flows.iter().map(|f| (f.kind(), f.state(), f.idle(1000)));
            ends.zip(rest).collect::<Vec<_>>()
        };
        let whole = told(&view());
        assert_eq!(whole[0].0, WEB.map(str::to_owned));
        for lost in [false, true] {
            let (mut half, [forward, reply]) = (view(), halves());
            half.conntrack.get_mut().remove(if lost { &reply } else { &forward });
            assert_eq!(told(&half), whole);
            assert_eq!(all(&half)[0].egress().is_some(), lost, "the client's half knows its egress");
        }
        assert!(all(&view()).iter().all(|flow| flow.egress() == Some("stack")));

        // In either order of the halves in the table.
        let mut turned = MemoryTables::default();
        let [client, frontend, source, backend] = WEB;
        let other = [backend, frontend, source, client];
        turned.flow(1, Proto::TCP, other, CtEntry::REPLIED, 1000 - 56);
        assert_eq!(told(&turned)[0].0, other.map(str::to_owned));

        for half in halves() {
            let mut answered = view();
            answered.entry(&half).last_seen = 999;
            answered.entry(&half).flags |= CtEntry::FIN_BACKEND;
            let flow = *all(&answered).iter().find(|flow| flow.client().to_string() == WEB[0]).unwrap();
            assert_eq!((flow.idle(1000), flow.state()), (1, State::Closing));
        }
    }

    #[test]
    fn filters_narrow_the_list() {
        let only = |filter: Filter| -> Vec<String> {
            read(&view(), &names(), &filter).unwrap().iter().map(|flow| flow.frontend().to_string()).collect()
        };
        let (web, dns) = (["10.96.0.10:80"], ["[fd00:96::53]:53"]);
        assert_eq!(only(Filter { proto: Some(Proto::UDP), ..Filter::default() }), dns);
        assert_eq!(only(Filter { ip: Some("172.30.0.1".parse().unwrap()), ..Filter::default() }), web);
        assert_eq!(only(Filter { ip: Some("fd00:244:1::7".parse().unwrap()), ..Filter::default() }), dns);
        assert_eq!(only(Filter { service: Some("default/web".into()), ..Filter::default() }), web);
        assert!(only(Filter { service: Some("default/we".into()), ..Filter::default() }).is_empty());
    }

    #[test]
    fn ends_are_formatted_by_protocol() {
        let end = |addr: &str, port, proto| {
            End::new(addr.parse::<IpAddr>().unwrap().into(), Port::new(port), proto).to_string()
        };
        for (shown, expected) in [
            (end("10.0.0.1", 80, Proto::TCP), "10.0.0.1:80"),
            (end("fd00::1", 80, Proto::SCTP), "[fd00::1]:80"),
            (end("10.0.0.1", 7, Proto::ICMP), "10.0.0.1 id 7"),
            (end("fd00::1", 7, Proto::ICMPV6), "fd00::1 id 7"),
            (end("fd00::1", 0, Proto::ICMPV6), "fd00::1"),
        ] {
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn packet_after_the_clock_was_read_is_not_idle() {
        assert_eq!(seconds_between(11, 10), 0);
        assert_eq!(seconds_between(u32::MAX, 5), 6, "the clock has wrapped");
    }
}
