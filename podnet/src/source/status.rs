//! Status of a source, for `podnet status`.

use crate::model::Diagnostic;

/// Status of a source, for `podnet status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The directory, or the API server's address.
    pub name: String,
    /// The problem with the source as a whole, if any.
    pub error: Option<String>,
    /// Whether everything has been read at least once.
    pub synced: bool,
    /// Invalid objects and files.
    pub mistakes: Vec<Diagnostic>,
    /// Other remarks for users, as sentences.
    pub remarks: Vec<String>,
}

/// What is in effect in place of an invalid object or file, for users.
pub const fn what_holds(kept: bool) -> &'static str {
    match kept {
        true => "its last valid version stays in effect",
        false => "no valid version since the daemon's start",
    }
}
