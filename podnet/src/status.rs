//! What the running daemon tells `podnet status`: `<runDir>/status.json`, and a lock that says whether it runs.
//!
//! The daemon replaces the file atomically whenever something in it changes. What the kernel can tell (tables, counters,
//! sysctls) is not in it: the command reads that itself, so it is right also while the daemon is down.

mod lock;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use podnet_cni::files;
use podnet_common::verdict::Reason;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use lock::{DaemonLock, DaemonState};

use crate::guard::HostFacts;
use crate::room::Room;

/// Why the file or the lock could not be used.
#[derive(Debug, Error)]
pub enum StatusError {
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is of another version.
    #[error("cannot parse {} ({source}): does this podnet have the daemon's version?", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// Another daemon runs with this run directory.
    #[error(
        "another podnet daemon is already running{}; stop it first, or set another runDir for this one", pid(*process)
    )]
    Running {
        /// Its process id, as far as this process id namespace knows it.
        process: Option<i32>,
    },
    /// Another daemon's programs are there.
    #[error("another podnet daemon is already running, with its programs under {}; stop it first", path.display())]
    InUse {
        /// The directory of its pins.
        path: PathBuf,
    },
}

fn pid(process: Option<i32>) -> String {
    process.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A time in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The present.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// Seconds from this time to another; 0 if the other is earlier.
    pub fn seconds_until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonStatus {
    /// The daemon's version.
    pub version: String,
    /// Name of the Node object.
    pub node: String,
    /// When it was started.
    pub started: UnixTime,
    /// When the datapath became ready; none while it isn't.
    pub ready: Option<UnixTime>,
    /// Whether it took over pinned state of a daemon before it.
    pub adopted: bool,
    /// Where the plugin's records are, so that commands find them without being told.
    pub state_dir: Option<PathBuf>,
    /// The configuration that it runs with, as its file could say it, so that commands need not be told either.
    pub config: Option<serde_json::Value>,
    /// Where objects come from.
    pub sources: Vec<SourceStatus>,
    /// The tables' reconciliation.
    pub tables: TablesStatus,
    /// Interfaces that lead out of the node.
    pub uplinks: Vec<UplinkStatus>,
    /// The tunnel to other nodes, if there is one.
    pub tunnel: Option<UplinkStatus>,
    /// Whether the kernel has refused the socket hooks; the reason is among the warnings.
    pub socket_hooks_refused: bool,
    /// Other nodes.
    pub nodes: Vec<NodeStatus>,
    /// The servers that others ask for this node's health.
    pub health: HealthStatus,
    /// Pods to whose links something was put back.
    pub repairs: Vec<RepairStatus>,
    /// What of this host no object may take.
    pub host: HostFacts,
    /// By namespace, where all together ask for more than the tables hold, what each of its Services gets at most.
    pub shares: BTreeMap<String, Room>,
    /// By reason among [`ALARMING`], the packets dropped so far.
    pub drops: BTreeMap<String, DropStatus>,
    /// What a user should look at, as sentences.
    pub warnings: Vec<String>,
}

/// Reasons for drops that say that something is too small or broken; others are the clients' doing.
pub const ALARMING: [Reason; 5] =
    [Reason::ConntrackFull, Reason::SnatExhausted, Reason::NoProgram, Reason::MissedTailCall, Reason::StaleTable];

/// Packets that were dropped for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DropStatus {
    /// How many there were when the daemon last looked.
    pub packets: u64,
    /// When it last found more than before; none if it never has.
    pub last: Option<UnixTime>,
}

/// One source of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceStatus {
    /// What it is: the watched directory, or the API server's address.
    pub name: String,
    /// Whether everything it has was read at least once.
    pub synced: bool,
    /// When it was last read.
    pub last_sync: Option<UnixTime>,
    /// How many Services it has.
    pub services: usize,
    /// How many EndpointSlices.
    pub endpoint_slices: usize,
    /// How many Nodes.
    pub nodes: usize,
    /// What could not be used.
    pub errors: Vec<SourceError>,
}

/// A mistake in a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceError {
    /// The file or object.
    pub place: String,
    /// The line, if it is a file's and known.
    pub line: Option<u64>,
    /// What is wrong.
    pub reason: String,
    /// Whether what it said before is in effect; else it has never been read without error.
    pub kept: bool,
}

/// How far the kernel's tables are what they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TablesStatus {
    /// When they were last brought into line.
    pub last_reconciled: Option<UnixTime>,
    /// Frontends that could not be written and are tried again.
    pub pending: Vec<PendingStatus>,
}

/// A frontend that could not be written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PendingStatus {
    /// Its address, port and protocol.
    pub frontend: String,
    /// How often it has been tried.
    pub failures: u32,
    /// Why it failed, the last time.
    pub reason: String,
}

/// An uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UplinkStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The hooks on it.
    pub hooks: Vec<HookStatus>,
}

/// A hook on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HookStatus {
    /// Its name, for example `from_uplink`.
    pub hook: String,
    /// How it is attached: `tc`, `xdp native`, `xdp generic`, or `xdp off` with the reason why it need not be; none if it
    /// should be and isn't.
    pub attached: Option<String>,
    /// Why it is not.
    pub error: Option<String>,
}

/// Another node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// One of its pods' CIDRs.
    pub cidr: String,
    /// The next hop; none if there is no way.
    pub via: Option<String>,
    /// Its MAC, when it is known.
    pub mac: Option<String>,
    /// Whether packets go there through the tunnel.
    pub tunnel: bool,
    /// Why there is no way.
    pub problem: Option<String>,
}

/// A pod to whose link something was put back that somebody had taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RepairStatus {
    /// The pod, or the container if its name isn't known.
    pub of: String,
    /// What was missing, the last time.
    pub parts: String,
    /// How often.
    pub times: u64,
    /// When, the last time.
    pub last: UnixTime,
}

/// The servers that load balancers and other agents ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthStatus {
    /// Where `/healthz` and `/livez` are served; none if that is switched off.
    pub address: Option<String>,
    /// Why it is not served there.
    pub error: Option<String>,
    /// How many `healthCheckNodePort`s are served.
    pub node_ports: usize,
}

impl DaemonStatus {
    /// Where the file is.
    pub fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("status.json")
    }

    /// The uplinks and the tunnel.
    pub fn interfaces(&self) -> impl Iterator<Item = &UplinkStatus> {
        self.uplinks.iter().chain(&self.tunnel)
    }

    /// What it says of a hook at one of these.
    pub fn hook(&self, ifindex: u32, hook: &str) -> Option<&HookStatus> {
        let uplink = self.interfaces().find(|uplink| uplink.ifindex == ifindex)?;
        uplink.hooks.iter().find(|status| status.hook == hook)
    }

    /// Reads it; `None` if no daemon has written it.
    pub fn read(run_dir: &Path) -> Result<Option<Self>, StatusError> {
        let path = Self::path(run_dir);
        let bytes = match files::read(&path, files::OWN_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StatusError::Io { what: "read", path, source }),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|source| StatusError::Malformed { path, source })
    }

    /// Replaces it, so that a reader sees the old one or the new one.
    pub fn write(&self, run_dir: &Path) -> Result<(), StatusError> {
        let path = Self::path(run_dir);
        let written = (|| {
            let mut file = tempfile::NamedTempFile::new_in(run_dir)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.persist(&path).map_err(|e| e.error)?;
            Ok(())
        })();
        written.map_err(|source| StatusError::Io { what: "write", path, source })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn written_and_read_and_of_an_older_version() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(DaemonStatus::read(dir.path()).unwrap(), None);
        let status = DaemonStatus {
            node: "node1".into(),
            ready: Some(UnixTime(7)),
            sources: vec![SourceStatus { errors: vec![SourceError::default()], ..SourceStatus::default() }],
            ..DaemonStatus::default()
        };
        status.write(dir.path()).unwrap();
        assert_eq!(DaemonStatus::read(dir.path()).unwrap(), Some(status));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        fs::write(DaemonStatus::path(dir.path()), r#"{"node":"node1","newer":1}"#).unwrap();
        assert_eq!(DaemonStatus::read(dir.path()).unwrap().unwrap().node, "node1");
    }
}
