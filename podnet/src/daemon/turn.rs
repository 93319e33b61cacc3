//! The event loop: the events that the daemon waits for, and their effects.

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    task::JoinHandle,
    time::{Interval, MissedTickBehavior, interval_at, sleep_until},
};
use tracing::warn;

use super::{CHECK_INTERVAL, Daemon, events, questions};
use crate::{
    async_fd::watch, datapath::conntrack::Swept, host::watch::Change, model::Batch, socket::Question,
    status::StatusError,
};

/// How often the programs' clock is updated: about once per tick.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of sweeps of the connection table.
const COLLECT_INTERVAL: Duration = Duration::from_secs(5);

/// Events of the loop.
enum Event {
    /// The source has sent a batch.
    Objects(Batch),
    /// A retry of failed table writes is due.
    TablesDue,
    /// A sync of the node is due.
    NodeDue,
    /// The addresses of the API server have changed.
    ApiServers,
    /// The host's network has changed.
    Network(Change),
    /// Links with reported changes are due for a check.
    LinksDue,
    /// The plugin has added or removed a pod.
    Records,
    /// A report is due.
    ReportDue,
    /// A command asks through the socket.
    Asked(Question),
    /// A sweep of the connection table has ended.
    Swept(Result<Swept>),
    /// Every [`CLOCK_INTERVAL`].
    Clock,
    /// Every [`COLLECT_INTERVAL`].
    Collection,
    /// Every [`CHECK_INTERVAL`].
    Check,
}

/// Periodic timers.
struct Clocks {
    clock: Interval,
    collection: Interval,
    check: Interval,
}

impl Clocks {
    fn new() -> Self {
        let every = |period: Duration, first: Duration| {
            let mut interval = interval_at((Instant::now() + first).into(), period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Self {
            clock: every(CLOCK_INTERVAL, Duration::ZERO),
            collection: every(COLLECT_INTERVAL, Duration::ZERO),
            check: every(CHECK_INTERVAL, CHECK_INTERVAL),
        }
    }
}

impl Daemon {
    /// Runs until it is dropped, or until an error stops the daemon.
    pub(super) async fn serve(&mut self) -> Result<()> {
        let events = watch(self.datapath.events()?).context("cannot wait for reports of dropped packets")?;
        let drops = tokio::spawn(events::log(events, self.socket.drops()));
        let log = watch(self.datapath.program_log()?).context("cannot watch the programs' log")?;
        let log = tokio::spawn(events::relay(log));
        let result = self.turns().await;
        drops.abort();
        log.abort();
        result
    }

    async fn turns(&mut self) -> Result<()> {
        let mut clocks = Clocks::new();
        self.begin().await;
        loop {
            if self.node_due.is_some_and(|due| due <= Instant::now()) {
                self.sync_node().await;
            }
            if self.report.due().is_some_and(|due| due <= Instant::now()) {
                self.write_report();
            }
            let event = self.next(&mut clocks).await?;
            if !matches!(event, Event::ReportDue | Event::Asked(_)) {
                self.report.outdated();
            }
            self.react(event)?;
        }
    }

    /// Applies the initial state.
    async fn begin(&mut self) {
        if !self.datapath.adopted() {
            self.shed().await;
        }
        self.read_records();
        // Before anything is written: no object may take a restricted address even for a moment.
        match self.host.snapshot().await {
            Ok(snapshot) => _ = self.learn_host(&snapshot),
            Err(error) => warn!("{error}"),
        }
        self.reconcile();
        // Before the plugin may add pods, which are to start closed.
        self.sync_policies();
        self.sync_node().await;
        self.repair();
        self.expire();
        self.observe_drops();
        self.count_denials();
    }

    /// Waits for the next event.
    async fn next(&mut self, clocks: &mut Clocks) -> Result<Event> {
        let tables = wake(self.outcome.next_retry);
        let node = wake(self.node_due);
        let (links, report) = (wake(self.links.next()), wake(self.report.due()));
        Ok(tokio::select! {
            batch = self.source.next() => Event::Objects(batch.context("cannot read objects from the source")?),
            () = tables => Event::TablesDue,
            () = node => Event::NodeDue,
            () = self.api_servers.changed() => Event::ApiServers,
            change = self.watcher.changed() => Event::Network(change),
            () = links => Event::LinksDue,
            () = report => Event::ReportDue,
            () = self.attachments.changed() => Event::Records,
            question = self.socket.question() => Event::Asked(question),
            swept = ended(&mut self.sweeping) => Event::Swept(swept),
            _ = clocks.clock.tick() => Event::Clock,
            _ = clocks.collection.tick() => Event::Collection,
            _ = clocks.check.tick() => Event::Check,
        })
    }

    /// Handles an event.
    ///
    /// # Errors
    /// If another daemon has taken over.
    fn react(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Objects(batch) => self.take_in(batch),
            Event::TablesDue => self.reconcile(),
            // Handled at the start of the next turn.
            Event::NodeDue | Event::ReportDue => {}
            Event::ApiServers => self.node_due = Some(Instant::now()),
            Event::Network(change) => self.network_changed(change),
            Event::LinksDue => self.mend(),
            Event::Records => self.attachments_changed(),
            Event::Asked(question) => {
                if self.report.due().is_some() {
                    self.write_report();
                }
                questions::answer(question, &self.report, &self.control, &self.source);
            }
            Event::Swept(swept) => self.swept(swept),
            Event::Clock => {
                self.advance_clock();
                self.keep_lock()?;
                self.look_for_records();
                self.tell_health();
                self.listener.retry();
                self.socket.keep();
                self.observe_calls();
                self.count_denials();
                self.set_new_subjects();
                self.announce();
                self.collect_if_filling();
                self.retry_policies();
            }
            Event::Collection => {
                self.collect();
                self.sync_ports();
            }
            Event::Check => {
                self.repair();
                self.expire();
                self.install();
                self.observe_drops();
                self.node_due = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Updates the programs' clock.
    fn advance_clock(&mut self) {
        if let Err(error) = self.datapath.advance_clock() {
            warn!("{error}");
        }
    }

    /// Counts the plugin's calls.
    fn observe_calls(&mut self) {
        self.calls.take().iter().for_each(|call| self.metrics.calls.observe(call));
    }

    /// Maintains the lock and the other contents of the run directory, which may have been emptied.
    ///
    /// # Errors
    /// If another daemon holds the lock now.
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
}

/// Waits for a sweep to end; pending for ever if there is none.
async fn ended(sweeping: &mut Option<JoinHandle<io::Result<Swept>>>) -> Result<Swept> {
    match sweeping {
        Some(sweep) => Ok(sweep.await??),
        None => std::future::pending().await,
    }
}

/// Waits until a time; pending for ever if there is none.
async fn wake(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
