//! The open connections of a group of servers, and which of them gives way to a new one.
//!
//! A new connection is always accepted. If the maximum is reached, the oldest connection of the source with the most
//! connections is closed for it. So a source with many connections takes places from itself, and among many sources
//! with one connection each, the one that has waited longest without a response is closed. Pure, except for the channel
//! that tells a connection to close.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The source for which connections are counted: an IPv4 address, or the upper 64 bits of an IPv6 address, since the
/// holder of one address of such a network has all of them.
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

/// Connections with a common maximum.
#[derive(Clone, Debug)]
pub(super) struct Crowd(Arc<Mutex<Members>>);

#[derive(Debug)]
struct Members {
    most: usize,
    /// Number of the next connection.
    next: u64,
    /// By number, hence oldest first.
    places: BTreeMap<u64, (Origin, oneshot::Sender<()>)>,
    origins: BTreeMap<Origin, BTreeSet<u64>>,
}

/// The place of a connection, released on drop.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    crowd: Crowd,
    anothers: bool,
    over: oneshot::Receiver<()>,
}

impl Crowd {
    /// With room for `most` connections.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Members { most, next: 0, places: BTreeMap::new(), origins: BTreeMap::new() })))
    }

    /// Adds a connection from an address.
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

    /// Closes a connection to release its resources. Returns whether there was one.
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
        // Closing the channel is the message.
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
    /// Whether this connection has replaced another.
    pub(super) fn is_anothers(&self) -> bool {
        self.anothers
    }

    /// Waits until the connection has to give way.
    pub(super) async fn over(&mut self) {
        // Nothing is ever sent on this channel.
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
    fn source_with_the_most_connections_gives_way() {
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
    fn oldest_connection_gives_way_among_many_sources() {
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
    fn closed_connections_leave_nothing_behind() {
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
