//! What the daemon tells `podnet status`.

use crate::{
    config::Config,
    control::ControlStatus,
    datapath::{Datapath, HookState},
    health::Servers,
    host::uplinks::Uplink,
    source,
    status::{
        DaemonStatus, HookStatus, NodeStatus, PendingStatus, SourceError, SourceStatus, StatusError, TablesStatus,
        UnixTime, UplinkStatus,
    },
};

use super::node;

/// Writes the status file when it changes.
pub(super) struct Reporter {
    last: DaemonStatus,
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
        }
    }

    /// Writes what there is to say, unless it has been said.
    pub(super) fn write(
        &mut self,
        config: &Config,
        source: &source::Status,
        control: &ControlStatus,
        node: &node::Status,
        servers: &Servers,
    ) -> Result<(), StatusError> {
        let mut now = DaemonStatus {
            ready: if node.ready { self.last.ready.or_else(|| Some(UnixTime::now())) } else { None },
            sources: vec![describe(source, control)],
            tables: TablesStatus { last_reconciled: None, pending: control.pending.iter().map(pending).collect() },
            uplinks: node.uplinks.iter().map(|found| uplink(node, found)).collect(),
            nodes: nodes(node),
            health: servers.status(),
            warnings: warnings(source, control, node, servers),
            ..self.last.clone()
        };
        // Times alone are no news.
        now.sources.iter_mut().zip(&self.last.sources).for_each(|(new, old)| new.last_sync = old.last_sync);
        now.tables.last_reconciled = self.last.tables.last_reconciled;
        if now == self.last {
            return Ok(());
        }
        let time = Some(UnixTime::now());
        now.sources.iter_mut().for_each(|source| source.last_sync = time);
        now.tables.last_reconciled = time;
        now.write(&config.run_dir)?;
        self.last = now;
        Ok(())
    }
}

fn describe(source: &source::Status, control: &ControlStatus) -> SourceStatus {
    let error = |mistake: &source::Mistake| SourceError {
        place: mistake.place.clone(),
        line: mistake.line,
        reason: mistake.reason.clone(),
    };
    SourceStatus {
        name: source.name.clone(),
        synced: source.synced,
        last_sync: None,
        services: control.services,
        endpoint_slices: control.endpoint_slices,
        nodes: control.nodes,
        errors: source.mistakes.iter().map(error).collect(),
    }
}

fn pending(pending: &crate::control::Pending) -> PendingStatus {
    PendingStatus { frontend: pending.frontend.clone(), failures: pending.failures, reason: pending.reason.clone() }
}

fn uplink(node: &node::Status, uplink: &Uplink) -> UplinkStatus {
    let hook = |state: &HookState| HookStatus {
        hook: state.hook.name().into(),
        attached: state.how.as_ref().ok().cloned(),
        error: state.how.as_ref().err().cloned(),
    };
    let hooks = node.hooks.iter().filter(|state| state.name == uplink.name).flat_map(|state| &state.hooks);
    UplinkStatus {
        name: uplink.name.clone(),
        ifindex: uplink.ifindex.0,
        mtu: uplink.mtu,
        hooks: hooks.map(hook).collect(),
    }
}

fn nodes(node: &node::Status) -> Vec<NodeStatus> {
    let reached = node.routes.hops.iter().map(|hop| NodeStatus {
        name: hop.node.clone(),
        cidr: hop.cidr.to_string(),
        via: Some(hop.via.to_string()),
        mac: hop.mac.map(|mac| mac.0.map(|byte| format!("{byte:02x}")).join(":")),
        problem: None,
    });
    let unreached = node.routes.unreachable.iter().map(|u| NodeStatus {
        name: u.node.clone(),
        cidr: u.cidr.to_string(),
        via: None,
        mac: None,
        problem: Some(u.reason.clone()),
    });
    reached.chain(unreached).collect()
}

fn warnings(source: &source::Status, control: &ControlStatus, node: &node::Status, servers: &Servers) -> Vec<String> {
    let problems = control.problems.iter().map(|p| format!("Service {}: {}", p.service, p.reason));
    let node = source.error.iter().chain(&node.problems).cloned();
    node.chain(servers.problems()).chain(source.remarks.iter().cloned()).chain(problems).collect()
}
