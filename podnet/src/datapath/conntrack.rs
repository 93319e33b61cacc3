//! Garbage collection of the connection table: flows that have been idle for too long, and flows whose backend is
//! gone.
//!
//! Both halves of a flow carry the same time (within a tick), since a packet of either direction updates both; so
//! each half is evaluated on its own.
//!
//! A sweep runs on a thread of its own beside the event loop, since a million entries take some tenths of a second.
//! Only the event loop knows which backends exist. So a sweep gets the stale paths among those that the previous
//! sweep has seen, and returns all paths that it has seen, among which the event loop may find more stale ones: then
//! the next sweep follows at once. [`Collector`] keeps this account.
//!
//! Of a flow with a stale path the client's half is removed first, so that the client's next packet begins a new
//! flow, and the backend's half a second later, so that replies in flight are still translated.
//!
//! A sweep also recounts the entries per holder (`holders`), unless there are few. The counts decide whose new flows
//! the programs refuse when the table is nearly full, and whose flows get shorter timeouts.

mod collector;
mod timeouts;
mod way;

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use podnet_common::{
    addr::{Addr, IfIndex},
    layout::{CtEntry, Out, Prefix, Tuple, holders},
    removal::{AT_ONCE, EVALUATED_AT_ONCE, Removal},
};

use super::{
    batch,
    holders::{Count, Held, Hurry},
    removal::Remover,
};
pub use collector::Collector;
pub use timeouts::SETTLING;
use timeouts::is_over;
pub use way::{End, Stale, Way};

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
    /// Entries that network policy had not denied before.
    pub denied: u32,
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
    /// Pods for whose flows network policy is evaluated again.
    pub evaluated: HashSet<Addr>,
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
        let count = Count::begin(self.holders.as_fd(), self.capacity)?;
        let settled = self.now.is_some();
        // Usually the pressure of the last sweeps is all there is, and the table is read once.
        let before = if settled { self.hurry.lasting() } else { Hurry::default() };
        let (mut swept, mut held) = self.once(&before)?;
        if settled {
            let hurry = before.with(&held, self.capacity);
            if hurry.exceeds(&before) {
                let (after, held_after) = self.once(&hurry)?;
                let (removed, denied) = (swept.removed + after.removed, swept.denied + after.denied);
                swept = Swept { removed, denied, ..after };
                held = held_after;
            }
            swept.hurry = hurry;
        }
        count.end(held)?;
        Ok(swept)
    }

    fn once(&self, hurry: &Hurry) -> io::Result<(Swept, Held)> {
        let table = self.table.as_fd();
        let (mut ways, mut held) = (HashSet::new(), Held::none());
        let (remover, pods, reread) = (&self.remover, (self.pods)()?, &*self.pods);
        let mut removals = Removals {
            remover,
            pods,
            reread,
            over: vec![],
            of_unknown_pods: vec![],
            evaluated: vec![],
            removed: 0,
            denied: 0,
        };
        let concerned =
            |tuple: &Tuple, entry: &CtEntry| self.evaluated.contains(&tuple.src) || self.evaluated.contains(&entry.dst);
        let (mut seen, mut result) = (0u32, Ok(()));
        batch::for_each(table, |tuple: &Tuple, entry: &CtEntry| {
            seen += 1;
            let place = || self.place(tuple, entry, &removals.pods);
            let over = |hurry| self.now.is_some_and(|now| is_over(tuple, entry, now, hurry));
            let binned = if over(false) || (over(true) && hurry.concerns(place())) {
                removals.over(Removal::unseen_since(*tuple, entry.last_seen))
            } else {
                match evaluate(tuple, entry, &self.stale, &removals.pods, &self.node) {
                    Fate::Stays(way) => {
                        ways.extend(way);
                        held.add(place());
                        if concerned(tuple, entry) { removals.evaluated(*tuple) } else { Ok(()) }
                    }
                    Fate::Stale => removals.over(Removal::always(*tuple)),
                    Fate::UnknownPod(pod) => removals.of_unknown_pods(pod, *tuple),
                }
            };
            if let Err(error) = binned {
                result = Err(error);
            }
        })?;
        result?;
        let (removed, denied) = removals.empty()?;
        Ok((Swept { entries: seen.saturating_sub(removed), removed, ways, hurry: Hurry::default(), denied }, held))
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
    UnknownPod(IfIndex),
}

fn evaluate(tuple: &Tuple, entry: &CtEntry, stale: &Stale, pods: &Pods, node: &Node) -> Fate {
    let unknown = |ifindex: IfIndex| (!pods.host_ends.contains(&ifindex)).then_some(ifindex);
    let into = ([Out::Pod as u8, Out::Queue as u8].contains(&entry.out)).then_some(entry.out_ifindex).and_then(unknown);
    // These addresses arrive on no other interface.
    let of_pod = entry.flags & CtEntry::REPLY == 0 && node.pods.iter().any(|range| range.contains(&tuple.src));
    let came_in = entry.in_ifindex.0 != 0 && i32::try_from(entry.in_ifindex.0).is_ok();
    let from = || (of_pod && came_in).then_some(entry.in_ifindex).and_then(unknown);
    if let Some(pod) = into.or_else(from) {
        return Fate::UnknownPod(pod);
    }
    let way = Way::of(tuple, entry);
    match way.as_ref().and_then(|way| stale.get(way)) {
        Some(answered) if *answered || entry.flags & CtEntry::REPLY == 0 => Fate::Stale,
        _ => Fate::Stays(way),
    }
}

/// Entries to be removed. They are removed frame by frame, so that removing a million entries takes no memory for
/// them.
struct Removals<'a> {
    remover: &'a Remover,
    pods: Pods,
    reread: &'a ReadPods,
    /// Less than a frame of removals.
    over: Vec<Removal>,
    /// Entries of unknown pods. The pods are read again before these are removed, since one may have been added
    /// during the sweep, before its first flow.
    of_unknown_pods: Vec<(IfIndex, Tuple)>,
    /// Halves of flows for which network policy is evaluated again: less than a frame of them.
    evaluated: Vec<Tuple>,
    removed: u32,
    denied: u32,
}

impl Removals<'_> {
    /// Entries of unknown pods per reading of the pods.
    const MANY: usize = 4096;

    fn over(&mut self, removal: Removal) -> io::Result<()> {
        self.over.push(removal);
        if self.over.len() < AT_ONCE { Ok(()) } else { self.remove() }
    }

    fn evaluated(&mut self, half: Tuple) -> io::Result<()> {
        self.evaluated.push(half);
        if self.evaluated.len() < EVALUATED_AT_ONCE { Ok(()) } else { self.deny() }
    }

    fn deny(&mut self) -> io::Result<()> {
        let denied = self.remover.deny(&self.evaluated);
        self.evaluated.clear();
        self.denied += denied?;
        Ok(())
    }

    fn of_unknown_pods(&mut self, pod: IfIndex, key: Tuple) -> io::Result<()> {
        self.of_unknown_pods.push((pod, key));
        if self.of_unknown_pods.len() < Self::MANY { Ok(()) } else { self.look_again() }
    }

    fn look_again(&mut self) -> io::Result<()> {
        if self.of_unknown_pods.is_empty() {
            return Ok(());
        }
        self.pods = (self.reread)()?;
        for (pod, key) in std::mem::take(&mut self.of_unknown_pods) {
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

    /// Returns the number of entries removed, and of those denied.
    fn empty(mut self) -> io::Result<(u32, u32)> {
        self.look_again()?;
        self.remove()?;
        self.deny()?;
        Ok((self.removed, self.denied))
    }
}

#[cfg(test)]
mod tests;
