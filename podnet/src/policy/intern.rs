//! Ids for contents: equal contents have the same id for as long as it is in use.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::HashMap;

/// Declares ids, each a type of its own.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $most:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(super) struct $name(pub(super) u32);

        impl Id for $name {
            const MOST: u32 = $most;

            fn new(number: u32) -> Self {
                Self(number)
            }

            fn number(self) -> u32 {
                self.0
            }
        }
    )*};
}

/// An id, from 1.
pub(super) trait Id: Copy + Ord {
    /// The greatest.
    const MOST: u32;
    /// The id with a number.
    fn new(number: u32) -> Self;
    /// The number of an id.
    fn number(self) -> u32;
}

ids! {
    /// A policy.
    PolicyId, u32::MAX;
    /// An [`Atom`](super::atoms::Atom).
    AtomId, u32::MAX;
    /// A [`Profile`](super::atoms::Profile).
    ProfileId, u32::MAX;
    /// A [`Class`](super::atoms::Class) of addresses: `u32::MAX` means all of them.
    ClassId, u32::MAX - 1;
    /// A class of ports: numbers with the highest bit set mean whole protocols.
    PortClassId, (1 << 31) - 1;
    /// A rule set: 24 bits, of which all ones are part of [`Subject::CLOSED`](podnet_common::layout::Subject::CLOSED).
    SetId, (1 << 24) - 2;
}

/// Contents and their ids. An id that is no longer in use is given to other contents as late as possible, since packets
/// may still meet its entries in the tables.
#[derive(Clone, Debug)]
pub(super) struct Interner<K, I> {
    ids: HashMap<Arc<K>, I>,
    contents: BTreeMap<I, Arc<K>>,
    last: u32,
}

impl<K, I> Default for Interner<K, I> {
    fn default() -> Self {
        Self { ids: HashMap::default(), contents: BTreeMap::new(), last: 0 }
    }
}

impl<K: Eq + Hash, I: Id> Interner<K, I> {
    /// The id of a content. A node has far fewer of them than ids.
    pub(super) fn intern(&mut self, content: K) -> I {
        if let Some(id) = self.ids.get(&content) {
            return *id;
        }
        let id = loop {
            self.last = if self.last >= I::MOST { 1 } else { self.last + 1 };
            let id = I::new(self.last);
            if !self.contents.contains_key(&id) {
                break id;
            }
        };
        let content = Arc::new(content);
        self.ids.insert(content.clone(), id);
        self.contents.insert(id, content);
        id
    }

    /// Gives no ids up to this number until all others have been given.
    pub(super) fn start_after(&mut self, number: u32) {
        self.last = self.last.max(number);
    }

    /// The id of a content, if it has one.
    pub(super) fn id(&self, content: &K) -> Option<I> {
        self.ids.get(content).copied()
    }

    /// The content of an id.
    pub(super) fn content(&self, id: I) -> Option<&K> {
        self.contents.get(&id).map(|content| &**content)
    }

    /// All ids in use with their contents, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (I, &K)> {
        self.contents.iter().map(|(id, content)| (*id, &**content))
    }

    /// Number of ids in use.
    pub(super) fn len(&self) -> usize {
        self.contents.len()
    }

    /// Whether all ids in use have other ones.
    pub(super) fn can_rename(&self, others: &Bijection) -> bool {
        self.contents.keys().all(|id| others.of(id.number()).is_some())
    }

    /// Gives the other ids to all contents.
    pub(super) fn rename(&mut self, others: &Bijection) {
        let contents = std::mem::take(&mut self.contents).into_iter();
        let renamed = contents.filter_map(|(id, content)| Some((I::new(others.of(id.number())?), content)));
        self.contents = renamed.collect();
        self.ids = self.contents.iter().map(|(id, content)| (content.clone(), *id)).collect();
    }

    /// Forgets an id.
    pub(super) fn remove(&mut self, id: I) {
        if let Some(content) = self.contents.remove(&id) {
            self.ids.remove(&content);
        }
    }

    /// Forgets all ids but these.
    pub(super) fn retain(&mut self, keep: impl Fn(I) -> bool) {
        self.contents.retain(|id, _| keep(*id));
        self.ids.retain(|_, id| keep(*id));
    }
}

/// Numbers in pairs: none occurs twice on one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bijection {
    there: BTreeMap<u32, u32>,
    back: BTreeMap<u32, u32>,
}

impl Bijection {
    /// Adds a pair; `None` if one of its numbers is in another pair.
    pub(super) fn pair(&mut self, from: u32, to: u32) -> Option<()> {
        let there = *self.there.entry(from).or_insert(to);
        let back = *self.back.entry(to).or_insert(from);
        (there == to && back == from).then_some(())
    }

    /// The other number.
    pub(super) fn of(&self, from: u32) -> Option<u32> {
        self.there.get(&from).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Few(u32);

    impl Id for Few {
        const MOST: u32 = 3;

        fn new(number: u32) -> Self {
            Self(number)
        }

        fn number(self) -> u32 {
            self.0
        }
    }

    #[test]
    fn ids_stay_and_are_reused_late() {
        let mut interner = Interner::<_, Few>::default();
        assert_eq!(["a", "b", "a"].map(|content| interner.intern(content).0), [1, 2, 1]);
        interner.remove(Few(1));
        assert_eq!(interner.intern("c"), Few(3));
        assert_eq!((interner.intern("d"), interner.content(Few(1))), (Few(1), Some(&"d")));
        interner.retain(|id| id == Few(2));
        assert_eq!(interner.iter().collect::<Vec<_>>(), [(Few(2), &"b")]);
        assert_eq!(interner.intern("a"), Few(3));
        let mut interner = Interner::<_, Few>::default();
        interner.start_after(2);
        assert_eq!(["a", "b"].map(|content| interner.intern(content).0), [3, 1]);
    }

    #[test]
    fn pairs_are_unique() {
        let mut pairs = Bijection::default();
        assert_eq!(
            [(1, 2), (1, 2), (1, 3), (4, 2)].map(|(a, b)| pairs.pair(a, b).is_some()),
            [true, true, false, false]
        );
    }
}
