//! Garbage collection of the connection table: flows that have been idle for too long, and flows whose backend is
//! gone.
//!
//! Both halves of a flow carry the same time (within a tick), since a packet of either direction updates both; so
//! each half is judged on its own.
//!
//! A sweep runs on a thread of its own beside the event loop, since a million entries take some tenths of a second.
//! Only the event loop knows which backends exist. So a sweep gets the stale paths among those that the previous
//! sweep has seen, and returns all paths that it has seen, among which the event loop may find more stale ones: then
//! the next sweep follows at once. [`Collector`] keeps this account.
//!
//! Of a flow with a stale path the client's half is removed first, so that the client's next packet begins a new
//! flow, and the backend's half a second later, so that replies in flight are still translated.
//!
//! A sweep also recounts the entries per holder (`holders`). The counts decide whose new flows the programs refuse
//! when the table is nearly full, and whose flows get shorter timeouts.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use podnet_common::{
    addr::{Addr, IfIndex, Port, Proto},
    layout::{Backend, CtEntry, FrontendKey, Out, Prefix, Tuple, holders},
    removal::{AT_ONCE, Removal},
    time,
};

use super::{
    batch,
    holders::{Count, Held, Hurry},
    removal::Remover,
};

/// Timeouts of idle flows, in seconds. The values are those of Linux (`nf_conntrack_*_timeout*`), except for
/// established TCP flows, where they follow kube-proxy.
mod seconds {
    pub(super) const TCP_ESTABLISHED: u64 = 86_400;
    /// Clients retransmit a SYN after one, three and seven seconds.
    pub(super) const TCP_OPENING: u64 = 30;
    pub(super) const TCP_CLOSING: u64 = 120;
    pub(super) const CLOSED: u64 = 10;
    pub(super) const UDP_REPLIED: u64 = 120;
    pub(super) const UDP_UNREPLIED: u64 = 30;
    /// A heartbeat is sent every 30 seconds (RFC 9260, section 16), and up to five go unanswered.
    pub(super) const SCTP_ESTABLISHED: u64 = 210;
    pub(super) const SCTP_OPENING: u64 = 60;
    pub(super) const ICMP: u64 = 30;
    /// Upper limit under pressure, for flows that are probably over.
    pub(super) const HURRY: u64 = 5;
    /// The same for UDP flows with traffic in both directions for a while, which may send keepalives every 25 seconds
    /// (WireGuard).
    pub(super) const UDP_HURRY: u64 = 30;
}

/// How long after the start of a daemon no flow is judged by its time. Without a daemon the clock doesn't advance for
/// packets of established flows, so entries of live flows may look old; within this time each live flow has had a
/// packet.
pub const SETTLING: Duration = Duration::from_secs(seconds::TCP_CLOSING + 10);

/// How long replies of a backend that is gone are still expected.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Timeout of an idle flow, in ticks. Pressure (`hurry`) shortens it for flows that are probably over, and for those
/// of direct server return: their replies take another path, so a first SYN can't be told from an established
/// connection, and without its entry such a flow gets the same backend again by Maglev hashing.
fn patience(tuple: &Tuple, entry: &CtEntry, hurry: bool) -> u32 {
    let has = |flags| entry.flags & flags != 0;
    let one_way = has(CtEntry::ONE_WAY);
    let established = has(CtEntry::REPLIED) && !has(CtEntry::OPENING);
    let (seconds, at_most) = match tuple.proto {
        Proto::TCP | Proto::SCTP if entry.doubtful() => (seconds::TCP_CLOSING, seconds::HURRY),
        Proto::TCP | Proto::SCTP if entry.closed() => (seconds::CLOSED, seconds::HURRY),
        Proto::TCP if has(CtEntry::OPENING) => (seconds::TCP_OPENING, seconds::HURRY),
        Proto::TCP if has(CtEntry::CLOSED) => (seconds::TCP_CLOSING, seconds::HURRY),
        Proto::TCP if established => (seconds::TCP_ESTABLISHED, seconds::TCP_ESTABLISHED),
        Proto::TCP if one_way => (seconds::TCP_ESTABLISHED, seconds::HURRY),
        Proto::TCP => (seconds::TCP_OPENING, seconds::HURRY),
        Proto::SCTP if established => (seconds::SCTP_ESTABLISHED, seconds::SCTP_ESTABLISHED),
        Proto::SCTP if one_way => (seconds::SCTP_ESTABLISHED, seconds::HURRY),
        Proto::SCTP => (seconds::SCTP_OPENING, seconds::HURRY),
        Proto::ICMP | Proto::ICMPV6 => (seconds::ICMP, seconds::HURRY),
        _ if established => (seconds::UDP_REPLIED, seconds::UDP_HURRY),
        _ if one_way => (seconds::UDP_REPLIED, seconds::HURRY),
        _ => (seconds::UDP_UNREPLIED, seconds::HURRY),
    };
    time::ticks_of_seconds(if hurry { seconds.min(at_most) } else { seconds })
}

/// Path of UDP flows from a frontend to a backend. Flows may outlive it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    frontend: (Addr, Port),
    /// Address and port of the backend. With direct server return only the backend's node is known, and there is no
    /// port.
    end: (Addr, Option<Port>),
}

/// End of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A backend.
    Backend(Backend),
    /// Another node, which selects the backend.
    Node(IpAddr),
}

impl Way {
    /// The path of an entry, if it belongs to a UDP flow of a service.
    fn of(tuple: &Tuple, entry: &CtEntry) -> Option<Self> {
        // Without a service: a flow of a pod to a destination outside the cluster, which depends on no backend.
        if tuple.proto != Proto::UDP || entry.service == 0 {
            return None;
        }
        // The client's half has the frontend in its key; the reply's half has it as the source after translation.
        let (frontend, backend) = if entry.flags & CtEntry::REPLY == 0 {
            ((tuple.dst, tuple.dport), (entry.dst, entry.dport))
        } else {
            ((entry.src, entry.sport), (tuple.src, tuple.sport))
        };
        let one_way = entry.flags & CtEntry::ONE_WAY != 0;
        Some(Self { frontend, end: (backend.0, (!one_way).then_some(backend.1)) })
    }

    /// The frontend, with the scope for any client.
    pub fn frontend(&self) -> FrontendKey {
        let (addr, port) = self.frontend;
        FrontendKey { addr, port, proto: Proto::UDP, scope: FrontendKey::ANY }
    }

    /// The end of the path.
    pub fn end(&self) -> End {
        match self.end {
            (addr, Some(port)) => End::Backend(Backend { addr, port, proto: Proto::UDP, _pad: 0 }),
            (addr, None) => End::Node(addr.into()),
        }
    }
}

/// Stale paths, and whether the time for last replies is over.
pub type Stale = HashMap<Way, bool>;

/// Result of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries in the table now.
    pub entries: u32,
    /// Entries removed.
    pub removed: u32,
    /// Paths of the flows that were kept.
    pub ways: HashSet<Way>,
    /// Holders with shorter timeouts.
    pub hurry: Hurry,
}

/// The pods of this node.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// Host end of a pod, by the pod's address.
    addresses: HashMap<Addr, IfIndex>,
    /// All host ends.
    host_ends: HashSet<IfIndex>,
}

impl FromIterator<(Addr, IfIndex)> for Pods {
    fn from_iter<I: IntoIterator<Item = (Addr, IfIndex)>>(pods: I) -> Self {
        let addresses: HashMap<_, _> = pods.into_iter().collect();
        Self { host_ends: addresses.values().copied().collect(), addresses }
    }
}

/// Reads [`Pods`].
pub type ReadPods = dyn Fn() -> io::Result<Pods> + Send;

/// A sweep, to be run on any thread.
pub struct Sweep {
    /// The table.
    pub table: OwnedFd,
    /// The program that removes its entries.
    pub remover: Remover,
    /// Its size in entries.
    pub capacity: u32,
    /// Entries per holder.
    pub holders: OwnedFd,
    /// Current time in ticks. `None`: no flow times out, as long as entries may be older than their last packet.
    pub now: Option<u32>,
    /// Stale paths.
    pub stale: Stale,
    /// Holders under pressure at the last sweeps.
    pub hurry: Hurry,
    /// The pods; a flow from or to any other pod ends.
    pub pods: Box<ReadPods>,
    /// The node itself.
    pub node: Node,
}

/// Addresses of the node.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The node's own addresses.
    pub addresses: HashSet<Addr>,
    /// Pod CIDRs of the node.
    pub pods: Vec<Prefix>,
    /// The interface by which flows of the node's own processes arrive.
    pub podnet1: IfIndex,
}

impl Sweep {
    /// Removes stale and expired entries. Takes time in proportion to the table.
    pub fn run(&self) -> io::Result<Swept> {
        let count = Count::begin(self.holders.as_fd())?;
        let settled = self.now.is_some();
        // Usually the pressure of the last sweeps is all there is, and the table is read once.
        let before = if settled { self.hurry.lasting() } else { Hurry::default() };
        let (mut swept, mut held) = self.once(&before)?;
        if settled {
            let hurry = before.with(&held, self.capacity);
            if hurry.exceeds(&before) {
                let (after, held_after) = self.once(&hurry)?;
                swept = Swept { removed: swept.removed + after.removed, ..after };
                held = held_after;
            }
            swept.hurry = hurry;
        }
        count.end(held, self.capacity)?;
        Ok(swept)
    }

    fn once(&self, hurry: &Hurry) -> io::Result<(Swept, Held)> {
        let table = self.table.as_fd();
        let (mut ways, mut held) = (HashSet::new(), Held::none());
        let (remover, pods, reread) = (&self.remover, (self.pods)()?, &*self.pods);
        let mut bin = Bin { remover, pods, reread, over: vec![], homeless: vec![], removed: 0 };
        let (mut seen, mut result) = (0u32, Ok(()));
        batch::for_each(table, |tuple: &Tuple, entry: &CtEntry| {
            seen += 1;
            let place = || self.place(tuple, entry, &bin.pods);
            let over = |hurry| self.now.is_some_and(|now| is_over(tuple, entry, now, hurry));
            let binned = if over(false) || (over(true) && hurry.concerns(place())) {
                bin.over(Removal::unseen_since(*tuple, entry.last_seen))
            } else {
                match judge(tuple, entry, &self.stale, &bin.pods, &self.node) {
                    Fate::Stays(way) => {
                        ways.extend(way);
                        held.add(place());
                        Ok(())
                    }
                    Fate::Stale => bin.over(Removal::always(*tuple)),
                    Fate::Homeless(pod) => bin.homeless(pod, *tuple),
                }
            };
            if let Err(error) = binned {
                result = Err(error);
            }
        })?;
        result?;
        let removed = bin.empty()?;
        Ok((Swept { entries: seen.saturating_sub(removed), removed, ways, hurry: Hurry::default() }, held))
    }

    /// Holder of a flow: the index in `holders` of the pod or client that began it.
    fn place(&self, tuple: &Tuple, entry: &CtEntry, pods: &Pods) -> u32 {
        let client = if entry.flags & CtEntry::REPLY == 0 { tuple.src } else { entry.dst };
        match pods.addresses.get(&client) {
            Some(host_end) => holders::of_interface(*host_end),
            None if self.node.addresses.contains(&client) => holders::of_interface(self.node.podnet1),
            None => holders::of_client(&client),
        }
    }
}

/// Verdict on an entry that has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It stays, with the path of its flow, if it has one.
    Stays(Option<Way>),
    /// It is stale and gets removed.
    Stale,
    /// It belongs to an unknown pod.
    Homeless(IfIndex),
}

fn judge(tuple: &Tuple, entry: &CtEntry, stale: &Stale, pods: &Pods, node: &Node) -> Fate {
    let unknown = |ifindex: IfIndex| (!pods.host_ends.contains(&ifindex)).then_some(ifindex);
    let into = ([Out::Pod as u8, Out::Queue as u8].contains(&entry.out)).then_some(entry.out_ifindex).and_then(unknown);
    // These addresses arrive on no other interface.
    let of_pod = entry.flags & CtEntry::REPLY == 0 && node.pods.iter().any(|range| range.contains(&tuple.src));
    let came_in = entry.in_ifindex.0 != 0 && i32::try_from(entry.in_ifindex.0).is_ok();
    let from = || (of_pod && came_in).then_some(entry.in_ifindex).and_then(unknown);
    if let Some(pod) = into.or_else(from) {
        return Fate::Homeless(pod);
    }
    let way = Way::of(tuple, entry);
    match way.as_ref().and_then(|way| stale.get(way)) {
        Some(answered) if *answered || entry.flags & CtEntry::REPLY == 0 => Fate::Stale,
        _ => Fate::Stays(way),
    }
}

/// Entries to be removed. They are removed frame by frame, so that removing a million entries takes no memory for
/// them.
struct Bin<'a> {
    remover: &'a Remover,
    pods: Pods,
    reread: &'a ReadPods,
    /// Less than a frame of removals.
    over: Vec<Removal>,
    /// Entries of unknown pods. The pods are read again before these are removed, since one may have been added
    /// during the sweep, before its first flow.
    homeless: Vec<(IfIndex, Tuple)>,
    removed: u32,
}

impl Bin<'_> {
    /// Entries of unknown pods per reading of the pods.
    const MANY: usize = 4096;

    fn over(&mut self, removal: Removal) -> io::Result<()> {
        self.over.push(removal);
        if self.over.len() < AT_ONCE { Ok(()) } else { self.remove() }
    }

    fn homeless(&mut self, pod: IfIndex, key: Tuple) -> io::Result<()> {
        self.homeless.push((pod, key));
        if self.homeless.len() < Self::MANY { Ok(()) } else { self.look_again() }
    }

    fn look_again(&mut self) -> io::Result<()> {
        if self.homeless.is_empty() {
            return Ok(());
        }
        self.pods = (self.reread)()?;
        for (pod, key) in std::mem::take(&mut self.homeless) {
            if !self.pods.host_ends.contains(&pod) {
                self.over(Removal::of_interface(key, pod))?;
            }
        }
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        let removed = self.remover.remove(&self.over);
        self.over.clear();
        self.removed += removed?;
        Ok(())
    }

    fn empty(mut self) -> io::Result<u32> {
        self.look_again()?;
        self.remove()?;
        Ok(self.removed)
    }
}

fn is_over(tuple: &Tuple, entry: &CtEntry, now: u32, hurry: bool) -> bool {
    // A packet may have updated the entry since `now` was read.
    let silent = now.wrapping_sub(entry.last_seen) as i32;
    silent > 0 && silent as u32 > patience(tuple, entry, hurry)
}

/// The event loop's account of sweeps: one at a time, and which paths the last one has seen.
#[derive(Debug, Default)]
pub struct Collector {
    running: bool,
    /// Another sweep is needed.
    due: bool,
    ways: HashSet<Way>,
    /// Stale paths among them, and since when they have been known to be stale.
    stale: HashMap<Way, Instant>,
    /// Holders with shorter timeouts.
    hurry: Hurry,
}

impl Collector {
    /// Requests a sweep, now or as soon as the running one has ended.
    pub fn demand(&mut self) {
        self.due = true;
    }

    /// Whether a sweep has to begin, and if so, its stale paths and the pressure. `leads` tells whether a path still
    /// leads to a backend.
    pub fn begin(&mut self, leads: impl Fn(&Way) -> bool, now: Instant) -> Option<(Stale, Hurry)> {
        if self.running || !self.due {
            return None;
        }
        (self.running, self.due) = (true, false);
        let known = std::mem::take(&mut self.stale);
        let stale = self.ways.iter().filter(|way| !leads(way));
        self.stale = stale.map(|way| (*way, known.get(way).copied().unwrap_or(now))).collect();
        let stale = self.stale.iter().map(|(way, since)| (*way, now.duration_since(*since) >= LAST_ANSWERS)).collect();
        Some((stale, self.hurry.clone()))
    }

    /// Whether sweeps are to follow more closely, since a holder has too many entries.
    pub fn hurries(&self) -> bool {
        self.hurry != Hurry::default()
    }

    /// Whether the table is nearly full.
    pub fn is_nearly_full(&self) -> bool {
        self.hurry.concerns_all()
    }

    /// Ends a sweep. `None`: it has failed.
    pub fn end(&mut self, swept: Option<Swept>, leads: impl Fn(&Way) -> bool) {
        self.running = false;
        let Some(Swept { ways, hurry, .. }) = swept else { return };
        self.hurry = hurry;
        self.due |= ways.iter().any(|way| !self.stale.contains_key(way) && !leads(way));
        self.ways = ways;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(proto: Proto) -> Tuple {
        Tuple { sport: Port::new(40_000), dport: Port::new(80), proto, ..Tuple::default() }
    }

    fn entry(flags: u8, last_seen: u32) -> CtEntry {
        CtEntry { flags, last_seen, service: 1, dport: Port::new(8080), ..CtEntry::default() }
    }

    #[test]
    fn idle_flows_time_out_by_their_state() {
        use CtEntry as E;
        let now = 1_000_000;
        let cases = [
            (Proto::TCP, E::OPENING, 30),
            (Proto::TCP, E::OPENING | E::REPLIED, 30),
            (Proto::TCP, E::OPENING | E::FIN_CLIENT, 30),
            (Proto::TCP, 0, 30),
            (Proto::TCP, E::REPLIED, 86_400),
            (Proto::TCP, E::REPLIED | E::FIN_CLIENT, 120),
            (Proto::TCP, E::REPLIED | E::FIN_CLIENT | E::FIN_BACKEND, 10),
            (Proto::TCP, E::REPLIED | E::DOUBTFUL, 120),
            (Proto::TCP, E::ONE_WAY, 86_400),
            (Proto::TCP, E::ONE_WAY | E::FIN_CLIENT, 120),
            (Proto::TCP, E::ONE_WAY | E::CLOSED, 10),
            (Proto::UDP, 0, 30),
            (Proto::UDP, E::REPLIED, 120),
            (Proto::UDP, E::REPLIED | E::OPENING, 30),
            (Proto::UDP, E::ONE_WAY, 120),
            (Proto::SCTP, 0, 60),
            (Proto::SCTP, E::REPLIED, 210),
            (Proto::SCTP, E::REPLIED | E::OPENING, 60),
            (Proto::SCTP, E::ONE_WAY, 210),
            (Proto::SCTP, E::REPLIED | E::CLOSED, 10),
            (Proto::ICMP, 0, 30),
            (Proto::ICMPV6, E::REPLIED, 30),
        ];
        for (proto, flags, seconds) in cases {
            let limit = time::ticks_of_seconds(seconds);
            assert!(!is_over(&tuple(proto), &entry(flags, now - limit), now, false), "{proto:?} {flags}");
            assert!(is_over(&tuple(proto), &entry(flags, now - limit - 1), now, false), "{proto:?} {flags}");
        }
    }

    #[test]
    fn hurry_spares_established_connections() {
        use CtEntry as E;
        let now = 1_000_000;
        let old = now - time::ticks_of_seconds(7);
        for (proto, flags, over) in [
            (Proto::TCP, E::REPLIED, false),
            (Proto::TCP, E::REPLIED | E::OPENING, true),
            (Proto::TCP, E::REPLIED | E::CLOSED, true),
            (Proto::TCP, E::ONE_WAY, true),
            (Proto::UDP, E::REPLIED, false),
            (Proto::UDP, E::REPLIED | E::OPENING, true),
            (Proto::UDP, 0, true),
            (Proto::SCTP, E::REPLIED, false),
            (Proto::SCTP, E::OPENING, true),
            (Proto::ICMP, E::REPLIED, true),
        ] {
            assert_eq!(is_over(&tuple(proto), &entry(flags, old), now, true), over, "{proto:?} {flags}");
        }
    }

    #[test]
    fn a_packet_seen_after_the_clock_was_read_keeps_its_flow() {
        assert!(!is_over(&tuple(Proto::UDP), &entry(0, 11), 10, true));
    }

    /// Both halves of a flow to a service, and that of a flow forwarded to another node.
    fn flows() -> [(Tuple, CtEntry); 3] {
        let reply = (
            Tuple { sport: Port::new(8080), dport: Port::new(40_000), proto: Proto::UDP, ..Tuple::default() },
            CtEntry { flags: CtEntry::REPLY, service: 1, sport: Port::new(80), ..CtEntry::default() },
        );
        [(tuple(Proto::UDP), entry(0, 0)), reply, (tuple(Proto::UDP), entry(CtEntry::ONE_WAY, 0))]
    }

    #[test]
    fn both_halves_of_a_udp_flow_have_the_same_path() {
        let ways: Vec<_> = flows().iter().map(|(tuple, entry)| Way::of(tuple, entry).unwrap()).collect();
        assert_eq!(ways[0], ways[1]);
        let frontend = FrontendKey { port: Port::new(80), proto: Proto::UDP, ..FrontendKey::default() };
        let backend = Backend { port: Port::new(8080), proto: Proto::UDP, ..Backend::default() };
        assert_eq!((ways[0].frontend(), ways[0].end()), (frontend, End::Backend(backend)));
        assert_eq!((ways[2].frontend(), ways[2].end()), (frontend, End::Node(IpAddr::from([0; 16]))));
        assert_eq!(Way::of(&tuple(Proto::TCP), &entry(0, 0)), None, "TCP goes on until it ends itself");
        let masqueraded = CtEntry { service: 0, flags: CtEntry::REWRITE_SRC, ..CtEntry::default() };
        assert_eq!(Way::of(&tuple(Proto::UDP), &masqueraded), None, "no service's");
    }

    #[test]
    fn flows_with_a_stale_path_are_removed() {
        for (tuple, entry) in flows() {
            let way = Way::of(&tuple, &entry).unwrap();
            let reply = entry.flags & CtEntry::REPLY != 0;
            let at_first = if reply { Fate::Stays(Some(way)) } else { Fate::Stale };
            for (stale, fate) in [
                (Stale::new(), Fate::Stays(Some(way))),
                (Stale::from([(way, false)]), at_first),
                (Stale::from([(way, true)]), Fate::Stale),
            ] {
                assert_eq!(judge(&tuple, &entry, &stale, &Pods::default(), &Node::default()), fate, "{stale:?}");
            }
        }
    }

    #[test]
    fn flows_of_unknown_pods_are_homeless() {
        let (client, gone) = (Addr::v4(u32::from_ne_bytes([10, 0, 1, 5])), IfIndex(8));
        let pods = vec![Prefix::new([10, 0, 1, 0].into(), 24)];
        let node = Node { pods, ..Node::default() };
        let pods = Pods::from_iter([(client, IfIndex(7))]);
        let from = |ifindex, flags| CtEntry { in_ifindex: ifindex, flags, ..CtEntry::default() };
        let into = |ifindex| CtEntry { out: Out::Pod as u8, out_ifindex: ifindex, ..CtEntry::default() };
        for (src, entry, fate) in [
            (client, into(IfIndex(7)), Fate::Stays(None)),
            (client, into(gone), Fate::Homeless(gone)),
            (client, from(IfIndex(7), 0), Fate::Stays(None)),
            (client, from(gone, 0), Fate::Homeless(gone)),
            // Without an interface yet, or leaving by it.
            (client, from(IfIndex(0), 0), Fate::Stays(None)),
            (client, from(IfIndex(!8), 0), Fate::Stays(None)),
            // Replies, and flows from other sources, arrive on any interface.
            (client, from(gone, CtEntry::REPLY), Fate::Stays(None)),
            (Addr::v4(u32::from_ne_bytes([10, 0, 2, 5])), from(gone, 0), Fate::Stays(None)),
        ] {
            let tuple = Tuple { src, ..tuple(Proto::TCP) };
            assert_eq!(judge(&tuple, &entry, &Stale::new(), &pods, &node), fate, "{src:?} {entry:?}");
        }
    }

    #[test]
    fn sweeps_follow_each_other_until_no_path_is_stale() {
        let [one, _, other] = flows().map(|(tuple, entry)| Way::of(&tuple, &entry).unwrap());
        let both = HashSet::from([one, other]);
        let only_one = |way: &Way| *way == one;
        let start = Instant::now();
        let mut collector = Collector::default();
        let calm = |stale| Some((stale, Hurry::default()));
        let swept = |ways: HashSet<Way>| Some(Swept { ways, ..Swept::default() });
        assert_eq!(collector.begin(|_| true, start), None, "nobody has asked");
        collector.demand();
        assert_eq!(collector.begin(|_| false, start), calm(Stale::new()), "no way is known yet");
        collector.demand();
        assert_eq!(collector.begin(|_| true, start), None, "one at a time");
        collector.end(swept(both.clone()), |_| true);
        assert_eq!(collector.begin(|_| true, start), calm(Stale::new()), "the other that was asked for");
        collector.end(swept(both.clone()), only_one);
        assert_eq!(collector.begin(only_one, start), calm(Stale::from([(other, false)])), "at once");
        collector.end(swept(both), only_one);
        assert_eq!(collector.begin(only_one, start), None, "what has waited for answers waits for its time");
        collector.demand();
        assert_eq!(collector.begin(only_one, start + LAST_ANSWERS), calm(Stale::from([(other, true)])));
        collector.end(swept(HashSet::from([one])), only_one);
        assert_eq!(collector.begin(|_| false, start), None);
        collector.demand();
        assert!(collector.begin(|_| true, start).is_some());
        collector.end(None, |_| true);
        collector.demand();
        let stale = collector.begin(|_| false, start);
        assert_eq!(stale, calm(Stale::from([(one, false)])), "a failed sweep forgets nothing");
    }
}
