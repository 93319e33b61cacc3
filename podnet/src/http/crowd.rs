//! The connections that a group of servers has open, and which of them gives way to another.
//!
//! A connection is always taken in. When there are as many as may be, the oldest of the source that has most is ended for
//! it. So a source that opens many takes places from itself, and where many sources have one each, the one that has waited
//! longest without being served goes. Pure but for the channel by which a connection learns that it is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Whom connections are counted for: an IPv4 address, or 64 bits of an IPv6 one, since whoever has one of these
/// addresses has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
            ip => ip,
        })
    }
}

/// Connections that share a bound.
#[derive(Clone, Debug)]
pub(super) struct Crowd(Arc<Mutex<Members>>);

#[derive(Debug)]
struct Members {
    most: usize,
    /// The next connection's number.
    next: u64,
    /// By their numbers, hence the oldest first.
    places: BTreeMap<u64, (Origin, oneshot::Sender<()>)>,
    origins: BTreeMap<Origin, BTreeSet<u64>>,
}

/// A connection's place, which it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    crowd: Crowd,
    anothers: bool,
    over: oneshot::Receiver<()>,
}

impl Crowd {
    /// With room for so many.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Members { most, next: 0, places: BTreeMap::new(), origins: BTreeMap::new() })))
    }

    /// Takes in a connection of an address.
    pub(super) fn enter(&self, ip: IpAddr) -> Place {
        let mut members = self.members();
        let anothers = members.places.len() >= members.most && members.end_one();
        let (number, origin) = (members.next, Origin::from(ip));
        let (end, over) = oneshot::channel();
        members.next += 1;
        members.places.insert(number, (origin, end));
        members.origins.entry(origin).or_default().insert(number);
        Place { number, crowd: self.clone(), anothers, over }
    }

    /// Ends a connection, so that what it holds can be used for another. Says whether there was one.
    pub(super) fn end_one(&self) -> bool {
        self.members().end_one()
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    fn end_one(&mut self) -> bool {
        let largest = self.origins.values().max_by_key(|numbers| (numbers.len(), std::cmp::Reverse(numbers.first())));
        let oldest = largest.and_then(|numbers| numbers.first().copied());
        // The channel's end is the message.
        oldest.is_some_and(|number| self.remove(number))
    }

    fn remove(&mut self, number: u64) -> bool {
        let Some((origin, _)) = self.places.remove(&number) else { return false };
        if let Some(numbers) = self.origins.get_mut(&origin) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.origins.remove(&origin);
            }
        }
        true
    }
}

impl Place {
    /// Whether another connection has given way to this one.
    pub(super) fn is_anothers(&self) -> bool {
        self.anothers
    }

    /// Waits until the connection has to give way.
    pub(super) async fn over(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.over).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.members().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(place: &mut Place) -> bool {
        place.over.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_with_many_connections_gives_way_to_others_and_to_itself() {
        let crowd = Crowd::new(4);
        let mut quiet = crowd.enter(ip("192.0.2.1"));
        let mut loud: Vec<_> = (0..3).map(|_| crowd.enter(ip("::ffff:192.0.2.2"))).collect();
        let mut another = crowd.enter(ip("192.0.2.3"));
        assert_eq!(loud.iter_mut().map(ended).collect::<Vec<_>>(), [true, false, false]);
        loud.push(crowd.enter(ip("192.0.2.2")));
        assert_eq!(loud.iter_mut().map(ended).collect::<Vec<_>>(), [true, true, false, false]);
        assert!(!ended(&mut quiet) && !ended(&mut another));
    }

    #[test]
    fn among_many_sources_the_oldest_connection_gives_way() {
        let crowd = Crowd::new(3);
        let mut places: Vec<_> = (1..=4).map(|i| crowd.enter(ip(&format!("192.0.2.{i}")))).collect();
        assert_eq!(places.iter_mut().map(ended).collect::<Vec<_>>(), [true, false, false, false]);
        drop(places.remove(1));
        places.push(crowd.enter(ip("192.0.2.5")));
        assert_eq!(places.iter_mut().map(ended).collect::<Vec<_>>(), [true, false, false, false]);
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let crowd = Crowd::new(3);
        let mut other = crowd.enter(ip("2001:db8:1::1"));
        let mut first = crowd.enter(ip("2001:db8:2::1"));
        let _second = crowd.enter(ip("2001:db8:2::2"));
        let _third = crowd.enter(ip("2001:db8:2::3"));
        assert!(ended(&mut first) && !ended(&mut other));
    }

    #[test]
    fn what_is_over_leaves_nothing_behind() {
        let crowd = Crowd::new(2);
        assert!(!crowd.end_one());
        for i in 0..100u8 {
            let mut place = crowd.enter(ip(&format!("192.0.2.{i}")));
            assert!(i % 2 == 0 || crowd.end_one() && ended(&mut place));
        }
        let members = crowd.members();
        assert!(members.places.is_empty() && members.origins.is_empty());
    }
}
