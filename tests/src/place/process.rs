//! Child processes that never outlive the harness.
//!
//! A child has `PR_SET_PDEATHSIG`, so the kernel ends it when the harness dies, even by SIGKILL. The kernel associates
//! that signal with the *thread* that forked, so all children are forked by a single thread that lives as long as the
//! process ([`spawn`]). A [`Process`] is killed when dropped; [`output`] runs a command until it exits or a timeout
//! expires.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

type Job = Box<dyn FnOnce() + Send>;

/// Forks the command from the thread that lives as long as this process.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("spawner".into())
            .spawn(move || jobs.iter().for_each(|job| job()))
            .expect("a thread can be started");
        sender
    });
    let parent = Pid::this();
    // SAFETY: the closure runs between fork and exec and only makes system calls; it neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The harness may have died between the fork and the call above.
            if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        });
    }
    let (sender, result) = mpsc::channel();
    spawner.send(Box::new(move || drop(sender.send(command.spawn())))).expect("the spawner never ends");
    result.recv().expect("the spawner answers")
}

/// A running child; dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts the command.
    pub fn start(command: Command) -> io::Result<Self> {
        Ok(Self { child: spawn(command)? })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal; if the process has already exited, this is no error.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(self.child.id() as i32), signal)?;
        }
        Ok(())
    }

    /// Its exit status, or `None` while it runs.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its exit; `None` after the timeout.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the command with `input` as standard input and collects its output.
///
/// # Errors
/// The command cannot be started, or has not exited after `timeout` (`ErrorKind::TimedOut`; it is killed). An exit
/// status other than 0 is not an error.
pub fn output(mut command: Command, input: &[u8], timeout: Duration) -> io::Result<Output> {
    let what = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command).map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))?;
    let pid = Pid::from_raw(child.id() as i32);
    let mut stdin = child.stdin.take().expect("is piped");
    let mut stdout = child.stdout.take().expect("is piped");
    let mut stderr = child.stderr.take().expect("is piped");
    thread::scope(|scope| {
        // A command that does not read its input may close the pipe.
        scope.spawn(move || drop(stdin.write_all(input)));
        let errors = scope.spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).map(|_| text)
        });
        let (done, watch) = mpsc::channel::<()>();
        let watchdog = scope.spawn(move || {
            let late = watch.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout);
            // The child has not been reaped, so its id cannot belong to another process.
            if late {
                let _ = kill(pid, Signal::SIGKILL);
            }
            late
        });
        let mut text = Vec::new();
        stdout.read_to_end(&mut text)?;
        let errors = errors.join().expect("reading does not panic")?;
        drop(done);
        let late = watchdog.join().expect("waiting does not panic");
        let status = child.wait()?;
        if late {
            let message = format!("{what} has not ended after {timeout:?}: {}", String::from_utf8_lossy(&errors));
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        Ok(Output { status, stdout: text, stderr: errors })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_passes_input_and_collects_both_streams() {
        let mut command = Command::new("sh");
        command.args(["-c", "cat; echo oops >&2; exit 3"]);
        let output = output(command, b"hello", Duration::from_secs(5)).unwrap();
        assert_eq!(
            (output.status.code(), &output.stdout[..], &output.stderr[..]),
            (Some(3), &b"hello"[..], &b"oops\n"[..])
        );
    }

    #[test]
    fn output_kills_commands_after_the_timeout() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let start = Instant::now();
        let error = output(command, b"", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn dropping_a_process_kills_it() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let process = Process::start(command).unwrap();
        let path = format!("/proc/{}", process.id());
        assert!(std::path::Path::new(&path).exists());
        drop(process);
        assert!(!std::path::Path::new(&path).exists());
    }
}
