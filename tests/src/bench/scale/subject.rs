//! The daemon under test: its tables, CPU time and memory, and its API server.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::cluster::{self, Cluster, NODES, SERVICES};
use crate::{
    api::{Abilities, Api, Streaming},
    bench::tables::{PolicyTables, Tables},
    lab::{Families, Lab, Node},
    traffic::http_get,
};

/// Timeout of every operation.
const PATIENCE: Duration = Duration::from_secs(120);
/// Maximum number of Nodes added to the initial ones.
const MORE_NODES: usize = 100;
/// Polling interval for the tables of a starting daemon; polling takes time from it on a small machine.
const LOOK: Duration = Duration::from_millis(10);

/// Programs that a daemon finds at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// Of its own version.
    Ours,
    /// Of another version.
    Others,
}

/// A node with its daemon, and the cluster.
pub struct Subject {
    lab: Lab,
    /// State of the cluster in the API server.
    pub cluster: Cluster,
    /// Number of the next Node to be added.
    next_node: usize,
    /// Number of pods replaced so far.
    replaced: usize,
}

impl Subject {
    /// A node before the first start of its daemon, and an API server with all objects.
    pub fn prepare() -> Result<Self> {
        let lab = Lab::builder().nodes(1).families(Families::V4).zones(&[cluster::ZONE]).daemons(false);
        let lab = lab.api(Abilities { page: 500, ..Abilities::default() }).build()?;
        // All nodes are on the link. Their MACs are static, since no machine would answer, and the kernel can resolve
        // only a thousand neighbours by itself on the whole machine.
        let mut lines = "addr add 10.100.255.254/16 dev eth0\n".to_owned();
        for node in 0..NODES + MORE_NODES {
            let [high, low] = (node as u16).to_be_bytes();
            let addr = cluster::node_address(node);
            writeln!(lines, "neigh add {addr} dev eth0 lladdr 02:00:00:01:{high:02x}:{low:02x} nud permanent")?;
        }
        lab.node(0).place.ip(&lines)?;
        let subject = Self { lab, cluster: Cluster::new(), next_node: NODES, replaced: 0 };
        for service in 0..SERVICES {
            subject.api().apply(cluster::service(service));
            subject.cluster.slices(service).for_each(|slice| subject.api().apply(slice));
        }
        (0..NODES).for_each(|node| subject.api().apply(cluster::node(node, 0)));
        Ok(subject)
    }

    /// The API server.
    pub fn api(&self) -> &Api {
        self.lab.api()
    }

    /// Name of the node under test.
    pub fn node_name(&self) -> &str {
        self.node().name()
    }

    /// The tables of network policy.
    pub fn policy_tables(&self) -> Result<PolicyTables> {
        PolicyTables::open(self.node())
    }

    fn node(&self) -> &Arc<Node> {
        self.lab.node(0)
    }

    /// Whether the API server supports streaming lists.
    pub fn set_streaming(&self, wanted: bool) {
        let streaming_lists = if wanted { Streaming::Served } else { Streaming::Refused };
        self.api().set_abilities(Abilities { streaming_lists, page: 500, ..Abilities::default() });
    }

    /// The daemon's first start on this node; returns the time until all tables are complete.
    pub fn start(&self) -> Result<Duration> {
        let start = Instant::now();
        self.node().spawn_daemon()?;
        self.wait("everything is in the tables", LOOK, || {
            let Ok(tables) = self.tables() else { return Ok(false) };
            Ok(tables.served(1)? == SERVICES && self.knows_node(&tables, NODES - 1)? && self.is_healthy())
        })?;
        Ok(start.elapsed())
    }

    /// Ends the daemon and removes all its state.
    pub fn clean(&self) -> Result<()> {
        self.node().stop_daemon()?;
        self.node().podnet(&["cleanup"]).map(drop)
    }

    /// Ends the daemon, changes a part of the cluster, and starts the daemon again; returns the time until the changes
    /// are in the tables. A deleted Service shows when everything has been read, since nothing is removed before.
    pub fn restart(&mut self, found: Programs) -> Result<Duration> {
        const CHANGES: usize = 20;
        self.node().kill_daemon()?;
        if found == Programs::Others {
            self.node().disown_programs()?;
        }
        let gone = self.replaced % SERVICES;
        let changed: BTreeSet<usize> = (1..=CHANGES).map(|i| (gone + i * 487) % SERVICES).collect();
        for &service in &changed {
            self.replace_one(service);
        }
        self.api().delete(&cluster::service(gone));
        let node = self.add_node();
        let start = Instant::now();
        self.node().spawn_daemon()?;
        let tables = self.tables()?;
        self.wait("the changes are in the tables", LOOK, || {
            Ok(tables.frontend(cluster::frontend(gone))?.is_none()
                && self.knows_node(&tables, node)?
                && changed.iter().all(|service| self.check(&tables, *service).is_ok())
                && self.is_healthy())
        })?;
        let took = start.elapsed();
        self.api().apply(cluster::service(gone));
        self.wait("a Service is back", LOOK, || Ok(tables.frontend(cluster::frontend(gone))?.is_some()))?;
        Ok(took)
    }

    /// Checks a service's frontend for the right backends.
    pub fn check(&self, tables: &Tables, service: usize) -> Result<()> {
        let wanted: BTreeSet<IpAddr> = self.cluster.backends(service).collect();
        let found = tables.backends(cluster::frontend(service))?;
        ensure!(found == wanted, "service {service} leads to {found:?} instead of {wanted:?}");
        Ok(())
    }

    /// Replaces one of a service's pods.
    pub fn replace_one(&mut self, service: usize) {
        self.replaced += 1;
        let slice = self.cluster.replace_one(service, self.replaced);
        self.api().apply(slice);
    }

    /// Adds a Node to the cluster.
    pub fn add_node(&mut self) -> usize {
        let node = self.next_node;
        self.next_node += 1;
        self.api().apply(cluster::node(node, 0));
        node
    }

    /// Removes the last Node from the cluster.
    pub fn remove_node(&mut self) -> usize {
        self.next_node -= 1;
        self.api().delete(&cluster::node(self.next_node, 0));
        self.next_node
    }

    /// Whether the tables contain the pod CIDR of a Node.
    pub fn knows_node(&self, tables: &Tables, node: usize) -> Result<bool> {
        tables.is_remote_pod(cluster::address_on(node, 2))
    }

    /// The tables.
    pub fn tables(&self) -> Result<Tables> {
        Tables::open(self.node())
    }

    fn is_healthy(&self) -> bool {
        let server = SocketAddr::from(([127, 0, 0, 1], 10256));
        http_get(&self.node().place, server, "/healthz").is_ok_and(|response| response.status == 200)
    }

    /// Polls until a condition holds.
    pub fn wait(&self, what: &str, look: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !holds()? {
            if start.elapsed() > PATIENCE {
                bail!("not after {} s: {what}; the log:\n{}", PATIENCE.as_secs(), self.node().log());
            }
            thread::sleep(look);
        }
        Ok(())
    }

    /// CPU time used by the daemon since its start.
    pub fn cpu(&self) -> Result<Duration> {
        self.node().daemon_cpu()
    }

    /// A line about memory in the daemon's `/proc/…/status`, in MiB.
    pub fn memory_mib(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    fn pid(&self) -> Result<u32> {
        self.node().daemon_id().context("the daemon does not run")
    }
}
