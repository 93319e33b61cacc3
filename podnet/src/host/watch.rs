//! Notifications about changes of links, addresses, routes or neighbours, debounced.
//!
//! A notification names only the kinds that changed: the daemon then reads a new [`super::Snapshot`] and decides from
//! that, so that lost or reordered messages do no harm. If the kernel reports lost messages, everything counts as
//! changed. Changes of pods' interfaces are reported separately: nothing about the node depends on them, and starting a
//! hundred pods must not cause a hundred snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podnet_common::addr::{IfIndex, Mac};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::error::HostError;
use super::names::ROUTE_PROTOCOL;
use super::raw::{self, Raw};
use super::snapshot::{Link, Snapshot};
use super::{messages, netconf, next_hops};

const GROUPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Tc,
];

/// Groups whose messages are read without netlink-packet-route.
const RAW_GROUPS: &[MulticastGroup] =
    &[MulticastGroup::Nexthop, MulticastGroup::Ipv4Netconf, MulticastGroup::Ipv6Netconf];

/// How long changes are collected before they are reported.
#[derive(Clone, Copy, Debug)]
pub struct Debounce {
    /// Report after this long without a change.
    pub quiet: Duration,
    /// Report at most this long after the first change.
    pub at_most: Duration,
}

impl Default for Debounce {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(50), at_most: Duration::from_millis(500) }
    }
}

/// Kinds of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Interfaces.
    pub links: bool,
    /// Addresses.
    pub addresses: bool,
    /// Routes.
    pub routes: bool,
    /// MACs of neighbours, but not every state change of an entry.
    pub neighbours: bool,
    /// Pods' interfaces with changes that are none of the above.
    pub pods: BTreeSet<IfIndex>,
    /// Destinations of host routes, which may be pods' addresses.
    pub hosts: BTreeSet<IpAddr>,
    /// Messages were lost: pods' interfaces that aren't named may have changed too.
    pub lost: bool,
}

impl Change {
    /// Everything may have changed.
    pub const ALL: Self = Self {
        links: true,
        addresses: true,
        routes: true,
        neighbours: true,
        pods: BTreeSet::new(),
        hosts: BTreeSet::new(),
        lost: true,
    };

    /// Whether anything about the node itself has changed.
    pub fn of_node(&self) -> bool {
        self.links || self.addresses || self.routes || self.neighbours
    }

    fn any(&self) -> bool {
        *self != Self::default()
    }

    fn of_pod(index: IfIndex) -> Self {
        Self { pods: [index].into(), ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.routes |= other.routes;
        self.neighbours |= other.neighbours;
        self.pods.extend(other.pods);
        self.hosts.extend(other.hosts);
        self.lost |= other.lost;
    }
}

type Message = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

/// Number of pods' interfaces beyond which those that are gone are forgotten.
const PODS_MANY: usize = 4096;

/// State from earlier messages.
#[derive(Debug, Default)]
struct Known {
    /// The neighbours' MACs, to distinguish a new MAC from a mere change of state.
    macs: BTreeMap<(IfIndex, IpAddr), Mac>,
    /// The pods' interfaces. They stay here after their removal, since messages about their routes follow.
    pods: BTreeSet<IfIndex>,
}

/// A subscription to changes in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Watcher {
    debounce: Debounce,
    subscription: Subscription,
    known: Known,
    pending: Change,
    first: Instant,
    last: Instant,
    /// The last attempt to subscribe again has failed.
    failing: bool,
}

/// The stream of messages, and the task that receives them.
#[derive(Debug)]
struct Subscription {
    messages: UnboundedReceiver<Message>,
    raw: raw::Notices,
    connections: JoinHandle<()>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.connections.abort();
    }
}

impl Watcher {
    /// Subscribes. Changes from now on are reported; a snapshot taken afterwards misses none.
    pub fn open(debounce: Debounce) -> Result<Self, HostError> {
        let subscription = subscribe()?;
        let now = Instant::now();
        let pending = Change::default();
        Ok(Self { debounce, subscription, known: Known::default(), pending, first: now, last: now, failing: false })
    }

    /// Adds existing neighbours and pods' interfaces, since those older than the subscription have not been announced.
    pub fn learn(&mut self, snapshot: &Snapshot) {
        self.known.learn(snapshot);
    }

    /// Waits for changes. Cancel-safe: dropping the future loses nothing.
    pub async fn changed(&mut self) -> Change {
        loop {
            let due = (self.last + self.debounce.quiet).min(self.first + self.debounce.at_most);
            tokio::select! {
                biased;
                () = sleep_until(due), if self.pending.any() => return std::mem::take(&mut self.pending),
                message = self.subscription.messages.next() => match message {
                    Some((message, _)) => {
                        let change = classify(message.payload, &mut self.known);
                        self.note(change);
                    }
                    None => self.reopen().await,
                },
                message = self.subscription.raw.next() => match message {
                    Some((message, _)) => {
                        let change = self.known.raw_change(message.payload);
                        self.note(change);
                    }
                    None => self.reopen().await,
                },
            }
        }
    }

    fn note(&mut self, change: Change) {
        if !change.any() {
            return;
        }
        self.last = Instant::now();
        if !self.pending.any() {
            self.first = self.last;
        }
        self.pending.add(change);
    }

    /// Reopens an ended connection. Everything may have changed meanwhile.
    async fn reopen(&mut self) {
        sleep(Duration::from_secs(1)).await;
        match subscribe() {
            Ok(subscription) => {
                self.subscription = subscription;
                self.known.macs.clear();
                self.failing = false;
                self.note(Change::ALL);
            }
            Err(_) if self.failing => {}
            Err(error) => {
                self.failing = true;
                tracing::warn!(%error, "cannot watch the host's network for changes, retrying every second");
            }
        }
    }
}

fn subscribe() -> Result<Subscription, HostError> {
    let (connection, _, messages) = rtnetlink::new_multicast_connection(GROUPS).map_err(HostError::Socket)?;
    let (of_raw, raw) = raw::subscribe(RAW_GROUPS).map_err(HostError::Socket)?;
    // When one connection ends, so does the other: both are reopened.
    let connections = tokio::spawn(async { drop(futures::future::select(connection, of_raw).await) });
    Ok(Subscription { messages, raw, connections })
}

/// The changes that a message reports.
fn classify(payload: NetlinkPayload<RouteNetlinkMessage>, known: &mut Known) -> Change {
    match payload {
        NetlinkPayload::InnerMessage(message) => known.change(message),
        NetlinkPayload::Overrun(_) => {
            known.macs.clear();
            Change::ALL
        }
        _ => Change::default(),
    }
}

impl Known {
    fn learn(&mut self, snapshot: &Snapshot) {
        if self.pods.len() > PODS_MANY {
            let there: BTreeSet<IfIndex> = snapshot.links.iter().map(|link| link.ifindex).collect();
            self.pods.retain(|index| there.contains(index));
        }
        self.pods.extend(snapshot.links.iter().filter(|link| link.is_host_end()).map(|link| link.ifindex));
        let usable = snapshot.neighbours.iter().filter_map(|n| Some(((n.ifindex, n.addr), n.mac?)));
        self.macs.extend(usable.filter(|((ifindex, _), _)| !self.pods.contains(ifindex)));
    }

    fn change(&mut self, message: RouteNetlinkMessage) -> Change {
        let nothing = Change::default();
        match message {
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message) => {
                self.link(messages::link(message))
            }
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
                let index = IfIndex(message.header.index);
                match self.pods.contains(&index) {
                    true => Change::of_pod(index),
                    false => Change { addresses: true, ..nothing },
                }
            }
            // New routes of podnet's protocol are echoes of its own changes: thousands of them when it starts.
            RouteNetlinkMessage::DelRule(message) => Change { routes: messages::is_service_rule(&message), ..nothing },
            RouteNetlinkMessage::NewRoute(message) if message.header.protocol == ROUTE_PROTOCOL.into() => nothing,
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                if let Some(local) = messages::local_route(&message) {
                    return Change { addresses: !self.pods.contains(&local.dev), ..nothing };
                }
                // A new route may replace a pod's without a message about the latter.
                let hosts: BTreeSet<IpAddr> = single_destination(&message).into_iter().collect();
                let Some((_, route)) = messages::route(message, |_| Some(Vec::new())) else {
                    return Change { hosts, ..nothing };
                };
                let of_pods = route.hops.iter().map(|hop| hop.dev).filter(|dev| self.pods.contains(dev));
                let pods: BTreeSet<IfIndex> = of_pods.collect();
                let only_pods = !route.hops.is_empty() && route.hops.iter().all(|hop| pods.contains(&hop.dev));
                Change { routes: !only_pods, pods, hosts, ..nothing }
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                let Some(neighbour) = messages::neighbour(message) else { return nothing };
                if self.pods.contains(&neighbour.ifindex) {
                    return Change::of_pod(neighbour.ifindex);
                }
                let key = (neighbour.ifindex, neighbour.addr);
                let before = match neighbour.mac {
                    Some(mac) => self.macs.insert(key, mac),
                    None => self.macs.remove(&key),
                };
                Change { neighbours: before != neighbour.mac, ..nothing }
            }
            // The tunnel's forwarding table leads to nodes, as neighbours do.
            RouteNetlinkMessage::DelNeighbour(message) if message.header.family == AddressFamily::Bridge => {
                Change { neighbours: messages::forwarding(message).is_some(), ..nothing }
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                let Some(neighbour) = messages::neighbour(message) else { return nothing };
                if self.pods.contains(&neighbour.ifindex) {
                    return Change::of_pod(neighbour.ifindex);
                }
                let gone = self.macs.remove(&(neighbour.ifindex, neighbour.addr));
                Change { neighbours: gone.is_some(), ..nothing }
            }
            // Removing a clsact qdisc also removes its filters, without messages about these.
            RouteNetlinkMessage::DelQueueDiscipline(message) | RouteNetlinkMessage::DelTrafficFilter(message) => {
                let index = IfIndex(message.header.index.cast_unsigned());
                match self.pods.contains(&index) {
                    true => Change::of_pod(index),
                    false => Change { links: is_of_hooks(&message), ..nothing },
                }
            }
            _ => nothing,
        }
    }

    /// The changes that an unparsed message reports.
    fn raw_change(&self, payload: NetlinkPayload<Raw>) -> Change {
        let nothing = Change::default();
        match payload {
            NetlinkPayload::InnerMessage(message) if next_hops::is_about(&message) => {
                Change { routes: true, ..nothing }
            }
            NetlinkPayload::InnerMessage(message) => match netconf::changed(&message) {
                Some(netconf::Scope::Interface(index)) if self.pods.contains(&index) => Change::of_pod(index),
                Some(_) => Change { links: true, ..nothing },
                None => nothing,
            },
            NetlinkPayload::Overrun(_) => Change::ALL,
            _ => nothing,
        }
    }

    /// Records pods' interfaces.
    fn link(&mut self, link: Option<Link>) -> Change {
        let Some(link) = link else { return Change::default() };
        if link.is_host_end() {
            self.pods.insert(link.ifindex);
        }
        // Indexes aren't reused, so a pod's interface remains one even if it is renamed.
        match self.pods.contains(&link.ifindex) {
            true => Change::of_pod(link.ifindex),
            false => Change { links: true, ..Change::default() },
        }
    }
}

/// Whether a qdisc or filter is, or may be, of a kind used for attaching hooks.
fn is_of_hooks(message: &TcMessage) -> bool {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    kind.is_none_or(|kind| ["clsact", "bpf"].contains(&kind))
}

/// The destination of a host route, `None` for other routes.
fn single_destination(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match (attribute, message.header.destination_prefix_length) {
        (RouteAttribute::Destination(RouteAddress::Inet(ip)), 32) => Some(IpAddr::V4(*ip)),
        (RouteAttribute::Destination(RouteAddress::Inet6(ip)), 128) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::snapshot::{LinkKind, Neighbour};
    use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
    use netlink_packet_route::route::{RouteHeader, RouteType};

    fn neighbour(state: NeighbourState, last: u8) -> NetlinkPayload<RouteNetlinkMessage> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 2;
        message.header.state = state;
        let addr = "172.30.0.2".parse().unwrap();
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, last]));
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))
    }

    #[test]
    fn a_neighbour_counts_when_its_mac_changes_and_not_when_its_state_does() {
        let mut known = Known::default();
        let mut neighbours = |state, last| classify(neighbour(state, last), &mut known).neighbours;
        assert!(neighbours(NeighbourState::Reachable, 2));
        assert!(!neighbours(NeighbourState::Stale, 2));
        assert!(!neighbours(NeighbourState::Probe, 2));
        assert!(neighbours(NeighbourState::Reachable, 3), "another card");
        assert!(neighbours(NeighbourState::Failed, 3), "it no longer answers");
    }

    #[test]
    fn a_neighbour_that_was_there_before_counts_when_it_goes() {
        let gone = || {
            let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) =
                neighbour(NeighbourState::Permanent, 2)
            else {
                unreachable!("it is one")
            };
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message))
        };
        let mut known = Known::default();
        assert!(!classify(gone(), &mut known).neighbours, "it may never have answered");
        let addr = "172.30.0.2".parse().unwrap();
        let mac = Some(Mac([2, 0, 0, 0, 0, 2]));
        let neighbours = vec![Neighbour { ifindex: IfIndex(2), addr, mac, permanent: true, fresh: true }];
        known.learn(&Snapshot { neighbours, ..Snapshot::default() });
        assert!(classify(gone(), &mut known).neighbours);
    }

    #[test]
    fn pods_interfaces_that_were_there_before_are_known() {
        let removed = |index: i32| {
            let mut message = TcMessage::default();
            message.header.index = index;
            message.attributes.push(TcAttribute::Kind("clsact".into()));
            RouteNetlinkMessage::DelQueueDiscipline(message)
        };
        let host_end = |index: u32| Link {
            name: format!("lan{index}"),
            alias: "podnet /var/lib/podnet".into(),
            ifindex: IfIndex(index),
            kind: LinkKind::Veth,
            ..Link::default()
        };
        let snapshot =
            |indexes: std::ops::Range<u32>| Snapshot { links: indexes.map(host_end).collect(), ..Snapshot::default() };
        let mut known = Known::default();
        known.learn(&snapshot(7..9));
        assert_eq!(known.change(removed(7)), Change::of_pod(IfIndex(7)));
        // Many come and go; those that stay are not forgotten.
        for index in 100..100 + PODS_MANY as u32 {
            known.link(Some(host_end(index)));
        }
        known.learn(&snapshot(7..9));
        assert_eq!(known.pods, [7, 8].map(IfIndex).into());
    }

    #[test]
    fn additions_of_podnets_own_routes_are_ignored_and_removals_count() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes.push(RouteAttribute::Oif(7));
        let routes = |gone: bool, protocol: u8, kind: RouteType, pods: &[u32]| {
            let mut message = message.clone();
            (message.header.protocol, message.header.kind) = (protocol.into(), kind);
            let change = if gone { RouteNetlinkMessage::DelRoute } else { RouteNetlinkMessage::NewRoute };
            let mut known = Known { pods: pods.iter().copied().map(IfIndex).collect(), ..Known::default() };
            classify(NetlinkPayload::InnerMessage(change(message)), &mut known).routes
        };
        for kind in [RouteType::Unicast, RouteType::Unreachable] {
            assert!(routes(false, 4, kind, &[]) && !routes(false, ROUTE_PROTOCOL, kind, &[]));
            assert!(routes(true, ROUTE_PROTOCOL, kind, &[]), "somebody may have removed it");
        }
        assert!(!routes(true, 4, RouteType::Unicast, &[7]), "a pod's, whose own matter it is");
        assert!(routes(true, 4, RouteType::Unreachable, &[7]), "it leads to no interface");
    }

    #[test]
    fn changes_of_pods_interfaces_name_them_and_are_not_the_nodes() {
        let mut known = Known { pods: [IfIndex(7)].into(), ..Known::default() };
        let mut change = |message| known.change(message);
        let mut address = netlink_packet_route::address::AddressMessage::default();
        address.header.index = 7;
        for message in [RouteNetlinkMessage::NewAddress(address.clone()), RouteNetlinkMessage::DelAddress(address)] {
            let change = change(message);
            assert!(change.pods == [IfIndex(7)].into() && !change.of_node(), "{change:?}");
        }
        // A pod's interface under another name.
        let mut link = netlink_packet_route::link::LinkMessage::default();
        link.header.index = 7;
        link.attributes.push(netlink_packet_route::link::LinkAttribute::IfName("lan0".into()));
        let renamed = change(RouteNetlinkMessage::NewLink(link));
        assert!(renamed.pods == [IfIndex(7)].into() && !renamed.of_node(), "{renamed:?}");
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        (route.header.destination_prefix_length, route.header.kind) = (32, RouteType::BlackHole);
        let to: IpAddr = "10.244.1.5".parse().unwrap();
        route.attributes.push(RouteAttribute::Destination(to.into()));
        assert_eq!(change(RouteNetlinkMessage::NewRoute(route)).hosts, [to].into());
    }

    #[test]
    fn lost_messages_mean_that_everything_may_have_changed() {
        assert_eq!(classify(NetlinkPayload::Overrun(Vec::new()), &mut Known::default()), Change::ALL);
    }
}
