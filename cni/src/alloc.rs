//! IPAM: pure functions that choose the next address, given the pools, the addresses in use and those released.
//!
//! Addresses are allocated next-fit from a cursor. A released address is quarantined: it is skipped while any other
//! address is free, and when none is, the address released longest ago is reused. So reuse happens as late as possible,
//! and a pool is exhausted only when every address is in use. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use thiserror::Error;

/// Why a pool is invalid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// No address remains besides the reserved ones.
    #[error("pod CIDR {0} is too small for pod addresses: use /30 or shorter for IPv4, /126 or shorter for IPv6")]
    TooSmall(IpNetwork),
    /// A range of `ipRanges` is not inside its subnet.
    #[error("ipRanges: {first} to {last} is not a range within {subnet}")]
    NotInside {
        /// The subnet.
        subnet: IpNetwork,
        /// First address.
        first: IpAddr,
        /// Last address.
        last: IpAddr,
    },
    /// A set of ranges mixes IPv4 and IPv6.
    #[error("ipRanges: a range set must not mix IPv4 and IPv6")]
    MixedFamilies,
    /// A set contains no range.
    #[error("ipRanges: a range set is empty")]
    Empty,
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Length of an address in bits.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(number as u32).into(),
            Self::V6 => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// Addresses of one family from first to last, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
}

impl Range {
    fn contains(&self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }
}

/// Ranges of one family. A pod gets one address from each pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    family: Family,
    ranges: Vec<Range>,
}

/// The allocatable range of a CIDR: all but the network address, the address after the network address (the hairpin
/// address) and the IPv4 broadcast address.
fn usable(cidr: IpNetwork) -> Result<Range, PoolError> {
    let first = number(cidr.network()).checked_add(2);
    let last = match cidr {
        IpNetwork::V4(c) => number(c.broadcast().into()).saturating_sub(1),
        IpNetwork::V6(c) => c.broadcast().into(),
    };
    match first {
        Some(first) if first <= last => Ok(Range { first, last }),
        _ => Err(PoolError::TooSmall(cidr)),
    }
}

/// The addresses of a CIDR that no pod gets.
pub fn reserved(cidr: IpNetwork) -> impl Iterator<Item = IpAddr> {
    let (family, first) = (Family::of(cidr.network()), number(cidr.network()));
    let broadcast = if let IpNetwork::V4(c) = cidr { Some(number(c.broadcast().into())) } else { None };
    [Some(first), first.checked_add(1), broadcast].into_iter().flatten().map(move |number| family.address(number))
}

impl Pool {
    /// One pool per family among the CIDRs, IPv4 first.
    pub fn from_cidrs(cidrs: &[IpNetwork]) -> Result<Vec<Self>, PoolError> {
        let mut pools = Vec::new();
        for family in [Family::V4, Family::V6] {
            let ranges: Vec<Range> = cidrs
                .iter()
                .filter(|c| Family::of(c.network()) == family)
                .map(|c| usable(*c))
                .collect::<Result<_, _>>()?;
            if !ranges.is_empty() {
                pools.push(Self { family, ranges });
            }
        }
        Ok(pools)
    }

    /// A pool of parts of subnets, (subnet, first, last), as in `ipRanges`.
    pub fn from_ranges(parts: &[(IpNetwork, Option<IpAddr>, Option<IpAddr>)]) -> Result<Self, PoolError> {
        let (subnet, ..) = parts.first().ok_or(PoolError::Empty)?;
        let family = Family::of(subnet.network());
        let mut ranges = Vec::new();
        for &(subnet, first, last) in parts {
            if [Some(subnet.network()), first, last].into_iter().flatten().any(|ip| Family::of(ip) != family) {
                return Err(PoolError::MixedFamilies);
            }
            let all = usable(subnet)?;
            let (start, end) = (first.map_or(all.first, number), last.map_or(all.last, number));
            if start > end
                || [first, last].into_iter().flatten().any(|ip| !subnet.contains(ip))
                || start.max(all.first) > end.min(all.last)
            {
                let (first, last) = (family.address(start), family.address(end));
                return Err(PoolError::NotInside { subnet, first, last });
            }
            ranges.push(Range { first: start.max(all.first), last: end.min(all.last) });
        }
        Ok(Self { family, ranges })
    }

    /// Takes an address out.
    pub fn exclude(&mut self, ip: IpAddr) {
        let taken = number(ip);
        if Family::of(ip) != self.family {
            return;
        }
        let without = |range: &Range| {
            let before = taken.checked_sub(1).map(|last| Range { first: range.first, last });
            let after = taken.checked_add(1).map(|first| Range { first, last: range.last });
            let parts = if range.contains(taken) { [before, after] } else { [Some(*range), None] };
            parts.into_iter().flatten().filter(|part| part.first <= part.last)
        };
        self.ranges = self.ranges.iter().flat_map(without).collect();
    }

    /// The pool's family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether the address is allocatable from this pool.
    pub fn contains(&self, ip: IpAddr) -> bool {
        Family::of(ip) == self.family && self.ranges.iter().any(|r| r.contains(number(ip)))
    }

    /// Every address once, beginning after the cursor and wrapping around.
    fn after(&self, cursor: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let cursor = cursor.filter(|ip| Family::of(*ip) == self.family).map(number);
        let start = cursor.and_then(|c| self.ranges.iter().position(|r| r.contains(c)).map(|i| (i, c)));
        let (index, first_part, last_part) = match start {
            Some((i, c)) => {
                let r = self.ranges[i];
                (i, (c < r.last).then(|| Range { first: c + 1, last: r.last }), Some(Range { first: r.first, last: c }))
            }
            None => (0, self.ranges.first().copied(), None),
        };
        let others = self.ranges[index..].iter().skip(1).chain(&self.ranges[..index]).copied();
        first_part
            .into_iter()
            .chain(others)
            .chain(last_part)
            .flat_map(|r| (r.first..=r.last).map(|n| self.family.address(n)))
    }
}

/// An event in the life of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was allocated; the next search starts after it.
    Given(IpAddr),
    /// It was allocated because the runtime requested this address; the cursor does not move.
    Requested(IpAddr),
    /// It was released.
    Released(IpAddr),
}

impl Event {
    /// The address.
    pub fn ip(self) -> IpAddr {
        let (Self::Given(ip) | Self::Requested(ip) | Self::Released(ip)) = self;
        ip
    }

    /// The event as a line of the log: `+10.0.0.5`, `=10.0.0.5`, `-10.0.0.5`.
    pub fn to_line(self) -> String {
        match self {
            Self::Given(ip) => format!("+{ip}\n"),
            Self::Requested(ip) => format!("={ip}\n"),
            Self::Released(ip) => format!("-{ip}\n"),
        }
    }

    /// Parses a line without its newline; `None` if it is malformed.
    pub fn parse(line: &str) -> Option<Self> {
        let ip = line.get(1..)?.parse().ok()?;
        match line.as_bytes().first()? {
            b'+' => Some(Self::Given(ip)),
            b'=' => Some(Self::Requested(ip)),
            b'-' => Some(Self::Released(ip)),
            _ => None,
        }
    }
}

/// What the next allocation needs to know of the past of one family's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The address allocated last.
    cursor: Option<IpAddr>,
    /// Quarantined addresses, released longest ago first.
    released: Vec<IpAddr>,
}

impl History {
    /// Maximum number of quarantined addresses: more than a /24 contains.
    pub const RESTING: usize = 512;

    /// Replays events, oldest first. Events of the other family are skipped.
    pub fn replay(family: Family, events: &[Event]) -> Self {
        let mut cursor = None;
        // Only the last event of an address decides whether it is quarantined, and since when.
        let mut last = BTreeMap::new();
        for (i, event) in events.iter().enumerate().filter(|(_, e)| Family::of(e.ip()) == family) {
            last.insert(event.ip(), (i, matches!(event, Event::Released(_))));
            if matches!(event, Event::Given(_)) {
                cursor = Some(event.ip());
            }
        }
        let mut released: Vec<(usize, IpAddr)> =
            last.into_iter().filter_map(|(ip, (i, rests))| rests.then_some((i, ip))).collect();
        released.sort_unstable();
        let forgotten = released.len().saturating_sub(Self::RESTING);
        Self { cursor, released: released.into_iter().skip(forgotten).map(|(_, ip)| ip).collect() }
    }

    /// The shortest list of events with this history.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        self.cursor.map(Event::Given).into_iter().chain(self.released.iter().copied().map(Event::Released))
    }
}

/// The next address of a pool; `None` if all are in use.
pub fn choose(pool: &Pool, used: &BTreeSet<IpAddr>, history: &History) -> Option<IpAddr> {
    let resting: BTreeSet<IpAddr> = history.released.iter().copied().collect();
    // Of any (used + quarantined + 1) candidates one is free, so this bounds the search whatever the size of the pool.
    let obstacles = used.len() + resting.len();
    pool.after(history.cursor)
        .take(obstacles + 1)
        .find(|ip| !used.contains(ip) && !resting.contains(ip))
        .or_else(|| history.released.iter().copied().find(|ip| pool.contains(*ip) && !used.contains(ip)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(cidrs: &[&str]) -> Pool {
        let cidrs: Vec<IpNetwork> = cidrs.iter().map(|c| c.parse().unwrap()).collect();
        Pool::from_cidrs(&cidrs).unwrap().remove(0)
    }
    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn reserved_addresses_are_taken_out_of_wider_ranges() {
        let wide = ("10.244.0.0/16".parse().unwrap(), Some(ip("10.244.0.254")), Some(ip("10.244.1.3")));
        let mut pool = Pool::from_ranges(&[wide]).unwrap();
        let cidrs = ["10.244.1.0/24", "10.244.0.0/24", "fd00::/64"].map(|cidr| cidr.parse().unwrap());
        cidrs.into_iter().flat_map(reserved).for_each(|ip| pool.exclude(ip));
        let left: Vec<_> = pool.after(None).collect();
        assert_eq!(left, ["10.244.0.254", "10.244.1.2", "10.244.1.3"].map(ip));
        assert!(!pool.contains(ip("10.244.1.1")), "the source of hairpin traffic");
        left.into_iter().for_each(|ip| pool.exclude(ip));
        assert_eq!(pool.after(Some(ip("10.244.1.2"))).count(), 0);
    }

    /// Allocates and releases as the store does.
    #[derive(Default)]
    struct Book {
        used: BTreeSet<IpAddr>,
        events: Vec<Event>,
    }
    impl Book {
        fn give(&mut self, pool: &Pool) -> Option<IpAddr> {
            let ip = choose(pool, &self.used, &History::replay(pool.family(), &self.events))?;
            assert!(self.used.insert(ip), "{ip} was in use");
            self.events.push(Event::Given(ip));
            Some(ip)
        }
        fn release(&mut self, ip: IpAddr) {
            assert!(self.used.remove(&ip));
            self.events.push(Event::Released(ip));
        }
    }

    #[test]
    fn events_as_lines() {
        for event in [Event::Given(ip("10.0.0.5")), Event::Requested(ip("fd00::5")), Event::Released(ip("fd00::6"))] {
            assert_eq!(Event::parse(event.to_line().strip_suffix('\n').unwrap()), Some(event));
        }
        for line in ["", "+", "10.0.0.5", "+10.0.0", "*10.0.0.5", "+10.0.0.5 ", "ä10.0.0.5"] {
            assert_eq!(Event::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn rest_is_bounded_and_a_shorter_history_means_the_same() {
        let events: Vec<Event> = (0..1000u32)
            .flat_map(|n| {
                let ip = IpAddr::from(Ipv4Addr::from(0x0a00_0002 + n));
                [Event::Given(ip), Event::Released(ip)]
            })
            .chain([Event::Requested(ip("10.0.3.200")), Event::Given(ip("fd00::2"))])
            .collect();
        let history = History::replay(Family::V4, &events);
        assert_eq!(history.cursor, Some(ip("10.0.3.233")));
        assert_eq!(history.released.len(), History::RESTING);
        assert_eq!(history.released.last(), Some(&ip("10.0.3.233")));
        assert!(!history.released.contains(&ip("10.0.3.200")), "in use again");
        let short: Vec<Event> = history.events().collect();
        assert_eq!(History::replay(Family::V4, &short), history);
    }

    #[test]
    fn reserved_addresses_are_left_out() {
        let all = |p: &Pool| p.after(None).collect::<Vec<_>>();
        assert_eq!(all(&pool(&["10.0.0.0/29"])), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"].map(ip));
        assert_eq!(all(&pool(&["10.0.0.7/30"])), [ip("10.0.0.6")]);
        assert_eq!(all(&pool(&["fd00::/126"])), ["fd00::2", "fd00::3"].map(ip));
        assert_eq!(all(&pool(&["255.255.255.252/30"])), [ip("255.255.255.254")]);
        for small in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::1/128"] {
            let cidr = small.parse().unwrap();
            assert_eq!(Pool::from_cidrs(&[cidr]), Err(PoolError::TooSmall(cidr)));
        }
        let last: IpNetwork = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap();
        assert_eq!(Pool::from_cidrs(&[last]), Err(PoolError::TooSmall(last)));
    }

    #[test]
    fn a_huge_pool_costs_no_more_than_its_obstacles() {
        let p = pool(&["fd00:244:1::/64"]);
        let mut book = Book::default();
        for n in 2..500u32 {
            assert_eq!(book.give(&p), Some(ip(&format!("fd00:244:1::{n:x}"))));
        }
    }

    #[test]
    fn released_addresses_come_last_in_the_order_of_their_release() {
        let p = pool(&["10.0.0.0/29"]);
        let mut book = Book::default();
        let given: Vec<IpAddr> = (0..4).map(|_| book.give(&p).unwrap()).collect();
        book.release(given[2]);
        book.release(given[0]);
        assert_eq!(book.give(&p), Some(ip("10.0.0.6")), "the fresh one first");
        assert_eq!(book.give(&p), Some(given[2]), "then the one that has rested longest");
        assert_eq!(book.give(&p), Some(given[0]));
        assert_eq!(book.give(&p), None, "empty only when all are in use");
    }

    #[test]
    fn ranges_narrow_a_subnet() {
        let net: IpNetwork = "10.0.0.0/24".parse().unwrap();
        let p = Pool::from_ranges(&[(net, Some(ip("10.0.0.0")), Some(ip("10.0.0.3")))]).unwrap();
        assert_eq!(p.after(None).collect::<Vec<_>>(), ["10.0.0.2", "10.0.0.3"].map(ip));
        for (first, last) in [("10.0.0.9", "10.0.0.8"), ("10.0.0.9", "10.0.1.1"), ("10.0.0.0", "10.0.0.1")] {
            let wrong = Pool::from_ranges(&[(net, Some(ip(first)), Some(ip(last)))]);
            assert!(matches!(wrong, Err(PoolError::NotInside { .. })), "{first}-{last}: {wrong:?}");
        }
        assert_eq!(Pool::from_ranges(&[(net, Some(ip("fd00::1")), None)]), Err(PoolError::MixedFamilies));
        assert_eq!(Pool::from_ranges(&[]), Err(PoolError::Empty));
    }

    proptest! {
        /// An iteration visits each address exactly once, wherever it starts.
        #[test]
        fn a_round_is_complete(lens in proptest::collection::vec(26u8..=30, 1..4), cursor in 0u32..300) {
            let cidrs: Vec<IpNetwork> =
                lens.iter().enumerate().map(|(i, l)| format!("10.0.{i}.0/{l}").parse().unwrap()).collect();
            let p = Pool::from_cidrs(&cidrs).unwrap().remove(0);
            let expected: usize = lens.iter().map(|l| (1usize << (32 - l)) - 3).sum();
            let cursor = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + cursor));
            let walk: Vec<IpAddr> = p.after(Some(cursor)).collect();
            prop_assert_eq!(walk.len(), expected);
            prop_assert_eq!(walk.iter().collect::<BTreeSet<_>>().len(), expected);
            prop_assert!(walk.iter().all(|ip| p.contains(*ip)));
            if p.contains(cursor) {
                prop_assert_eq!(walk.last(), Some(&cursor));
            }
        }

        /// Under any sequence of allocations and releases: no address is allocated twice, allocation succeeds while an
        /// address is free, and a released address is not reused while another one is free that was released earlier or
        /// never used.
        #[test]
        fn any_history(steps in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
            let p = pool(&["10.0.0.0/28"]);
            let all: BTreeSet<IpAddr> = p.after(None).collect();
            let mut book = Book::default();
            let mut order: Vec<IpAddr> = Vec::new();
            for step in steps {
                match step {
                    Some(n) if !book.used.is_empty() => {
                        let ip = *book.used.iter().nth(usize::from(n) % book.used.len()).unwrap();
                        book.release(ip);
                        order.push(ip);
                    }
                    _ => {
                        let free: BTreeSet<IpAddr> = all.difference(&book.used).copied().collect();
                        match book.give(&p) {
                            None => prop_assert!(free.is_empty()),
                            Some(ip) => {
                                prop_assert!(free.contains(&ip));
                                if let Some(rank) = order.iter().position(|o| *o == ip) {
                                    prop_assert_eq!(rank, 0, "another has rested longer");
                                    prop_assert_eq!(free.len(), order.len(), "a fresh one was free");
                                    order.remove(0);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
