//! Status of the source, for `podnet status`.

use std::path::PathBuf;

use super::super::status::Status;
use crate::model::{Diagnostic, Place, Severity};

/// Maximum number of files, or objects, reported with a problem.
pub(super) const REPORTED: usize = 100;

/// Status of the source, for `podnet status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// The directory.
    pub directory: PathBuf,
    /// The problem with the directory itself, if any.
    pub error: Option<String>,
    /// Whether some version of every file has been valid.
    pub synced: bool,
    /// Number of files.
    pub files: usize,
    /// Files whose current version is invalid, at most `REPORTED`.
    pub broken: Vec<BrokenFile>,
    /// Objects defined by several files, at most `REPORTED`.
    pub duplicates: Vec<Duplicate>,
    /// Number of further ones.
    pub more: usize,
    /// Number of files whose names aren't UTF-8.
    pub misnamed: usize,
    /// Name of the first of them, in lossy form.
    pub first_misnamed: Option<String>,
}

/// A file whose current version is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenFile {
    /// Its name in the directory.
    pub name: String,
    /// Whether an earlier version has been valid, and is in effect.
    pub kept: bool,
    /// Number of objects in that version.
    pub objects: usize,
    /// Its errors.
    pub errors: Vec<FileError>,
}

/// An error in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// The line, from 1; `None` if the file can't be read at all.
    pub line: Option<u64>,
    /// The problem.
    pub reason: String,
}

/// An object defined by several files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Kind and name.
    pub object: String,
    /// The file whose definition counts.
    pub used: String,
    /// The others.
    pub ignored: Vec<String>,
}

impl From<SourceStatus> for Status {
    fn from(status: SourceStatus) -> Self {
        let mistakes = status.broken.into_iter().flat_map(|file| {
            let severity = Severity::invalid(file.kept);
            let place = Place::File(status.directory.join(&file.name).display().to_string());
            let mistake = move |FileError { line, reason }| Diagnostic { place: place.clone(), line, reason, severity };
            file.errors.into_iter().map(mistake)
        });
        let remark = |d: Duplicate| {
            format!("{} is defined in {} and in {}; the first takes precedence", d.object, d.used, d.ignored.join(", "))
        };
        let more = (status.more > 0)
            .then(|| format!("{}: {} more files or objects like these", status.directory.display(), status.more));
        let misnamed = status.first_misnamed.map(|first| {
            format!(
                "{}: {} files are ignored, as their names are not UTF-8: rename {first}",
                status.directory.display(),
                status.misnamed
            )
        });
        Self {
            name: status.directory.display().to_string(),
            error: status.error,
            synced: status.synced,
            mistakes: mistakes.collect(),
            remarks: status.duplicates.into_iter().map(remark).chain(more).chain(misnamed).collect(),
        }
    }
}
