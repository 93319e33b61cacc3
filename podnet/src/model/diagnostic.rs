//! What is to be said about an object or a file.

use std::fmt;

use super::key::ObjectKey;

/// What a diagnostic is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// An object.
    Object(ObjectKey),
    /// A file, by its path.
    File(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(key) => key.fmt(f),
            Self::File(path) => path.fmt(f),
        }
    }
}

/// How much of an object or a file has effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// All of it; its author should know something all the same.
    Remark,
    /// All but a part.
    LeftOut,
    /// Its last valid version.
    Outdated,
    /// Nothing: it has not been valid since the daemon's start.
    Invalid,
    /// All but what would take the traffic of others.
    Alarm,
}

impl Severity {
    /// Of something that is not valid. `kept`: there is an earlier version that is.
    pub const fn invalid(kept: bool) -> Self {
        if kept { Self::Outdated } else { Self::Invalid }
    }
}

/// Something that is to be said about an object or a file, shown as `place: reason`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The object or file.
    pub place: Place,
    /// The line in the file, from 1.
    pub line: Option<u64>,
    /// What it is, and what to do.
    pub reason: String,
    /// How bad it is.
    pub severity: Severity,
}

impl Diagnostic {
    /// About an object.
    pub fn of(object: ObjectKey, severity: Severity, reason: String) -> Self {
        Self { place: Place::Object(object), line: None, reason, severity }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}
