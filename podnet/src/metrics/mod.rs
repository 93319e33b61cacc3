//! Metrics for Prometheus: typed families, and the listener that serves them as `/metrics`.
//!
//! ```text
//! event loop, API tasks ── counters, gauges, histograms ──→ Registry ──→ text, at each scrape
//!                kernel's counters and endpoints, /proc ──────↑ (read at each scrape)
//! ```
//! Each measured part has its group of families, whose clones share their values; [`Metrics`] has those of the event
//! loop. Counting is an atomic addition, so nothing is sampled or queued. Labels are few: never a pod, an address or a
//! service, and of the policies only those that apply to pods of this node. docs/metrics.md explains every family, as a
//! test enforces.

pub mod api;
mod calls;
mod datapath;
mod denials;
mod latency;
mod links;
mod process;
mod server;
#[cfg(test)]
mod tests;
mod timing;

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

pub use calls::CallMetrics;
pub use datapath::{Fills, KernelReader, PodCounts};
pub use denials::DenialMetrics;
pub use latency::Latency;
pub use links::LinkMetrics;
pub use server::Listener;

use api::ApiMetrics;
use datapath::Kernel;
use process::Process;
use timing::Timing;

/// Outcome of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithResult {
    result: &'static str,
}

const DONE: WithResult = WithResult { result: "done" };
const FAILED: WithResult = WithResult { result: "failed" };

/// The running version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
    generation: u32,
}

/// Families of the event loop.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Latency of changes.
    pub latency: Latency,
    /// The plugin's calls.
    pub calls: CallMetrics,
    /// Repairs of pods' links and records.
    pub links: LinkMetrics,
    /// Usage of the tables.
    pub fills: Fills,
    /// Packets denied by network policies.
    pub denials: DenialMetrics,
    operations: Family<WithResult, Counter>,
    pending: Gauge,
    synced: Gauge,
    services: Gauge,
    endpoint_slices: Gauge,
    nodes: Gauge,
    mistakes: Gauge,
    warnings: Gauge,
    node_syncs: Family<WithResult, Counter>,
    node_sync_duration: Timing,
    node_problems: Gauge,
    node_ready: Gauge,
}

/// Writes to the tables, for [`Metrics::reconciled`].
#[derive(Clone, Copy, Debug)]
pub struct Writes {
    /// Frontends that were written or deleted.
    pub done: usize,
    /// Attempts that failed.
    pub failed: usize,
    /// Number of frontends and tables that differ from the desired state because a write failed.
    pub pending: usize,
}

/// State of the control plane, for [`Metrics::state`].
#[derive(Clone, Copy, Debug)]
pub struct ControlState {
    /// Whether the sources are synced.
    pub synced: bool,
    /// Number of Services.
    pub services: usize,
    /// Number of EndpointSlices.
    pub endpoint_slices: usize,
    /// Number of Nodes.
    pub nodes: usize,
    /// Number of invalid objects and files.
    pub mistakes: usize,
    /// Number of warnings in the report.
    pub warnings: usize,
}

/// State of the node, for [`Metrics::node`].
#[derive(Clone, Copy, Debug)]
pub struct NodeState {
    /// Duration of the sync.
    pub took: Duration,
    /// Number of problems.
    pub problems: usize,
    /// Whether pods can start.
    pub takes_pods: bool,
}

impl Metrics {
    /// Without measurements.
    pub fn new() -> Self {
        let metrics = Self::default();
        for result in [DONE, FAILED] {
            metrics.operations.get_or_create(&result).inc_by(0);
            metrics.node_syncs.get_or_create(&result).inc_by(0);
        }
        metrics
    }

    /// Everything that is served: these families, those of the API if it is the source, and those read from the kernel.
    pub fn registry(&self, generation: u32, api: Option<&ApiMetrics>, kernel: Box<dyn KernelReader>) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let podnet = registry.sub_registry_with_prefix("podnet");
        let build = Build { version: env!("CARGO_PKG_VERSION"), generation };
        podnet.register("build", "Version of the daemon and generation of the loaded eBPF programs", Info::new(build));
        self.latency.register(podnet);
        self.register_state(podnet);
        self.calls.register(podnet);
        self.links.register(podnet);
        podnet.register_collector(Box::new(Kernel { reader: kernel, fills: self.fills.clone() }));
        podnet.register_collector(Box::new(self.denials.clone()));
        if let Some(api) = api {
            api.register(podnet);
        }
        registry
    }

    fn register_state(&self, registry: &mut Registry) {
        let help = "Frontends written to or deleted from the tables, and failed attempts";
        registry.register("reconcile_operations", help, self.operations.clone());
        let help = "Frontends and tables that are out of date because a write failed; retried with back-off";
        registry.register("reconcile_pending", help, self.pending.clone());
        registry.register("synced", "1 once all objects have been read from the source", self.synced.clone());
        registry.register("services", "Number of Services", self.services.clone());
        registry.register("endpoint_slices", "Number of EndpointSlices", self.endpoint_slices.clone());
        registry.register("nodes", "Number of Nodes", self.nodes.clone());
        registry.register("invalid_objects", "Invalid objects and files", self.mistakes.clone());
        registry.register(
            "warnings",
            "Number of warnings that the daemon reports in `podnet status`",
            self.warnings.clone(),
        );
        let help = "Syncs of the node's links, routes, settings and hooks, by result";
        registry.register("node_syncs", help, self.node_syncs.clone());
        let help = "Duration of a sync of the node's links, routes, settings and hooks";
        registry.register_with_unit("node_sync_duration", help, Unit::Seconds, self.node_sync_duration.0.clone());
        registry.register(
            "node_problems",
            "Problems with the node's links, routes, settings and hooks, as listed by `podnet status`",
            self.node_problems.clone(),
        );
        registry.register("node_ready", "1 if pods can be started on this node", self.node_ready.clone());
    }

    /// Counts a round of reconciliation.
    pub fn reconciled(&self, writes: Writes) {
        if writes.done > 0 {
            self.operations.get_or_create(&DONE).inc_by(writes.done as u64);
        }
        if writes.failed > 0 {
            self.operations.get_or_create(&FAILED).inc_by(writes.failed as u64);
        }
        self.pending.set(writes.pending as i64);
    }

    /// Sets the state of the control plane.
    pub fn state(&self, state: ControlState) {
        self.synced.set(state.synced.into());
        self.services.set(state.services as i64);
        self.endpoint_slices.set(state.endpoint_slices as i64);
        self.nodes.set(state.nodes as i64);
        self.mistakes.set(state.mistakes as i64);
        self.warnings.set(state.warnings as i64);
    }

    /// Counts a sync of the node, and sets its state.
    pub fn node(&self, state: NodeState) {
        let result = if state.problems == 0 { DONE } else { FAILED };
        self.node_syncs.get_or_create(&result).inc();
        self.node_sync_duration.0.observe(state.took.as_secs_f64());
        self.node_problems.set(state.problems as i64);
        self.node_ready.set(state.takes_pods.into());
    }
}
