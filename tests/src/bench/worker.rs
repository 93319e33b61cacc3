//! A process inside a namespace (and, for host processes, inside a node's cgroup) that runs servers and generates load
//! on request.
//!
//! It is this program, started with the hidden argument [`ARGUMENT`]; requests and answers are JSON lines on standard
//! input and output. It ends with the benchmark, in whatever way that ends.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::fd::AsFd,
    process::{ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::{
    flows,
    traffic::{self, Metric},
};
use crate::lab::Process;

/// The argument that makes this program a worker.
pub const ARGUMENT: &str = "worker";

/// Timeout of an answer beyond the length of the slice: connecting, draining, a slow machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// The kernel's fair server guarantees normal tasks a twentieth of each second on the processor of real-time workers.
/// In these breaks they get more, so that no slice is interrupted.
const BREAK: Duration = Duration::from_millis(15);

/// Requests to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Stay on the last processor from now on, with priority over all other tasks there.
    Settle,
    /// Serve these ports in the background.
    Serve(Vec<u16>),
    /// Generate load for this number of milliseconds and return the rate.
    Measure(Metric, SocketAddr, u64),
    /// Send UDP packets of many flows and return the nanoseconds per packet.
    Flows(flows::Plan),
    /// Return the number of datagrams delivered to the sockets of this namespace.
    Arrived,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done(f64),
    Failed(String),
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    name: String,
    // Dropping it ends it.
    _process: Process,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker with a command that runs this program in the right place. `name` is for messages.
    pub fn spawn(name: &str, mut command: Command) -> Result<Self> {
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command).with_context(|| format!("cannot start the worker {name}"))?;
        let child = process.child();
        let requests = child.stdin.take().context("no pipe to the worker")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe from the worker")?);
        Ok(Self { name: name.to_owned(), requests, answers, _process: process })
    }

    /// Keeps the worker on the last processor, with priority over all other tasks there. Client and server then share
    /// one processor: the rate reflects the CPU time of the whole path, without the scheduler's choice between two
    /// processors (which made rates vary by a factor of ten) and without wake-ups across them (which cost more than the
    /// path in a virtual machine).
    pub fn settle(&mut self) -> Result<()> {
        self.ask(&Request::Settle, Duration::ZERO).map(drop)
    }

    /// Starts servers on these ports.
    pub fn serve(&mut self, ports: &[u16]) -> Result<()> {
        self.ask(&Request::Serve(ports.to_vec()), Duration::ZERO).map(drop)
    }

    /// Generates load for a slice of time, after a break; returns the rate in the metric's unit.
    pub fn measure(&mut self, metric: Metric, target: SocketAddr, length: Duration) -> Result<f64> {
        std::thread::sleep(BREAK);
        self.ask(&Request::Measure(metric, target, length.as_millis() as u64), length)
    }

    /// Sends packets of many flows; returns the nanoseconds per packet.
    pub fn flows(&mut self, plan: &flows::Plan) -> Result<f64> {
        self.ask(&Request::Flows(plan.clone()), Duration::ZERO)
    }

    /// Number of datagrams delivered to the sockets of the worker's namespace so far.
    pub fn arrived(&mut self) -> Result<f64> {
        self.ask(&Request::Arrived, Duration::ZERO)
    }

    fn ask(&mut self, request: &Request, length: Duration) -> Result<f64> {
        let text = serde_json::to_string(request)? + "\n";
        self.requests.write_all(text.as_bytes()).with_context(|| format!("the worker {} is gone", self.name))?;
        self.wait(length + PATIENCE).with_context(|| format!("no answer from {} to {request:?}", self.name))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match serde_json::from_str(&line) {
            Ok(Answer::Done(value)) => Ok(value),
            Ok(Answer::Failed(error)) => bail!("{} failed at {request:?}: {error}", self.name),
            Err(e) => bail!("{} ended while it worked on {request:?} ({e}): see its messages above", self.name),
        }
    }

    fn wait(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.answers.get_ref().as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(0) => bail!("timed out after {} s: is the path up?", patience.as_secs()),
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Main function of a worker: answers requests until its input ends.
pub fn main() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let answer = match act(serde_json::from_str(&line?)?) {
            Ok(value) => Answer::Done(value),
            Err(e) => Answer::Failed(format!("{e:#}")),
        };
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

fn act(request: Request) -> Result<f64> {
    match request {
        Request::Settle => settle().map(|()| 0.0).context("cannot get a processor for the benchmark"),
        Request::Serve(ports) => traffic::serve(&ports).map(|()| 0.0).context("cannot serve"),
        Request::Measure(metric, target, millis) => {
            Ok(traffic::measure(metric, target, Duration::from_millis(millis))?)
        }
        Request::Flows(plan) => Ok(flows::send(&plan)?),
        Request::Arrived => Ok(flows::arrived()?),
    }
}

/// The lowest real-time priority, above all normal tasks.
const PRIORITY: libc::c_int = 1;

/// Keeps this thread on the last processor, with priority over all normal tasks.
pub fn settle() -> Result<()> {
    let count = std::thread::available_parallelism()?.get();
    let mut set = CpuSet::new();
    set.set(count - 1)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the parameter outlives the call, and 0 means this thread; threads that it starts inherit it.
    nix::errno::Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) })?;
    Ok(())
}
