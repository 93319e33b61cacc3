//! The Kubernetes API: Services, EndpointSlices, Nodes, ServiceCIDRs, NetworkPolicies, ClusterNetworkPolicies and
//! Namespaces, listed once and then watched. Pods of all nodes are watched only while there is a policy.
//!
//! Threads of its own talk to the server, with one task per kind, so that reading a large cluster doesn't block the
//! daemon's event loop. They send validated objects through a channel. No changes are returned before all kinds have
//! been listed, since part of a cluster may have another meaning than the whole; services don't wait for kinds of
//! network policy that can't be read, since the daemon may lack the right to. From then on changes are returned as they
//! arrive, and while the server is unreachable the last state stays.

mod announce;
mod connect;
mod definition;
mod events;
mod failure;
mod object;
mod pause;
mod pods;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::{io, thread};

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch as signal};

pub use connect::ConnectError;
pub use events::{About, Note};

use super::status::Status;
use crate::config::Kubernetes;
use crate::metrics::api::ApiMetrics;
use crate::model::{Batch, Change, Complaint, Diagnostic, Kind, ObjectKey, Severity};
use watch::News;

/// Threads that read lists: one for the EndpointSlices, by far the longest, and one for all others meanwhile.
const READERS: usize = 2;
/// Capacity of the channel from the tasks to the event loop: changes and lists.
const CHANNEL: usize = 4096;
/// Maximum number of messages taken at once: they become one round of table updates.
const BATCH: usize = 1024;
/// Maximum number of pending complaints; further ones are lost.
const COMPLAINTS: usize = 256;

/// The source.
#[derive(Debug)]
pub struct KubernetesSource {
    server: String,
    news: mpsc::Receiver<Vec<News>>,
    taken: Vec<Vec<News>>,
    /// Changes not returned yet, the last of each object.
    held: BTreeMap<ObjectKey, Change>,
    kinds: BTreeMap<Kind, Watched>,
    /// Policies that are in effect, or will be once all kinds are listed.
    policies: BTreeSet<ObjectKey>,
    /// Whether Pods are wanted.
    want_pods: signal::Sender<bool>,
    /// Whether all kinds but those of network policy have been listed at some time.
    synced: bool,
    /// Whether all kinds have.
    policies_synced: bool,
    /// Invalid objects: the reason, and whether an earlier version is in effect.
    mistakes: BTreeMap<ObjectKey, (String, bool)>,
    complaints: VecDeque<Complaint>,
    ready: signal::Sender<u64>,
    pods: signal::Receiver<Option<BTreeSet<String>>>,
    notes: mpsc::Sender<Note>,
    metrics: ApiMetrics,
}

/// State of one kind.
#[derive(Debug, Default)]
struct Watched {
    /// Whether all objects have been read at least once.
    listed: bool,
    error: Option<String>,
}

impl KubernetesSource {
    /// Starts reading, on the node with this name. The server need not be reachable yet.
    ///
    /// # Errors
    /// If no server address or no credentials are configured.
    pub fn start(settings: &Kubernetes, node: &str) -> Result<Self, ConnectError> {
        let mut runtime = Builder::new_multi_thread();
        runtime.worker_threads(READERS).thread_name("kubernetes").enable_all();
        let runtime = runtime.build().map_err(ConnectError::Thread)?;
        // The client spawns tasks of its own.
        let client = {
            let _entered = runtime.enter();
            connect::client(settings)?
        };
        let (sender, news) = mpsc::channel(CHANNEL);
        let (ready, is_ready) = signal::channel(0);
        let (want_pods, pods_wanted) = signal::channel(false);
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
                runtime.block_on(watch::all(client.client, sender, pods_wanted, of_tasks));
            })
            .map_err(ConnectError::Thread)?;
        let kinds = Kind::ALL.map(|kind| (kind, Watched::default())).into();
        Ok(Self {
            server,
            news,
            taken: Vec::new(),
            held: BTreeMap::new(),
            kinds,
            policies: BTreeSet::new(),
            want_pods,
            synced: false,
            policies_synced: false,
            mistakes: BTreeMap::new(),
            complaints: VecDeque::new(),
            ready,
            pods,
            notes,
            metrics,
        })
    }

    /// Uids of this node's pods, once they have been listed.
    pub fn pods(&self) -> Option<BTreeSet<String>> {
        self.pods.borrow().clone()
    }

    /// Announces to the cluster that pods can start. To be called only once they can.
    pub fn announce(&self) {
        self.ready.send_modify(|times| *times += 1);
    }

    /// Queues an Event, if there is room for it.
    pub fn tell(&self, note: Note) {
        let _ = self.notes.try_send(note);
    }

    /// The next complaint that is still valid and hasn't been taken yet.
    pub fn complaint(&mut self) -> Option<Complaint> {
        let mistakes = &self.mistakes;
        std::iter::from_fn(|| self.complaints.pop_front())
            .find(|complaint| mistakes.get(&complaint.key).is_some_and(|(reason, _)| *reason == complaint.reason))
    }

    /// Returns a complaint to the front of the queue.
    pub fn keep(&mut self, complaint: Complaint) {
        self.complaints.push_front(complaint);
    }

    /// Host and port of the server.
    pub fn server(&self) -> Option<(String, u16)> {
        let address: hyper::Uri = self.server.parse().ok()?;
        let port = address.port_u16().unwrap_or(if address.scheme_str() == Some("http") { 80 } else { 443 });
        Some((address.host()?.to_owned(), port))
    }

    /// Metrics of the API.
    pub fn metrics(&self) -> &ApiMetrics {
        &self.metrics
    }

    /// Waits for news. Cancel-safe: dropping the future loses nothing.
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
                    self.count(&change);
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
        // Services don't wait for what can't be read.
        let unreadable = |kind: Kind| self.kinds.get(&kind).is_some_and(|watched| watched.error.is_some());
        let readable_listed = self.waiting().all(|kind| kind.is_of_policies() && unreadable(kind));
        let all_listed = self.waiting().next().is_none();
        self.synced |= readable_listed;
        self.policies_synced |= all_listed;
        let (synced, policies_synced) = (self.synced, self.policies_synced);
        let ready = |kind: Kind| if kind.is_of_policies() { policies_synced } else { synced };
        let changes = self.held.extract_if(.., |key, _| ready(key.kind)).map(|(_, change)| change).collect();
        Ok(Batch { changes, synced, policies_synced })
    }

    fn complain(&mut self, complaint: Complaint, kept: bool) {
        let known = self.mistakes.insert(complaint.key.clone(), (complaint.reason.clone(), kept));
        // A relist repeats it.
        let queued =
            self.complaints.iter().any(|queued| queued.key == complaint.key && queued.reason == complaint.reason);
        if known.is_none_or(|(reason, _)| reason != complaint.reason) && !queued && self.complaints.len() < COMPLAINTS {
            self.complaints.push_back(complaint);
        }
    }

    /// Keeps count of the policies, which need pods.
    fn count(&mut self, change: &Change) {
        if matches!(change.key.kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy) {
            match change.object {
                Some(_) => self.policies.insert(change.key.clone()),
                None => self.policies.remove(&change.key),
            };
            let wanted = !self.policies.is_empty();
            self.want_pods.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
        }
    }

    /// Kinds that are wanted and haven't been listed yet.
    fn waiting(&self) -> impl Iterator<Item = Kind> {
        let wanted = |kind: Kind| kind != Kind::Pod || !self.policies.is_empty();
        self.kinds.iter().filter(move |(kind, watched)| wanted(**kind) && !watched.listed).map(|(kind, _)| *kind)
    }

    /// The error of the server, if any.
    pub fn error(&self) -> Option<String> {
        let failing: Vec<_> =
            self.kinds.iter().filter_map(|(kind, w)| Some((kind.name(), w.error.as_ref()?))).collect();
        // If the server is unreachable, all kinds have the same error.
        failing.first().map(|(_, error)| {
            let names: Vec<_> = failing.iter().filter(|(_, other)| other == error).map(|(name, _)| *name).collect();
            let stays = if self.policies_synced { "; keeping the objects read before" } else { "" };
            format!("{}: cannot watch {}: {error}{stays}", self.server, names.join(", "))
        })
    }

    /// Status of the source.
    pub fn status(&self) -> Status {
        let waiting: Vec<_> = self.waiting().map(Kind::name).collect();
        let waiting =
            (!waiting.is_empty()).then(|| format!("{}: waiting for the list of {}", self.server, waiting.join(", ")));
        let mistake = |(key, (reason, kept)): (&ObjectKey, &(String, bool))| {
            Diagnostic::of(key.clone(), Severity::invalid(*kept), reason.clone())
        };
        Status {
            name: self.server.clone(),
            error: self.error(),
            synced: self.policies_synced,
            mistakes: self.mistakes.iter().map(mistake).collect(),
            remarks: waiting.into_iter().collect(),
        }
    }
}
