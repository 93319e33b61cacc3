//! Network namespaces: opened by path, compared, and entered.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, NSFS_MAGIC, fstatfs, statfs};
use thiserror::Error;

use crate::text::refusal;

/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why a namespace cannot be used.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// Nothing is at the path.
    #[error("network namespace {} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// Something else is at the path.
    #[error("{} is not a network namespace", path.display())]
    NotANamespace {
        /// The path.
        path: PathBuf,
    },
    /// It could not be opened.
    #[error("cannot open network namespace {}: {}", path.display(), refusal(.source))]
    Io {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It could not be entered.
    #[error("cannot enter network namespace {}: {source}", path.display())]
    Enter {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
    /// Device and inode, which identify the namespace.
    id: (u64, u64),
}

impl NetNs {
    /// Opens the namespace at a path.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => NetnsError::Missing { path: path.to_owned() },
            _ => NetnsError::Io { path: path.to_owned(), source },
        };
        let expect = |kind: FsType| match kind == NSFS_MAGIC {
            true => Ok(()),
            false => Err(NetnsError::NotANamespace { path: path.to_owned() }),
        };
        // Checked before opening: opening a pipe blocks, and opening a device may have side effects. `ip netns` leaves
        // a plain file behind when the namespace is unmounted.
        expect(statfs(path).map_err(|e| failed(e.into()))?.filesystem_type())?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        expect(fstatfs(&file).map_err(|e| failed(e.into()))?.filesystem_type())?;
        let metadata = file.metadata().map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), id: (metadata.dev(), metadata.ino()) })
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new(OWN))
    }

    /// The inode number, which `lsns` shows as the namespace.
    pub fn inode(&self) -> u64 {
        self.id.1
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// The open file, for use in a netlink request.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether another process is in the namespace, among those visible in the caller's PID namespace
    /// (pid_namespaces(7)). The calling process does not count.
    ///
    /// # Errors
    /// If the namespace of some process cannot be determined.
    pub fn has_processes(&self) -> io::Result<bool> {
        // Every process may stat this file of any thread, and its inode differs between network namespaces. Reading
        // `ns/net` takes ptrace access.
        let mark = |thread: &Path| fs::metadata(thread.join("net/dev")).map(|file| (file.dev(), file.ino()));
        let own = self.run(|| mark(Path::new("/proc/thread-self"))).map_err(io::Error::other)??;
        // A process or thread that has ended meanwhile is in no namespace.
        let ended = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EINVAL));
        for process in fs::read_dir("/proc")? {
            let process = process?;
            match process.file_name().to_string_lossy().parse::<u32>() {
                Ok(id) if id != std::process::id() => {}
                _ => continue,
            }
            let threads = match fs::read_dir(process.path().join("task")) {
                Err(error) if ended(&error) => continue,
                other => other?,
            };
            // Each thread may be in a different namespace.
            for thread in threads {
                match thread.and_then(|thread| mark(&thread.path())) {
                    Ok(there) if there == own => return Ok(true),
                    Err(error) if !ended(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(false)
    }

    /// Runs a function in the namespace. Only the calling thread enters it, and returns to its own namespace
    /// afterwards. If it cannot return, the process aborts, so that nothing runs in the wrong namespace. (A thread of
    /// its own for the function would not have to return, but two such threads took half a millisecond of an ADD.)
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let enter = |source: io::Error| match source.raw_os_error() {
            Some(libc::EINVAL) => NetnsError::NotANamespace { path: self.path.clone() },
            _ => NetnsError::Enter { path: self.path.clone(), source },
        };
        let own = Return(File::open(OWN).map_err(enter)?);
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| enter(e.into()))?;
        let done = f();
        drop(own);
        Ok(done)
    }
}

/// Puts the calling thread back into this namespace when dropped.
struct Return(File);

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0, CloneFlags::CLONE_NEWNET) {
            tracing::error!("cannot return to the plugin's own network namespace: {error}");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::files::tests::{at_once, pipe};

    #[test]
    fn a_namespace_has_the_processes_whose_threads_are_in_it() {
        // Skipped without the privilege to create a namespace.
        let other = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).ok()?;
            let netns = NetNs::current().unwrap();
            let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            let there = netns.has_processes();
            other.kill().and_then(|()| other.wait()).unwrap();
            assert!(there.unwrap(), "it is in the namespace of the thread that has started it");
            Some(netns)
        });
        if let Some(other) = other.join().unwrap() {
            assert!(!other.has_processes().unwrap(), "it is held by an open file only");
        }
    }

    #[test]
    fn what_is_no_namespace_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        pipe(&path("pipe"));
        std::fs::write(path("file"), "").unwrap();
        symlink("pipe", path("link")).unwrap();
        symlink("loop", path("loop")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for path in [path("pipe"), path("file"), path("link"), path("socket"), "/dev/zero".into(), dir.path().into()] {
            let error = at_once("opening", move || NetNs::open(&path)).unwrap_err();
            assert!(matches!(error, NetnsError::NotANamespace { .. }), "{error}");
        }
        assert!(matches!(NetNs::open(&path("none")), Err(NetnsError::Missing { .. })));
        assert!(matches!(NetNs::open(&path("file/none")), Err(NetnsError::Missing { .. })));
        assert!(matches!(NetNs::open(&path("loop")), Err(NetnsError::Io { .. })));
        // A namespace of another type can be opened, but not entered.
        let other = NetNs::open(Path::new("/proc/self/ns/uts")).unwrap();
        assert!(matches!(other.run(|| ()), Err(NetnsError::NotANamespace { .. } | NetnsError::Enter { .. })));
        assert!(NetNs::current().unwrap().is(&NetNs::open(Path::new("/proc/self/ns/net")).unwrap()));
    }

    #[test]
    fn a_thread_returns_to_its_own_namespace() {
        // Skipped without the privilege to create a namespace.
        let other = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).ok()?;
            NetNs::current().ok()
        });
        let Some(other) = other.join().unwrap() else { return };
        let own = NetNs::current().unwrap();
        assert!(other.run(NetNs::current).unwrap().unwrap().is(&other));
        assert!(NetNs::current().unwrap().is(&own));
        let panicked = std::panic::catch_unwind(|| other.run(|| panic!("in the other namespace")));
        assert!(panicked.is_err() && NetNs::current().unwrap().is(&own));
    }
}
