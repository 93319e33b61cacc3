//! Tables as a mirror uses them.

use std::io;

use podnet_cni::text::refusal;
use thiserror::Error;

/// A failed operation on a table, without effect.
#[derive(Debug, Error)]
pub enum TableError {
    /// The table is full.
    #[error("the table `{table}` is full: {advice}")]
    Full {
        /// Name of the table.
        table: &'static str,
        /// Remedy.
        advice: &'static str,
    },
    /// Another entry must be added or removed first.
    #[error("waiting for {0}")]
    Waits(String),
    /// The kernel refused the operation.
    #[error("cannot {operation} the table `{table}`: {}", refusal(.source))]
    Io {
        /// Name of the table.
        table: &'static str,
        /// The operation, as an infinitive with its preposition.
        operation: &'static str,
        /// The error of the kernel.
        source: io::Error,
    },
}

/// The entries of a table.
pub trait Entries<K, V> {
    /// All entries, in any order.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn list(&self) -> Result<Vec<(K, V)>, TableError>;

    /// Adds or replaces an entry.
    ///
    /// # Errors
    /// If the table is full, or the kernel refuses.
    fn put(&mut self, key: &K, value: &V) -> Result<(), TableError>;

    /// Removes an entry; a missing one is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn delete(&mut self, key: &K) -> Result<(), TableError>;

    /// Adds or replaces entries. After a failure, some may have been written.
    ///
    /// # Errors
    /// See [`Self::put`].
    fn put_all(&mut self, entries: &[(K, V)]) -> Result<(), TableError> {
        entries.iter().try_for_each(|(key, value)| self.put(key, value))
    }

    /// Removes entries. After a failure, some may be gone.
    ///
    /// # Errors
    /// See [`Self::delete`].
    fn delete_all(&mut self, keys: &[K]) -> Result<(), TableError> {
        keys.iter().try_for_each(|key| self.delete(key))
    }
}

/// Counts that programs keep in a table.
pub trait Counts<K> {
    /// All entries with their counts.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn counts(&self) -> Result<Vec<(K, u64)>, TableError>;
}
