//! The event loop: what the daemon waits for, and what each event leads to.

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

use super::{CHECK_INTERVAL, Daemon, events};
use crate::{async_fd::watch, datapath::conntrack::Swept, host::watch::Change, model::Batch, status::StatusError};

/// How often the programs are told the time: about a tick.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the connection table is collected.
const COLLECT_INTERVAL: Duration = Duration::from_secs(5);

/// What the loop waits for.
enum Event {
    /// The source has something to say.
    Objects(Batch),
    /// What the tables refused is to be tried again.
    TablesDue,
    /// The node is to be brought into line.
    NodeDue,
    /// The API server has other addresses.
    ApiServers,
    /// The host's network has changed.
    Network(Change),
    /// Links about which something has changed are to be looked at.
    LinksDue,
    /// The plugin has added or removed a pod.
    Records,
    /// A sweep of the connection table has ended.
    Swept(Result<Swept>),
    /// Every [`CLOCK_INTERVAL`].
    Clock,
    /// Every [`COLLECT_INTERVAL`].
    Collection,
    /// Every [`CHECK_INTERVAL`].
    Check,
}

/// What ticks.
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
    /// Works until it is dropped, or can't go on.
    pub(super) async fn serve(&mut self) -> Result<()> {
        let events = watch(self.datapath.events()?).context("cannot watch the event ring")?;
        let drops = tokio::spawn(events::log(events));
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
            self.write_report();
            let event = self.next(&mut clocks).await?;
            self.react(event)?;
        }
    }

    /// Puts the first look into effect.
    async fn begin(&mut self) {
        if !self.datapath.adopted() {
            self.shed().await;
        }
        self.read_records();
        // Before anything is written: what no object may take is not to be taken for a moment either.
        match self.host.snapshot().await {
            Ok(snapshot) => _ = self.learn_host(&snapshot),
            Err(error) => warn!("{error}"),
        }
        self.reconcile();
        self.sync_node().await;
        self.repair();
        self.expire();
        self.observe_drops();
    }

    /// Waits for the next event.
    async fn next(&mut self, clocks: &mut Clocks) -> Result<Event> {
        let tables = wake(self.outcome.next_retry);
        let node = wake(self.node_due);
        let links = wake(self.links.next());
        Ok(tokio::select! {
            batch = self.source.next() => Event::Objects(batch.context("cannot read objects from the source")?),
            () = tables => Event::TablesDue,
            () = node => Event::NodeDue,
            () = self.api_servers.changed() => Event::ApiServers,
            change = self.watcher.changed() => Event::Network(change),
            () = links => Event::LinksDue,
            () = self.attachments.changed() => Event::Records,
            swept = ended(&mut self.sweeping) => Event::Swept(swept),
            _ = clocks.clock.tick() => Event::Clock,
            _ = clocks.collection.tick() => Event::Collection,
            _ = clocks.check.tick() => Event::Check,
        })
    }

    /// What each event leads to.
    ///
    /// # Errors
    /// If another daemon has this one's place.
    fn react(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Objects(batch) => self.take_in(batch),
            Event::TablesDue => self.reconcile(),
            // The next turn begins with it.
            Event::NodeDue => {}
            Event::ApiServers => self.node_due = Some(Instant::now()),
            Event::Network(change) => self.network_changed(change),
            Event::LinksDue => self.mend(),
            Event::Records => self.attachments_changed(),
            Event::Swept(swept) => self.swept(swept),
            Event::Clock => {
                self.advance_clock();
                self.keep_lock()?;
                self.look_for_records();
                self.tell_health();
                self.listener.retry();
                self.observe_calls();
                self.announce();
                self.collect_if_filling();
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

    /// Lets the programs see the time.
    fn advance_clock(&mut self) {
        if let Err(error) = self.datapath.advance_clock() {
            warn!("{error}");
        }
    }

    /// Counts the plugin's calls.
    fn observe_calls(&mut self) {
        self.calls.take().iter().for_each(|call| self.metrics.calls.observe(call));
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
