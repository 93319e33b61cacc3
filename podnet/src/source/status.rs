//! How a source stands, for `podnet status`.

use crate::model::Diagnostic;

/// How a source stands, for `podnet status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The directory, or the API server's address.
    pub name: String,
    /// What is wrong with it as a whole.
    pub error: Option<String>,
    /// Whether everything has been read at least once.
    pub synced: bool,
    /// What can't be used as it is.
    pub mistakes: Vec<Diagnostic>,
    /// What else a user should know, as sentences.
    pub remarks: Vec<String>,
}

/// What holds of something that can't be used as it is, for people.
pub const fn what_holds(kept: bool) -> &'static str {
    match kept {
        true => "its last valid version stays in effect",
        false => "no valid version since the daemon's start",
    }
}
