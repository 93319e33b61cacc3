//! Values by range of addresses, with longest prefix match. It takes one look-up per existing prefix length, so
//! thousands of ranges cost as little as a few.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use foldhash::HashMap;
use ipnetwork::IpNetwork;

/// Values by range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefixes<T> {
    /// The existing lengths, the longest first, and whether for IPv4.
    lengths: BTreeSet<(Reverse<u8>, bool)>,
    /// By range, with the bits after the prefix cleared.
    values: HashMap<IpNetwork, T>,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { lengths: BTreeSet::new(), values: HashMap::default() }
    }
}

impl<T> Prefixes<T> {
    /// Inserts a value. It replaces one of the same range only if it is `better`.
    pub(crate) fn insert(&mut self, range: IpNetwork, value: T, better: impl FnOnce(&T, &T) -> bool) {
        let Some(range) = shortened(range.network(), range.prefix()) else { return };
        self.lengths.insert((Reverse(range.prefix()), range.is_ipv4()));
        match self.values.get_mut(&range) {
            Some(known) if !better(&value, known) => {}
            Some(known) => *known = value,
            None => drop(self.values.insert(range, value)),
        }
    }

    /// Value of the narrowest range that contains an address.
    pub(crate) fn get(&self, addr: IpAddr) -> Option<&T> {
        let lengths = self.lengths.iter().filter(|(_, v4)| *v4 == addr.is_ipv4());
        lengths.filter_map(|(Reverse(length), _)| self.values.get(&shortened(addr, *length)?)).next()
    }
}

impl FromIterator<IpNetwork> for Prefixes<()> {
    fn from_iter<I: IntoIterator<Item = IpNetwork>>(ranges: I) -> Self {
        let mut prefixes = Self::default();
        ranges.into_iter().for_each(|range| prefixes.insert(range, (), |(), ()| false));
        prefixes
    }
}

/// Whether two ranges overlap.
pub(crate) fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// The range of this prefix length that contains an address.
fn shortened(addr: IpAddr, length: u8) -> Option<IpNetwork> {
    let range = IpNetwork::new(addr, length).ok()?;
    IpNetwork::new(range.network(), length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_range_counts() {
        let mut prefixes = Prefixes::default();
        for (range, value) in [("10.0.0.0/8", 1), ("10.1.2.3/16", 2), ("0.0.0.0/0", 3), ("::/0", 4), ("fd00::/64", 5)] {
            prefixes.insert(range.parse().unwrap(), value, |_, _| true);
        }
        prefixes.insert("10.0.0.0/8".parse().unwrap(), 9, |new, old| new < old);
        let get = |addr: &str| prefixes.get(addr.parse().unwrap()).copied();
        assert_eq!(["10.2.0.1", "10.1.9.9", "11.0.0.1"].map(get), [Some(1), Some(2), Some(3)]);
        assert_eq!(["fd00::1", "fd00:0:0:1::1"].map(get), [Some(5), Some(4)]);
        let v4: Prefixes<()> = ["10.0.0.0/8".parse().unwrap()].into_iter().collect();
        assert!(v4.get("10.255.0.1".parse().unwrap()).is_some() && v4.get("::ffff:a00:1".parse().unwrap()).is_none());
    }
}
