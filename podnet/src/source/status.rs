//! How a source stands, for `podnet status`.

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
    pub mistakes: Vec<Mistake>,
    /// What else a user should know, as sentences.
    pub remarks: Vec<String>,
}

/// Something that can't be used as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// A file, or an object.
    pub place: String,
    /// The line in the file, from 1.
    pub line: Option<u64>,
    /// What is wrong.
    pub reason: String,
    /// Whether what it said before holds; else it has never been read without error.
    pub kept: bool,
}

/// What holds of something that can't be used as it is, for people.
pub const fn what_holds(kept: bool) -> &'static str {
    match kept {
        true => "its last valid version stays in effect",
        false => "no valid version since the daemon's start",
    }
}
