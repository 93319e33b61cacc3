//! Output of sources: objects that are added, changed and deleted, and invalid objects.

use std::time::{Instant, SystemTime};

use super::{Object, ObjectKey};

/// A new, changed or deleted object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Key of the object.
    pub key: ObjectKey,
    /// Its new state, of the key's kind; `None` if it is deleted.
    pub object: Option<Object>,
    /// When the change arrived.
    pub origin: Origin,
}

impl Change {
    /// A change that arrives now.
    pub fn new(key: ObjectKey, object: Option<Object>) -> Self {
        Self { key, object, origin: Origin { arrived: Instant::now(), trigger: None } }
    }
}

/// When a change began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// When the daemon received it.
    pub arrived: Instant,
    /// When its cause occurred, such as a pod becoming ready, if the object records that.
    pub trigger: Option<SystemTime>,
}

impl Origin {
    /// The origin of two changes merged into one: the older.
    pub fn older(self, other: Self) -> Self {
        let triggers = [self.trigger, other.trigger].into_iter().flatten();
        Self { arrived: self.arrived.min(other.arrived), trigger: triggers.min() }
    }
}

/// Changes that a source reports at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In the order in which they must be applied.
    pub changes: Vec<Change>,
    /// Whether all existing objects but those of network policy have been reported by now. Until then the absence of an
    /// object means nothing, so entries of an earlier daemon are not removed from the tables.
    pub synced: bool,
    /// The same for the objects of network policy ([`Kind::is_of_policies`](super::Kind::is_of_policies)).
    pub policies_synced: bool,
}

/// An invalid object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Key of the object.
    pub key: ObjectKey,
    /// Its `metadata.uid`.
    pub uid: String,
    /// Why it is invalid.
    pub reason: String,
}
