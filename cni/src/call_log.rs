//! The log of calls: one line per call of the plugin in `<runDir>/calls`, with its outcome. The daemon consumes it for
//! its metrics.
//!
//! A plugin process lives for milliseconds and must work without a daemon, so it cannot be scraped. It appends a line
//! in one write and never blocks; the kernel serialises appends, so lines do not interleave. Without a daemon to
//! consume it the file grows up to [`LIMIT`] and no further. Truncated and unknown lines are skipped. Failures here
//! are ignored, since they must not keep a pod from starting.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Size of the file in bytes above which calls are no longer logged: about 2,500 calls.
pub const LIMIT: u64 = 1 << 16;

/// Open nothing through a symbolic link, and do not block on a named pipe.
const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Beginning and end of a line, which distinguish whole lines from truncated ones.
const BEGIN: &str = "call ";
const END: &str = " us";

/// A command, valid or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandName {
    /// ADD.
    Add,
    /// DEL.
    Del,
    /// CHECK.
    Check,
    /// STATUS.
    Status,
    /// GC.
    Gc,
    /// VERSION.
    Version,
    /// None, or one that is not in the specification.
    Unknown,
}

impl CommandName {
    const ALL: [Self; 7] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version, Self::Unknown];

    /// Its name in the specification.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
            Self::Unknown => "unknown",
        }
    }

    /// The command in `CNI_COMMAND`.
    pub fn of(text: &str) -> Self {
        Self::ALL.into_iter().find(|command| command.name() == text).unwrap_or(Self::Unknown)
    }
}

/// A finished call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its command.
    pub command: CommandName,
    /// Its error code; 0 for success.
    pub code: u32,
    /// Its duration, in whole microseconds.
    pub duration: Duration,
}

impl Call {
    fn to_line(self) -> String {
        format!("{BEGIN}{} {} {}{END}\n", self.command.name(), self.code, self.duration.as_micros())
    }

    fn parse(line: &str) -> Option<Self> {
        // The rest of a truncated line may precede it.
        let (_, line) = line.rsplit_once(BEGIN)?;
        let mut fields = line.strip_suffix(END)?.split(' ');
        let command = CommandName::of(fields.next()?);
        let code = fields.next()?.parse().ok()?;
        let duration = Duration::from_micros(fields.next()?.parse().ok()?);
        fields.next().is_none().then_some(Self { command, code, duration })
    }
}

/// The log in a run directory.
#[derive(Clone, Debug)]
pub struct CallLog {
    path: PathBuf,
}

impl CallLog {
    /// The log in a run directory, which need not exist.
    pub fn new(run_dir: &Path) -> Self {
        Self { path: run_dir.join("calls") }
    }

    /// Removes the log; errors are ignored.
    pub fn remove(&self) {
        for path in [&self.path, &self.path.with_extension("taken")] {
            let _ = fs::remove_file(path);
        }
    }

    /// Appends a call, unless that would block or the log is full.
    pub fn append(&self, call: Call) {
        // No run directory: there has never been a daemon.
        let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(FLAGS).open(&self.path);
        let Ok(mut file) = file else { return };
        if file.metadata().is_ok_and(|file| file.is_file() && file.len() < LIMIT) {
            // A single write; the rest of a short one is lost.
            let _ = file.write(call.to_line().as_bytes());
        }
    }

    /// Removes and returns the logged calls; the daemon does this every second. A call is returned by the second `take`
    /// after it at the latest: the file is renamed first and read one `take` later, when the processes that had it open
    /// have written to it.
    ///
    /// The returned calls are no longer on disk, so none is counted twice; they are lost if the daemon is killed now.
    pub fn take(&self) -> Vec<Call> {
        let taken = self.path.with_extension("taken");
        let mut text = Vec::new();
        let file = OpenOptions::new().read(true).custom_flags(FLAGS).open(&taken);
        // A longer file is not ours.
        let read = file.and_then(|file| file.take(2 * LIMIT + 1).read_to_end(&mut text));
        match &read {
            Ok(len) if *len as u64 > 2 * LIMIT => text.clear(),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) => {
                // Anything but a file would block this path for ever.
                if fs::symlink_metadata(&taken).is_ok_and(|data| !data.is_file()) {
                    let _ = fs::remove_file(&taken);
                }
                return Vec::new();
            }
        }
        if read.is_ok() && fs::remove_file(&taken).is_err() {
            return Vec::new();
        }
        let _ = fs::rename(&self.path, &taken);
        String::from_utf8_lossy(&text).lines().filter_map(Call::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: CommandName, code: u32, micros: u64) -> Call {
        Call { command, code, duration: Duration::from_micros(micros) }
    }

    #[test]
    fn calls_are_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = CallLog::new(dir.path());
        assert!(log.take().is_empty());
        let calls = [call(CommandName::Add, 0, 4321), call(CommandName::Del, 107, 1), call(CommandName::Unknown, 4, 0)];
        calls.iter().for_each(|call| log.append(*call));
        assert!(log.take().is_empty(), "who has the file open may still write");
        log.append(call(CommandName::Status, 50, 9));
        assert_eq!(log.take(), calls);
        // Another daemon continues.
        assert_eq!(CallLog::new(dir.path()).take(), [call(CommandName::Status, 50, 9)]);
        assert!(log.take().is_empty() && log.take().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        for _ in 0..2 {
            log.append(call(CommandName::Add, 0, 1));
            log.take();
        }
        log.append(call(CommandName::Add, 0, 1));
        log.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_cut_off_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let log = CallLog::new(dir.path());
        let whole = call(CommandName::Gc, 0, 12_345).to_line();
        for cut in 0..whole.len() {
            fs::write(
                dir.path().join("calls"),
                [&whole[..cut], &whole, "call ADD 0\ncall ADD 0 1 2 us\n\u{0}\n"].concat(),
            )
            .unwrap();
            log.take();
            assert_eq!(log.take(), [call(CommandName::Gc, 0, 12_345)], "{cut}");
        }
        // A line that lacks only its newline is complete.
        fs::write(dir.path().join("calls"), whole.trim_end()).unwrap();
        log.take();
        assert_eq!(log.take().len(), 1);
    }

    #[test]
    fn without_a_reader_the_file_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let log = CallLog::new(dir.path());
        for _ in 0..5000 {
            log.append(call(CommandName::Add, 0, 1000));
        }
        let size = fs::metadata(dir.path().join("calls")).unwrap().len();
        assert!((LIMIT..LIMIT + 100).contains(&size), "{size}");
        log.take();
        assert_eq!(log.take().len() as u64, size / 19);
    }

    #[test]
    fn writers_at_once_lose_nothing_and_mix_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = CallLog::new(dir.path());
        let mut taken = Vec::new();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let log = log.clone();
                    scope.spawn(move || (0..200).for_each(|i| log.append(call(CommandName::Add, writer, i))))
                })
                .collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
        });
        for _ in 0..2 {
            taken.extend(log.take());
        }
        for writer in 0..4 {
            let of_writer = taken.iter().filter(|call| call.code == writer).map(|call| call.duration.as_micros());
            assert!(of_writer.eq(0..200), "{writer}");
        }
    }

    #[test]
    fn strange_files_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let log = CallLog::new(&dir.path().join("missing"));
        log.append(call(CommandName::Add, 0, 1));
        assert!(log.take().is_empty());
        let log = CallLog::new(dir.path());
        fs::create_dir(dir.path().join("calls.taken")).unwrap();
        log.append(call(CommandName::Add, 0, 1));
        assert!(log.take().is_empty() && log.take().is_empty());
        fs::remove_dir(dir.path().join("calls.taken")).unwrap();
        // Something else in the log's place must not end the counting of calls.
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("calls.taken")).unwrap();
        assert!(log.take().is_empty() && log.take().is_empty());
        assert_eq!(log.take().len(), 1);
        fs::write(dir.path().join("calls"), vec![b'x'; 3 * LIMIT as usize]).unwrap();
        log.append(call(CommandName::Add, 0, 1));
        assert!(log.take().is_empty() && log.take().is_empty(), "there was no call");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
