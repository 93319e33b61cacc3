//! The Kubernetes API: Services, EndpointSlices, Nodes and ServiceCIDRs, listed once and watched from then on.
//!
//! A thread of its own talks to the server, one task a kind, so that reading a large cluster doesn't keep the daemon's
//! event loop. What it reads comes through a channel as validated objects. Nothing is given before all kinds have been
//! listed: half of a cluster may mean something else than the whole. From then on each change is given as it comes, and
//! when a server is away, all stays as it was.

mod announce;
mod connect;
mod events;
mod failure;
mod object;
mod pause;
mod pods;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::{io, thread};

use tokio::sync::{mpsc, watch as signal};

pub use connect::ConnectError;
pub use events::{About, Note};

use super::status::Status;
use crate::config::Kubernetes;
use crate::metrics::api::ApiMetrics;
use crate::model::{Batch, Change, Complaint, Diagnostic, Kind, ObjectKey, Severity};
use watch::News;

/// How much may be on its way from the tasks to the event loop: changes, and lists.
const CHANNEL: usize = 4096;
/// How much is taken at once: so many changes become one round of work on the tables.
const BATCH: usize = 1024;
/// How many complaints are kept until somebody asks for them; more are lost.
const COMPLAINTS: usize = 256;

/// The source.
#[derive(Debug)]
pub struct KubernetesSource {
    server: String,
    news: mpsc::Receiver<Vec<News>>,
    taken: Vec<Vec<News>>,
    /// What has changed and wasn't given yet, the last of each object: before all kinds are listed nothing is.
    held: BTreeMap<ObjectKey, Change>,
    kinds: BTreeMap<Kind, Watched>,
    /// With whether what they were before holds.
    mistakes: BTreeMap<ObjectKey, (String, bool)>,
    complaints: VecDeque<Complaint>,
    ready: signal::Sender<u64>,
    pods: signal::Receiver<Option<BTreeSet<String>>>,
    notes: mpsc::Sender<Note>,
    metrics: ApiMetrics,
}

/// How one kind stands.
#[derive(Debug, Default)]
struct Watched {
    /// Whether all objects have been read at least once.
    listed: bool,
    error: Option<String>,
}

impl KubernetesSource {
    /// Begins to read, on the node of this name. The server need not be there yet.
    ///
    /// # Errors
    /// If there is nothing that says where the server is or who is asking.
    pub fn start(settings: &Kubernetes, node: &str) -> Result<Self, ConnectError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ConnectError::Thread)?;
        // The client starts tasks of its own.
        let client = {
            let _entered = runtime.enter();
            connect::client(settings)?
        };
        let (sender, news) = mpsc::channel(CHANNEL);
        let (ready, is_ready) = signal::channel(0);
        let (uids, pods) = signal::channel(None);
        let (server, node) = (client.server.clone(), node.to_owned());
        let (notes, to_write) = mpsc::channel(events::QUEUE);
        let metrics = ApiMetrics::new();
        let of_tasks = metrics.clone();
        thread::Builder::new()
            .name("kubernetes".into())
            .spawn(move || {
                runtime.spawn(announce::network(client.client.clone(), node.clone(), is_ready));
                runtime.spawn(pods::watch(client.client.clone(), node.clone(), uids));
                runtime.spawn(events::write(client.client.clone(), node, to_write));
                runtime.block_on(watch::all(client.client, sender, of_tasks));
            })
            .map_err(ConnectError::Thread)?;
        let kinds = Kind::ALL.map(|kind| (kind, Watched::default())).into();
        Ok(Self {
            server,
            news,
            taken: Vec::new(),
            held: BTreeMap::new(),
            kinds,
            mistakes: BTreeMap::new(),
            complaints: VecDeque::new(),
            ready,
            pods,
            notes,
            metrics,
        })
    }

    /// The uids of this node's pods, once they have been listed.
    pub fn pods(&self) -> Option<BTreeSet<String>> {
        self.pods.borrow().clone()
    }

    /// Pods can start, now and not before: the cluster is to be told.
    pub fn announce(&self) {
        self.ready.send_modify(|times| *times += 1);
    }

    /// Has an Event written, if there is room for it.
    pub fn tell(&self, note: Note) {
        let _ = self.notes.try_send(note);
    }

    /// The next object that can't be used, by what it is now, and that wasn't asked for yet.
    pub fn complaint(&mut self) -> Option<Complaint> {
        let mistakes = &self.mistakes;
        std::iter::from_fn(|| self.complaints.pop_front())
            .find(|complaint| mistakes.get(&complaint.key).is_some_and(|(reason, _)| *reason == complaint.reason))
    }

    /// Gives one back, to be the next again.
    pub fn keep(&mut self, complaint: Complaint) {
        self.complaints.push_front(complaint);
    }

    /// Host and port of the server.
    pub fn server(&self) -> Option<(String, u16)> {
        let address: hyper::Uri = self.server.parse().ok()?;
        let port = address.port_u16().unwrap_or(if address.scheme_str() == Some("http") { 80 } else { 443 });
        Some((address.host()?.to_owned(), port))
    }

    /// How the API answers.
    pub fn metrics(&self) -> &ApiMetrics {
        &self.metrics
    }

    /// Waits for news. Loses nothing when it is dropped.
    ///
    /// # Errors
    /// If the thread that watches has ended.
    pub async fn next(&mut self) -> io::Result<Batch> {
        if self.news.recv_many(&mut self.taken, BATCH).await == 0 {
            return Err(io::Error::other("the thread that watches the Kubernetes API has ended"));
        }
        self.metrics.taken(self.taken.iter().map(Vec::len).sum());
        for news in std::mem::take(&mut self.taken).into_iter().flatten() {
            match news {
                News::Change(mut change) => {
                    self.mistakes.remove(&change.key);
                    if let Some(earlier) = self.held.get(&change.key) {
                        change.origin = change.origin.older(earlier.origin);
                    }
                    self.held.insert(change.key.clone(), change);
                }
                News::Mistake { complaint, kept } => self.complain(complaint, kept),
                News::Listed(kind) => self.kinds.entry(kind).or_default().listed = true,
                News::State(kind, error) => self.kinds.entry(kind).or_default().error = error,
            }
        }
        let synced = self.synced();
        let changes = if synced { std::mem::take(&mut self.held) } else { BTreeMap::new() };
        Ok(Batch { changes: changes.into_values().collect(), synced })
    }

    fn complain(&mut self, complaint: Complaint, kept: bool) {
        let known = self.mistakes.insert(complaint.key.clone(), (complaint.reason.clone(), kept));
        // A new list says it again.
        let queued =
            self.complaints.iter().any(|queued| queued.key == complaint.key && queued.reason == complaint.reason);
        if known.is_none_or(|(reason, _)| reason != complaint.reason) && !queued && self.complaints.len() < COMPLAINTS {
            self.complaints.push_back(complaint);
        }
    }

    fn synced(&self) -> bool {
        self.kinds.values().all(|kind| kind.listed)
    }

    /// What is wrong with the server.
    pub fn error(&self) -> Option<String> {
        let failing: Vec<_> =
            self.kinds.iter().filter_map(|(kind, w)| Some((kind.name(), w.error.as_ref()?))).collect();
        // A server that is away is so for all kinds alike.
        failing.first().map(|(_, error)| {
            let names: Vec<_> = failing.iter().filter(|(_, other)| other == error).map(|(name, _)| *name).collect();
            let stays = if self.synced() { "; keeping the objects read before" } else { "" };
            format!("{}: cannot watch {}: {error}{stays}", self.server, names.join(", "))
        })
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let waiting: Vec<_> = self.kinds.iter().filter(|(_, w)| !w.listed).map(|(kind, _)| kind.name()).collect();
        let waiting =
            (!waiting.is_empty()).then(|| format!("{}: waiting for the list of {}", self.server, waiting.join(", ")));
        let mistake = |(key, (reason, kept)): (&ObjectKey, &(String, bool))| {
            Diagnostic::of(key.clone(), Severity::invalid(*kept), reason.clone())
        };
        Status {
            name: self.server.clone(),
            error: self.error(),
            synced: self.synced(),
            mistakes: self.mistakes.iter().map(mistake).collect(),
            remarks: waiting.into_iter().collect(),
        }
    }
}
