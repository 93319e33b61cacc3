//! From a file to objects, or to errors.

use std::io;
use std::path::Path;

use podnet_cni::files;

use super::super::parse::parse;
use super::report::FileError;
use crate::model::{Object, ObjectKey};

/// Maximum size of a file, in bytes.
const FILE_MAX: u64 = 256 << 20;

/// Result of reading a file.
pub(super) enum Load {
    Objects(Vec<(ObjectKey, Object)>),
    /// It is completely empty, without even a comment.
    Empty,
    /// It isn't a regular file.
    NoFile(io::Error),
    Errors(Vec<FileError>),
    Gone,
}

impl Load {
    pub(super) fn error(reason: &str) -> Self {
        Self::Errors(vec![FileError { line: None, reason: reason.to_owned() }])
    }
}

/// Reads a file without blocking.
pub(super) fn load(path: &Path, json: bool) -> Load {
    let text = match files::read_text(path, FILE_MAX) {
        Ok(text) => text,
        Err(error) if files::is_no_file(&error) => return Load::NoFile(error),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match std::fs::symlink_metadata(path) {
                Ok(_) => Load::error("it is a dangling symbolic link"),
                Err(_) => Load::Gone,
            };
        }
        Err(error) => return Load::error(&format!("cannot read it: {error}")),
    };
    if text.trim().is_empty() {
        return Load::Empty;
    }
    match parse(&text, json) {
        Ok(objects) => Load::Objects(objects),
        Err(errors) => Load::Errors(
            errors.into_iter().map(|error| FileError { line: Some(error.line), reason: error.reason }).collect(),
        ),
    }
}
