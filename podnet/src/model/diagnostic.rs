//! Diagnostics about an object or a file.

use std::fmt;

use super::key::ObjectKey;

/// Subject of a diagnostic.
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

/// Which part of an object or a file is in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// All of it; the remark is for its author's information.
    Remark,
    /// All except some elements.
    LeftOut,
    /// Its last valid version.
    Outdated,
    /// Nothing: no version has been valid since the daemon's start.
    Invalid,
    /// All except the elements that would take over others' traffic.
    Alarm,
}

impl Severity {
    /// Severity for an invalid object or file. `kept`: its last valid version is in effect.
    pub const fn invalid(kept: bool) -> Self {
        if kept { Self::Outdated } else { Self::Invalid }
    }
}

/// A diagnostic about an object or a file, shown as `place: reason`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The subject.
    pub place: Place,
    /// The line in the file, from 1.
    pub line: Option<u64>,
    /// The problem, and advice.
    pub reason: String,
    /// Which part is in effect.
    pub severity: Severity,
}

impl Diagnostic {
    /// A diagnostic about an object.
    pub fn of(object: ObjectKey, severity: Severity, reason: String) -> Self {
        Self { place: Place::Object(object), line: None, reason, severity }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}
