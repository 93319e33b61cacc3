//! The daemon: an event loop that connects all parts.
//!
//! ```text
//! source ─────→ control ──→ tables          (Services, EndpointSlices)
//!     └ nodes ─┐
//! netlink ─────┴→ node ──→ links, routes, settings, hooks, node.json
//! attachments ──→ repair, collection        (the plugin's records)
//! ```
//! Packets flow without it: the daemon may be killed at any point, and the next one adopts what it finds. Failures are
//! reported in `status.json` and retried.

mod abandoned;
mod announce;
mod attachments;
mod drops;
mod events;
mod facts;
mod flows;
mod host_ports;
mod in_use;
mod links;
mod node;
mod node_sync;
mod pods;
mod policies;
mod policy_state;
mod questions;
mod records;
mod report;
mod reporting;
mod services;
mod tell;
mod turn;

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use podnet_cni::{call_log::CallLog, datapath::PinDir, node_info::NodeInfo, store::Store};
use podnet_common::tables;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinHandle, spawn_blocking},
};
use tracing::{info, warn};

use crate::{
    config::Config,
    control::{Control, networks::Networks},
    datapath::{
        Counts, Datapath, Sizes,
        conntrack::{Collector, Swept},
        object,
    },
    health::{Health, Servers},
    heap,
    host::{
        Host,
        sysctl::Sysctl,
        watch::{Debounce, Watcher},
    },
    metrics::{Listener, Metrics},
    reconcile::Outcome,
    socket,
    source::Source,
    status::{DaemonLock, DaemonStatus},
};

use announce::Announcer;
use attachments::Attachments;
use drops::Drops;
use host_ports::HostPorts;
use in_use::InUse;
use links::Links;
use policy_state::PolicyState;
use records::Records;

/// How often settings and attachments are checked in the absence of events.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Runs until SIGTERM or SIGINT, and leaves the datapath in place.
pub async fn run(config: Config) -> Result<()> {
    let lock = DaemonLock::acquire(&config.run_dir, &PinDir::new(&config.bpffs), true)?;
    raise_file_limit();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut daemon = Daemon::start(config, lock).await?;
    tokio::select! {
        result = daemon.serve() => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Raises the soft limit of open files to the hard limit: by convention the soft limit is low, for programs that use
/// select(2), while each health check of a service takes two sockets.
fn raise_file_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!("cannot raise the limit of open files: {error}");
    }
}

struct Daemon {
    config: Config,
    datapath: Datapath,
    control: Control,
    source: Source,
    api_servers: facts::ApiServers,
    host: Host,
    watcher: Watcher,
    store: Store,
    attachments: Attachments,
    node: node::Status,
    networks: Networks,
    in_use: InUse,
    records: Records,
    host_ports: HostPorts,
    links: Links,
    policies: PolicyState,
    health: Health,
    servers: Servers,
    metrics: Metrics,
    listener: Listener,
    socket: socket::Server,
    calls: CallLog,
    counts: Counts,
    drops: Drops,
    announcer: Announcer,
    report: report::Reporter,
    outcome: Outcome,
    /// Whether the tables have been reconciled with all objects once.
    has_loaded: bool,
    collector: Collector,
    sweeping: Option<JoinHandle<io::Result<Swept>>>,
    /// Entries left in the connection table by the last sweep.
    connections: u32,
    /// When to sync the node next.
    node_due: Option<Instant>,
    /// Number of consecutive node syncs in which the same steps failed.
    node_failures: u32,
    /// Whether an earlier daemon has set up the node since boot.
    was_set_up: bool,
    /// Why the container runtime doesn't use the plugin.
    not_installed: Option<String>,
    lock: DaemonLock,
    /// Why the lock can't be maintained.
    lock_problem: Option<String>,
}

impl Daemon {
    async fn start(config: Config, lock: DaemonLock) -> Result<Self> {
        let mut source = Source::open(&config)?;
        let api_servers = facts::ApiServers::watch(source.api_server()).await;
        let store = Store::open(&config.state_dir)?;
        let attachments = Attachments::watch(store.attachments_dir())?;
        let watcher = Watcher::open(Debounce::default())?;
        let host = Host::open()?.with_sysctl(Sysctl::at(&config.sysctls));
        let sizes = Sizes { conntrack: config.conntrack_max, frontends: config.frontends_max };
        let (tables, opened) = Datapath::open(PinDir::new(&config.bpffs), sizes)?;
        let mut loading = spawn_blocking(move || {
            let loaded = opened.load();
            object::release();
            heap::trim();
            loaded
        });
        // Reading and computing proceed while the programs load. Nothing is written yet, since the programs may be
        // rejected.
        let mut control = Control::adopt(&config, &tables.services)?;
        control.policies_mut().adopt(&tables.policies)?;
        control.apply(source.first());
        let loaded = loop {
            tokio::select! {
                loaded = &mut loading => break loaded.context("cannot load the eBPF programs")??,
                batch = source.next() => {
                    control.apply(batch.context("cannot read objects from the source")?);
                }
            }
        };
        let datapath = Datapath::run(tables, loaded)?;
        info!(generation = datapath.generation(), adopted = datapath.adopted(), "datapath loaded");
        let seen = DaemonStatus::read(&config.run_dir).ok().flatten().unwrap_or_default();
        let datapath_counts = datapath.counts()?;
        let report = report::Reporter::new(&config, &datapath);
        let was_set_up = datapath.kept_tables() && NodeInfo::read(&config.run_dir).is_ok();
        let health = Health::new(was_set_up, Instant::now());
        let servers = Servers::start(health.clone(), config.healthz_bind_address.0)
            .context("cannot start the thread of the health servers")?;
        let metrics = metrics(&datapath);
        let counts = Box::new(datapath.counts()?);
        let registry = metrics.registry(datapath.generation(), source.api_metrics(), counts);
        let listener = Listener::start(registry, config.metrics_bind_address.0)
            .context("cannot start the thread that serves metrics")?;
        let socket = socket::Server::start(&config.run_dir).context("cannot start the thread of the socket")?;
        Ok(Self {
            source,
            api_servers,
            attachments,
            watcher,
            host,
            datapath,
            control,
            store,
            node: node::Status::default(),
            networks: Networks::default(),
            in_use: InUse::default(),
            records: Records::default(),
            host_ports: HostPorts::default(),
            links: Links::default(),
            policies: PolicyState::default(),
            health,
            servers,
            metrics,
            listener,
            socket,
            calls: CallLog::new(&config.run_dir),
            counts: datapath_counts,
            drops: Drops::adopt(seen.drops),
            announcer: Announcer::new(Instant::now()),
            report,
            outcome: Outcome::default(),
            has_loaded: false,
            collector: Collector::default(),
            sweeping: None,
            connections: 0,
            node_due: Some(Instant::now()),
            node_failures: 0,
            was_set_up,
            not_installed: None,
            lock,
            lock_problem: None,
            config,
        })
    }
}

/// The metrics, with the sizes of the tables.
fn metrics(datapath: &Datapath) -> Metrics {
    let (metrics, capacity) = (Metrics::new(), datapath.capacity());
    for table in tables::SIZED {
        metrics.fills.set_capacity(table, table.capacity());
    }
    let configured = [
        (tables::FRONTENDS.table(), capacity.frontends),
        (tables::SLOTS.table(), capacity.slots),
        (tables::BACKENDS.table(), capacity.backends),
        (tables::SOURCE_RANGES.table(), capacity.source_ranges),
        (tables::CONNTRACK.table(), datapath.conntrack_capacity()),
    ];
    for (table, size) in configured {
        metrics.fills.set_capacity(table, size as usize);
    }
    metrics
}
