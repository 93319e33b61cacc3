//! The status file for `podnet status`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use podnet_common::addr::IfIndex;

use crate::{
    config::Config,
    control::ControlStatus,
    datapath::{Datapath, HookState},
    guard::HostFacts,
    host::tunnel,
    model::{Diagnostic, Severity},
    source,
    status::{
        DaemonStatus, DropStatus, HealthStatus, HookStatus, NodeStatus, PendingStatus, RepairStatus, SourceError,
        SourceStatus, StatusError, TablesStatus, UnixTime, UplinkStatus,
    },
};

use super::node;

/// Minimum time between two reports. A report goes over all objects, and most events change nothing in it.
const INTERVAL: Duration = Duration::from_millis(100);

/// Writes the status file when it changes.
pub(super) struct Reporter {
    last: DaemonStatus,
    /// When the last report was made.
    made: Option<Instant>,
    /// When to make the next one; `None`: after the next event.
    due: Option<Instant>,
    /// Whether the file is missing or outdated.
    file_differs: bool,
}

/// Current state of the daemon's parts.
pub(super) struct Now<'a> {
    pub(super) source: &'a source::Status,
    pub(super) control: &'a ControlStatus,
    pub(super) node: &'a node::Status,
    pub(super) health: HealthStatus,
    pub(super) host: &'a HostFacts,
    pub(super) drops: BTreeMap<String, DropStatus>,
    /// Servers that could not be started, as sentences.
    pub(super) servers: Vec<String>,
    pub(super) repairs: Vec<RepairStatus>,
    /// Problems of pods' links and records.
    pub(super) links: Vec<String>,
}

impl Reporter {
    pub(super) fn new(config: &Config, datapath: &Datapath) -> Self {
        Self {
            last: DaemonStatus {
                version: env!("CARGO_PKG_VERSION").into(),
                node: config.node.clone(),
                started: UnixTime::now(),
                adopted: datapath.adopted(),
                state_dir: Some(config.state_dir.clone()),
                config: serde_json::to_value(config).ok(),
                ..DaemonStatus::default()
            },
            made: None,
            due: Some(Instant::now()),
            file_differs: false,
        }
    }

    /// Something has happened that the last report may lack.
    pub(super) fn outdated(&mut self) {
        let next = self.made.map_or_else(Instant::now, |made| made + INTERVAL);
        self.due.get_or_insert(next);
    }

    /// When to call [`Self::write`] next; `None` if the last report is up to date.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The file may be gone: forces a write.
    pub(super) fn forget(&mut self) {
        self.file_differs = true;
    }

    /// The report as of the last call of [`Self::write`].
    pub(super) fn last(&self) -> &DaemonStatus {
        &self.last
    }

    /// Sets the routes to other nodes. There may be thousands, so they are updated after each look at them, not for
    /// every change in between.
    pub(super) fn set_nodes(&mut self, node: &node::Status) {
        let nodes = nodes(node);
        self.file_differs |= nodes != self.last.nodes;
        self.last.nodes = nodes;
    }

    /// Writes the status if it has changed. Returns the number of warnings in it.
    pub(super) fn write(&mut self, config: &Config, now: Now<'_>) -> (usize, Result<(), StatusError>) {
        (self.made, self.due) = (Some(Instant::now()), None);
        let Now { source, control, node, health, host, drops, servers, repairs, links } = now;
        let nodes = std::mem::take(&mut self.last.nodes);
        let mut now = DaemonStatus {
            ready: if node.ready { self.last.ready.or_else(|| Some(UnixTime::now())) } else { None },
            sources: vec![describe(source, control)],
            tables: TablesStatus { pending: control.pending.iter().map(pending).collect() },
            uplinks: node.uplinks.iter().map(|found| uplink(node, &found.name, found.ifindex, found.mtu)).collect(),
            tunnel: node.routes.tunnel.map(|t| uplink(node, tunnel::NAME, t.ifindex, t.mtu)),
            socket_hooks_refused: node.socket_hooks_refused,
            health,
            repairs,
            host: host.clone(),
            shares: control.shares.clone(),
            drops,
            warnings: warnings(source, control, node, [links, servers].concat()),
            ..self.last.clone()
        };
        let (changed, warnings) = (now != self.last || self.file_differs, now.warnings.len());
        if !changed {
            self.last.nodes = nodes;
            return (warnings, Ok(()));
        }
        now.nodes = nodes;
        let written = now.write(&config.run_dir);
        (self.last, self.file_differs) = (now, written.is_err());
        (warnings, written)
    }
}

fn describe(source: &source::Status, control: &ControlStatus) -> SourceStatus {
    let error = |mistake: &Diagnostic| SourceError {
        place: mistake.place.to_string(),
        line: mistake.line,
        reason: mistake.reason.clone(),
        kept: mistake.severity == Severity::Outdated,
    };
    SourceStatus {
        name: source.name.clone(),
        synced: source.synced,
        services: control.services,
        endpoint_slices: control.endpoint_slices,
        nodes: control.nodes,
        errors: source.mistakes.iter().map(error).collect(),
    }
}

pub(super) fn pending(pending: &crate::control::Pending) -> PendingStatus {
    PendingStatus { frontend: pending.frontend.clone(), failures: pending.failures, reason: pending.reason.clone() }
}

fn uplink(node: &node::Status, name: &str, ifindex: IfIndex, mtu: u32) -> UplinkStatus {
    let hook = |state: &HookState| HookStatus {
        hook: state.hook.name().into(),
        attached: state.how.as_ref().ok().cloned(),
        error: state.how.as_ref().err().cloned(),
    };
    let hooks = node.hooks.iter().filter(|state| state.name == name).flat_map(|state| &state.hooks);
    UplinkStatus { name: name.to_owned(), ifindex: ifindex.0, mtu, hooks: hooks.map(hook).collect() }
}

fn nodes(node: &node::Status) -> Vec<NodeStatus> {
    let reached = node.routes.hops.iter().map(|hop| NodeStatus {
        name: hop.node.clone(),
        cidr: hop.cidr.to_string(),
        via: Some(hop.via.to_string()),
        mac: hop.mac.map(|mac| mac.to_string()),
        tunnel: hop.tunnel,
        problem: None,
    });
    let unreached = node.routes.unreachable.iter().map(|u| NodeStatus {
        name: u.node.clone(),
        cidr: u.cidr.to_string(),
        via: None,
        mac: None,
        tunnel: false,
        problem: Some(u.reason.clone()),
    });
    reached.chain(unreached).collect()
}

fn warnings(source: &source::Status, control: &ControlStatus, node: &node::Status, others: Vec<String>) -> Vec<String> {
    let alarms = control.alarms.iter().map(ToString::to_string);
    let problems = control.problems.iter().map(ToString::to_string);
    let node = source.error.iter().chain(&node.problems).cloned();
    let scarcities = control.scarcities.iter().cloned();
    let remarks = source.remarks.iter().cloned();
    alarms.chain(node).chain(others).chain(remarks).chain(scarcities).chain(problems).collect()
}
