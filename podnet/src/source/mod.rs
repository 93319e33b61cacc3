//! Where objects come from: today a directory of manifests, later also the Kubernetes API.
//!
//! A source gives [`Batch`]es of validated objects. The first holds everything that there is; those that follow hold
//! what has changed.

pub mod manifest;
mod parse;

use crate::model::{Object, ObjectKey};

/// An object that is new or different, or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which object.
    pub key: ObjectKey,
    /// What it is now, of the key's kind; none if it is gone.
    pub object: Option<Object>,
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
