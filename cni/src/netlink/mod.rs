//! Links, addresses, routes, neighbours, queueing disciplines and filters through rtnetlink, in few system calls.
//!
//! Requests are sent in batches; the kernel processes a batch in order and acknowledges each request. The plugin is a
//! short-lived, sequential process, so the socket blocks and there is no async runtime. A failed request does not stop
//! those after it: callers undo the whole batch.

mod filter;
mod queue;
mod request;
pub mod texts;
mod values;

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::tc::TcMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use podnet_common::addr::{IfIndex, Mac};
use thiserror::Error;

pub use filter::Direction;
pub use queue::Bucket;
pub use request::{Op, Scope};
pub use values::{Address, Link, Route};

/// Why a request failed.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("netlink socket error: {0}")]
    Socket(#[from] io::Error),
    /// The kernel rejected the request.
    #[error("cannot {what}: {}{source}", if hint.is_empty() { String::new() } else { format!("{hint}: ") })]
    Refused {
        /// The request.
        what: String,
        /// The kernel's extended acknowledgement (NLMSGERR_ATTR_MSG); may be empty.
        hint: String,
        /// The error number as an error.
        source: io::Error,
    },
    /// An answer could not be parsed.
    #[error("unexpected netlink response: {0}")]
    Answer(String),
}

impl NetlinkError {
    /// The errno, if the kernel rejected the request.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// The link-local address with the interface identifier derived from a MAC (RFC 4291, appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

/// A netlink socket, in the namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Extended acknowledgements are optional.
        let _ = socket.set_ext_ack(true);
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(1 << 16) })
    }

    /// Sends requests in one batch and waits for all answers. Returns the requested objects, in order, or the first
    /// error.
    pub fn run(&mut self, ops: &[Op]) -> Result<Vec<Answer>, NetlinkError> {
        let mut outcomes = self.outcomes(ops)?;
        match outcomes.iter().position(Result::is_err) {
            Some(i) => outcomes.swap_remove(i),
            None => Ok(outcomes.into_iter().flatten().flatten().collect()),
        }
    }

    /// As [`Self::run`], with a result for each request.
    pub fn outcomes(&mut self, ops: &[Op]) -> Result<Vec<Result<Vec<Answer>, NetlinkError>>, NetlinkError> {
        let first = self.sequence + 1;
        let mut request = Vec::new();
        for op in ops {
            self.encode(&op.message, NLM_F_ACK | op.flags, &mut request);
        }
        self.socket.send(&request, 0)?;
        let mut outcomes: Vec<Result<Vec<Answer>, NetlinkError>> = ops.iter().map(|_| Ok(Vec::new())).collect();
        let mut waiting = ops.len();
        while waiting > 0 {
            for message in self.receive()? {
                let Some(i) = message.header.sequence_number.checked_sub(first).map(|i| i as usize) else { continue };
                let (Some(op), Some(outcome)) = (ops.get(i), outcomes.get_mut(i)) else { continue };
                match message.payload {
                    NetlinkPayload::Error(e) => {
                        waiting -= 1;
                        let errno = e.raw_code().saturating_neg();
                        if errno != 0 && !op.tolerated.contains(&errno) {
                            *outcome = Err(NetlinkError::Refused {
                                what: op.what.clone(),
                                hint: explanation(message.header.flags, &e.header),
                                source: io::Error::from_raw_os_error(errno),
                            });
                        }
                    }
                    NetlinkPayload::InnerMessage(m) => {
                        if let Ok(answers) = outcome {
                            answers.extend(Answer::of(m));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(outcomes)
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers.into_iter().filter_map(Answer::link).collect())
    }

    /// All addresses.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let answers = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let address = |a| if let Answer::Address(address) = a { Some(address) } else { None };
        Ok(answers.into_iter().filter_map(address).collect())
    }

    /// The routes of the main table, both families.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let answers = self.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        Ok(answers.into_iter().filter_map(|a| if let Answer::Route(r) = a { Some(r) } else { None }).collect())
    }

    /// podnet's queueing disciplines: link, rate in bytes per second and limit in bytes.
    pub fn queues(&mut self) -> Result<Vec<(IfIndex, u64, u32)>, NetlinkError> {
        let answers = self.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
        Ok(answers.into_iter().filter_map(|a| if let Answer::Queue(queue) = a { Some(queue) } else { None }).collect())
    }

    /// The ids of the BPF programs that are filters of a link. None where there is no clsact qdisc or no such link.
    pub fn filters(&mut self, index: IfIndex, direction: Direction) -> Result<Vec<u32>, NetlinkError> {
        let mut message = TcMessage::default();
        message.header.index = index.0.cast_signed();
        message.header.parent = direction.parent();
        match self.dump(RouteNetlinkMessage::GetTrafficFilter(message)) {
            Ok(answers) => Ok(answers
                .into_iter()
                .filter_map(|a| if let Answer::Filter(program) = a { Some(program) } else { None })
                .collect()),
            Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<Answer>, NetlinkError> {
        let mut request = Vec::new();
        self.encode(&message, NLM_F_DUMP, &mut request);
        self.socket.send(&request, 0)?;
        let mut answers = Vec::new();
        loop {
            for message in self.receive()?.into_iter().filter(|m| m.header.sequence_number == self.sequence) {
                match message.payload {
                    NetlinkPayload::InnerMessage(m) => answers.extend(Answer::of(m)),
                    NetlinkPayload::Error(e) => {
                        let source = io::Error::from_raw_os_error(e.raw_code().saturating_neg());
                        let what = "dump links, addresses, routes, qdiscs or filters".into();
                        return Err(NetlinkError::Refused { what, hint: String::new(), source });
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }

    fn encode(&mut self, message: &RouteNetlinkMessage, flags: u16, out: &mut Vec<u8>) {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message.clone()));
        message.finalize();
        let start = out.len();
        out.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut out[start..]);
    }

    fn receive(&mut self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, NetlinkError> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let mut rest = &mut self.buffer[..];
        let mut messages = Vec::new();
        while !rest.is_empty() {
            texts::mend_first(rest);
            let message = NetlinkMessage::deserialize(rest).map_err(|e| NetlinkError::Answer(e.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get_mut(length..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}

/// An object in an answer of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A link.
    Link(Link),
    /// An address.
    Address(Address),
    /// A route.
    Route(Route),
    /// A permanent neighbour.
    Neighbour(IfIndex, IpAddr, Mac),
    /// One of podnet's queueing disciplines: link, rate in bytes per second, limit in bytes.
    Queue((IfIndex, u64, u32)),
    /// The id of the BPF program that a traffic filter runs.
    Filter(u32),
}

impl Answer {
    /// The link, if it is one.
    pub fn link(self) -> Option<Link> {
        if let Self::Link(link) = self { Some(link) } else { None }
    }

    fn of(message: RouteNetlinkMessage) -> Option<Self> {
        match message {
            RouteNetlinkMessage::NewLink(m) => Some(Self::Link(link(m))),
            RouteNetlinkMessage::NewAddress(m) => {
                let link = IfIndex(m.header.index);
                // The address is IFA_LOCAL for IPv4 (IFA_ADDRESS is the peer's) and IFA_ADDRESS for IPv6.
                let local = m
                    .attributes
                    .iter()
                    .find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
                let address = || {
                    m.attributes
                        .iter()
                        .find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None })
                };
                let network = IpNetwork::new(local.or_else(address)?, m.header.prefix_len).ok()?;
                Some(Self::Address(Address { link, network, global: m.header.scope == AddressScope::Universe }))
            }
            RouteNetlinkMessage::NewRoute(m) => route(m).map(Self::Route),
            RouteNetlinkMessage::NewNeighbour(m) => permanent_neighbour(m),
            RouteNetlinkMessage::NewQueueDiscipline(m) => queue::told(&m).map(Self::Queue),
            RouteNetlinkMessage::NewTrafficFilter(m) => filter::program(&m).map(Self::Filter),
            _ => None,
        }
    }
}

fn link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: IfIndex(message.header.index),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().map(Mac).unwrap_or_default(),
            LinkAttribute::Controller(index) => link.controller = Some(IfIndex(index)),
            _ => {}
        }
    }
    link
}

fn permanent_neighbour(message: NeighbourMessage) -> Option<Answer> {
    let (mut ip, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
            _ => {}
        }
    }
    let permanent = message.header.state == NeighbourState::Permanent;
    permanent.then_some(Answer::Neighbour(IfIndex(message.header.ifindex), ip?, mac?))
}

fn route(message: RouteMessage) -> Option<Route> {
    // A lookup's answer may come from any table and is marked RTM_F_CLONED; a dump includes the local table.
    let cloned = message.header.flags.contains(RouteFlags::Cloned);
    if !cloned && (message.header.table != RouteHeader::RT_TABLE_MAIN || message.header.kind != RouteType::Unicast) {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let mut route = Route { destination: None, gateway: None, oif: IfIndex(0), source: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = IpNetwork::new(ip(address)?, message.header.destination_prefix_length).ok();
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Oif(index) => route.oif = IfIndex(*index),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            _ => {}
        }
    }
    Some(route)
}

/// The message of an extended acknowledgement (NLMSGERR_ATTR_MSG), which follows the echoed request.
fn explanation(flags: u16, echoed: &[u8]) -> String {
    const NLM_F_ACK_TLVS: u16 = 0x200;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let word = |at: usize| echoed.get(at..at + 2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let length = echoed.get(..4).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let mut at = length.next_multiple_of(4);
    while flags & NLM_F_ACK_TLVS != 0
        && let (Some(size), Some(kind)) = (word(at), word(at + 2))
    {
        let size = usize::from(size);
        let Some(value) = echoed.get(at + 4..at + size) else { break };
        if kind == NLMSGERR_ATTR_MSG {
            return String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        }
        at += size.next_multiple_of(4);
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_of_a_mac() {
        assert_eq!(link_local(Mac([0x02, 0, 0x5e, 0x10, 0, 1])), "fe80::5eff:fe10:1".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn explanations_are_read_and_garbage_is_not() {
        let mut echoed = vec![20, 0, 0, 0];
        echoed.resize(20, 0xaa);
        echoed.extend(14u16.to_ne_bytes());
        echoed.extend(1u16.to_ne_bytes());
        echoed.extend(b"no device\0");
        assert_eq!(explanation(0x200, &echoed), "no device");
        assert_eq!(explanation(0, &echoed), "");
        for cut in 0..echoed.len() {
            assert_eq!(explanation(0x200, &echoed[..cut]), "");
        }
        echoed[20] = 0;
        assert_eq!(explanation(0x200, &echoed), "", "a length of 0 must not loop");
    }

    #[test]
    fn links_of_the_own_namespace() {
        // Reading needs no privilege.
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        let lo = links.iter().find(|l| l.name == "lo").unwrap();
        let again: Vec<Link> = netlink
            .run(&[Op::get_link("lo"), Op::get_link_index(lo.index)])
            .unwrap()
            .into_iter()
            .filter_map(Answer::link)
            .collect();
        assert_eq!(again.iter().map(|l| l.index).collect::<Vec<_>>(), [lo.index, lo.index]);
        let error = netlink.run(&[Op::get_link("lo"), Op::get_link("no-such-link")]).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV));
    }
}
