//! A PID namespace for programs that start others which outlive them, such as container runtimes: all of them end with
//! the harness, in whatever way it ends.
//!
//! Three programs are involved. The *supervisor* (`podnet-lab supervise PROGRAM …`) is a child of the harness, in the
//! node's namespaces. Its first child (`podnet-lab init`) is the first process of a new PID namespace: when it exits,
//! the kernel kills all others, and it exits when the supervisor does, because this closes the pipe between them. The
//! third is the program itself: the supervisor starts it, in the same namespaces, for each line that it reads, and
//! answers with the process id, and with another line once the program has exited.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;

use super::{PATIENCE, Process};

/// The harness's side: a program that runs, or can be restarted, in its own PID namespace.
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

/// The supervisor's main function.
pub fn supervise(program: &[OsString]) -> Result<()> {
    let [program, args @ ..] = program else { bail!("no program is named") };
    let own = env::current_exe().context("where is this program?")?;
    // Mounts as well: /proc has to belong to the new namespace.
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).context("cannot make a process namespace")?;
    let mut init = Command::new(own);
    let mut init = init.arg("init").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let ready = init.stdout.take().expect("is piped").read(&mut [0])?;
    ensure!(ready == 1, "the first process of the namespace has ended");
    for line in io::stdin().lines() {
        line?;
        let child = Command::new(program).args(args).stdin(Stdio::null()).stdout(io::stderr()).spawn();
        let mut child = child.with_context(|| format!("cannot start {}", program.display()))?;
        println!("{}", child.id());
        println!("{}", child.wait()?);
    }
    drop(init.stdin.take());
    init.wait()?;
    Ok(())
}

/// Main function of the first process of a PID namespace: it waits for the end of its standard input.
pub fn init() -> Result<()> {
    let none: Option<&str> = None;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("cannot mount /proc")?;
    // SAFETY: no handler is installed. The kernel reaps orphaned children.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    println!();
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
