//! Errors of invalid objects.

use thiserror::Error;

/// Why an object is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{object}: {field}: {reason}")]
pub struct Invalid {
    /// Kind and name, as far as known.
    pub object: String,
    /// Path of the field in the object, such as `spec.ports[1].name`.
    pub field: String,
    /// The problem, and the expected value.
    pub reason: String,
}
