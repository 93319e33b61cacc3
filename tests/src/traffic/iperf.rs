//! Throughput by iperf3.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::place::Place;
use crate::place::process::{Process, output};
use crate::wait::wait_until;

/// Time that a client may take beyond its sending time.
const GRACE: Duration = Duration::from_secs(10);
/// Time before that deadline at which a client still running is examined.
const NOTICE: Duration = Duration::from_secs(3);

/// A running `iperf3 --server`.
#[derive(Debug)]
pub struct IperfServer {
    place: Place,
    log: NamedTempFile,
    _process: Process,
}

impl IperfServer {
    /// Starts the server on one address and waits until it listens.
    pub fn start(place: &Place, addr: SocketAddr) -> Result<Self> {
        let mut command = place.command("iperf3")?;
        command.args(["--server", "--bind", &addr.ip().to_string(), "--port", &addr.port().to_string()]);
        let log = NamedTempFile::new()?;
        // Flush each line, since it is killed in the end.
        command.arg("--forceflush");
        command.stdin(Stdio::null()).stdout(log.reopen()?).stderr(log.reopen()?);
        let process = Process::start(command).context("cannot start iperf3: apt-get install iperf3")?;
        let server = Self { place: place.clone(), log, _process: process };
        server.wait_for_listener()?;
        Ok(server)
    }

    /// Waits until the server listens for the next run. After each run it closes its listener, which resets the
    /// connections that no one has accepted yet, and opens another. Its last messages to the client before may still be
    /// on their way then, as through a link whose rate is limited.
    fn wait_for_listener(&self) -> Result<()> {
        wait_until("iperf3 listens", || {
            let printed = std::fs::read_to_string(self.log.path())?;
            // A connection would start a run, so read what the server says.
            Ok(printed.rfind("Server listening on") > printed.rfind("Accepted connection from"))
        })
        .with_context(|| self.state())
    }

    /// Diagnostics from the server's side: its output, and its sockets.
    fn state(&self) -> String {
        let printed = std::fs::read_to_string(self.log.path()).unwrap_or_default();
        let last: Vec<_> = printed.lines().rev().take(30).collect();
        let printed: Vec<_> = last.into_iter().rev().collect();
        format!("the server's last lines:\n{}\n{}", printed.join("\n"), sockets(&self.place))
    }
}

/// TCP sockets of a place with all kernel details.
fn sockets(place: &Place) -> String {
    let listed = place.run("ss", &["--tcp", "--info", "--memory", "--numeric", "--options", "--all"]);
    format!("sockets of {}:\n{}", place.name(), listed.unwrap_or_else(|error| format!("{error:#}")))
}

/// The load.
#[derive(Clone, Copy, Debug)]
pub enum IperfLoad {
    /// One TCP connection at full speed.
    Tcp,
    /// UDP datagrams at a fixed rate.
    Udp {
        /// In bits per second.
        rate: u64,
        /// In bytes, without headers.
        size: u16,
    },
}

/// Sends for some seconds and returns the received rate in Gbit/s.
///
/// # Errors
/// Those of iperf3. If it hangs, the error includes the sockets of both ends, the server's output, and the text of
/// `more`, all collected during the hang.
pub fn iperf(
    place: &Place,
    server: &IperfServer,
    to: SocketAddr,
    load: IperfLoad,
    seconds: u32,
    more: impl Fn() -> String + Send + Sync,
) -> Result<f64> {
    server.wait_for_listener()?;
    let mut command = place.command("iperf3")?;
    command.args(["--client", &to.ip().to_string(), "--port", &to.port().to_string(), "--json"]);
    command.args(["--time", &seconds.to_string()]);
    if let IperfLoad::Udp { rate, size } = load {
        command.args(["--udp", "--bitrate", &rate.to_string(), "--length", &size.to_string()]);
    }
    let limit = Duration::from_secs(u64::from(seconds)) + GRACE;
    let (done, watch) = mpsc::channel::<()>();
    let (result, state) = thread::scope(|scope| {
        let look = || format!("{}\n{}\n{}", sockets(place), server.state(), more());
        let watcher = scope.spawn(move || {
            let hangs = watch.recv_timeout(limit - NOTICE) == Err(RecvTimeoutError::Timeout);
            hangs.then(look)
        });
        let result = output(command, b"", limit);
        drop(done);
        (result, watcher.join().expect("looking around does not panic"))
    });
    let output = match (result, state) {
        (Ok(output), _) => output,
        (Err(error), Some(state)) => bail!("from {} to {to}: {error}\n{state}", place.name()),
        (Err(error), None) => return Err(error).with_context(|| format!("from {} to {to}", place.name())),
    };
    let report: Value = serde_json::from_slice(&output.stdout).context("iperf3 did not write JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3 from {} to {to}: {error}\n{}\n{}", place.name(), server.state(), more());
    }
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3's report has no end.sum_received.bits_per_second")? / 1e9)
}
