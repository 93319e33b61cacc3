//! Reading and writing sysctls.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::PathBuf;

use podnet_cni::files;

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {verb} the host setting {path}: {source}; in a container, mount the host's /proc/sys/net elsewhere and set \
     `sysctls` to its /proc/sys"
)]
pub struct SettingError {
    verb: &'static str,
    path: String,
    pub(super) source: io::Error,
}

impl SettingError {
    /// Whether the setting is one of IPv6: the kernel has none for an interface without it.
    pub(super) fn is_of_ipv6(&self) -> bool {
        self.path.starts_with("net/ipv6/")
    }
}

/// Root directory of the sysctls: `/proc/sys`, or a directory of a test.
#[derive(Clone, Debug)]
pub struct Sysctl {
    root: PathBuf,
}

impl Default for Sysctl {
    fn default() -> Self {
        Self { root: PathBuf::from("/proc/sys") }
    }
}

impl Sysctl {
    /// Sysctls below another directory.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Reads a sysctl, without the newline; `None` if it does not exist.
    pub fn read(&self, path: &str) -> Result<Option<String>, SettingError> {
        match files::read_text(&self.root.join(path), files::OWN_MAX) {
            Ok(value) => Ok(Some(value.trim_end().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SettingError { verb: "read", path: path.to_owned(), source }),
        }
    }

    /// Writes a sysctl.
    pub fn write(&self, path: &str, value: &str) -> Result<(), SettingError> {
        let write = || {
            let mut file = files::open(&self.root.join(path), OpenOptions::new().write(true).truncate(true))?;
            file.write_all(value.as_bytes())
        };
        write().map_err(|source| SettingError { verb: "write", path: path.to_owned(), source })
    }
}
