//! Entries of the connection table per holder. The programs count the entries that they add, and refuse a flow to a
//! holder of too large a share of a nearly full table (see [`podnet_common::layout::holders`]). They don't see flows
//! end, so sweeps recount.

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use podnet_common::layout::holders::{self, ALL, CAPACITY, LEN, OUTSIDE};

use super::batch;

/// Entries that a sweep has kept, per holder.
#[derive(Debug)]
pub(super) struct Held(Vec<u32>);

impl Held {
    /// None yet.
    pub(super) fn none() -> Self {
        Self(vec![0; LEN])
    }

    /// Adds one.
    pub(super) fn add(&mut self, place: u32) {
        self.0[place as usize] += 1;
        self.0[ALL as usize] += 1;
        if holders::is_outside(place) {
            self.0[OUTSIDE as usize] += 1;
        }
    }

    fn of(&self, place: u32) -> u32 {
        self.0[place as usize]
    }
}

/// Part of the table, as a divisor, up to which counts need not be exact: a holder may have several times as many
/// entries as are free. One whose count is too high has at worst a sixteenth fewer source ports.
const FEW: u32 = 16;

/// The programs' counts during a sweep. Reading all of them takes milliseconds, so that is left out while they are low.
/// They include flows that have ended, so they are usually too high.
pub(super) struct Count<'a> {
    table: BorrowedFd<'a>,
    capacity: u32,
    /// `None` if they were low.
    before: Option<Vec<u32>>,
}

impl<'a> Count<'a> {
    /// Must be called before the first entry is read.
    pub(super) fn begin(table: BorrowedFd<'a>, capacity: u32) -> io::Result<Self> {
        let totals = batch::range::<u32>(table, ALL, 1 + CAPACITY - ALL)?;
        let low = totals.first().is_some_and(|all| *all <= capacity / FEW) && totals.last() == Some(&capacity);
        let before = if low { None } else { Some(read(table)?) };
        Ok(Self { table, capacity, before })
    }

    /// Replaces the counts from before the sweep by those of the sweep, and adds what the programs have counted
    /// since.
    pub(super) fn end(self, held: Held) -> io::Result<()> {
        let Self { table, capacity, before } = self;
        // More than was counted: the table of flows may be that of an earlier daemon, and the counts new.
        if before.is_none() && held.of(ALL) <= capacity / FEW {
            return Ok(());
        }
        let after = read(table)?;
        let (mut places, mut counts) = (Vec::new(), Vec::new());
        for (place, (before, now)) in (0u32..).zip(before.as_ref().unwrap_or(&after).iter().zip(&after)) {
            let right = if place == CAPACITY { capacity } else { held.of(place) + now.saturating_sub(*before) };
            if right != *now {
                places.push(place);
                counts.push(right);
            }
        }
        batch::update(table, &places, &counts)
    }
}

fn read(table: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    batch::range(table, 0, LEN as u32)
}

/// Total number of entries, as counted by the programs.
pub(super) fn all(table: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(batch::range(table, ALL, 1)?.first().copied().unwrap_or_default())
}

/// For how many sweeps a holder of too many entries is remembered: as many as it takes, at one a second, until the
/// last of its flows has timed out.
const SWEEPS: u8 = 12;

/// The holders whose flows get shorter timeouts if they are probably over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hurry {
    /// All holders.
    all: bool,
    /// These holders, for this many sweeps.
    places: BTreeMap<u32, u8>,
}

impl Hurry {
    /// Whether it applies to all holders.
    pub(super) fn concerns_all(&self) -> bool {
        self.all
    }

    /// Whether it applies to a holder.
    pub(super) fn concerns(&self, place: u32) -> bool {
        let outside = holders::is_outside(place) && self.places.contains_key(&OUTSIDE);
        self.all || outside || self.places.contains_key(&place)
    }

    /// What remains at the next sweep, whatever that finds.
    pub(super) fn lasting(&self) -> Self {
        let left = self.places.iter().filter(|(_, left)| **left > 1);
        Self { all: false, places: left.map(|(place, left)| (*place, left - 1)).collect() }
    }

    /// The same with the holders that these counts add. A quarter of the table is always allowed, any share while
    /// half of the table is free, and half of the table for all clients outside the node together.
    pub(super) fn with(&self, held: &Held, capacity: u32) -> Self {
        let all = held.of(ALL);
        let too_much = |place: u32| {
            let most = match place {
                ALL => return false,
                OUTSIDE => capacity / 2,
                _ => capacity / 4,
            };
            held.of(place) > most && all > capacity / 2
        };
        let found = (0..LEN as u32).filter(|place| too_much(*place)).map(|place| (place, SWEEPS));
        // Later entries replace earlier ones.
        let places = self.places.iter().map(|(place, left)| (*place, *left)).chain(found).collect();
        Self { all: capacity - all.min(capacity) < capacity / 16, places }
    }

    /// Whether it applies to a holder to which `other` doesn't.
    pub(super) fn exceeds(&self, other: &Self) -> bool {
        self.all && !other.all || self.places.keys().any(|place| !other.concerns(*place))
    }
}

#[cfg(test)]
mod tests {
    use podnet_common::addr::{Addr, IfIndex};

    use super::*;

    const POD: u32 = holders::of_interface(IfIndex(7));

    fn held(of: &[(u32, u32)]) -> Held {
        let mut held = Held::none();
        for (place, count) in of {
            (0..*count).for_each(|_| held.add(*place));
        }
        held
    }

    #[test]
    fn flows_of_large_holders_time_out_earlier_in_a_scarce_table() {
        let (client, other) = (holders::of_client(&Addr::v4(1)), holders::of_client(&Addr::v4(2)));
        type Holders<'a> = &'a [(u32, u32)];
        let cases: [(Holders<'_>, u32, bool); 8] = [
            (&[(POD, 401), (client, 400)], POD, true),
            (&[(POD, 401), (client, 400)], client, false),
            (&[(POD, 400), (8, 400), (9, 400)], POD, false),
            (&[(POD, 401), (8, 399)], POD, false),
            (&[(client, 401), (8, 400)], client, true),
            (&[(client, 401), (8, 400)], other, false),
            (&[(client, 90), (other, 711)], client, true),
            (&[(client, 90), (other, 710)], client, false),
        ];
        for (of, place, expected) in cases {
            assert_eq!(Hurry::default().with(&held(of), 1600).concerns(place), expected, "{of:?} {place}");
        }
    }

    #[test]
    fn all_flows_time_out_earlier_in_a_nearly_full_table() {
        let many: Vec<_> = (0..20).map(|i| (i, 75)).collect();
        assert!(!Hurry::default().with(&held(&many), 1600).concerns(99));
        let more: Vec<_> = (0..20).map(|i| (i, 76)).collect();
        assert!(Hurry::default().with(&held(&more), 1600).concerns(99));
    }

    #[test]
    fn a_large_holder_is_remembered_until_its_last_flow_has_timed_out() {
        let much = held(&[(POD, 900)]);
        let mut hurry = Hurry::default().with(&much, 1600);
        assert!(hurry.exceeds(&Hurry::default()) && !hurry.exceeds(&hurry.lasting()), "{hurry:?}");
        for _ in 1..SWEEPS {
            hurry = hurry.lasting().with(&held(&[(POD, 1)]), 1600);
            assert!(hurry.concerns(POD));
        }
        assert_eq!(hurry.lasting().with(&Held::none(), 1600), Hurry::default());
    }
}
