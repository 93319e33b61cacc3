//! Blocks of addresses, flattened: for each range of a block or an exception, the blocks that contain its addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use podnet_common::layout::Prefix;

use super::atoms::Atom;
use super::intern::AtomId;
use crate::prefixes::Prefixes;

/// All IPv4 addresses in mapped form.
const MAPPED: (Ipv6Addr, u8) = (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// The ranges that blocks and their exceptions divide the addresses into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Each range with the blocks, ascending, of its addresses that are in no narrower range.
    ranges: Vec<(IpNetwork, Vec<AtomId>)>,
    /// Places in `ranges`.
    places: Prefixes<usize>,
}

impl Blocks {
    /// Flattens blocks. Other atoms don't matter.
    pub(super) fn new<'a>(atoms: impl Iterator<Item = (AtomId, &'a Atom)>) -> Self {
        let block = |(id, atom): (AtomId, &'a Atom)| match atom {
            Atom::Block { cidr, except } => Some((id, cidr, except)),
            _ => None,
        };
        let blocks: Vec<_> = atoms.filter_map(block).collect();
        let networks: BTreeSet<&IpNetwork> =
            blocks.iter().flat_map(|(_, cidr, except)| std::iter::once(*cidr).chain(*except)).collect();
        let mut all = Self::default();
        for (place, network) in networks.into_iter().enumerate() {
            // A range is as a whole in each block and in each exception, or outside.
            let within = |range: &IpNetwork| range.prefix() <= network.prefix() && range.contains(network.network());
            let of = blocks.iter().filter(|(_, cidr, except)| within(cidr) && !except.iter().any(within));
            all.ranges.push((*network, of.map(|(id, ..)| *id).collect()));
            all.places.insert(*network, place, |_, _| false);
        }
        all
    }

    /// The narrowest range that contains an address.
    pub(super) fn range(&self, addr: IpAddr) -> Option<usize> {
        self.places.get(addr).copied()
    }

    /// The blocks, ascending, that contain the addresses of which this is the narrowest range.
    pub(super) fn of(&self, range: Option<usize>) -> &[AtomId] {
        range.and_then(|place| self.ranges.get(place)).map_or(&[], |(_, blocks)| blocks)
    }

    /// All ranges with their blocks.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Prefix, &[AtomId])> {
        let (mapped, bits) = MAPPED;
        let covers = |range: &IpNetwork| range.prefix() <= bits && range.contains(IpAddr::V6(mapped));
        // Otherwise ::/0 would contain all of IPv4. A block of 0.0.0.0/0 has the same prefix, and follows.
        let hidden = self.ranges.iter().any(|(range, _)| covers(range)).then(|| Prefix::new(mapped.into(), bits));
        let ranges = self.ranges.iter();
        let ranges = ranges.map(|(range, blocks)| (Prefix::new(range.network(), range.prefix()), blocks.as_slice()));
        hidden.map(|prefix| (prefix, &[] as &[AtomId])).into_iter().chain(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::super::intern::Interner;
    use super::*;

    #[test]
    fn an_exception_is_no_hole_in_another_block() {
        let block = |cidr: &str, except: &[&str]| Atom::Block {
            cidr: cidr.parse().unwrap(),
            except: except.iter().map(|range| range.parse().unwrap()).collect(),
        };
        let mut atoms = Interner::default();
        for atom in [
            block("10.0.0.0/8", &["10.1.0.0/16"]),
            block("10.1.2.0/24", &["10.1.2.0/28"]),
            block("::/0", &["fd00::/8"]),
        ] {
            atoms.intern(atom);
        }
        let blocks = Blocks::new(atoms.iter());
        let of = |addr: &str| blocks.of(blocks.range(addr.parse().unwrap())).iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(["10.2.0.1", "10.1.0.1", "10.1.2.200", "10.1.2.1"].map(of), [vec![1], vec![], vec![2], vec![]]);
        assert_eq!(["2001:db8::1", "fd00::1", "192.0.2.1"].map(of), [vec![3], vec![], vec![]]);
        let hidden = blocks.entries().find(|(prefix, _)| prefix.len == 96);
        assert_eq!(hidden.map(|(_, blocks)| blocks.len()), Some(0));
        assert_eq!(blocks.entries().count(), 7);
    }
}
