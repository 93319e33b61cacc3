//! The kernel verifier's statistics for each program of the object, which decide whether a kernel accepts it.
//!
//! The daemon's own library loads the programs, one after another, in a separate process that is traced: when it calls
//! the kernel to load a program, the tracer enables the verifier's statistics (`BPF_LOG_STATS`), which the library does
//! not request. The verified programs are therefore exactly those that the daemon loads.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::Program;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use podnet::datapath::{Sizes, loader};
use podnet_cni::datapath::PinDir;
use serde::{Deserialize, Serialize};

/// Statistics of a program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Name of the program in the object.
    pub name: String,
    /// Number of instructions processed, on all paths.
    pub processed: u64,
    /// Total number of states.
    pub states: u64,
    /// Bytes of stack of the program and of each of its functions, as counted by the verifier.
    pub stack: String,
    /// Load time in seconds.
    pub seconds: f64,
    /// Reason for which the kernel rejects the program.
    pub refused: Option<String>,
}

/// Size of the buffer for the log of a program.
const LOG: usize = 65_536;
/// Small tables, which exist for a moment only.
const SIZES: Sizes = Sizes { conntrack: 1024, frontends: 1024 };

/// Loads every program, in the traced process. Its first line of output is the address of the log buffer, each of the
/// others the name of the next program.
pub fn load() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("this needs root")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>)?;
    let log = vec![0u8; LOG];
    let mut opened = loader::open(loader::built_in()?, &PinDir::new("/sys/fs/bpf".as_ref()), SIZES)?;
    println!("{}", log.as_ptr() as u64);
    let mut programs: Vec<_> = opened.ebpf.programs_mut().collect();
    programs.sort_by_key(|(name, _)| *name);
    for (name, program) in programs {
        println!("{name}");
        // The tracer sees the result.
        let _ = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => bail!("{name} is of no kind that the daemon loads"),
        };
    }
    io::stdout().flush()?;
    // The kernel may write to it until here.
    drop(log);
    Ok(())
}

/// Loads every program of the object and calls `each` with its statistics. `loader` is the command that calls [`load`].
pub fn examine(mut loader: Command, mut each: impl FnMut(&Figures)) -> Result<()> {
    let (reader, writer) = io::pipe()?;
    loader.stdin(Stdio::null()).stdout(writer);
    // SAFETY: PTRACE_TRACEME is a plain system call and safe between fork and exec.
    unsafe { loader.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    // If an error occurs below, it ends with this process (PTRACE_O_EXITKILL).
    let child = loader.spawn().context("cannot start the process that loads the programs")?;
    // The command still holds the pipe's other end.
    drop(loader);
    let pid = Pid::from_raw(child.id() as i32);
    let started = waitpid(pid, None)?;
    ensure!(matches!(started, WaitStatus::Stopped(_, Signal::SIGTRAP)), "unexpected at the start: {started:?}");
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL)?;
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut tracer = Tracer { memory, reader, log: None, call: None };
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal.take())?;
        match waitpid(pid, None)? {
            WaitStatus::PtraceSyscall(_) => {
                let info = ptrace::syscall_info(pid)?;
                if let Some(figures) = tracer.stopped(&info)? {
                    each(&figures);
                }
            }
            WaitStatus::Stopped(_, received) => signal = Some(received),
            WaitStatus::Exited(_, 0) => return Ok(()),
            other => bail!("the process that loads the programs ended early: {other:?}"),
        }
    }
}

/// A load in progress.
struct Call {
    name: String,
    start: Instant,
}

struct Tracer {
    memory: File,
    /// Output of the process; read while it is stopped, so it is complete.
    reader: PipeReader,
    /// Address of the log buffer in the process; `None` until it has been announced.
    log: Option<u64>,
    call: Option<Call>,
}

/// `BPF_PROG_LOAD`, of `enum bpf_cmd`.
const PROG_LOAD: u64 = 5;
/// `log_level`, `log_size` and `log_buf` in the attributes of that command.
const LOG_FIELDS: u64 = 24;
/// `BPF_LOG_STATS`.
const STATISTICS: u32 = 4;

impl Tracer {
    /// The process has stopped before or after a system call.
    fn stopped(&mut self, info: &libc::ptrace_syscall_info) -> Result<Option<Figures>> {
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                // SAFETY: `op` shows that this member of the union is set.
                let entry = unsafe { info.u.entry };
                if entry.nr == libc::SYS_bpf as u64 && entry.args[0] == PROG_LOAD {
                    self.enter(entry.args[1])?;
                }
                Ok(None)
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                // SAFETY: see above.
                let exit = unsafe { info.u.exit };
                self.call.take().map(|call| self.leave(call, exit.sval)).transpose()
            }
            _ => Ok(None),
        }
    }

    /// Enables the verifier's statistics for the load with these attributes.
    fn enter(&mut self, attributes: u64) -> Result<()> {
        // The library repeats rejected loads, and at first probes the kernel's features.
        let Some(name) = self.announced()? else { return Ok(()) };
        let log = self.log.context("the process has not said where its log may be")?;
        let mut fields = [0; 16];
        fields[..4].copy_from_slice(&STATISTICS.to_ne_bytes());
        fields[4..8].copy_from_slice(&(LOG as u32).to_ne_bytes());
        fields[8..].copy_from_slice(&log.to_ne_bytes());
        self.memory.write_all_at(&[0], log)?;
        self.memory.write_all_at(&fields, attributes + LOG_FIELDS)?;
        self.call = Some(Call { name, start: Instant::now() });
        Ok(())
    }

    /// The program announced by the process since the last call.
    fn announced(&mut self) -> Result<Option<String>> {
        let mut said = String::new();
        match self.reader.read_to_string(&mut said) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            _ => {}
        }
        let mut lines = said.lines();
        if self.log.is_none()
            && let Some(address) = lines.next()
        {
            self.log = Some(address.parse().context("the process names no address first")?);
        }
        Ok(lines.next_back().map(str::to_owned))
    }

    fn leave(&self, call: Call, result: i64) -> Result<Figures> {
        let seconds = call.start.elapsed();
        let mut log = vec![0; LOG];
        self.memory.read_exact_at(&mut log, self.log.unwrap_or_default())?;
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(LOG);
        Ok(figures(call.name, &String::from_utf8_lossy(&log[..end]), seconds, result))
    }
}

/// Parses a log of `BPF_LOG_STATS`. `result` is that of the system call.
fn figures(name: String, log: &str, took: Duration, result: i64) -> Figures {
    let after = |line: &str, word: &str| {
        let mut words = line.split(' ').skip_while(|other| *other != word).skip(1);
        words.next().and_then(|number| number.parse().ok()).unwrap_or_default()
    };
    let total = log.lines().find(|line| line.starts_with("processed ")).unwrap_or_default();
    let stack = log.lines().find_map(|line| line.strip_prefix("stack depth "));
    let refused = (result < 0).then(|| {
        // The verifier's reason precedes its statistics; without a log there is another reason.
        let reason = log.lines().take_while(|line| !line.starts_with("verification time")).last();
        reason.map_or_else(|| io::Error::from_raw_os_error(-result as i32).to_string(), str::to_owned)
    });
    Figures {
        name,
        processed: after(total, "processed"),
        states: after(total, "total_states"),
        stack: stack.unwrap_or_default().to_owned(),
        seconds: took.as_secs_f64(),
        refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: &str = "processed 43908 insns (limit 1000000) max_states_per_insn 13 total_states 1299 peak_states 379 \
                         mark_read 13\n";

    #[test]
    fn statistics_are_parsed() {
        let log = format!("verification time 52311 usec\nstack depth 328+0+136\n{TOTAL}");
        let found = figures("to_pod_enter".into(), &log, Duration::from_millis(1500), 7);
        let (processed, states, seconds, refused) = (43_908, 1299, 1.5, None);
        let stack = "328+0+136".to_owned();
        assert_eq!(found, Figures { name: "to_pod_enter".into(), processed, states, stack, seconds, refused });
    }

    #[test]
    fn rejection_has_its_reason() {
        let log = format!("combined stack size of 3 calls is 544. Too large\nverification time 9 usec\n{TOTAL}");
        let found = figures("x".into(), &log, Duration::ZERO, -13);
        assert_eq!(found.refused.as_deref(), Some("combined stack size of 3 calls is 544. Too large"));
        let silent = figures("x".into(), "", Duration::ZERO, -1);
        assert!(silent.refused.unwrap().contains("not permitted"));
    }
}
