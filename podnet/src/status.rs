//! The running daemon's report for `podnet status`: `<runDir>/status.json`, and a lock that tells whether it is
//! running.
//!
//! The daemon replaces the file atomically whenever its content changes. State of the kernel (tables, counters,
//! sysctls) is not in it: the command reads that directly, so it is correct even while the daemon is down.

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

use crate::entry_counts::EntryCounts;
use crate::guard::HostFacts;

/// Why the file or the lock can't be used.
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
    /// The file has the format of another version.
    #[error("cannot parse {} ({source}): use a podnet binary of the daemon's version", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// Another daemon is running with this run directory.
    #[error(
        "another podnet daemon is already running{}; stop it first, or set another runDir for this one", pid(*process)
    )]
    Running {
        /// Its process id, if it is visible in this PID namespace.
        process: Option<i32>,
    },
    /// Another daemon's programs are in use.
    #[error("another podnet daemon is already running, with its programs under {}; stop it first", path.display())]
    InUse {
        /// The directory of their pins.
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
    /// The current time.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// Seconds from this time to another; 0 if the other is earlier.
    pub fn seconds_until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

/// Content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonStatus {
    /// The daemon's version.
    pub version: String,
    /// Name of the Node object.
    pub node: String,
    /// When it was started.
    pub started: UnixTime,
    /// When the datapath became ready; `None` while it isn't.
    pub ready: Option<UnixTime>,
    /// Whether it adopted the pinned state of an earlier daemon.
    pub adopted: bool,
    /// Directory of the plugin's records, by which commands find them.
    pub state_dir: Option<PathBuf>,
    /// The configuration in use, in the format of its file, for commands.
    pub config: Option<serde_json::Value>,
    /// Sources of objects.
    pub sources: Vec<SourceStatus>,
    /// State of reconciliation.
    pub tables: TablesStatus,
    /// The node's uplinks.
    pub uplinks: Vec<UplinkStatus>,
    /// The tunnel to other nodes, if there is one.
    pub tunnel: Option<UplinkStatus>,
    /// Whether the kernel has refused the socket hooks; the reason is among the warnings.
    pub socket_hooks_refused: bool,
    /// Other nodes.
    pub nodes: Vec<NodeStatus>,
    /// The health servers.
    pub health: HealthStatus,
    /// Pods whose links were repaired.
    pub repairs: Vec<RepairStatus>,
    /// Facts about this host that restrict objects.
    pub host: HostFacts,
    /// Limit of each Service, by namespace, where demands exceed the size of the tables.
    pub shares: BTreeMap<String, EntryCounts>,
    /// Number of dropped packets, by reason; the reasons are those in [`ALARMING`].
    pub drops: BTreeMap<String, DropStatus>,
    /// Warnings for the user, as sentences.
    pub warnings: Vec<String>,
}

/// Reasons for drops that indicate something too small or broken; others are caused by clients.
pub const ALARMING: [Reason; 7] = [
    Reason::ConntrackFull,
    Reason::SnatExhausted,
    Reason::NoProgram,
    Reason::MissedTailCall,
    Reason::StaleTable,
    Reason::PacketWriteFailed,
    Reason::Internal,
];

/// Drops for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DropStatus {
    /// Number of packets at the last observation.
    pub packets: u64,
    /// When the number last increased; `None` if it never has.
    pub last: Option<UnixTime>,
}

/// A source of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceStatus {
    /// The watched directory, or the API server's address.
    pub name: String,
    /// Whether everything was read at least once.
    pub synced: bool,
    /// Number of Services.
    pub services: usize,
    /// Number of EndpointSlices.
    pub endpoint_slices: usize,
    /// Number of Nodes.
    pub nodes: usize,
    /// Invalid files and objects.
    pub errors: Vec<SourceError>,
}

/// An error in a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceError {
    /// The file or object.
    pub place: String,
    /// The line, if it is a file and the line is known.
    pub line: Option<u64>,
    /// What is wrong.
    pub reason: String,
    /// Whether the last valid version is in effect; otherwise there has been none.
    pub kept: bool,
}

/// How far the kernel's tables match the desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TablesStatus {
    /// Frontends that could not be written and are retried.
    pub pending: Vec<PendingStatus>,
}

/// A frontend that could not be written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PendingStatus {
    /// Address, port and protocol.
    pub frontend: String,
    /// Number of failed attempts.
    pub failures: u32,
    /// Reason of the last failure.
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
    /// Its hooks.
    pub hooks: Vec<HookStatus>,
}

/// A hook on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HookStatus {
    /// Name of the hook, for example `from_uplink`.
    pub hook: String,
    /// How it is attached: `tc`, `xdp native`, `xdp generic`, or `xdp off` with the reason why it isn't needed; `None`
    /// if it is missing.
    pub attached: Option<String>,
    /// Why it is missing.
    pub error: Option<String>,
}

/// Another node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// One of its pod CIDRs.
    pub cidr: String,
    /// The next hop; `None` if there is no route.
    pub via: Option<String>,
    /// MAC of the next hop, if known.
    pub mac: Option<String>,
    /// Whether the route is through the tunnel.
    pub tunnel: bool,
    /// Why there is no route.
    pub problem: Option<String>,
}

/// A pod whose link was repaired after a change by another program or a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RepairStatus {
    /// The pod, or the container if the pod's name is unknown.
    pub of: String,
    /// Parts that the last repair restored.
    pub parts: String,
    /// Number of repairs.
    pub times: u64,
    /// Time of the last repair.
    pub last: UnixTime,
}

/// Servers for load balancers and other health checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthStatus {
    /// Address of `/healthz` and `/livez`; `None` if switched off.
    pub address: Option<String>,
    /// Why they are not served there.
    pub error: Option<String>,
    /// Number of `healthCheckNodePort`s that are served.
    pub node_ports: usize,
}

impl DaemonStatus {
    /// Path of the file.
    pub fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("status.json")
    }

    /// The uplinks and the tunnel.
    pub fn interfaces(&self) -> impl Iterator<Item = &UplinkStatus> {
        self.uplinks.iter().chain(&self.tunnel)
    }

    /// The status of a hook on one of these interfaces.
    pub fn hook(&self, ifindex: u32, hook: &str) -> Option<&HookStatus> {
        let uplink = self.interfaces().find(|uplink| uplink.ifindex == ifindex)?;
        uplink.hooks.iter().find(|status| status.hook == hook)
    }

    /// Reads the file; `None` if no daemon has written it.
    pub fn read(run_dir: &Path) -> Result<Option<Self>, StatusError> {
        let path = Self::path(run_dir);
        let bytes = match files::read(&path, files::OWN_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StatusError::Io { what: "read", path, source }),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|source| StatusError::Malformed { path, source })
    }

    /// Replaces the file atomically.
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
    fn round_trip_and_file_of_an_older_version() {
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
