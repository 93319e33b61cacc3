//! `--keep`: the cluster outlives the command.
//!
//! A cluster ends with its process, so the command restarts itself in the background, in a process group that the
//! terminal does not interrupt, and waits for the result, one byte through a pipe. Until then the child ends with its
//! parent; afterwards it runs until it gets a signal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::cluster::Cluster;
use super::scripts;

/// Environment variable with the number of the descriptor for the result.
const RESULT_FD: &str = "PODNET_LAB_RESULT_FD";

/// Restarts the command in the background and returns the result of `run` there.
pub(super) fn in_background(run: impl FnOnce() -> Result<bool>) -> Result<bool> {
    if std::env::var_os(RESULT_FD).is_some() {
        return run();
    }
    let (mut result, sender) = io::pipe()?;
    let fd = sender.as_raw_fd();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(RESULT_FD, fd.to_string()).process_group(0);
    // SAFETY: the closure runs between fork and exec and only makes system calls; it neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            fcntl(std::os::fd::BorrowedFd::borrow_raw(fd), FcntlArg::F_SETFD(FdFlag::empty()))?;
            // This is the command's main thread, which lives as long as the command.
            Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)
        });
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let mut child = command.spawn().context("cannot start the demonstration in the background")?;
    drop(sender);
    let pid = Pid::from_raw(child.id() as i32);
    thread::spawn(move || {
        for _ in signals.forever() {
            // It cleans up; if it has already exited, the pipe below is closed.
            let _ = kill(pid, Signal::SIGTERM);
        }
    });
    let mut byte = [0];
    match result.read_exact(&mut byte) {
        Ok(()) => Ok(byte[0] == 1),
        // It exited without keeping the cluster, and has printed the reason.
        Err(_) => Ok(child.wait()?.success()),
    }
}

/// In the child: prints how to enter and how to stop the cluster, reports the result, and waits for a signal.
pub(super) fn until_told(cluster: &Cluster, pass: bool) -> Result<()> {
    let shell = scripts::write(cluster)?;
    println!(
        "\nThe cluster keeps running. Open a shell in it: {}\nStop it: kill {}",
        shell.display(),
        std::process::id()
    );
    io::stdout().flush()?;
    let Ok(fd) = std::env::var(RESULT_FD).unwrap_or_default().parse::<RawFd>() else { return Ok(()) };
    // A reader of the command's output has to see its end.
    let null = File::options().write(true).open("/dev/null")?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    prctl::set_pdeathsig(None)?;
    // SAFETY: the parent opened this descriptor for this process, and nothing else uses it.
    let mut sender = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    sender.write_all(&[u8::from(pass)])?;
    drop(sender);
    // On a signal, the lab's handler removes the cluster and ends the process.
    loop {
        thread::park();
    }
}
