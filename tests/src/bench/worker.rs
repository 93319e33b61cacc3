//! A process inside a namespace (and, for host processes, inside a node's cgroup) that serves and makes load on
//! command.
//!
//! It is this very program started again with the hidden argument [`ARGUMENT`]; requests and answers are JSON lines on
//! its standard input and output. It ends with the benchmark, however that ends.

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

/// How much longer than the slice itself an answer may take: connecting, draining, a slow machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// Normal work on the processor of real-time workers gets a twentieth of each second by force (the kernel's fair
/// server). In these breaks it gets more, so that no slice is cut.
const BREAK: Duration = Duration::from_millis(15);

/// What a worker is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Stay on the last processor from now on, ahead of everything else there.
    Settle,
    /// Serve these ports in the background.
    Serve(Vec<u16>),
    /// Make load for so many milliseconds and tell the rate.
    Measure(Metric, SocketAddr, u64),
    /// Send UDP packets of many flows and tell the nanoseconds that each took.
    Flows(flows::Plan),
    /// Tell how many datagrams have reached the sockets of this namespace.
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

    /// Keeps the worker on the last processor, ahead of everything else there. Client and server then share one
    /// processor: the rate is that of the whole path's cost in processor time, without the scheduler's choice between
    /// two processors (which made rates jump by a factor of ten) and without the wake-ups across them (which cost more
    /// than the path in a virtual machine).
    pub fn settle(&mut self) -> Result<()> {
        self.ask(&Request::Settle, Duration::ZERO).map(drop)
    }

    /// Starts servers on these ports.
    pub fn serve(&mut self, ports: &[u16]) -> Result<()> {
        self.ask(&Request::Serve(ports.to_vec()), Duration::ZERO).map(drop)
    }

    /// Makes load for a slice of time, after a break; the rate in the metric's unit.
    pub fn measure(&mut self, metric: Metric, target: SocketAddr, length: Duration) -> Result<f64> {
        std::thread::sleep(BREAK);
        self.ask(&Request::Measure(metric, target, length.as_millis() as u64), length)
    }

    /// Sends packets of many flows; nanoseconds a packet.
    pub fn flows(&mut self, plan: &flows::Plan) -> Result<f64> {
        self.ask(&Request::Flows(plan.clone()), Duration::ZERO)
    }

    /// Datagrams that have reached the sockets of the worker's namespace so far.
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

/// The worker's side: answers requests until its input ends.
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

/// Of the real-time priorities the lowest: above all normal work.
const PRIORITY: libc::c_int = 1;

/// Keeps this thread on the last processor, ahead of all normal work.
pub fn settle() -> Result<()> {
    let count = std::thread::available_parallelism()?.get();
    let mut set = CpuSet::new();
    set.set(count - 1)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the parameter outlives the call, and 0 means this thread; those that it starts inherit it.
    nix::errno::Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) })?;
    Ok(())
}
