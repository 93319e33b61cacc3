//! Ensures that a single daemon is running.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use podnet_cni::datapath::PinDir;
use podnet_cni::files;

use super::StatusError;

/// The locks that a daemon holds during its lifetime.
///
/// `<runDir>/daemon.lock` tells that it is running. It is an open-file-description lock: unlike flock, it can be
/// queried without being taken, so a query never keeps a daemon from starting. But programs that clean up temporary
/// directories may remove the file, and the next daemon would create another one. So the holder maintains it
/// ([`Self::keep`]), and in the meantime has a second lock, on the directory of the pins, which isn't removed while
/// they are in use.
#[derive(Debug)]
pub struct DaemonLock {
    run_dir: PathBuf,
    file: File,
    _pins: Option<File>,
}

impl DaemonLock {
    /// Path of the lock file.
    pub fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("daemon.lock")
    }

    /// Takes the locks, that of the run directory last: a daemon that is refused for the pins has changed nothing.
    /// `make`: create the directory of the pins if it is missing.
    ///
    /// # Errors
    /// [`StatusError::Running`] or [`StatusError::InUse`] while another daemon has them.
    pub fn acquire(run_dir: &Path, pins: &PinDir, make: bool) -> Result<Self, StatusError> {
        let pins = lock_pins(pins.root(), make)?;
        Ok(Self { run_dir: run_dir.to_owned(), file: Self::acquire_file(run_dir)?, _pins: pins })
    }

    /// Takes the lock, creating the run directory if it is missing, and writes this process's id to the file.
    fn acquire_file(run_dir: &Path) -> Result<File, StatusError> {
        let path = Self::path(run_dir);
        let failed = |what| {
            let path = path.clone();
            move |source| StatusError::Io { what, path, source }
        };
        fs::create_dir_all(run_dir).map_err(failed("create the directory of"))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let mut file = files::open(&path, &options).map_err(failed("open"))?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(StatusError::Running { process: read_pid(&path) }),
            Err(e) => return Err(failed("lock")(e.into())),
        }
        let text = std::process::id().to_string();
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(failed("write"))?;
        Ok(file)
    }

    /// Recreates the lock in the run directory if it is gone. Returns whether it was; other files may then be gone as
    /// well.
    ///
    /// # Errors
    /// [`StatusError::Running`] if another daemon has it now; or if it can't be created.
    pub fn keep(&mut self) -> Result<bool, StatusError> {
        let path = Self::path(&self.run_dir);
        let ours =
            self.file.metadata().map_err(|source| StatusError::Io { what: "examine", path: path.clone(), source })?;
        if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(false);
        }
        self.file = Self::acquire_file(&self.run_dir)?;
        Ok(true)
    }

    /// Whether a daemon holds the lock; doesn't take it.
    pub fn state(run_dir: &Path) -> Result<DaemonState, StatusError> {
        let path = Self::path(run_dir);
        let file = match files::open(&path, OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(DaemonState::Down),
            Err(source) => return Err(StatusError::Io { what: "open", path, source }),
        };
        // A read lock suffices to conflict with the daemon's, and needs no write permission.
        let mut lock = whole_file(libc::F_RDLCK);
        match fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)) {
            Ok(_) if i32::from(lock.l_type) == libc::F_UNLCK => Ok(DaemonState::Down),
            Ok(_) => Ok(DaemonState::Running { pid: read_pid(&path) }),
            Err(e) => Err(StatusError::Io { what: "examine the lock", path, source: e.into() }),
        }
    }
}

/// Whether the daemon is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonState {
    /// It is running.
    Running {
        /// Its process id, in its own PID namespace.
        pid: Option<i32>,
    },
    /// It isn't.
    Down,
}

/// Locks the directory of the pins, if there is one.
fn lock_pins(path: &Path, make: bool) -> Result<Option<File>, StatusError> {
    let failed = |what| move |source| StatusError::Io { what, path: path.to_owned(), source };
    // Without a BPF file system there are no pins, and loading the programs returns the error.
    let mounted = |mount| statfs(mount).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !path.parent().is_some_and(mounted) || !make && !path.exists() {
        return Ok(None);
    }
    // Other users don't need it, and can't lock what they can't open.
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed("protect"))?;
        }
        other => other.map_err(failed("create"))?,
    }
    let directory = files::open_directory(path).map_err(failed("open"))?;
    match directory.try_lock() {
        Ok(()) => Ok(Some(directory)),
        Err(TryLockError::WouldBlock) => Err(StatusError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed("lock")(error)),
    }
}

fn read_pid(path: &Path) -> Option<i32> {
    files::read_text(path, 64).ok()?.trim().parse().ok()
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::DaemonStatus;

    #[test]
    fn lock_is_exclusive_and_can_be_queried_without_taking_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert_eq!(DaemonLock::state(&run).unwrap(), DaemonState::Down);
        let acquire = |run: &Path| DaemonLock::acquire(run, &PinDir::new(dir.path()), true);
        let lock = acquire(&run).unwrap();
        let pid = Some(std::process::id() as i32);
        assert_eq!(DaemonLock::state(&run).unwrap(), DaemonState::Running { pid });
        let second = acquire(&run).unwrap_err();
        assert!(second.to_string().contains(&format!("process {}", std::process::id())), "{second}");
        drop(lock);
        assert_eq!(DaemonLock::state(&run).unwrap(), DaemonState::Down, "the file alone means nothing");
        acquire(&run).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no directory of pins but in a BPF file system");
    }

    #[test]
    fn removed_lock_is_recreated_unless_another_daemon_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let acquire = |run: &Path| DaemonLock::acquire(run, &PinDir::new(dir.path()), true);
        let mut lock = acquire(&run).unwrap();
        assert!(!lock.keep().unwrap());
        let remove: [fn(&Path); 3] = [
            |run| fs::remove_file(DaemonLock::path(run)).unwrap(),
            |run| fs::remove_dir_all(run).unwrap(),
            |run| fs::rename(DaemonLock::path(run), run.join("other")).unwrap(),
        ];
        for remove in remove {
            remove(&run);
            assert_eq!(DaemonLock::state(&run).unwrap(), DaemonState::Down);
            assert!(lock.keep().unwrap() && !lock.keep().unwrap());
            assert!(matches!(DaemonLock::state(&run).unwrap(), DaemonState::Running { .. }));
            assert!(matches!(acquire(&run), Err(StatusError::Running { .. })));
        }
        fs::remove_file(DaemonLock::path(&run)).unwrap();
        let _other = acquire(&run).unwrap();
        assert!(matches!(lock.keep(), Err(StatusError::Running { .. })));
    }

    #[test]
    fn pipe_in_place_of_a_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        for file in [DaemonLock::path(&path), DaemonStatus::path(&path)] {
            nix::unistd::mkfifo(&file, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        }
        let (done, result) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let lock = DaemonLock::acquire(&path, &PinDir::new(&path), true).map(drop);
            let all = [lock, DaemonLock::state(&path).map(drop), DaemonStatus::read(&path).map(drop)];
            let _ = done.send(all);
        });
        for error in result.recv_timeout(std::time::Duration::from_secs(5)).expect("an answer at once") {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("a named pipe, not a regular file"), "{error}");
        }
    }
}
