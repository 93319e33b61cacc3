//! A table beside its desired contents.
//!
//! Only the daemon writes such a table, so it needs to read it only once: a [`Mirror`] knows the contents of the table
//! and writes the differences. There are two ways to use it. If entries follow one by one from changes, they are
//! processed by key: keys are [marked](Mirror::mark), taken when they are [due](Mirror::take_due), and retried after a
//! delay if they fail. If a table follows as a whole from one snapshot of the node, it is [synced](Mirror::sync) at
//! once.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::time::{Duration, Instant};

use foldhash::HashMap;

use crate::backoff::Backoff;

mod entries;

pub use entries::{Counts, Entries, TableError};

/// For keys that have failed.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// Order of operations in [`Mirror::sync`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Additions and replacements first: no entry is missing in between.
    Put,
    /// Removals first: they make room.
    Delete,
}

/// A failed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// When it is retried.
    pub at: Instant,
    /// Time of the first failure.
    pub since: Instant,
    /// Number of consecutive failures.
    pub failures: u32,
    /// The last failure was a refusal by the kernel, not a full table.
    pub refused: bool,
    /// The entry is in the table, but not in its best form.
    pub written: bool,
    /// Reason of the last failure.
    pub reason: String,
}

impl Retry {
    /// Adds a failure to an earlier one, if any.
    pub fn after(earlier: Option<&Self>, error: &TableError, now: Instant) -> Self {
        let failures = earlier.map_or(0, |retry| retry.failures) + 1;
        let refused = matches!(error, TableError::Io { .. });
        let since = earlier.map_or(now, |retry| retry.since);
        Self { at: now + BACKOFF.after(failures), since, failures, refused, written: false, reason: error.to_string() }
    }
}

/// Contents of a table, and pending work.
#[derive(Clone, Debug)]
pub struct Mirror<K, V> {
    held: HashMap<K, V>,
    /// Whether `held` matches the table.
    known: bool,
    /// Keys left by an earlier daemon that haven't been claimed yet.
    unclaimed: BTreeSet<K>,
    /// Keys to be processed.
    dirty: BTreeSet<K>,
    /// Keys that have failed.
    retries: BTreeMap<K, Retry>,
    /// Number of entries written or removed by [`Self::sync`] and [`Self::add`].
    writes: u64,
}

impl<K, V> Default for Mirror<K, V> {
    /// A table that hasn't been read yet.
    fn default() -> Self {
        Self {
            held: HashMap::default(),
            known: false,
            unclaimed: BTreeSet::new(),
            dirty: BTreeSet::new(),
            retries: BTreeMap::new(),
            writes: 0,
        }
    }
}

impl<K: Copy + Ord + Hash, V> Mirror<K, V> {
    /// Adopts the entries left by an earlier daemon.
    pub fn adopt(entries: impl IntoIterator<Item = (K, V)>) -> Self {
        let held: HashMap<K, V> = entries.into_iter().collect();
        Self { unclaimed: held.keys().copied().collect(), held, known: true, ..Self::default() }
    }

    /// An entry of the table.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.held.get(key)
    }

    /// Number of entries written or removed so far by [`Self::sync`] and [`Self::add`].
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Number of entries.
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

    /// Records a write. Returns the previous value.
    pub fn put(&mut self, key: K, value: V) -> Option<V> {
        self.held.insert(key, value)
    }

    /// Records a removal. Returns the previous value.
    pub fn delete(&mut self, key: &K) -> Option<V> {
        self.held.remove(key)
    }

    /// Schedules keys for processing.
    pub fn mark(&mut self, keys: impl IntoIterator<Item = K>) {
        self.dirty.extend(keys);
    }

    /// Keys left by an earlier daemon that haven't been claimed yet.
    pub fn unclaimed(&self) -> &BTreeSet<K> {
        &self.unclaimed
    }

    /// Claims a key.
    pub fn claim(&mut self, key: &K) {
        self.unclaimed.remove(key);
    }

    /// Takes the marked keys, and those whose retry is due. Unless `synced`, entries of an earlier daemon stay
    /// unchanged, since the objects that claim them may not have been read yet.
    pub fn take_due(&mut self, synced: bool, now: Instant) -> BTreeSet<K> {
        if synced {
            self.dirty.append(&mut self.unclaimed);
        }
        self.dirty.extend(self.retries.iter().filter(|(_, retry)| retry.at <= now).map(|(key, _)| *key));
        self.held.reserve(self.dirty.len().saturating_sub(self.held.len()));
        std::mem::take(&mut self.dirty)
    }

    /// A key was processed successfully.
    pub fn done(&mut self, key: &K) {
        self.retries.remove(key);
    }

    /// A key has failed and will be retried after a delay. `written`: the entry is in the table, but not in its best
    /// form.
    pub fn failed(&mut self, key: K, error: &TableError, written: bool, now: Instant) -> &Retry {
        let retry = Retry { written, ..Retry::after(self.retries.get(&key), error, now) };
        self.retries.entry(key).insert_entry(retry).into_mut()
    }

    /// Last failure of a key.
    pub fn retry(&self, key: &K) -> Option<&Retry> {
        self.retries.get(key)
    }

    /// Keys that have failed, with their failures.
    pub fn retries(&self) -> impl Iterator<Item = (&K, &Retry)> {
        self.retries.iter()
    }

    /// Makes the table match the desired contents exactly. After a failure it is read again by the next call.
    ///
    /// # Errors
    /// The first failure; the remaining entries are unchanged.
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
                // All desired entries are held already.
                First::Delete if first == First::Put && self.held.len() == wanted.len() => {}
                First::Delete => self.trim(wanted, table)?,
            }
        }
        self.known = true;
        Ok(())
    }

    /// Removes all entries but these, which [`Self::add`] has just added. After a failure the table is read again by
    /// the next call.
    ///
    /// # Errors
    /// See [`Self::sync`].
    pub fn keep_only(
        &mut self,
        wanted: &BTreeMap<K, V>,
        table: &mut (impl Entries<K, V> + ?Sized),
    ) -> Result<(), TableError> {
        if self.held.len() != wanted.len() {
            self.known = false;
            self.trim(wanted, table)?;
            self.known = true;
        }
        Ok(())
    }

    /// Removes the entries whose keys don't satisfy a condition. Those left may differ from the desired ones as before.
    /// After a failure the table is read again by the next call.
    ///
    /// # Errors
    /// See [`Self::sync`].
    pub fn retain(
        &mut self,
        keeps: impl Fn(&K) -> bool,
        table: &mut (impl Entries<K, V> + ?Sized),
    ) -> Result<(), TableError> {
        let known = std::mem::take(&mut self.known);
        if !known {
            self.held = table.list()?.into_iter().collect();
        }
        self.delete_all(self.held.keys().filter(|key| !keeps(key)).copied().collect(), table)?;
        // After an earlier failure, `sync_keys` still has to compare all.
        self.known = known;
        Ok(())
    }

    /// Removes all entries but these.
    fn trim(&mut self, wanted: &BTreeMap<K, V>, table: &mut (impl Entries<K, V> + ?Sized)) -> Result<(), TableError> {
        let others = self.held.keys().filter(|key| !wanted.contains_key(key));
        self.delete_all(others.copied().collect(), table)
    }

    /// As [`Self::sync`] with [`First::Put`], if only the entries of these keys may differ. After a failure of any call
    /// all are compared.
    ///
    /// # Errors
    /// See [`Self::sync`].
    pub fn sync_keys(
        &mut self,
        keys: &BTreeSet<K>,
        wanted: &BTreeMap<K, V>,
        table: &mut (impl Entries<K, V> + ?Sized),
    ) -> Result<(), TableError>
    where
        V: Copy + PartialEq,
    {
        if !self.known {
            return self.sync(wanted, First::Put, table);
        }
        self.known = false;
        self.put_all(keys.iter().filter_map(|key| wanted.get_key_value(key)), table)?;
        self.delete_all(keys.iter().filter(|key| !wanted.contains_key(key)).copied().collect(), table)?;
        self.known = true;
        Ok(())
    }

    /// Has the next call read the table, which another program may have changed.
    pub fn forget(&mut self) {
        self.known = false;
    }

    /// Adds and replaces entries, and removes none. After a failure the table is read again by the next call.
    ///
    /// # Errors
    /// See [`Self::sync`].
    pub fn add(&mut self, wanted: &BTreeMap<K, V>, table: &mut (impl Entries<K, V> + ?Sized)) -> Result<(), TableError>
    where
        V: Copy + PartialEq,
    {
        if !std::mem::take(&mut self.known) {
            self.held = table.list()?.into_iter().collect();
        }
        self.put_all(wanted, table)?;
        self.known = true;
        Ok(())
    }

    /// Writes those of these entries that differ.
    fn put_all<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = (&'a K, &'a V)>,
        table: &mut (impl Entries<K, V> + ?Sized),
    ) -> Result<(), TableError>
    where
        K: 'a,
        V: Copy + PartialEq + 'a,
    {
        let differs = |(key, value): &(&K, &V)| self.held.get(key) != Some(value);
        let wanted = wanted.into_iter().filter(differs);
        let entries: Vec<(K, V)> = wanted.map(|(key, value)| (*key, *value)).collect();
        table.put_all(&entries)?;
        self.writes += entries.len() as u64;
        self.held.extend(entries);
        Ok(())
    }

    /// Removes those of these entries that exist.
    fn delete_all(&mut self, mut keys: Vec<K>, table: &mut (impl Entries<K, V> + ?Sized)) -> Result<(), TableError> {
        keys.retain(|key| self.held.contains_key(key));
        keys.sort_unstable();
        table.delete_all(&keys)?;
        self.writes += keys.len() as u64;
        keys.iter().for_each(|key| _ = self.held.remove(key));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A table with room for two entries, which records every write and can refuse them.
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
                return Err(TableError::Io { table: "small", operation: "write to", source });
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
    fn sync_writes_differences_in_the_given_order() {
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
    fn entries_are_added_before_others_are_removed() {
        let (mut table, mut mirror) = (Small { entries: [(1, 'a')].into(), ..Small::default() }, Mirror::default());
        let wanted = [(2, 'b')].into();
        mirror.add(&wanted, &mut table).unwrap();
        mirror.keep_only(&wanted, &mut table).unwrap();
        mirror.keep_only(&wanted, &mut table).unwrap();
        assert_eq!(table.writes, ["+2b", "-1"]);
    }

    #[test]
    fn table_is_read_again_after_a_failure() {
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
    fn single_keys_are_synced_once_the_table_is_known() {
        let (mut table, mut mirror) = (Small::default(), Mirror::default());
        let mut sync = |table: &mut Small, keys: &[u8], wanted: &[(u8, char)]| {
            let done = mirror.sync_keys(&keys.iter().copied().collect(), &wanted.iter().copied().collect(), table);
            (done.is_ok(), std::mem::take(&mut table.writes).concat())
        };
        assert_eq!(sync(&mut table, &[], &[(1, 'a'), (2, 'b')]), (true, "+1a+2b".into()), "all, the first time");
        assert_eq!(sync(&mut table, &[2, 3], &[(1, 'x'), (2, 'c')]), (true, "+2c".into()), "1 is not among the keys");
        table.refuses = true;
        assert_eq!(sync(&mut table, &[2], &[(1, 'x')]), (false, "".into()));
        table.refuses = false;
        assert_eq!(sync(&mut table, &[], &[(1, 'x')]), (true, "+1x-2".into()), "all, after a failure");
        assert_eq!(sync(&mut table, &[1, 7], &[]), (true, "-1".into()));
    }

    #[test]
    fn making_room_does_not_make_up_for_a_failure() {
        let (mut table, mut mirror) = (Small { entries: [(1, 'a')].into(), ..Small::default() }, Mirror::default());
        let wanted = [(1, 'b'), (2, 'c'), (3, 'd')].into();
        mirror.sync(&[(1, 'a')].into(), First::Put, &mut table).unwrap();
        table.entries.insert(9, 'z');
        assert!(mirror.sync_keys(&[1, 2, 3].into(), &wanted, &mut table).is_err(), "it is full");
        mirror.retain(|key| *key != 9, &mut table).unwrap();
        let wanted = [(1, 'b'), (2, 'c')].into();
        mirror.sync_keys(&BTreeSet::new(), &wanted, &mut table).unwrap();
        assert_eq!(table.entries, wanted);
    }

    #[test]
    fn failed_keys_are_retried_with_backoff() {
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
    fn adopted_entries_stay_until_the_sources_are_synced() {
        let mut mirror = Mirror::adopt([(1, 'a'), (2, 'b')]);
        mirror.claim(&1);
        assert_eq!(mirror.take_due(false, Instant::now()), [].into());
        assert_eq!(mirror.take_due(true, Instant::now()), [2].into());
        assert!(mirror.unclaimed().is_empty());
    }
}
