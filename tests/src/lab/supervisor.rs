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
use std::io::{self, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};

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
