//! What sources say: objects that come, change and go, and objects that can't be used.

use std::time::{Instant, SystemTime};

use super::{Object, ObjectKey};

/// An object that is new or different, or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which object.
    pub key: ObjectKey,
    /// What it is now, of the key's kind; none if it is gone.
    pub object: Option<Object>,
    /// When this came.
    pub origin: Origin,
}

impl Change {
    /// One that the daemon has just been told of.
    pub fn new(key: ObjectKey, object: Option<Object>) -> Self {
        Self { key, object, origin: Origin { arrived: Instant::now(), trigger: None } }
    }
}

/// When a change began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// When the daemon was told.
    pub arrived: Instant,
    /// When what it follows from happened, such as that a pod became ready, if somebody has noted that.
    pub trigger: Option<SystemTime>,
}

impl Origin {
    /// That of two changes which are seen as one: the older.
    pub fn older(self, other: Self) -> Self {
        let triggers = [self.trigger, other.trigger].into_iter().flatten();
        Self { arrived: self.arrived.min(other.arrived), trigger: triggers.min() }
    }
}

/// What a source has to say at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// To be applied in this order.
    pub changes: Vec<Change>,
    /// Whether all objects that there are have been given by now. While they haven't, an object's absence means
    /// nothing, so nothing is taken away that an earlier daemon has put into the tables.
    pub synced: bool,
}

/// An object that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Which.
    pub key: ObjectKey,
    /// Its `metadata.uid`.
    pub uid: String,
    /// What is wrong with it.
    pub reason: String,
}
