//! The age of Nodes' claims, kept on disk, so that an old claim stays old across restarts and reboots.
//!
//! The file is replaced atomically, after its content has been synced to disk. If it can't be read nevertheless, only
//! the ages are lost: the daemon then starts as if it were the first on this node.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use podnet_cni::files;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::claim::Claim;

/// Version of the file's layout.
const SCHEMA: u32 = 1;

/// Why the file can't be read or written.
#[derive(Debug, Error)]
#[error("cannot {what} the ages of nodes' claims, {path}: {source}", path = path.display())]
pub(super) struct AgesError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ages {
    schema: u32,
    /// Number of the latest claim; it only ever grows.
    pub(super) clock: u64,
    /// By node: each claimed address (`10.0.0.1`) or pod CIDR (`10.0.0.0/24`), with the number of its claim.
    nodes: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Ages {
    pub(super) fn new<'a>(clock: u64, since: impl Iterator<Item = (&'a String, &'a Vec<(Claim, u64)>)>) -> Self {
        let of = |claims: &Vec<(Claim, u64)>| claims.iter().map(|(claim, since)| (claim.to_string(), *since)).collect();
        Self { schema: SCHEMA, clock, nodes: since.map(|(name, claims)| (name.clone(), of(claims))).collect() }
    }

    /// Claims with their ages, by node.
    pub(super) fn claims(&self) -> BTreeMap<String, Vec<(Claim, u64)>> {
        let of = |claims: &BTreeMap<String, u64>| {
            claims.iter().filter_map(|(claim, since)| Some((claim.parse().ok()?, *since))).collect()
        };
        self.nodes.iter().map(|(name, claims)| (name.clone(), of(claims))).collect()
    }

    fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("claims.json")
    }

    /// Reads the file; `None` if it doesn't exist.
    ///
    /// # Errors
    /// If it can't be read, or has another format.
    pub(super) fn read(state_dir: &Path) -> Result<Option<Self>, AgesError> {
        let path = Self::path(state_dir);
        let parse = |bytes: Vec<u8>| {
            let ages: Self = serde_json::from_slice(&bytes)?;
            let wrong =
                || io::Error::new(io::ErrorKind::InvalidData, format!("schema {} instead of {SCHEMA}", ages.schema));
            if ages.schema == SCHEMA { Ok(ages) } else { Err(wrong()) }
        };
        match files::read(&path, files::OWN_MAX).and_then(parse) {
            Ok(ages) => Ok(Some(ages)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AgesError { what: "read", path, source }),
        }
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// If that fails; the old file is then left unchanged.
    pub(super) fn write(&self, state_dir: &Path) -> Result<(), AgesError> {
        let path = Self::path(state_dir);
        let written = (|| {
            fs::create_dir_all(state_dir)?;
            let mut temporary = tempfile::NamedTempFile::new_in(state_dir)?;
            serde_json::to_writer(io::BufWriter::new(&mut temporary), self)?;
            temporary.write_all(b"\n")?;
            temporary.as_file().sync_all()?;
            temporary.persist(&path)?;
            Ok(())
        })();
        written.map_err(|source| AgesError { what: "write", path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_file_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Ages::read(dir.path()).unwrap(), None);
        let since = vec![("10.0.0.1".parse().unwrap(), 3), ("fd00:244:1::/64".parse().unwrap(), 7)];
        let ages = Ages::new(9, [(&"n1".to_owned(), &since)].into_iter());
        ages.write(dir.path()).unwrap();
        let read = Ages::read(dir.path()).unwrap().unwrap();
        assert_eq!((read.clock, &read.claims()["n1"]), (9, &since));
        let path = Ages::path(dir.path());
        let whole = fs::read(&path).unwrap();
        for broken in [&whole[..whole.len() / 2], b"", b"{}", &[0; 64]] {
            fs::write(&path, broken).unwrap();
            let error = Ages::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("claims.json"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(Ages::read(dir.path()).unwrap_err().to_string().contains("named pipe"));
        ages.write(dir.path()).unwrap();
        assert_eq!(Ages::read(dir.path()).unwrap(), Some(ages));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }
}
