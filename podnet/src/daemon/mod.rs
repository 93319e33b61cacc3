//! The daemon: one event loop that puts everything together.
//!
//! ```text
//! source ─────→ control ──→ tables          (Services, EndpointSlices)
//!     └ nodes ─┐
//! netlink ─────┴→ node ──→ links, routes, settings, hooks, node.json
//! attachments ──→ repair, collection        (the plugin's records)
//! ```
//! Nothing here is needed for packets to flow: the daemon may be killed at any point, and the next one takes over what
//! it finds. What fails is told in `status.json` and tried again.

mod abandoned;
mod announce;
mod attachments;
mod drops;
mod events;
mod facts;
mod host_ports;
mod in_use;
mod links;
mod networks;
mod node;
mod records;
mod report;
mod tell;

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use podnet_cni::{
    call_log::CallLog,
    datapath::PinDir,
    node_info::NodeInfo,
    record::Record,
    repair::{self, Keep, Subject},
    store::Store,
    text::chain,
};
use podnet_common::layout::tables;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, interval_at, sleep_until},
};
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::{
    async_fd::watch,
    config::Config,
    control::{self, Control},
    datapath::{
        Counts, Datapath, Sizes,
        conntrack::{Collector, End, Swept, Way},
    },
    health::{Condition, Health, Servers},
    host::{
        Host,
        snapshot::Snapshot,
        sysctl::Sysctl,
        watch::{Change, Debounce, Watcher},
    },
    install,
    metrics::{ControlState, KernelReader as _, Listener, Metrics, NodeState, Writes},
    model::Batch,
    reconcile::{Outcome, Usage},
    source::Source,
    status::{DaemonLock, DaemonStatus, StatusError, UnixTime},
};

use announce::Announcer;
use attachments::Attachments;
use drops::Drops;
use host_ports::HostPorts;
use in_use::InUse;
use links::Links;
use networks::KnownMacs;
use records::Records;

/// How often the programs are told the time: about a tick.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the connection table is collected.
const COLLECT_INTERVAL: Duration = Duration::from_secs(5);
/// How often settings and attachments are looked at without being told.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// How soon what failed on the node is tried again. While it fails in the same way the time doubles, to [`CHECK_INTERVAL`].
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT, and leaves the datapath as it is.
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

/// Lets the process have as many files open as it may have: the soft limit is low by custom, for programs that use
/// select(2), and each health check of a service is two sockets.
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
    known_macs: KnownMacs,
    in_use: InUse,
    records: Records,
    host_ports: HostPorts,
    links: Links,
    health: Health,
    servers: Servers,
    metrics: Metrics,
    listener: Listener,
    calls: CallLog,
    counts: Counts,
    drops: Drops,
    announcer: Announcer,
    report: report::Reporter,
    outcome: Outcome,
    collector: Collector,
    sweeping: Option<JoinHandle<io::Result<Swept>>>,
    /// How many entries the last sweep has left in the connection table.
    connections: u32,
    /// When the node is to be brought into line again.
    node_due: Option<Instant>,
    /// How long a failed step on the node waits before it is tried again.
    node_retry: Duration,
    /// Whether an earlier daemon has set up the node since it was started.
    was_set_up: bool,
    /// Why the container runtime doesn't use the plugin.
    not_installed: Option<String>,
    lock: DaemonLock,
    /// Why it can't be looked after.
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
        let mut loading = spawn_blocking(move || opened.load());
        // Meanwhile much can be read and worked out. Nothing is written yet: the programs may be refused.
        let mut control = Control::adopt(&config, &tables)?;
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
            known_macs: KnownMacs::default(),
            in_use: InUse::default(),
            records: Records::default(),
            host_ports: HostPorts::default(),
            links: Links::default(),
            health,
            servers,
            metrics,
            listener,
            calls: CallLog::new(&config.run_dir),
            counts: datapath_counts,
            drops: Drops::adopt(seen.drops),
            announcer: Announcer::new(Instant::now()),
            report,
            outcome: Outcome::default(),
            collector: Collector::default(),
            sweeping: None,
            connections: 0,
            node_due: Some(Instant::now()),
            node_retry: RETRY_INTERVAL,
            was_set_up,
            not_installed: None,
            lock,
            lock_problem: None,
            config,
        })
    }

    async fn serve(&mut self) -> Result<()> {
        let events = watch(self.datapath.events()?).context("cannot watch the event ring")?;
        let drops = tokio::spawn(events::log(events));
        let log = watch(self.datapath.program_log()?).context("cannot watch the programs' log")?;
        let log = tokio::spawn(events::relay(log));
        let result = self.turn().await;
        drops.abort();
        log.abort();
        result
    }

    async fn turn(&mut self) -> Result<()> {
        let mut clock = interval(CLOCK_INTERVAL);
        let mut collect = interval(COLLECT_INTERVAL);
        let mut check = interval_at((Instant::now() + CHECK_INTERVAL).into(), CHECK_INTERVAL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if !self.datapath.adopted() {
            self.shed().await;
        }
        self.read_records();
        // Before anything is written: what no object may take is not to be taken for a moment either.
        match self.host.snapshot().await {
            Ok(snapshot) => {
                self.learn_host(&snapshot);
            }
            Err(error) => warn!("{error}"),
        }
        self.reconcile();
        self.sync_node().await;
        self.repair();
        self.expire();
        self.observe_drops();
        loop {
            if self.node_due.is_some_and(|due| due <= Instant::now()) {
                self.sync_node().await;
            }
            self.write_report();
            let retry = wake(self.outcome.next_retry);
            let node = wake(self.node_due);
            let links = wake(self.links.next());
            tokio::select! {
                batch = self.source.next() => self.take_in(batch.context("cannot read objects from the source")?),
                () = retry => self.reconcile(),
                () = node => {}
                () = self.api_servers.changed() => self.node_due = Some(Instant::now()),
                change = self.watcher.changed() => self.network_changed(change),
                () = links => self.mend(),
                () = self.attachments.changed() => self.attachments_changed(),
                _ = clock.tick() => {
                    if let Err(error) = self.datapath.advance_clock() {
                        warn!("{error}");
                    }
                    self.keep_lock()?;
                    if self.attachments.look() {
                        self.attachments_changed();
                    }
                    self.tell_health();
                    self.listener.retry();
                    self.calls.take().iter().for_each(|call| self.metrics.calls.observe(call));
                    self.announce();
                    match self.datapath.is_filling(self.connections) {
                        Ok(filling) if filling || self.collector.hurries() => self.collect(),
                        Ok(_) => {}
                        Err(error) => warn!("{error}"),
                    }
                }
                swept = ended(&mut self.sweeping) => self.swept(swept),
                _ = collect.tick() => {
                    self.collect();
                    self.sync_ports();
                }
                _ = check.tick() => {
                    self.repair();
                    self.expire();
                    self.install();
                    self.observe_drops();
                    self.node_due = Some(Instant::now());
                }
            }
        }
    }

    /// Notes whether packets have been dropped that should not have been.
    fn observe_drops(&mut self) {
        match self.counts.counters() {
            Ok(counters) => self.drops.observe(&counters, UnixTime::now()),
            Err(error) => warn!("cannot read the datapath's counters: {}", chain(&error)),
        }
    }

    /// Detaches programs whose pins are gone: they would drop everything, since their tables are gone as well, and look as
    /// if they were those that are wanted there. [`Self::repair`] attaches the new ones.
    async fn shed(&self) {
        match self.host.snapshot().await {
            Ok(snapshot) => {
                for link in snapshot.links.iter().filter(|link| link.is_host_end()) {
                    if let Err(error) = self.datapath.detach_pod(link.ifindex) {
                        warn!("{error}");
                    }
                }
            }
            Err(error) => warn!("{error}"),
        }
        if let Err(error) = self.host.remove_podnet0().await {
            warn!("{error}");
        }
    }

    /// Looks after the lock, and what else is in the run directory, which somebody may have emptied.
    ///
    /// # Errors
    /// If another daemon has the lock by now.
    fn keep_lock(&mut self) -> Result<()> {
        let problem = match self.lock.keep() {
            Ok(false) => None,
            Ok(true) => {
                warn!(directory = %self.config.run_dir.display(), "recreating files removed from the run directory");
                self.report.forget();
                self.node_due = Some(Instant::now());
                None
            }
            Err(error @ StatusError::Running { .. }) => {
                return Err(error).context("another daemon has taken over the run directory");
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem.as_ref().filter(|problem| self.lock_problem.as_ref() != Some(problem)) {
            warn!("{problem}");
        }
        self.lock_problem = problem;
        Ok(())
    }

    /// Takes in what the source says.
    fn take_in(&mut self, batch: Batch) {
        let applied = self.control.apply(batch);
        if applied.nodes || applied.addresses {
            self.node_due = Some(Instant::now());
        }
        self.reconcile();
        if applied.lost {
            self.collect();
        }
        if applied.health {
            self.tell_health();
        }
    }

    /// Takes in what the host is like. Says whether that makes a difference to services.
    fn learn_host(&mut self, snapshot: &Snapshot) -> bool {
        self.watcher.learn(&snapshot.neighbours);
        let applied = self.control.set_host(facts::gather(snapshot, self.api_servers.known()));
        applied.services > 0 || applied.host_ports
    }

    /// Takes in which pods there are, and their host ports.
    fn read_records(&mut self) {
        if let Err(error) = self.records.refresh(&self.store) {
            warn!("{error}; keeping the known pods and host ports");
        }
        if self.host_ports.refresh(&self.records) {
            self.control.set_host_ports(self.host_ports.frontends().to_vec());
        }
    }

    /// Has the health servers say how the node stands.
    fn tell_health(&mut self) {
        let control::Health { checks, leaving, stale_since } = self.control.health();
        // Where objects come from doesn't count, whether it is an API server or a directory: while it is away what is there
        // holds, another daemon would know no more, and load balancers would have no node left.
        let current = stale_since.is_none();
        // At the start it changes nothing of what an earlier daemon has set up.
        let ready = self.node.ready || (self.was_set_up && !self.control.synced());
        self.health.report(Condition { ready, current, leaving }, Instant::now());
        self.servers.settle(checks);
    }

    /// Brings the service tables nearer to what is wanted.
    fn reconcile(&mut self) {
        let _span = info_span!("reconcile").entered();
        self.outcome = self.control.reconcile(self.datapath.tables(), Instant::now());
        self.metrics.reconciled(Writes {
            done: self.outcome.changed,
            failed: self.outcome.failed,
            pending: self.outcome.unwritten,
        });
        let now = (Instant::now(), SystemTime::now());
        self.control.take_effective().iter().for_each(|origin| self.metrics.latency.observe(origin, now));
        if self.outcome.changed > 0 {
            debug!(changed = self.outcome.changed, pending = self.outcome.pending, "reconciled the tables");
        }
        // Datagrams to an endpoint that is gone would be lost for as long as their flow lives.
        if !self.outcome.removed.is_empty() {
            self.collect();
        }
    }

    /// Brings links, routes, settings and hooks into line.
    async fn sync_node(&mut self) {
        // One look for all: of thousands of nodes there are as many routes and neighbours.
        let snapshot = match self.host.snapshot().await {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                warn!("{error}");
                None
            }
        };
        if snapshot.as_ref().is_some_and(|snapshot| self.learn_host(snapshot)) {
            self.reconcile();
            self.tell_health();
        }
        let services = self.control.service_addresses();
        let heard = snapshot.as_ref().map(|snapshot| in_use::heard(snapshot, &services)).unwrap_or_default();
        let wanted = node::Wanted { config: &self.config, control: &self.control };
        let before = std::mem::take(&mut self.node.problems);
        let took_pods = self.node.takes_pods;
        let began = Instant::now();
        let sync = node::sync(&wanted, &self.host, snapshot, &mut self.known_macs, &mut self.datapath);
        self.node = sync.instrument(info_span!("node.sync")).await;
        let took = began.elapsed();
        let nodes = self.node.routes.addresses.iter().filter_map(|address| address.mac).collect();
        self.in_use.note(heard, &services, &nodes, Instant::now());
        self.control.set_in_use(self.in_use.machines());
        self.metrics.fills.set_entries(tables::NODES, self.datapath.networks());
        self.report.set_nodes(&self.node);
        if self.node.takes_pods && !took_pods {
            self.install();
            self.source.announce();
        }
        self.node.problems.extend(self.not_installed.clone());
        self.metrics.node(NodeState {
            took,
            problems: self.node.problems.len(),
            // Before the objects are there an earlier daemon's word holds.
            takes_pods: self.node.takes_pods || (self.was_set_up && !self.control.synced()),
        });
        // What is tried again every second needn't be said as often.
        for problem in self.node.problems.iter().filter(|problem| !before.contains(problem)) {
            warn!("{problem}");
        }
        self.node_due = self.node.incomplete.then(|| {
            let stuck = self.node.problems == before;
            self.node_retry = if stuck { (self.node_retry * 2).min(CHECK_INTERVAL) } else { RETRY_INTERVAL };
            Instant::now() + self.node_retry
        });
    }

    /// Puts the plugin where the container runtime looks for it, if that is wanted and pods can start.
    fn install(&mut self) {
        let Some(wanted) = self.config.install.as_ref().filter(|_| self.node.takes_pods) else { return };
        self.not_installed = match install::install(&self.config, wanted) {
            Ok(None) => None,
            Ok(Some(other)) if install::chains(&other, "bandwidth") => Some(format!(
                "{} chains the plugin `bandwidth` behind podnet-cni, where its egress limits fail (\"file exists\") \
                 and its ingress limits do not apply between pods: remove it, and give podnet-cni the capability \
                 `bandwidth`",
                other.display()
            )),
            Ok(Some(other)) => Some(format!(
                "the container runtime uses {} instead of podnet's list, which sorts after it: remove that file",
                other.display()
            )),
            Err(error) => Some(error.to_string()),
        };
    }

    /// Leaves ports to the processes that have bound them.
    fn sync_ports(&mut self) {
        let sysctl = Sysctl::at(&self.config.sysctls);
        if let Err(error) = node::sync_ports(&self.control, &self.node.addresses, &sysctl, &mut self.datapath) {
            warn!("{}", chain(error.as_ref()));
        }
    }

    /// The plugin has added or removed a pod.
    fn attachments_changed(&mut self) {
        if let Err(error) = self.records.refresh(&self.store) {
            warn!("{error}; keeping the known pods and host ports");
        }
        // DEL removes the link before the record.
        let lost = |record| podnet_cni::repair::has_link(&self.store, record).unwrap_or(false);
        if self.records.gone().iter().any(lost) {
            self.repair();
        }
        self.records.forget_gone();
        self.read_records();
        self.reconcile();
        self.collect();
    }

    /// Something about the host's network has changed.
    fn network_changed(&mut self, change: Change) {
        if change.of_node() {
            self.node_due = Some(Instant::now());
        }
        if change.lost {
            self.repair();
        }
        let mut links = change.pods;
        links.extend(self.records.links_to(&change.hosts));
        self.links.touched(links, Instant::now());
    }

    /// Puts back what pods' links lack about which something has changed.
    fn mend(&mut self) {
        let now = Instant::now();
        let names = self.records.of_links(&self.links.take(now));
        if names.is_empty() {
            return;
        }
        // First: where IPv6 is off, addresses are refused.
        let own = self.control.nodes().get(&self.config.node);
        let addresses = own.map(|node| node.internal_ips.as_slice()).unwrap_or_default();
        let ends: Vec<String> = names.iter().map(|name| name.id.host_ifname()).collect();
        node::set_host_ends(&Sysctl::at(&self.config.sysctls), addresses, &ends);
        let report = repair::mend(&self.store, self.datapath.pins(), &names);
        self.links.note(&report, false, &self.metrics, now);
    }

    /// Removes what crashed plugins and deleted namespaces have left, and restores what is missing.
    fn repair(&mut self) {
        let abandoned = self.source.pods().map(|pods| {
            abandoned::find(&self.store, &pods, &self.config.cgroup, SystemTime::now()).unwrap_or_else(|error| {
                warn!("cannot look for abandoned attachments: {error}");
                BTreeSet::new()
            })
        });
        let abandoned = abandoned.unwrap_or_default();
        for id in &abandoned {
            info!(container.id = id.container.as_str(), "removing the abandoned attachment of a deleted pod");
        }
        let (keep, known) = (Keep::Whole { but: &abandoned }, self.records.known());
        let report = repair::repair(&self.store, Some(self.datapath.pins()), &keep, &known);
        self.links.note(&report, true, &self.metrics, Instant::now());
    }

    /// Has flows that are over removed, as soon as no other sweep is on its way.
    fn collect(&mut self) {
        self.collector.demand();
        self.sweep();
    }

    /// Has clients' affinities removed whose time is up.
    fn expire(&self) {
        let fills = self.metrics.fills.clone();
        match self.datapath.expiry() {
            Ok(expiry) => drop(spawn_blocking(move || match expiry.run() {
                Ok((removed, left)) => {
                    fills.set_entries(tables::AFFINITY, left);
                    debug!(removed, "removed expired affinity entries");
                }
                Err(error) => warn!("cannot sweep the affinity table: {error}"),
            })),
            Err(error) => warn!("{error}"),
        }
    }

    /// Begins a sweep if one is due.
    fn sweep(&mut self) {
        let leads = |way: &Way| leads(&self.control, &self.node, way);
        let Some((stale, hurry)) = self.collector.begin(leads, Instant::now()) else { return };
        match self.datapath.sweep(stale, hurry) {
            Ok(sweep) => self.sweeping = Some(spawn_blocking(move || sweep.run())),
            Err(error) => {
                warn!("{error}");
                self.collector.end(None, |_| true);
            }
        }
    }

    /// A sweep has ended.
    fn swept(&mut self, result: Result<Swept>) {
        self.sweeping = None;
        let swept = match result {
            Ok(swept) => {
                debug!(swept.entries, swept.removed, "swept the connection table");
                self.metrics.fills.set_entries(tables::CONNTRACK, swept.entries as usize);
                self.connections = swept.entries;
                Some(swept)
            }
            Err(error) => {
                warn!("cannot sweep the connection table: {}", chain(error.as_ref()));
                None
            }
        };
        self.collector.end(swept, |way| leads(&self.control, &self.node, way));
        self.sweep();
    }

    /// What is wrong with pods' links, records and addresses.
    fn pod_problems(&self) -> Vec<String> {
        let own = self.control.nodes().get(&self.config.node);
        let cidrs: &[IpNetwork] = own.map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
        let outside = |record: &Record| {
            let outside = |ip: &&IpAddr| !cidrs.is_empty() && !cidrs.iter().any(|cidr| cidr.contains(**ip));
            let ip = record.ips.iter().find(outside)?;
            Some(format!(
                "{} has the address {ip}, which is in none of this node's pod CIDRs: these have changed, and other \
                 nodes cannot reach it; replace the pod",
                Subject::of(record)
            ))
        };
        let outsiders = self.records.iter().filter_map(outside);
        self.links.problems(Instant::now()).into_iter().chain(self.attachments.problem()).chain(outsiders).collect()
    }

    fn write_report(&mut self) {
        let (source, control) = (self.source.status(), self.control.status());
        let servers = self.servers.problems().into_iter().chain(self.listener.problem()).collect();
        let now = report::Now {
            source: &source,
            control: &control,
            node: &self.node,
            health: self.servers.status(),
            host: self.control.host(),
            drops: self.drops.seen(),
            servers,
            repairs: self.links.status(),
            links: self.pod_problems(),
        };
        let (warnings, written) = self.report.write(&self.config, now);
        let Usage { frontends, slots, backends, source_ranges } = control.usage;
        for (table, entries) in [
            (tables::FRONTENDS.table(), frontends),
            (tables::SLOTS.table(), slots as usize),
            (tables::BACKENDS.table(), backends),
            (tables::SOURCE_RANGES.table(), source_ranges),
        ] {
            self.metrics.fills.set_entries(table, entries);
        }
        self.metrics.state(ControlState {
            synced: control.synced,
            services: control.services,
            endpoint_slices: control.endpoint_slices,
            nodes: control.nodes,
            mistakes: source.mistakes.len(),
            warnings,
        });
        if let Err(error) = written {
            warn!("{error}; `podnet status` shows the previous report");
        }
    }
}

/// What is measured, with the sizes of the tables.
fn metrics(datapath: &Datapath) -> Metrics {
    let (metrics, room) = (Metrics::new(), datapath.room());
    for (table, size) in [
        (tables::FRONTENDS.table(), room.frontends as usize),
        (tables::SLOTS.table(), room.slots as usize),
        (tables::BACKENDS.table(), room.backends as usize),
        (tables::CONNTRACK.table(), datapath.conntrack_capacity() as usize),
        (tables::ENDPOINTS.table(), tables::ENDPOINTS.capacity()),
        (tables::NODES.table(), tables::NODES.capacity()),
        (tables::SOURCE_RANGES.table(), room.source_ranges as usize),
        (tables::AFFINITY.table(), tables::AFFINITY.capacity()),
    ] {
        metrics.fills.set_capacity(table, size);
    }
    metrics
}

/// Whether a flow's way leads somewhere still. One that is sent on for direct server return leads to a node, which is
/// to have a backend.
fn leads(control: &Control, node: &node::Status, way: &Way) -> bool {
    match way.end() {
        End::Backend(backend) => control.leads_to(&way.frontend(), &backend),
        End::Node(_) if !node.ready => true,
        End::Node(addr) => control.backends(&way.frontend()).any(|backend| node.is_on(backend.addr.into(), addr)),
    }
}

/// Waits for a sweep to end, or for ever.
async fn ended(sweeping: &mut Option<JoinHandle<io::Result<Swept>>>) -> Result<Swept> {
    match sweeping {
        Some(sweep) => Ok(sweep.await??),
        None => std::future::pending().await,
    }
}

/// Waits until a time, or for ever.
async fn wake(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
