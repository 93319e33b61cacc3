//! Objects that can't be used.

use thiserror::Error;

/// Why an object can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{object}: {field}: {reason}")]
pub struct Invalid {
    /// Kind and name, as far as they are known.
    pub object: String,
    /// Path of the field in the object, such as `spec.ports[1].name`.
    pub field: String,
    /// What is wrong with it, and what it should be.
    pub reason: String,
}
