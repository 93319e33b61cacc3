//! The harness's side of a [supervisor](crate::lab::supervise).

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{PATIENCE, Process};

/// A program that runs, or can be restarted, in its own PID namespace.
#[derive(Debug)]
pub(super) struct Supervised {
    process: Process,
    answers: BufReader<ChildStdout>,
    program: Option<Pid>,
}

impl Supervised {
    /// Starts the supervisor; the command is `podnet-lab supervise PROGRAM …`.
    pub(super) fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command)?;
        let answers = BufReader::new(process.child().stdout.take().expect("is piped"));
        Ok(Self { process, answers, program: None })
    }

    /// Starts the program.
    pub(super) fn start_program(&mut self) -> Result<()> {
        ensure!(self.program.is_none(), "the program runs already");
        let stdin = self.process.child().stdin.as_mut().expect("is piped");
        stdin.write_all(b"\n").context("the supervisor has ended")?;
        self.program = Some(Pid::from_raw(self.answer()?.parse().context("the program has no id")?));
        Ok(())
    }

    /// Sends the program a signal, but none of the processes that it has started, and waits for its exit.
    pub(super) fn end_program(&mut self, signal: Signal) -> Result<()> {
        kill(self.program.take().context("the program does not run")?, signal)?;
        self.answer().map(drop)
    }

    /// The supervisor's next line.
    fn answer(&mut self) -> Result<String> {
        if self.answers.buffer().is_empty() {
            let mut fds = [PollFd::new(self.answers.get_ref().as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::try_from(PATIENCE)?)?;
            ensure!(ready > 0, "the supervisor says nothing for {PATIENCE:?}");
        }
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the supervisor has ended");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // The supervisor exits in an orderly way, together with all processes of the namespace.
        drop(self.process.child().stdin.take());
        if let Some(program) = self.program.take() {
            let _ = kill(program, Signal::SIGKILL);
        }
        let _ = self.process.wait(PATIENCE);
    }
}
