//! Network namespaces: opened by path, compared, entered on a thread of their own.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use thiserror::Error;

/// What went wrong with a namespace.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// There is nothing at the path.
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
    #[error("can't open network namespace {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It could not be entered.
    #[error("can't enter network namespace {}", path.display())]
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
    /// Device and inode, which tell one namespace from another.
    id: (u64, u64),
}

impl NetNs {
    /// The namespace at a path.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => NetnsError::Missing { path: path.to_owned() },
            _ => NetnsError::Io { path: path.to_owned(), source },
        })?;
        let examined = || -> io::Result<_> { Ok((fstatfs(&file)?.filesystem_type(), file.metadata()?)) };
        let (kind, metadata) = examined().map_err(|source| NetnsError::Io { path: path.to_owned(), source })?;
        // `ip netns` leaves a plain file behind when the namespace is unmounted.
        if kind != NSFS_MAGIC {
            return Err(NetnsError::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { file, path: path.to_owned(), id: (metadata.dev(), metadata.ino()) })
    }

    /// The calling thread's.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The inode, which is the namespace's number in `lsns`.
    pub fn inode(&self) -> u64 {
        self.id.1
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// The open file, for a netlink request.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs a function in the namespace, on a thread that ends with it, so that no other thread is ever in the wrong
    /// one.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let enter = |source: io::Error| NetnsError::Enter { path: self.path.clone(), source };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, || {
                    setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                    Ok(f())
                })
                .map_err(enter)?;
            match thread.join() {
                Ok(done) => done.map_err(|source: io::Error| match source.raw_os_error() {
                    Some(libc::EINVAL) => NetnsError::NotANamespace { path: self.path.clone() },
                    _ => enter(source),
                }),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}
