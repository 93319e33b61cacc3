//! `podnet cleanup`: removes everything that the daemon has set up on the node: programs, pins, podnet0, routes, run
//! files.
//!
//! It continues after errors and returns all of them; a second run finds nothing left to do. Pods with their
//! interfaces, routes and records stay (the runtime removes them through the plugin), and so do host settings, since
//! other programs may rely on them by now.

use std::io;
use std::path::{Path, PathBuf};

use podnet_cni::call_log::CallLog;
use podnet_cni::datapath::{Direction, PinDir, detach_pod, detach_tc};
use podnet_cni::node_info::NodeInfo;
use podnet_cni::text::refusal;
use podnet_common::layout::Hook;
use thiserror::Error;

use crate::compile::ServiceNames;
use crate::config::Install;
use crate::datapath::{sockets, uplink_xdp};
use crate::host::snapshot::LinkKind;
use crate::host::{Host, HostError};
use crate::install::{self, InstallError};
use crate::socket;
use crate::status::{DaemonLock, DaemonStatus, StatusError};

/// Something that could not be removed.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// A running daemon would set everything up again.
    #[error(transparent)]
    Daemon(#[from] StatusError),
    /// The host's network.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The plugin remains installed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A program remains attached.
    #[error("{}", refusal(.0))]
    Detach(#[from] podnet_cni::datapath::DatapathError),
    /// Pins of links remain.
    #[error("cannot detach {what}: {}", refusal(.source))]
    Links {
        /// Which links.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A file or directory remains.
    #[error("cannot remove {}: {}", path.display(), refusal(.source))]
    Remove {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// What was removed, and what could not be.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// As sentences.
    pub(super) done: Vec<String>,
    /// Everything that failed.
    pub(super) errors: Vec<CleanupError>,
}

impl Outcome {
    fn note(&mut self, result: Result<Option<String>, impl Into<CleanupError>>) {
        match result {
            Ok(done) => self.done.extend(done),
            Err(e) => self.errors.push(e.into()),
        }
    }
}

/// Removes everything. Does nothing while a daemon is running.
pub(super) async fn run(bpffs: &Path, run_dir: &Path) -> Outcome {
    let mut outcome = Outcome::default();
    // Held until the end, so that no daemon starts in the meantime; its file is removed with the others.
    let _lock = match DaemonLock::acquire(run_dir, &PinDir::new(bpffs), false) {
        Ok(lock) => lock,
        Err(e) => {
            outcome.errors.push(e.into());
            return outcome;
        }
    };
    // First, so that no pod starts while its node is being taken down.
    remove_file(&NodeInfo::path(run_dir), &mut outcome);
    match installed(run_dir) {
        Ok(Some(installed)) => match install::remove(&installed) {
            Ok(paths) if paths.is_empty() => outcome.done.push(format!(
                "no plugin found in {} and {}: if this runs in a container, remove {} on the node itself",
                installed.conf_dir.display(),
                installed.bin_dir.display(),
                install::LIST
            )),
            Ok(paths) => outcome.done.extend(paths.iter().map(|path| format!("removed {}", path.display()))),
            Err(e) => outcome.errors.push(e.into()),
        },
        Ok(None) => {}
        Err(e) => outcome.errors.push(e.into()),
    }
    match Host::open() {
        Ok(host) => {
            detach(&host, &PinDir::new(bpffs), &mut outcome).await;
            let removed = host.remove_node_routes().await;
            outcome.note(removed.map(|n| (n > 0).then(|| format!("removed {n} routes to pods of other nodes"))));
            let removed = host.remove_podnet0().await;
            outcome.note(removed.map(|there| there.then(|| "removed podnet0 and podnet1".to_owned())));
        }
        Err(e) => outcome.errors.push(e.into()),
    }
    // Attached programs are found by their pins, and the installed plugin by the daemon's report: a retry needs both.
    if !outcome.errors.is_empty() {
        return outcome;
    }
    remove_pins(&PinDir::new(bpffs), &mut outcome);
    for path in [ServiceNames::path(run_dir), DaemonStatus::path(run_dir), socket::path(run_dir)] {
        remove_file(&path, &mut outcome);
    }
    CallLog::new(run_dir).remove();
    // The lock belongs to this command, and perhaps the directory; foreign files in it stay.
    let path = DaemonLock::path(run_dir);
    if let Err(source) = std::fs::remove_file(&path) {
        outcome.errors.push(CleanupError::Remove { path, source });
    }
    match std::fs::remove_dir(run_dir) {
        Err(e) if !matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) => {
            outcome.errors.push(CleanupError::Remove { path: run_dir.to_owned(), source: e });
        }
        _ => {}
    }
    outcome
}

/// Where the daemon has installed the plugin, according to its report.
fn installed(run_dir: &Path) -> Result<Option<Install>, StatusError> {
    let config = DaemonStatus::read(run_dir)?.and_then(|status| status.config);
    Ok(config.and_then(|config| serde_json::from_value(config.get("install")?.clone()).ok()))
}

/// Detaches the programs from every interface.
async fn detach(host: &Host, pins: &PinDir, outcome: &mut Outcome) {
    let links = [("XDP programs", uplink_xdp::detach_others(pins, &[])), ("socket hooks", sockets::detach(pins))];
    for (what, detached) in links {
        outcome.note(detached.map(|()| None).map_err(|source| CleanupError::Links { what, source }));
    }
    let snapshot = match host.snapshot().await {
        Ok(snapshot) => snapshot,
        Err(e) => return outcome.errors.push(e.into()),
    };
    let (loopback, others): (Vec<_>, Vec<_>) = snapshot.links.iter().partition(|link| link.kind == LinkKind::Loopback);
    let from_loopback = pins.hook(Hook::FromLoopback);
    if from_loopback.exists() {
        for link in loopback {
            outcome.note(detach_tc(&from_loopback, link.ifindex, Direction::Egress).map(|()| None));
        }
    }
    // Any link may be a pod's.
    if pins.hook(Hook::FromPod).exists() {
        for link in &others {
            outcome.note(detach_pod(pins, link.ifindex).map(|()| None));
        }
    }
    let of_uplinks = [
        (Hook::FromUplink, Direction::Ingress),
        (Hook::ToUplink, Direction::Egress),
        (Hook::FromRaw, Direction::Ingress),
        (Hook::ToRaw, Direction::Egress),
    ];
    for (hook, direction) in of_uplinks {
        let program = pins.hook(hook);
        if !program.exists() {
            continue;
        }
        for link in &others {
            outcome.note(detach_tc(&program, link.ifindex, direction).map(|()| None));
        }
    }
}

/// Removes the pins, which frees programs and tables without other references.
fn remove_pins(pins: &PinDir, outcome: &mut Outcome) {
    let path = pins.root().to_owned();
    match std::fs::remove_dir_all(&path) {
        Ok(()) => outcome.done.push(format!("removed the pins under {}", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => outcome.errors.push(CleanupError::Remove { path, source }),
    }
}

fn remove_file(path: &Path, outcome: &mut Outcome) {
    match std::fs::remove_file(path) {
        Ok(()) => outcome.done.push(format!("removed {}", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => outcome.errors.push(CleanupError::Remove { path: path.to_owned(), source }),
    }
}
