//! Collection of the connection table: flows that have been silent for too long, and flows whose backend is gone.
//!
//! Both entries of a flow carry the same time (within a tick), since whichever direction sees a packet marks both; so
//! each is judged by itself.
//!
//! A sweep runs beside the event loop, on a thread of its own, since a million entries take some tenths of a second.
//! Which backends there are only the event loop knows. So a sweep is given the ways that lead nowhere, as far as the
//! sweep before has seen them, and tells all that it has met, among which the event loop may find more that lead
//! nowhere: then the next one follows at once. [`Collector`] keeps this account.
//!
//! Of a flow whose way is stale the client's half goes first, so that the client's next packet begins anew, and the
//! backend's a second later, so that an answer that is on its way is still translated.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use podnet_common::{
    addr::{Addr, IfIndex, Port, Proto},
    layout::{Backend, CtEntry, FrontendKey, Out, Tuple},
    time,
};

use super::batch;

/// How long a silent flow is kept, in seconds. The values are those of Linux (`nf_conntrack_*_timeout*`), with TCP's
/// established flows as kube-proxy sets them.
mod seconds {
    pub(super) const TCP_ESTABLISHED: u64 = 86_400;
    pub(super) const TCP_OPENING: u64 = 60;
    pub(super) const TCP_CLOSING: u64 = 120;
    pub(super) const CLOSED: u64 = 10;
    pub(super) const UDP_REPLIED: u64 = 120;
    pub(super) const UDP_UNREPLIED: u64 = 30;
    /// A heartbeat is sent every 30 seconds (RFC 9260, section 16), and five times in vain.
    pub(super) const SCTP_ESTABLISHED: u64 = 210;
    pub(super) const SCTP_OPENING: u64 = 60;
    pub(super) const ICMP: u64 = 30;
    /// At most, for what is probably over, when the table is nearly full.
    pub(super) const HURRY: u64 = 10;
}

/// How long after a daemon's start the first flow may be judged by its time. Without a daemon nobody lets established
/// flows see the time, so the entries of live ones may look old; within this time each has had its packet, or is over.
pub const SETTLING: Duration = Duration::from_secs(seconds::TCP_CLOSING + 10);

/// How long answers of a backend that is gone are still waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Below this share of free entries, silent flows are given up sooner: a sixteenth of the table.
const PRESSURE: u32 = 16;

/// How long a flow may be silent, in ticks. `hurry` shortens the wait for those that are probably over, and for those
/// of direct server return: their replies go elsewhere, so nobody can tell a client's first attempt from a connection
/// that is established; and without its entry such a flow gets the same backend again, by Maglev's choice.
fn patience(tuple: &Tuple, entry: &CtEntry, hurry: bool) -> u32 {
    let has = |flags| entry.flags & flags != 0;
    let one_way = has(CtEntry::ONE_WAY);
    let seconds = match tuple.proto {
        Proto::TCP | Proto::SCTP if entry.closed() => seconds::CLOSED,
        Proto::TCP if has(CtEntry::FIN_CLIENT | CtEntry::FIN_BACKEND) => seconds::TCP_CLOSING,
        Proto::TCP if has(CtEntry::REPLIED) => return time::ticks_of_seconds(seconds::TCP_ESTABLISHED),
        Proto::TCP if one_way => seconds::TCP_ESTABLISHED,
        Proto::TCP => seconds::TCP_OPENING,
        Proto::SCTP if one_way | has(CtEntry::REPLIED) => seconds::SCTP_ESTABLISHED,
        Proto::SCTP => seconds::SCTP_OPENING,
        Proto::ICMP | Proto::ICMPV6 => seconds::ICMP,
        _ if one_way | has(CtEntry::REPLIED) => seconds::UDP_REPLIED,
        _ => seconds::UDP_UNREPLIED,
    };
    time::ticks_of_seconds(if hurry { seconds.min(seconds::HURRY) } else { seconds })
}

/// From a frontend to a backend, both of UDP: what flows may outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    frontend: (Addr, Port),
    /// Address and port of the backend. For direct server return the backend's node alone is known, and there is no
    /// port.
    end: (Addr, Option<Port>),
}

/// Where a way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At a backend.
    Backend(Backend),
    /// At another node, which chooses the backend.
    Node(IpAddr),
}

impl Way {
    /// That of an entry, if it belongs to a service's UDP flow.
    fn of(tuple: &Tuple, entry: &CtEntry) -> Option<Self> {
        // Without a service a pod's flow to what is outside of the cluster, which depends on nothing here.
        if tuple.proto != Proto::UDP || entry.service == 0 {
            return None;
        }
        // The client's half has the frontend in its key; the reply's half names it as the source to be shown.
        let (frontend, backend) = if entry.flags & CtEntry::REPLY == 0 {
            ((tuple.dst, tuple.dport), (entry.dst, entry.dport))
        } else {
            ((entry.src, entry.sport), (tuple.src, tuple.sport))
        };
        let one_way = entry.flags & CtEntry::ONE_WAY != 0;
        Some(Self { frontend, end: (backend.0, (!one_way).then_some(backend.1)) })
    }

    /// Where it begins, whoever the client is.
    pub fn frontend(&self) -> FrontendKey {
        let (addr, port) = self.frontend;
        FrontendKey { addr, port, proto: Proto::UDP, scope: FrontendKey::ANY }
    }

    /// Where it leads.
    pub fn end(&self) -> End {
        match self.end {
            (addr, Some(port)) => End::Backend(Backend { addr, port, proto: Proto::UDP, _pad: 0 }),
            (addr, None) => End::Node(addr.into()),
        }
    }
}

/// Ways that lead nowhere any more, and whether their last answers have come.
pub type Stale = HashMap<Way, bool>;

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries that are there now.
    pub entries: u32,
    /// Entries that were removed.
    pub removed: u32,
    /// The ways of the flows that were kept.
    pub ways: HashSet<Way>,
}

/// Reads the host ends of the pods that are there.
pub type Pods = dyn Fn() -> io::Result<BTreeSet<IfIndex>> + Send;

/// A sweep that is to be made, on any thread.
pub struct Sweep {
    /// The table.
    pub table: OwnedFd,
    /// Its size.
    pub capacity: u32,
    /// The time in ticks; none: no time is up, as long as entries may be older than their last packet.
    pub now: Option<u32>,
    /// Ways that lead nowhere any more.
    pub stale: Stale,
    /// The pods; a flow into another ends.
    pub pods: Box<Pods>,
}

impl Sweep {
    /// Removes the entries that aren't wanted and those whose time is up. Takes time in proportion to the table.
    pub fn run(&self) -> io::Result<Swept> {
        let mut swept = self.once(false)?;
        if self.now.is_some() && nearly_full(swept.entries, self.capacity) {
            let removed = swept.removed;
            swept = self.once(true)?;
            swept.removed += removed;
        }
        Ok(swept)
    }

    fn once(&self, hurry: bool) -> io::Result<Swept> {
        let table = self.table.as_fd();
        let mut ways = HashSet::new();
        let mut bin =
            Bin { table, pods: (self.pods)()?, reread: &*self.pods, over: vec![], homeless: vec![], removed: 0 };
        let (mut seen, mut result) = (0u32, Ok(()));
        batch::for_each(table, |tuple: &Tuple, entry: &CtEntry| {
            seen += 1;
            let timely = self.now.is_none_or(|now| !is_over(tuple, entry, now, hurry));
            let binned = match judge(tuple, entry, &self.stale, &bin.pods) {
                Fate::Stays(way) if timely => {
                    ways.extend(way);
                    return;
                }
                Fate::Homeless(pod) if timely => bin.homeless(pod, *tuple),
                Fate::Stale => bin.over(*tuple, None),
                _ => bin.over(*tuple, Some(entry.last_seen)),
            };
            if let Err(error) = binned {
                result = Err(error);
            }
        })?;
        result?;
        let removed = bin.empty()?;
        Ok(Swept { entries: seen.saturating_sub(removed), removed, ways })
    }
}

/// Whether less than a sixteenth of the table is free.
pub fn nearly_full(entries: u32, capacity: u32) -> bool {
    capacity - entries.min(capacity) < capacity / PRESSURE
}

/// What becomes of an entry whose time isn't up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It stays; and the way of its flow, if it has one.
    Stays(Option<Way>),
    /// It is to go.
    Stale,
    /// It leads into a pod that isn't known.
    Homeless(IfIndex),
}

fn judge(tuple: &Tuple, entry: &CtEntry, stale: &Stale, pods: &BTreeSet<IfIndex>) -> Fate {
    if entry.out == Out::Pod as u8 && !pods.contains(&entry.out_ifindex) {
        return Fate::Homeless(entry.out_ifindex);
    }
    let way = Way::of(tuple, entry);
    match way.as_ref().and_then(|way| stale.get(way)) {
        Some(answered) if *answered || entry.flags & CtEntry::REPLY == 0 => Fate::Stale,
        _ => Fate::Stays(way),
    }
}

/// Entries that are to be removed, which happens by thousands, so that a million need no memory.
struct Bin<'a> {
    table: BorrowedFd<'a>,
    pods: BTreeSet<IfIndex>,
    reread: &'a Pods,
    /// Those whose time is up, with when a packet was last seen, and others.
    over: Vec<(Tuple, Option<u32>)>,
    /// Those into pods that aren't known. A pod may have come while the sweep was at work: before the first of its
    /// flows.
    homeless: Vec<(IfIndex, Tuple)>,
    removed: u32,
}

impl Bin<'_> {
    const MANY: usize = 4096;

    fn over(&mut self, key: Tuple, last_seen: Option<u32>) -> io::Result<()> {
        self.over.push((key, last_seen));
        if self.over.len() < Self::MANY { Ok(()) } else { self.remove() }
    }

    fn homeless(&mut self, pod: IfIndex, key: Tuple) -> io::Result<()> {
        self.homeless.push((pod, key));
        if self.homeless.len() < Self::MANY { Ok(()) } else { self.look_again() }
    }

    fn look_again(&mut self) -> io::Result<()> {
        if !self.homeless.is_empty() {
            self.pods = (self.reread)()?;
            let gone = std::mem::take(&mut self.homeless).into_iter().filter(|(pod, _)| !self.pods.contains(pod));
            self.over.extend(gone.map(|(_, key)| (key, None)));
        }
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        for (key, last_seen) in self.over.drain(..) {
            match batch::take::<_, CtEntry>(self.table, &key)? {
                // The client has begun anew from the same port since it was looked at.
                Some(entry) if last_seen.is_some_and(|last_seen| entry.last_seen != last_seen) => {
                    batch::insert(self.table, &key, entry)?;
                }
                Some(_) => self.removed += 1,
                None => {}
            }
        }
        Ok(())
    }

    fn empty(mut self) -> io::Result<u32> {
        self.look_again()?;
        self.remove()?;
        Ok(self.removed)
    }
}

fn is_over(tuple: &Tuple, entry: &CtEntry, now: u32, hurry: bool) -> bool {
    // A packet may have been seen since `now` was read.
    let silent = now.wrapping_sub(entry.last_seen) as i32;
    silent > 0 && silent as u32 > patience(tuple, entry, hurry)
}

/// The event loop's account of sweeps: one at a time, and which ways the last one has met.
#[derive(Debug, Default)]
pub struct Collector {
    running: bool,
    /// There is a reason for another one.
    due: bool,
    ways: HashSet<Way>,
    /// Those among them that are stale, since when they were known to be.
    stale: HashMap<Way, Instant>,
}

impl Collector {
    /// A sweep is wanted, now or as soon as the one that runs has ended.
    pub fn demand(&mut self) {
        self.due = true;
    }

    /// Whether one has to begin, and then, which ways it is to take for stale. `leads` says whether a way leads
    /// somewhere.
    pub fn begin(&mut self, leads: impl Fn(&Way) -> bool, now: Instant) -> Option<Stale> {
        if self.running || !self.due {
            return None;
        }
        (self.running, self.due) = (true, false);
        let known = std::mem::take(&mut self.stale);
        let stale = self.ways.iter().filter(|way| !leads(way));
        self.stale = stale.map(|way| (*way, known.get(way).copied().unwrap_or(now))).collect();
        Some(self.stale.iter().map(|(way, since)| (*way, now.duration_since(*since) >= LAST_ANSWERS)).collect())
    }

    /// A sweep has ended. `None`: it has failed.
    pub fn end(&mut self, ways: Option<HashSet<Way>>, leads: impl Fn(&Way) -> bool) {
        self.running = false;
        let Some(ways) = ways else { return };
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
    fn silent_flows_end_by_their_state() {
        use CtEntry as E;
        let now = 1_000_000;
        let cases = [
            (Proto::TCP, 0, 60),
            (Proto::TCP, E::REPLIED, 86_400),
            (Proto::TCP, E::REPLIED | E::FIN_CLIENT, 120),
            (Proto::TCP, E::REPLIED | E::FIN_CLIENT | E::FIN_BACKEND, 10),
            (Proto::TCP, E::RST, 10),
            (Proto::TCP, E::ONE_WAY, 86_400),
            (Proto::TCP, E::ONE_WAY | E::FIN_CLIENT, 120),
            (Proto::TCP, E::ONE_WAY | E::RST, 10),
            (Proto::UDP, 0, 30),
            (Proto::UDP, E::REPLIED, 120),
            (Proto::UDP, E::ONE_WAY, 120),
            (Proto::SCTP, 0, 60),
            (Proto::SCTP, E::REPLIED, 210),
            (Proto::SCTP, E::ONE_WAY, 210),
            (Proto::SCTP, E::REPLIED | E::RST, 10),
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
    fn pressure_spares_established_connections() {
        let now = 1_000_000;
        let old = now - time::ticks_of_seconds(30);
        for (proto, flags, over) in [
            (Proto::TCP, CtEntry::REPLIED, false),
            (Proto::TCP, 0, true),
            (Proto::TCP, CtEntry::ONE_WAY, true),
            (Proto::UDP, CtEntry::REPLIED, true),
            (Proto::SCTP, CtEntry::REPLIED, true),
        ] {
            assert_eq!(is_over(&tuple(proto), &entry(flags, old), now, true), over, "{proto:?} {flags}");
        }
    }

    #[test]
    fn a_packet_seen_after_the_clock_was_read_keeps_its_flow() {
        assert!(!is_over(&tuple(Proto::UDP), &entry(0, 11), 10, true));
    }

    /// Both halves of a flow to a service, and that of one that is sent on.
    fn flows() -> [(Tuple, CtEntry); 3] {
        let reply = (
            Tuple { sport: Port::new(8080), dport: Port::new(40_000), proto: Proto::UDP, ..Tuple::default() },
            CtEntry { flags: CtEntry::REPLY, service: 1, sport: Port::new(80), ..CtEntry::default() },
        );
        [(tuple(Proto::UDP), entry(0, 0)), reply, (tuple(Proto::UDP), entry(CtEntry::ONE_WAY, 0))]
    }

    #[test]
    fn both_halves_of_a_udp_flow_tell_its_way() {
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
    fn flows_on_stale_ways_go() {
        for (tuple, entry) in flows() {
            let way = Way::of(&tuple, &entry).unwrap();
            let reply = entry.flags & CtEntry::REPLY != 0;
            let at_first = if reply { Fate::Stays(Some(way)) } else { Fate::Stale };
            for (stale, fate) in [
                (Stale::new(), Fate::Stays(Some(way))),
                (Stale::from([(way, false)]), at_first),
                (Stale::from([(way, true)]), Fate::Stale),
            ] {
                assert_eq!(judge(&tuple, &entry, &stale, &BTreeSet::new()), fate, "{stale:?}");
            }
        }
    }

    #[test]
    fn flows_into_pods_that_are_gone_are_homeless() {
        let flow = CtEntry { out: Out::Pod as u8, out_ifindex: IfIndex(7), ..CtEntry::default() };
        for (pod, fate) in [(7, Fate::Stays(None)), (8, Fate::Homeless(IfIndex(7)))] {
            let pods = BTreeSet::from([IfIndex(pod)]);
            assert_eq!(judge(&tuple(Proto::TCP), &flow, &Stale::new(), &pods), fate);
        }
    }

    #[test]
    fn a_sixteenth_that_is_free_is_enough() {
        for (entries, expected) in [(0, false), (1500, false), (1501, true), (1600, true), (9999, true)] {
            assert_eq!(nearly_full(entries, 1600), expected, "{entries}");
        }
    }

    #[test]
    fn sweeps_follow_each_other_until_no_way_is_stale() {
        let [one, _, other] = flows().map(|(tuple, entry)| Way::of(&tuple, &entry).unwrap());
        let both = HashSet::from([one, other]);
        let only_one = |way: &Way| *way == one;
        let start = Instant::now();
        let mut collector = Collector::default();
        assert_eq!(collector.begin(|_| true, start), None, "nobody has asked");
        collector.demand();
        assert_eq!(collector.begin(|_| false, start), Some(Stale::new()), "no way is known yet");
        collector.demand();
        assert_eq!(collector.begin(|_| true, start), None, "one at a time");
        collector.end(Some(both.clone()), |_| true);
        assert_eq!(collector.begin(|_| true, start), Some(Stale::new()), "the other that was asked for");
        collector.end(Some(both.clone()), only_one);
        assert_eq!(collector.begin(only_one, start), Some(Stale::from([(other, false)])), "at once");
        collector.end(Some(both), only_one);
        assert_eq!(collector.begin(only_one, start), None, "what has waited for answers waits for its time");
        collector.demand();
        assert_eq!(collector.begin(only_one, start + LAST_ANSWERS), Some(Stale::from([(other, true)])));
        collector.end(Some(HashSet::from([one])), only_one);
        assert_eq!(collector.begin(|_| false, start), None);
        collector.demand();
        assert!(collector.begin(|_| true, start).is_some());
        collector.end(None, |_| true);
        collector.demand();
        let stale = collector.begin(|_| false, start);
        assert_eq!(stale, Some(Stale::from([(one, false)])), "a failed sweep forgets nothing");
    }
}
