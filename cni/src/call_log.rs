//! How the plugin's calls ended: a line for each in `<runDir>/calls`, which the daemon takes and counts.
//!
//! A plugin lives for milliseconds and must work without a daemon, so it can't be asked. It adds a line with one write
//! and never waits: lines don't mix, since the kernel appends one after the other. While nobody takes them the file
//! grows to [`LIMIT`] and no further. A line that was cut off, or that nobody understands, is passed over. All of this
//! is worth less than a pod, so nothing that fails here is an error.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Size of the file in bytes from which on calls aren't noted: about 2,500.
pub const LIMIT: u64 = 1 << 16;

/// Nothing but a file is opened, and nothing is waited for.
const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// What a line begins and ends with, so that a part of one can be told from a whole one.
const BEGIN: &str = "call ";
const END: &str = " us";

/// A command as far as it could be read.
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
    /// None, or one that the specification doesn't have.
    Unknown,
}

impl CommandName {
    const ALL: [Self; 7] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version, Self::Unknown];

    /// As the specification writes it.
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

    /// The command that the environment names.
    pub fn of(text: &str) -> Self {
        Self::ALL.into_iter().find(|command| command.name() == text).unwrap_or(Self::Unknown)
    }
}

/// A call that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its command.
    pub command: CommandName,
    /// The code of its error; 0: none.
    pub code: u32,
    /// How long it took, in whole microseconds.
    pub duration: Duration,
}

impl Call {
    fn to_line(self) -> String {
        format!("{BEGIN}{} {} {}{END}\n", self.command.name(), self.code, self.duration.as_micros())
    }

    fn parse(line: &str) -> Option<Self> {
        // Before it may stand what is left of one that was cut off.
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
    /// The log of a run directory, which need not exist.
    pub fn new(run_dir: &Path) -> Self {
        Self { path: run_dir.join("calls") }
    }

    /// Removes it, as far as that goes.
    pub fn remove(&self) {
        for path in [&self.path, &self.path.with_extension("taken")] {
            let _ = fs::remove_file(path);
        }
    }

    /// Notes a call, if that can be done at once and there is room.
    pub fn append(&self, call: Call) {
        // Without a run directory there has never been a daemon.
        let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(FLAGS).open(&self.path);
        let Ok(mut file) = file else { return };
        if file.metadata().is_ok_and(|file| file.is_file() && file.len() < LIMIT) {
            // One write: what it can't write is missing.
            let _ = file.write(call.to_line().as_bytes());
        }
    }

    /// Takes what has been noted, as the daemon does every second. Calls are given the time after next at the latest: the
    /// file gets another name first, and is read when whoever had it open has written.
    ///
    /// What is returned is gone from the disk, so no call is counted twice; one is lost if the daemon is killed meanwhile.
    pub fn take(&self) -> Vec<Call> {
        let taken = self.path.with_extension("taken");
        let mut text = Vec::new();
        let file = OpenOptions::new().read(true).custom_flags(FLAGS).open(&taken);
        // One that is longer is not ours.
        let read = file.and_then(|file| file.take(2 * LIMIT + 1).read_to_end(&mut text));
        match &read {
            Ok(len) if *len as u64 > 2 * LIMIT => text.clear(),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) => {
                // Something else in its place would be there for ever.
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
        // Another daemon goes on.
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
        // A line's last character alone is no loss.
        fs::write(dir.path().join("calls"), whole.trim_end()).unwrap();
        log.take();
        assert_eq!(log.take().len(), 1);
    }

    #[test]
    fn nobody_takes_them_and_the_file_stays_small() {
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
        // What isn't the log is no reason to count no call any more.
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("calls.taken")).unwrap();
        assert!(log.take().is_empty() && log.take().is_empty());
        assert_eq!(log.take().len(), 1);
        fs::write(dir.path().join("calls"), vec![b'x'; 3 * LIMIT as usize]).unwrap();
        log.append(call(CommandName::Add, 0, 1));
        assert!(log.take().is_empty() && log.take().is_empty(), "nobody wrote that");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
