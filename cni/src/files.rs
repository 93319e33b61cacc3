//! Opening files at paths where others may have placed something else.
//!
//! Opening a named pipe blocks until its other end is open, opening a device may have side effects, and some files have
//! no end. So only regular files are opened, without blocking, and reads are bounded.

use std::fmt;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Maximum size of one of podnet's own files, in bytes.
pub const OWN_MAX: u64 = 64 << 20;

/// The path leads to something other than a regular file.
#[derive(Debug)]
struct NoFile(FileType);

impl fmt::Display for NoFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0 {
            kind if kind.is_dir() => "a directory",
            kind if kind.is_symlink() => "a symbolic link",
            kind if kind.is_fifo() => "a named pipe",
            kind if kind.is_socket() => "a socket",
            _ => "a device",
        };
        write!(f, "it is {kind}, not a regular file: remove it")
    }
}

impl std::error::Error for NoFile {}

/// Whether an error means that the path leads to something other than a regular file.
pub fn is_no_file(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<NoFile>())
}

/// Opens a regular file, close-on-exec.
///
/// # Errors
/// Those of open(2), and one for which [`is_no_file`] is true.
pub fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    open_with_metadata(path, options).map(|(file, _)| file)
}

fn open_with_metadata(path: &Path, options: &OpenOptions) -> io::Result<(File, Metadata)> {
    // A device must not even be opened. Replacement of the file after this check is detected below.
    match fs::metadata(path) {
        Ok(data) => check(&data)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = options.clone().custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let data = file.metadata()?;
    check(&data)?;
    Ok((file, data))
}

/// Opens a directory, close-on-exec. Anything else at the path is left untouched.
///
/// # Errors
/// Those of open(2): `ENOTDIR` if it is not a directory.
pub fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)
}

fn check(data: &Metadata) -> io::Result<()> {
    if data.is_file() { Ok(()) } else { Err(io::Error::other(NoFile(data.file_type()))) }
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open`], and if the file is larger.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, data) = open_with_metadata(path, OpenOptions::new().read(true))?;
    let mut bytes = Vec::with_capacity(data.len().min(most) as usize + 1);
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

/// As [`read`], for text.
///
/// # Errors
/// As [`read`], and if it is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// Creates a named pipe.
    pub(crate) fn pipe(path: &Path) {
        mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
    }

    /// The return value of a function that must not block.
    pub(crate) fn at_once<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || done.send(work()));
        result.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| panic!("{what} hangs"))
    }

    #[test]
    fn nothing_but_a_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        pipe(&path("pipe"));
        fs::create_dir(path("directory")).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        symlink("/dev/zero", path("device")).unwrap();
        symlink("pipe", path("link")).unwrap();
        symlink("loop", path("loop")).unwrap();
        for (name, kind) in [
            ("pipe", "a named pipe"),
            ("link", "a named pipe"),
            ("directory", "a directory"),
            ("socket", "a socket"),
            ("device", "a device"),
        ] {
            let path = path(name);
            let options = [
                OpenOptions::new().read(true).clone(),
                OpenOptions::new().write(true).create(true).truncate(false).clone(),
                OpenOptions::new().append(true).create(true).clone(),
            ];
            for options in options {
                let path = path.clone();
                let error = at_once(name, move || open(&path, &options)).unwrap_err();
                assert!(is_no_file(&error) && error.to_string().contains(kind), "{name}: {error}");
            }
        }
        for name in ["pipe", "link", "socket", "device"] {
            let path = path(name);
            let error = at_once(name, move || open_directory(&path)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR), "{name}: {error}");
        }
        assert!(open_directory(&path("directory")).unwrap().metadata().unwrap().is_dir());
        let error = read(&path("loop"), 10).unwrap_err();
        assert!(!is_no_file(&error) && error.raw_os_error() == Some(libc::ELOOP), "{error}");
        assert_eq!(read(&path("none"), 10).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn reading_has_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(read_text(&path, 10).unwrap(), "0123456789");
        assert!(read(&path, 9).unwrap_err().to_string().contains("larger than 9 bytes"));
        // A huge file, sparse so that the test needs no disk space.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read(&path, 1 << 20).is_err());
        // Files in /proc have size 0.
        assert!(!read(Path::new("/proc/self/status"), OWN_MAX).unwrap().is_empty());
        fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text(&path, 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
