//! The health servers: `/healthz` and `/livez`, for load balancers and for probes that restart the daemon, and a port
//! for each service with a `healthCheckNodePort`, for its load balancer.
//!
//! They run on a thread of their own, so that they respond even while the daemon is busy, and report it if that lasts
//! too long. The daemon sets its condition by [`Health::report`], and the services with a port by [`Servers::settle`].

mod answer;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::runtime::{Builder, Handle, Runtime};

pub use answer::Moment;

use crate::{
    http::{Answering, Places, Server},
    select::HealthCheck,
    status::HealthStatus,
};

/// How long the datapath may be out of date before the node is unhealthy; the same as in kube-proxy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Maximum number of connections of all servers: from the node itself, and from elsewhere.
const OWN_CONNECTIONS: usize = 256;
const OTHER_CONNECTIONS: usize = 1024;

/// Condition of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The node's part of the datapath is set up.
    pub ready: bool,
    /// The tables are up to date, as far as is known.
    pub current: bool,
    /// The node is leaving the cluster.
    pub leaving: bool,
}

/// The node's health, as last reported.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Whether the datapath has ever worked: before that, this node takes no connections.
    worked: bool,
    /// Since when it has been out of date.
    behind: Option<Instant>,
    /// When it was last up to date.
    updated: SystemTime,
    /// When the last report arrived.
    heard: Instant,
    leaving: bool,
}

impl Health {
    /// State at the daemon's start. `adopted`: the datapath of an earlier daemon works.
    pub fn new(adopted: bool, now: Instant) -> Self {
        let (behind, updated) = (Some(now), SystemTime::now());
        Self(Arc::new(Mutex::new(State { worked: adopted, behind, updated, heard: now, leaving: false })))
    }

    /// Reports the condition of the daemon; expected every few seconds.
    pub fn report(&self, condition: Condition, now: Instant) {
        let mut state = self.state();
        let good = condition.ready && condition.current;
        state.worked |= condition.ready;
        state.behind = if good { None } else { state.behind.or(Some(now)) };
        if good {
            state.updated = SystemTime::now();
        }
        state.heard = now;
        state.leaving = condition.leaving;
    }

    /// State at `now`.
    pub fn moment(&self, now: Instant) -> Moment {
        let state = self.state();
        let recent = |since: Instant| now.saturating_duration_since(since) < PATIENCE;
        let healthy = state.worked && state.behind.is_none_or(recent) && recent(state.heard);
        Moment { now: SystemTime::now(), healthy, updated: state.updated, eligible: !state.leaving }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All servers.
#[derive(Debug)]
pub struct Servers {
    /// Taken on drop.
    runtime: Option<Runtime>,
    places: Places,
    health: Health,
    node: Option<(SocketAddr, io::Result<Server>)>,
    services: BTreeMap<u16, ServiceServer>,
    /// Services whose port another service has.
    refused: Vec<String>,
}

#[derive(Debug)]
struct ServiceServer {
    check: Arc<Mutex<HealthCheck>>,
    server: io::Result<Server>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Without waiting, which isn't allowed in asynchronous code.
            runtime.shutdown_background();
        }
    }
}

impl Servers {
    /// Starts the thread, and the node's own server if it has an address. An unavailable address is a problem, not an
    /// error.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start(health: Health, address: Option<SocketAddr>) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("health").enable_all().build()?;
        let places = Places::new(OWN_CONNECTIONS, OTHER_CONNECTIONS);
        let node = address.map(|address| (address, start_node(runtime.handle(), address, &places, &health)));
        Ok(Self { runtime: Some(runtime), places, health, node, services: BTreeMap::new(), refused: Vec::new() })
    }

    /// Serves exactly these services, and retries what failed before.
    pub fn settle(&mut self, checks: impl IntoIterator<Item = HealthCheck>) {
        let Some(runtime) = self.runtime.as_ref().map(Runtime::handle) else { return };
        if let Some((address, server)) = self.node.as_mut().filter(|(_, server)| server.is_err()) {
            *server = start_node(runtime, *address, &self.places, &self.health);
        }
        let mut before = std::mem::take(&mut self.services);
        self.refused.clear();
        let mut wanted: BTreeMap<u16, HealthCheck> = BTreeMap::new();
        for check in checks {
            match wanted.get(&check.port) {
                Some(holder) => self.refused.push(format!(
                    "Service {}: its healthCheckNodePort {} is already used by {}: choose another one",
                    check.service, check.port, holder.service
                )),
                None => drop(wanted.insert(check.port, check)),
            }
        }
        let kept: Vec<_> = wanted.into_iter().map(|(port, check)| (check, before.remove(&port))).collect();
        // Closes sockets before others are opened.
        drop(before);
        for (check, before) in kept {
            let port = check.port;
            let server = match before {
                Some(ServiceServer { check: known, server: Ok(server) }) => {
                    *known.lock().unwrap_or_else(PoisonError::into_inner) = check;
                    ServiceServer { check: known, server: Ok(server) }
                }
                _ => start_service(runtime, check, &self.places, &self.health),
            };
            self.services.insert(port, server);
        }
    }

    /// Servers that couldn't be started, as sentences.
    pub fn problems(&self) -> Vec<String> {
        let failed = |server: &ServiceServer| {
            let error = server.server.as_ref().err()?;
            let check = server.check.lock().unwrap_or_else(PoisonError::into_inner);
            Some(format!(
                "Service {}: cannot listen on its healthCheckNodePort {}, retrying: {error}",
                check.service, check.port
            ))
        };
        self.services.values().filter_map(failed).chain(self.refused.iter().cloned()).collect()
    }

    /// Status of the servers, for `podnet status`.
    pub fn status(&self) -> HealthStatus {
        HealthStatus {
            address: self.node.as_ref().map(|(address, _)| address.to_string()),
            error: self.node.as_ref().and_then(|(_, server)| server.as_ref().err()).map(ToString::to_string),
            node_ports: self.services.values().filter(|server| server.server.is_ok()).count(),
        }
    }
}

fn start_node(runtime: &Handle, address: SocketAddr, places: &Places, health: &Health) -> io::Result<Server> {
    let health = health.clone();
    let answering: Answering = Arc::new(move |path| answer::node(path, &health.moment(Instant::now())));
    Server::start(runtime, address, places, answering)
}

fn start_service(runtime: &Handle, check: HealthCheck, places: &Places, health: &Health) -> ServiceServer {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, check.port));
    let check = Arc::new(Mutex::new(check));
    let (asked, health) = (check.clone(), health.clone());
    let answering: Answering = Arc::new(move |_| {
        let healthy = health.moment(Instant::now()).healthy;
        answer::service(&asked.lock().unwrap_or_else(PoisonError::into_inner), healthy)
    });
    ServiceServer { check, server: Server::start(runtime, address, places, answering) }
}
