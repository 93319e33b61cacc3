//! The socket in the run directory: creation, replacement, identity.

use std::{
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::{fs::MetadataExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
    unistd::geteuid,
};
use podnet_cni::{files, text::refusal};
use thiserror::Error;

/// Maximum number of clients waiting to be accepted.
const BACKLOG: i32 = 32;
/// Write permission of group and others.
const OTHERS_WRITE: u32 = 0o022;

/// A failure to create the socket.
#[derive(Debug, Error)]
pub(super) enum BindError {
    /// A system call failed.
    #[error("cannot {what} {}: {}", path.display(), refusal(.source))]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Other users could replace the socket.
    #[error(
        "{} belongs to user {owner} and has mode {mode:03o}: it must belong to the daemon's user, and no other user may have \
         write permission; chown and chmod it",
        path.display()
    )]
    Unsafe {
        /// The run directory.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
}

/// Identity of the socket's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    dev: u64,
    ino: u64,
}

impl Identity {
    /// Identity of the file at a path; `None` if there is none.
    pub(super) fn at(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().map(|data| Self { dev: data.dev(), ino: data.ino() })
    }
}

/// Path of the socket.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("podnet.sock")
}

/// Creates the socket, replacing that of an earlier daemon. Must be called under the daemon's lock, so that no other
/// daemon listens there.
pub(super) fn listen_in(run_dir: &Path) -> Result<(UnixListener, Identity), BindError> {
    let path = path(run_dir);
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| BindError::Io { what, path, source }
    };
    check(run_dir)?;
    let new = run_dir.join(".podnet.sock.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &new)(error)),
        _ => {}
    }
    let bound = (|| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // The file inherits the mode of the socket, so it never exists with another mode.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(&new)?)?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(socket.into())
    })();
    let listener = bound.map_err(|errno: nix::Error| failed("listen at", &new)(errno.into()))?;
    fs::rename(&new, &path).map_err(failed("replace", &path))?;
    match Identity::at(&path) {
        Some(identity) => Ok((listener, identity)),
        None => Err(failed("find", &path)(io::ErrorKind::NotFound.into())),
    }
}

/// Checks that no other user has write permission: such users could replace the socket by their own, and answer root's
/// commands.
fn check(run_dir: &Path) -> Result<(), BindError> {
    let data = files::open_directory(run_dir).and_then(|directory| directory.metadata());
    let data = data.map_err(|source| BindError::Io { what: "open", path: run_dir.to_owned(), source })?;
    let (owner, mode) = (data.uid(), data.mode() & 0o777);
    if owner == geteuid().as_raw() && mode & OTHERS_WRITE == 0 {
        Ok(())
    } else {
        Err(BindError::Unsafe { path: run_dir.to_owned(), owner, mode })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt as _, net::UnixStream};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_socket_is_private_to_its_owner_and_replaces_any_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let (first, identity) = listen_in(dir.path()).unwrap();
        assert_eq!((mode(&path), Identity::at(&path)), (0o600, Some(identity)));
        drop(first);
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "it is stale");
        let (_second, other) = listen_in(dir.path()).unwrap();
        assert_ne!(identity, other);
        UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        fs::write(dir.path().join(".podnet.sock.new"), "left by a crash").unwrap();
        let (_third, _) = listen_in(dir.path()).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else stays");
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o775)).unwrap();
        let error = listen_in(dir.path()).unwrap_err().to_string();
        assert!(error.contains("has mode 775"), "{error}");
        assert!(Identity::at(&path(dir.path())).is_none());
        let error = listen_in(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.starts_with("cannot open") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn errors_name_a_path_that_cannot_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(path(dir.path())).unwrap();
        let error = listen_in(dir.path()).unwrap_err().to_string();
        assert!(error.contains("cannot replace") && error.contains("podnet.sock: "), "{error}");
    }
}
