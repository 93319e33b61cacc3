//! How the source stands, for `podnet status`.

use std::path::PathBuf;

use super::super::status::Status;
use crate::model::{Diagnostic, Place, Severity};

/// How many files, or objects, with something wrong are reported.
pub(super) const REPORTED: usize = 100;

/// What the source has read, for `podnet status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// The directory.
    pub directory: PathBuf,
    /// What is wrong with the directory itself.
    pub error: Option<String>,
    /// Whether every file has been read without error at least once.
    pub synced: bool,
    /// How many files there are.
    pub files: usize,
    /// Those that can't be used as they are now, at most `REPORTED`.
    pub broken: Vec<BrokenFile>,
    /// Objects that several files define, at most `REPORTED`.
    pub duplicates: Vec<Duplicate>,
    /// How many there are besides these.
    pub more: usize,
    /// Files whose names are no text, as far as they can be shown.
    pub misnamed: Vec<String>,
}

/// A file whose present content can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenFile {
    /// Its name in the directory.
    pub name: String,
    /// Whether it has ever been read without error, so that its earlier content holds.
    pub kept: bool,
    /// How many objects that has.
    pub objects: usize,
    /// What is wrong with it.
    pub errors: Vec<FileError>,
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// Counted from 1; none if the file can't be read at all.
    pub line: Option<u64>,
    /// What is wrong.
    pub reason: String,
}

/// An object that several files define.
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
        let misnamed = status.misnamed.first().map(|first| {
            let count = status.misnamed.len();
            format!(
                "{}: {count} files are ignored, as their names are not UTF-8: rename {first}",
                status.directory.display()
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
