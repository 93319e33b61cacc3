//! A table beside what it should hold.
//!
//! The daemon alone writes such a table, so it needs to read it only once: a [`Mirror`] knows what the table holds, and
//! writes what differs. Two ways lead there. A table whose entries follow one by one from changes is worked off by key: keys
//! are [marked](Mirror::mark), taken when they are [due](Mirror::take_due), and those that fail come back after a pause.
//! A table that follows as a whole from one look at the node is [brought into line](Mirror::sync) at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::io;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::backoff::Backoff;

/// After a key has failed.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// An operation on a table that failed, and changed nothing.
#[derive(Debug, Error)]
pub enum TableError {
    /// There is no room.
    #[error("the table `{table}` is full: {advice}")]
    Full {
        /// Its name.
        table: &'static str,
        /// What can be done.
        advice: &'static str,
    },
    /// Another entry has to come or go first.
    #[error("waiting for {0}")]
    Waits(String),
    /// The kernel refused.
    #[error("{operation} in the table `{table}`: {source}")]
    Io {
        /// Its name.
        table: &'static str,
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The entries of a table.
pub trait Entries<K, V> {
    /// All of them, in any order.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn list(&self) -> Result<Vec<(K, V)>, TableError>;

    /// Adds or replaces one.
    ///
    /// # Errors
    /// If there is no room, or the kernel refuses.
    fn put(&mut self, key: &K, value: &V) -> Result<(), TableError>;

    /// Removes one; that it isn't there is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn delete(&mut self, key: &K) -> Result<(), TableError>;
}

/// What [`Mirror::sync`] does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Additions and replacements: no entry is missing meanwhile.
    Put,
    /// Removals: they make room.
    Delete,
}

/// Something that has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// When it is tried again.
    pub at: Instant,
    /// When it failed first.
    pub since: Instant,
    /// How often it has failed.
    pub failures: u32,
    /// The last time, because the kernel refused; else for want of room.
    pub refused: bool,
    /// It is in the table, in a form that isn't the best.
    pub written: bool,
    /// Why, the last time.
    pub reason: String,
}

impl Retry {
    /// After a further failure.
    pub fn after(earlier: Option<&Self>, error: &TableError, now: Instant) -> Self {
        let failures = earlier.map_or(0, |retry| retry.failures) + 1;
        let refused = matches!(error, TableError::Io { .. });
        let since = earlier.map_or(now, |retry| retry.since);
        Self { at: now + BACKOFF.after(failures), since, failures, refused, written: false, reason: error.to_string() }
    }
}

/// What a table holds, and what is still to be done about it.
#[derive(Clone, Debug)]
pub struct Mirror<K, V> {
    held: HashMap<K, V>,
    /// Whether `held` is what the table holds.
    known: bool,
    /// Keys that an earlier daemon left and that nothing has asked for yet.
    unclaimed: BTreeSet<K>,
    /// Keys to be looked at.
    dirty: BTreeSet<K>,
    /// Keys that have failed.
    retries: BTreeMap<K, Retry>,
}

impl<K, V> Default for Mirror<K, V> {
    /// Of a table that hasn't been read yet.
    fn default() -> Self {
        Self {
            held: HashMap::new(),
            known: false,
            unclaimed: BTreeSet::new(),
            dirty: BTreeSet::new(),
            retries: BTreeMap::new(),
        }
    }
}

impl<K: Copy + Ord + Hash, V> Mirror<K, V> {
    /// Takes over what an earlier daemon left.
    pub fn adopt(entries: impl IntoIterator<Item = (K, V)>) -> Self {
        let held: HashMap<K, V> = entries.into_iter().collect();
        Self { unclaimed: held.keys().copied().collect(), held, known: true, ..Self::default() }
    }

    /// An entry of the table.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.held.get(key)
    }

    /// How many entries the table holds.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The table's entries, in any order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.held.iter()
    }

    /// An entry was written; what was there before.
    pub fn put(&mut self, key: K, value: V) -> Option<V> {
        self.held.insert(key, value)
    }

    /// An entry was removed; what was there.
    pub fn delete(&mut self, key: &K) -> Option<V> {
        self.held.remove(key)
    }

    /// Has keys looked at.
    pub fn mark(&mut self, keys: impl IntoIterator<Item = K>) {
        self.dirty.extend(keys);
    }

    /// Keys that an earlier daemon left and that nothing has asked for yet.
    pub fn unclaimed(&self) -> &BTreeSet<K> {
        &self.unclaimed
    }

    /// Something asks for a key.
    pub fn claim(&mut self, key: &K) {
        self.unclaimed.remove(key);
    }

    /// Takes the keys that are marked, and those whose pause is over. While the sources aren't `synced`, what an earlier
    /// daemon left stays as it is, since what asks for it may not have been read yet.
    pub fn take_due(&mut self, synced: bool, now: Instant) -> BTreeSet<K> {
        if synced {
            self.dirty.append(&mut self.unclaimed);
        }
        self.dirty.extend(self.retries.iter().filter(|(_, retry)| retry.at <= now).map(|(key, _)| *key));
        std::mem::take(&mut self.dirty)
    }

    /// A key is as it should be.
    pub fn done(&mut self, key: &K) {
        self.retries.remove(key);
    }

    /// A key isn't as it should be: it is due again after a pause. `written`: the table has it, in a form that isn't the best.
    pub fn failed(&mut self, key: K, error: &TableError, written: bool, now: Instant) -> &Retry {
        let retry = Retry { written, ..Retry::after(self.retries.get(&key), error, now) };
        self.retries.entry(key).insert_entry(retry).into_mut()
    }

    /// A key's last failure.
    pub fn retry(&self, key: &K) -> Option<&Retry> {
        self.retries.get(key)
    }

    /// Keys that have failed, and why.
    pub fn retries(&self) -> impl Iterator<Item = (&K, &Retry)> {
        self.retries.iter()
    }

    /// Makes the table hold exactly what is wanted. After a failure it is read again the next time.
    ///
    /// # Errors
    /// The first failure; the rest is left as it was.
    pub fn sync(
        &mut self,
        wanted: &BTreeMap<K, V>,
        first: First,
        table: &mut (impl Entries<K, V> + ?Sized),
    ) -> Result<(), TableError>
    where
        V: Copy + PartialEq,
    {
        if !std::mem::take(&mut self.known) {
            self.held = table.list()?.into_iter().collect();
        }
        for operation in if first == First::Put { [First::Put, First::Delete] } else { [First::Delete, First::Put] } {
            match operation {
                First::Put => self.put_all(wanted, table)?,
                First::Delete => self.delete_others(wanted, table)?,
            }
        }
        self.known = true;
        Ok(())
    }

    fn put_all(&mut self, wanted: &BTreeMap<K, V>, table: &mut (impl Entries<K, V> + ?Sized)) -> Result<(), TableError>
    where
        V: Copy + PartialEq,
    {
        for (key, value) in wanted {
            if self.held.get(key) != Some(value) {
                table.put(key, value)?;
                self.held.insert(*key, *value);
            }
        }
        Ok(())
    }

    fn delete_others(
        &mut self,
        wanted: &BTreeMap<K, V>,
        table: &mut (impl Entries<K, V> + ?Sized),
    ) -> Result<(), TableError> {
        let gone: BTreeSet<K> = self.held.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            table.delete(&key)?;
            self.held.remove(&key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with room for two, which notes every write and can refuse them.
    #[derive(Default)]
    struct Small {
        entries: BTreeMap<u8, char>,
        writes: Vec<String>,
        refuses: bool,
    }

    impl Small {
        fn write(&mut self, what: String) -> Result<(), TableError> {
            if self.refuses {
                let source = io::Error::from_raw_os_error(libc::EBUSY);
                return Err(TableError::Io { table: "small", operation: "writing", source });
            }
            self.writes.push(what);
            Ok(())
        }
    }

    impl Entries<u8, char> for Small {
        fn list(&self) -> Result<Vec<(u8, char)>, TableError> {
            Ok(self.entries.iter().map(|(key, value)| (*key, *value)).collect())
        }

        fn put(&mut self, key: &u8, value: &char) -> Result<(), TableError> {
            if self.entries.len() == 2 && !self.entries.contains_key(key) {
                return Err(TableError::Full { table: "small", advice: "remove one" });
            }
            self.write(format!("+{key}{value}"))?;
            self.entries.insert(*key, *value);
            Ok(())
        }

        fn delete(&mut self, key: &u8) -> Result<(), TableError> {
            self.write(format!("-{key}"))?;
            self.entries.remove(key);
            Ok(())
        }
    }

    fn sync(mirror: &mut Mirror<u8, char>, wanted: &[(u8, char)], first: First, table: &mut Small) -> Vec<String> {
        mirror.sync(&wanted.iter().copied().collect(), first, table).unwrap();
        std::mem::take(&mut table.writes)
    }

    #[test]
    fn only_what_differs_is_written_in_the_order_that_the_table_needs() {
        let mut table = Small { entries: [(1, 'a'), (2, 'b')].into(), ..Small::default() };
        let mut mirror = Mirror::default();
        assert_eq!(sync(&mut mirror, &[(1, 'a'), (2, 'c')], First::Put, &mut table), ["+2c"]);
        assert_eq!(sync(&mut mirror, &[(2, 'c'), (3, 'd')], First::Delete, &mut table), ["-1", "+3d"]);
        assert_eq!(sync(&mut mirror, &[(2, 'c')], First::Put, &mut table), ["-3"]);
        assert_eq!(sync(&mut mirror, &[(2, 'e'), (4, 'f')], First::Put, &mut table), ["+2e", "+4f"]);
        let full = mirror.sync(&[(4, 'f'), (5, 'g')].into(), First::Put, &mut table).unwrap_err();
        assert_eq!(full.to_string(), "the table `small` is full: remove one");
        assert_eq!(sync(&mut mirror, &[(4, 'f'), (5, 'g')], First::Delete, &mut table), ["-2", "+5g"]);
    }

    #[test]
    fn after_a_failure_the_table_is_read_again() {
        let (mut table, mut mirror) = (Small::default(), Mirror::default());
        sync(&mut mirror, &[(1, 'a')], First::Put, &mut table);
        table.refuses = true;
        assert!(mirror.sync(&BTreeMap::new(), First::Put, &mut table).is_err());
        table.refuses = false;
        table.entries.insert(2, 'b');
        assert_eq!(sync(&mut mirror, &[(1, 'a')], First::Put, &mut table), ["-2"]);
        assert_eq!((mirror.len(), mirror.get(&1)), (1, Some(&'a')));
    }

    #[test]
    fn a_key_that_fails_comes_back_later_each_time() {
        let (mut mirror, start) = (Mirror::<u8, char>::default(), Instant::now());
        mirror.mark([1, 2]);
        assert_eq!(mirror.take_due(true, start), [1, 2].into());
        let error = TableError::Full { table: "small", advice: "remove one" };
        let mut now = start;
        for pause in [50, 100, 200] {
            now = mirror.failed(1, &error, false, now).at;
            assert_eq!(mirror.take_due(true, now - Duration::from_millis(1)), [].into());
            assert_eq!(mirror.take_due(true, now), [1].into(), "after {pause} ms");
        }
        assert_eq!(now - start, Duration::from_millis(350));
        let retry = mirror.retry(&1).unwrap();
        assert_eq!((retry.failures, retry.since, retry.refused), (3, start, false));
        mirror.done(&1);
        assert_eq!(mirror.take_due(true, now + Duration::from_secs(60)), [].into());
    }

    #[test]
    fn what_is_adopted_stays_until_the_sources_are_synced() {
        let mut mirror = Mirror::adopt([(1, 'a'), (2, 'b')]);
        mirror.claim(&1);
        assert_eq!(mirror.take_due(false, Instant::now()), [].into());
        assert_eq!(mirror.take_due(true, Instant::now()), [2].into());
        assert!(mirror.unclaimed().is_empty());
    }
}
