//! Port classes: the ports that exactly the same ranges of rules contain are one class.

use std::collections::{BTreeMap, BTreeSet};

use podnet_common::addr::{Port, Proto};
use podnet_common::layout::ProtoPort;

use super::atoms::PortRange;
use super::intern::{Bijection, Interner, PortClassId};

/// The classes of the current ranges, and those of earlier ones that packets may still meet.
#[derive(Clone, Debug, Default)]
pub(super) struct PortClasses {
    ids: Interner<Vec<PortRange>, PortClassId>,
    /// The current ranges.
    ranges: BTreeSet<PortRange>,
    /// Their classes.
    current: BTreeSet<PortClassId>,
    /// The classes of all ranges, earlier ones included.
    by_range: BTreeMap<PortRange, Vec<PortClassId>>,
}

impl PortClasses {
    /// Gives other ids than those up to this one.
    pub(super) fn start_after(&mut self, id: u32) {
        self.ids.start_after(id);
    }

    /// Divides the ports by these ranges. Returns the table `policy_ports`; `None` if it stays as it is.
    pub(super) fn divide(&mut self, ranges: BTreeSet<PortRange>) -> Option<BTreeMap<ProtoPort, u32>> {
        if ranges == self.ranges {
            return None;
        }
        self.ranges = ranges;
        let mut table = Vec::new();
        self.current.clear();
        for (first, last, within) in parts(&self.ranges) {
            let proto = Proto::from(within[0].protocol);
            let id = self.ids.intern(within);
            self.current.insert(id);
            table.extend((first..=last).map(|port| (ProtoPort::new(proto, Port::new(port)), id.0)));
        }
        self.group();
        Some(table.into_iter().collect())
    }

    /// Whether all classes have other ids.
    pub(super) fn can_rename(&self, others: &Bijection) -> bool {
        self.ids.can_rename(others)
    }

    /// Gives the other ids to all classes.
    pub(super) fn rename(&mut self, others: &Bijection) {
        self.ids.rename(others);
        self.current = self.current.iter().filter_map(|id| others.of(id.0).map(PortClassId)).collect();
        self.group();
    }

    /// Forgets classes of earlier ranges. Returns whether there were any.
    pub(super) fn forget(&mut self) -> bool {
        let before = self.ids.len();
        self.ids.retain(|id| self.current.contains(&id));
        self.group();
        self.ids.len() != before
    }

    fn group(&mut self) {
        self.by_range.clear();
        for (id, ranges) in self.ids.iter() {
            ranges.iter().for_each(|range| self.by_range.entry(*range).or_default().push(id));
        }
    }

    /// The classes that make up a range, if the ports are or were divided by it.
    pub(super) fn of(&self, range: &PortRange) -> &[PortClassId] {
        self.by_range.get(range).map_or(&[], Vec::as_slice)
    }

    /// Whether the ports are divided by a range.
    pub(super) fn has(&self, range: &PortRange) -> bool {
        self.of(range).iter().any(|id| self.current.contains(id))
    }
}

/// The parts that ranges divide the ports into, with first and last port and the ranges that contain them, ascending;
/// without ports that no range contains.
fn parts(ranges: &BTreeSet<PortRange>) -> Vec<(u16, u16, Vec<PortRange>)> {
    let mut parts = Vec::new();
    let protocols: BTreeSet<_> = ranges.iter().map(|range| range.protocol).collect();
    for protocol in protocols {
        // Ranges that begin and end at each boundary. The one after 65535 needs more than 16 bits.
        let mut bounds: BTreeMap<u32, (Vec<PortRange>, Vec<PortRange>)> = BTreeMap::new();
        for range in ranges.iter().filter(|range| range.protocol == protocol && range.first <= range.last) {
            bounds.entry(range.first.into()).or_default().0.push(*range);
            bounds.entry(u32::from(range.last) + 1).or_default().1.push(*range);
        }
        let mut within = BTreeSet::new();
        let mut start = 0;
        for (bound, (begin, end)) in bounds {
            if let (Ok(first), Ok(last), false) =
                (u16::try_from(start), u16::try_from(bound.max(1) - 1), within.is_empty())
            {
                parts.push((first, last, within.iter().copied().collect()));
            }
            within.extend(begin);
            end.iter().for_each(|range| _ = within.remove(range));
            start = bound;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn range(protocol: Protocol, first: u16, last: u16) -> PortRange {
        PortRange { protocol, first, last }
    }

    #[test]
    fn classes_follow_the_ranges() {
        let lookup =
            |table: &BTreeMap<ProtoPort, u32>, proto, port| table.get(&ProtoPort::new(proto, Port::new(port))).copied();
        let mut classes = PortClasses::default();
        let (wide, narrow) = (range(Protocol::Tcp, 1, u16::MAX), range(Protocol::Tcp, 80, 90));
        let table = classes.divide([wide].into()).unwrap();
        assert_eq!(classes.divide([wide].into()), None);
        let outer = lookup(&table, Proto::TCP, 85);
        assert_eq!((outer, lookup(&table, Proto::UDP, 85), lookup(&table, Proto::TCP, 0)), (Some(1), None, None));
        let table = classes.divide([wide, narrow, range(Protocol::Udp, 80, 90)].into()).unwrap();
        assert_eq!((classes.of(&wide).len(), classes.of(&narrow).len()), (2, 1));
        let inner = classes.of(&narrow)[0].0;
        assert_eq!(
            [79, 80, 90, 91].map(|port| lookup(&table, Proto::TCP, port)),
            [outer, Some(inner), Some(inner), outer]
        );
        assert!(lookup(&table, Proto::UDP, 80).is_some_and(|id| id != inner));
        assert!(!classes.has(&range(Protocol::Tcp, 80, 80)));
        let table = classes.divide([narrow].into()).unwrap();
        assert_eq!(lookup(&table, Proto::TCP, 79), None);
        assert!(!classes.has(&wide) && classes.of(&wide).len() == 2, "packets may still meet its classes");
        assert!(classes.forget() && classes.of(&wide).is_empty() && !classes.forget());
    }
}
