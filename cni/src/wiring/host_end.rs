//! The host end of a pod's veth pair: its desired state, derived from the record.
//!
//! [`parts`] is the only list of it. ADD creates the parts, CHECK compares them, and repair restores those that others
//! have removed: network managers flush addresses and routes of links that they do not know, and administrators take
//! links down.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv6Network};
use podnet_common::addr::{IfIndex, Mac};

use super::error::WiringError;
use crate::netlink::{Address, Answer, Bucket, Link, Netlink, NetlinkError, Op, Route, Scope};
use crate::record::Record;

/// Maximum number of passes of a repair: restoring one part can remove another.
const ROUNDS: usize = 3;

/// One property of a host end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its name.
    Name(String),
    /// Its alias, which identifies it.
    Alias(String),
    /// Its MAC, which is the gateway's in the pod's neighbour table.
    Mac(Mac),
    /// Its MTU in bytes: longer packets from the pod would be dropped.
    Mtu(u32),
    /// It is not a port of a bridge or bond, which would consume the pod's packets.
    Free,
    /// Its queueing discipline, which shapes traffic to the pod.
    Queue(Bucket),
    /// It is up.
    Up,
    /// An address of the pod's gateway, with its scope.
    Address(IpNetwork, Scope),
    /// A neighbour entry: an address of the pod with its MAC.
    Neighbour(IpAddr, Mac),
    /// The node's route to an address of the pod. With a source address for the node's own packets to it if the node
    /// has no address of that family that the kernel could choose.
    Route(IpAddr, Option<IpAddr>),
}

/// The parts of a record's host end, in the order of their creation: those after [`Part::Up`] need a link that is up,
/// and go when it goes down. `lonely`: the node has no IPv4 address of its own.
pub fn parts(record: &Record, alias: &str, lonely: bool) -> Vec<Part> {
    let mut parts = vec![
        Part::Name(record.host_ifname.clone()),
        Part::Alias(alias.to_owned()),
        Part::Mac(record.host_mac),
        Part::Mtu(record.mtu),
        Part::Free,
    ];
    parts.extend(record.bandwidth.ingress.map(|limit| Part::Queue(limit.bucket(record.mtu))));
    parts.push(Part::Up);
    parts.extend(record.gateways.iter().map(|gateway| match *gateway {
        // Scope host: otherwise the kernel would choose it as source address of the node's packets to the pod.
        IpAddr::V4(_) => Part::Address(IpNetwork::from(*gateway), Scope::Host),
        IpAddr::V6(ip) => {
            let network = Ipv6Network::new(ip, 64).map_or(IpNetwork::from(*gateway), IpNetwork::V6);
            Part::Address(network, Scope::Global)
        }
    }));
    for &ip in &record.ips {
        let source = record.gateway(ip).filter(|_| lonely && ip.is_ipv4());
        parts.extend([Part::Neighbour(ip, record.mac), Part::Route(ip, source)]);
    }
    parts
}

impl Part {
    /// Whether a new veth pair is created with it.
    fn made_with_pair(&self) -> bool {
        matches!(self, Self::Name(_) | Self::Mac(_) | Self::Mtu(_) | Self::Free)
    }

    /// The kind of part, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Name(_) => "name",
            Self::Alias(_) => "alias",
            Self::Mac(_) => "mac",
            Self::Mtu(_) => "mtu",
            Self::Free => "controller",
            Self::Queue(_) => "queue",
            Self::Up => "up",
            Self::Address(..) => "address",
            Self::Neighbour(..) => "neighbour",
            Self::Route(..) => "route",
        }
    }

    fn op(&self, index: IfIndex) -> Op {
        match self {
            Self::Name(name) => Op::set_name(index, name),
            Self::Alias(alias) => Op::set_alias(index, alias),
            Self::Mac(mac) => Op::set_mac(index, *mac),
            Self::Mtu(mtu) => Op::set_mtu(index, *mtu),
            Self::Free => Op::no_controller(index),
            Self::Queue(bucket) => Op::set_queue(index, bucket),
            Self::Up => Op::up(index),
            Self::Address(address, scope) => Op::add_address(index, *address, *scope),
            Self::Neighbour(ip, mac) => Op::add_neighbour(index, *ip, *mac),
            Self::Route(ip, source) => Op::add_route(&Route {
                destination: Some(IpNetwork::from(*ip)),
                gateway: None,
                oif: index,
                source: *source,
            }),
        }
    }

    fn holds(&self, seen: &Seen) -> bool {
        match self {
            Self::Name(name) => seen.link.name == *name,
            Self::Alias(alias) => seen.link.alias == *alias,
            Self::Mac(mac) => seen.link.mac == *mac,
            Self::Mtu(mtu) => seen.link.mtu >= *mtu,
            Self::Free => seen.link.controller.is_none(),
            Self::Queue(bucket) => seen.queues.contains(&(seen.link.index, bucket.rate, bucket.limit)),
            Self::Up => seen.link.up,
            Self::Address(address, _) => {
                seen.addresses.iter().any(|a| a.link == seen.link.index && a.network == *address)
            }
            Self::Neighbour(ip, mac) => seen.neighbours.contains(&(*ip, *mac)),
            // Otherwise the kernel has chosen the source.
            Self::Route(ip, Some(source)) => seen.routes.contains(&(*ip, Some(*source))),
            Self::Route(ip, None) => seen.routes.iter().any(|(to, source)| to == ip && !seen.is_gateway(source)),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "name {name}"),
            Self::Alias(_) => f.write_str("alias"),
            Self::Mac(mac) => write!(f, "MAC address {mac}"),
            Self::Mtu(mtu) => write!(f, "MTU {mtu}"),
            Self::Free => f.write_str("standalone state (no bridge or bond)"),
            Self::Queue(bucket) => write!(f, "rate limit of {} bit/s", bucket.rate * 8),
            Self::Up => f.write_str("link state up"),
            Self::Address(address, _) => write!(f, "address {}", address.ip()),
            Self::Neighbour(ip, _) => write!(f, "neighbour {ip}"),
            Self::Route(ip, _) => write!(f, "route to {ip}"),
        }
    }
}

/// The actual state of a host end, as far as its record defines it.
struct Seen {
    link: Link,
    /// The addresses of all links.
    addresses: Vec<Address>,
    queues: Vec<(IfIndex, u64, u32)>,
    neighbours: Vec<(IpAddr, Mac)>,
    /// The pod addresses whose route leads through this link, with the route's source address.
    routes: Vec<(IpAddr, Option<IpAddr>)>,
}

impl Seen {
    /// Reads it. `addresses` are those of all links.
    fn look(host: &mut Netlink, index: IfIndex, record: &Record, addresses: Vec<Address>) -> Result<Self, WiringError> {
        let mut ops = vec![Op::get_link_index(index)];
        for &ip in &record.ips {
            ops.extend([Op::get_neighbour(index, ip), Op::get_route(ip)]);
        }
        let mut outcomes = host.outcomes(&ops)?.into_iter();
        let link = outcomes.next().transpose()?.unwrap_or_default().into_iter().find_map(Answer::link);
        let link = link.ok_or_else(|| NetlinkError::Answer("no link was returned".into()))?;
        // Few pods have a limit.
        let queues = if record.bandwidth.ingress.is_some() { host.queues()? } else { Vec::new() };
        let mut seen = Self { link, addresses, queues, neighbours: Vec::new(), routes: Vec::new() };
        // A missing neighbour or route is an error of its request alone.
        for (answers, asked) in outcomes.zip(record.ips.iter().flat_map(|ip| [ip, ip])) {
            for answer in answers.into_iter().flatten() {
                match answer {
                    Answer::Neighbour(_, ip, mac) => seen.neighbours.push((ip, mac)),
                    Answer::Route(r) if r.oif == index && r.gateway.is_none() => seen.routes.push((*asked, r.source)),
                    _ => {}
                }
            }
        }
        Ok(seen)
    }

    fn is_lonely(&self) -> bool {
        is_lonely(&self.addresses)
    }

    /// Whether a source address belongs to the link itself.
    fn is_gateway(&self, source: &Option<IpAddr>) -> bool {
        let own = self.addresses.iter().filter(|a| a.link == self.link.index && a.network.is_ipv4());
        own.map(|a| a.network.ip()).any(|ip| *source == Some(ip))
    }
}

/// Whether the node has no IPv4 address that the kernel could choose as source address. Then the gateway's address is
/// the source of its packets to pods.
fn is_lonely(addresses: &[Address]) -> bool {
    !addresses.iter().any(|address| address.global && address.network.is_ipv4())
}

/// Creates the parts that a new pair lacks; this brings the link up.
pub(crate) fn make(host: &mut Netlink, record: &Record, alias: &str) -> Result<(), WiringError> {
    let index = IfIndex(record.host_ifindex);
    let mut ops = vec![Op::no_generated_addresses(&record.host_ifname)];
    let lonely = is_lonely(&host.addresses()?);
    ops.extend(parts(record, alias, lonely).iter().filter(|part| !part.made_with_pair()).map(|part| part.op(index)));
    host.run(&ops)?;
    Ok(())
}

/// The missing parts that affect the pod's traffic. So neither the alias nor the source address of the route counts.
pub(crate) fn lacks(host: &mut Netlink, record: &Record) -> Result<Vec<Part>, WiringError> {
    let addresses = host.addresses()?;
    let seen = Seen::look(host, IfIndex(record.host_ifindex), record, addresses)?;
    let mut parts = parts(record, "", seen.is_lonely());
    parts.retain(|part| match part {
        Part::Alias(_) => false,
        Part::Route(ip, _) => !seen.routes.iter().any(|(to, _)| to == ip),
        part => !part.holds(&seen),
    });
    Ok(parts)
}

/// The outcome of a repair.
#[derive(Debug, Default)]
pub struct Mended {
    /// Parts that were missing.
    pub parts: Vec<Part>,
    /// Parts that are still missing, with the kernel's error if there is one.
    pub left: Vec<(Part, Option<NetlinkError>)>,
}

/// Restores the missing parts of a host end. `addresses` are those of all links, read a moment ago.
pub(crate) fn mend(
    host: &mut Netlink,
    index: IfIndex,
    record: &Record,
    alias: &str,
    addresses: &[Address],
) -> Result<Mended, WiringError> {
    let parts = parts(record, alias, is_lonely(addresses));
    let mut seen = Seen::look(host, index, record, addresses.to_vec())?;
    let mut mended = Mended::default();
    for _ in 0..ROUNDS {
        let mut refused = Vec::new();
        for part in parts.iter().filter(|part| !part.holds(&seen)) {
            if !mended.parts.contains(part) {
                mended.parts.push(part.clone());
            }
            refused.extend(put_back(host, index, part).err().map(|error| (part, error)));
        }
        if mended.parts.is_empty() {
            break;
        }
        let addresses = host.addresses()?;
        seen = Seen::look(host, index, record, addresses)?;
        let mut reason = |part: &Part| {
            let at = refused.iter().position(|(other, _)| *other == part)?;
            Some(refused.swap_remove(at).1)
        };
        mended.left = parts.iter().filter(|part| !part.holds(&seen)).map(|part| (part.clone(), reason(part))).collect();
        if mended.left.is_empty() {
            break;
        }
    }
    Ok(mended)
}

fn put_back(host: &mut Netlink, index: IfIndex, part: &Part) -> Result<(), NetlinkError> {
    match host.run(&[part.op(index)]) {
        Err(e) if matches!(part, Part::Name(_)) && e.errno() == Some(libc::EBUSY) => {
            // The link is set up again even if it cannot be renamed.
            host.outcomes(&[Op::down(index), part.op(index), Op::up(index)])?
                .into_iter()
                .try_for_each(|done| done.map(drop))
        }
        other => other.map(drop),
    }
}
