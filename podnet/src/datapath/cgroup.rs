//! The cgroup for the socket hooks. It must be of version 2, which hosts that still use version 1 don't mount at the
//! usual place.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use podnet_cni::files;
use thiserror::Error;

/// The mounts of the daemon's mount namespace (proc(5)).
const MOUNTS: &str = "/proc/self/mounts";

/// Why no cgroup can be used.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The directory can't be opened.
    #[error("cannot open the cgroup {}: {source}; set `cgroup` to a cgroup v2 directory, or `socketLB: off`", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The directory is of cgroup v1, or no cgroup at all.
    #[error(
        "{} is not a cgroup v2 directory, which the socket hooks need: {}, or `socketLB: off`", path.display(), advice(elsewhere)
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// Where cgroup v2 is mounted.
        elsewhere: Vec<PathBuf>,
    },
}

fn advice(elsewhere: &[PathBuf]) -> String {
    match elsewhere.first() {
        Some(path) => format!("set `cgroup: {}`", path.display()),
        None => "mount one (`mkdir /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`)".to_owned(),
    }
}

/// Opens a cgroup v2 directory: `path`, or a mount below it, such as `unified` where systemd uses both versions.
pub(super) fn open(path: &Path) -> Result<File, CgroupError> {
    let open =
        |path: &Path| files::open_directory(path).map_err(|source| CgroupError::Open { path: path.to_owned(), source });
    let directory = open(path)?;
    if is_v2(&directory) {
        return Ok(directory);
    }
    let mounts = files::read(Path::new(MOUNTS), files::OWN_MAX).unwrap_or_default();
    let elsewhere = mounted(&mounts);
    match elsewhere.iter().find(|mount| mount.starts_with(path)) {
        Some(below) => open(below),
        None => Err(CgroupError::Version { path: path.to_owned(), elsewhere }),
    }
}

fn is_v2(directory: &File) -> bool {
    fstatfs(directory).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Mount points of cgroup v2.
fn mounted(mounts: &[u8]) -> Vec<PathBuf> {
    let mount = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ').skip(1);
        let (place, kind) = (words.next()?, words.next()?);
        (kind == b"cgroup2").then(|| PathBuf::from(OsString::from_vec(unescape(place))))
    };
    mounts.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// Decodes the kernel's octal escapes for white space and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_cgroup_v2_are_found() {
        let hybrid = b"tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\n\
                       cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\nnone /mnt/with\\040space\\134 cgroup2 rw 0 0\n\nx\n";
        assert_eq!(mounted(hybrid), ["/sys/fs/cgroup/unified", "/mnt/with space\\"].map(PathBuf::from));
        assert!(mounted(b"cgroup2 /sys/fs/cgroup cgroup rw 0 0\n").is_empty());
    }

    #[test]
    fn another_directory_is_refused_with_what_to_set() {
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is not a cgroup v2 directory") && error.contains("socketLB: off"), "{error}");
        let error = open(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("No such file or directory (os error 2)"), "{error}");
        let path = PathBuf::from("/sys/fs/cgroup");
        let told = |elsewhere| CgroupError::Version { path: path.clone(), elsewhere }.to_string();
        assert!(told(vec!["/mnt/cgroup".into()]).contains("set `cgroup: /mnt/cgroup`, or"));
        assert!(told(vec![]).contains("mount -t cgroup2"));
    }
}
