//! One task per kind: list, watch, and relist when the server has forgotten the watch's resource version. Pods are many
//! and change often, so they are watched only while they are needed.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::Request;
use kube::client::Body;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch::Receiver;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tower::service_fn;
use tracing::{debug, info, warn};

use super::definition::{installed, uninstalled};
use super::failure::{classify, explain, forgets, has_code, lacks_streaming, silent};
use super::object::Sent;
use super::pause::Pause;
use crate::metrics::api::{ApiError, ApiMetrics, ListCause};
use crate::model::{Change, Complaint, Kind, ObjectKey, ObjectName};
use crate::source::what_holds;

/// Time without another failure after which the server counts as reachable again; also the minimum time between two
/// watches of a kind.
const CALM: Duration = Duration::from_secs(1);
/// Interval between requests for a kind that the server doesn't serve, unless its definition is [`installed`] earlier.
/// Every node sends these requests.
const RARELY: Duration = Duration::from_secs(60);

/// A message of a task.
#[derive(Debug)]
pub(super) enum News {
    /// A new, changed or deleted object.
    Change(Change),
    /// An invalid object.
    Mistake {
        /// The complaint about it.
        complaint: Complaint,
        /// Whether an earlier version is in effect; if not, no version has ever been valid.
        kept: bool,
    },
    /// All objects of the kind have been read.
    Listed(Kind),
    /// The error of the kind, or `None` once the server answers again.
    State(Kind, Option<String>),
}

/// Watches all kinds, Pods only while they are wanted, until the receiver is dropped.
pub(super) async fn all(client: Client, news: Sender<Vec<News>>, pods: Receiver<bool>, metrics: ApiMetrics) {
    let mut tasks = JoinSet::new();
    for kind in Kind::ALL {
        let told = Told { kind, news: news.clone(), error: None, metrics: metrics.clone() };
        match kind {
            Kind::Pod => tasks.spawn(watch_while_wanted(client.clone(), told, pods.clone())),
            _ => tasks.spawn(watch_always(client.clone(), told)),
        };
    }
    tasks.join_all().await;
}

/// Watches a kind, until the receiver is dropped.
async fn watch_always(client: Client, mut told: Told) {
    let mut tracker = Tracker::new(told.kind);
    watch(client, &mut told, &mut tracker).await;
}

/// Watches a kind while it is wanted, until the receiver is dropped. Otherwise it has no objects.
async fn watch_while_wanted(client: Client, mut told: Told, mut wanted: Receiver<bool>) {
    let mut tracker = Tracker::new(told.kind);
    loop {
        if !told.state(None).await || wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        tokio::select! {
            () = watch(client.clone(), &mut told, &mut tracker) => return,
            _ = wanted.wait_for(|wanted| !*wanted) => {}
        }
        if !told.all(tracker.none()).await {
            return;
        }
    }
}

/// Watches a kind, and reports its objects, until the receiver is dropped.
async fn watch(client: Client, told: &mut Told, tracker: &mut Tracker) {
    let (kind, metrics) = (told.kind, told.metrics.clone());
    let mut pause = Pause::default();
    let granted = Arc::new(Notify::new());
    let api: Api<Sent> = Api::all_with(telling(client.clone(), granted.clone(), kind, metrics.clone()), &kind);
    // Streaming lists (KEP-3157) save a copy of everything in the server and here; servers without support reject them.
    let mut streaming = true;
    let mut listed = false;
    let mut cause = ListCause::Start;
    // Each watcher begins with a list.
    loop {
        let config = watcher::Config::default();
        let config = if streaming { config.streaming_lists() } else { config };
        let mut events = pin!(watcher(api.clone(), config));
        // When the last error counts as resolved even without an event: unchanged objects cause none.
        let mut recovered: Option<Instant> = None;
        // Whether this watcher has completed its list.
        let mut watching = false;
        let begin_anew = loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = granted.notified(), if told.error.is_some() && recovered.is_none() => {
                    recovered = Some(Instant::now() + CALM);
                    continue;
                }
                () = sleep_until(recovered.unwrap_or_else(Instant::now)), if recovered.is_some() => {
                    recovered = None;
                    if told.state(None).await { continue } else { return }
                }
            };
            let listening = match event {
                Some(Ok(event)) => {
                    match event {
                        Event::Init => watching = false,
                        Event::InitDone => (watching, listed) = (true, true),
                        _ => {}
                    }
                    match &event {
                        Event::Apply(_) => metrics.event(kind, false),
                        Event::Delete(_) => metrics.event(kind, true),
                        // Unless another cause is set meanwhile, the next list follows an error.
                        Event::InitDone => metrics.list(kind, std::mem::replace(&mut cause, ListCause::Error)),
                        Event::Init | Event::InitApply(_) => {}
                    }
                    // Starting a request is no sign of a reachable server.
                    let heard = !matches!(event, Event::Init);
                    told.all(tracker.take(event)).await && (!heard || told.state(None).await)
                }
                Some(Err(failure)) if streaming && lacks_streaming(&failure, listed) => {
                    debug!(kind = kind.name(), "the server has no streaming lists");
                    streaming = false;
                    break Duration::ZERO;
                }
                Some(Err(failure))
                    if kind.may_be_missing()
                        && has_code(&failure, 404)
                        && (!listed || tracker.is_empty() || uninstalled(client.clone(), kind).await) =>
                {
                    (cause, listed) = (ListCause::Error, false);
                    if !told.all(tracker.none()).await || !told.state(None).await {
                        return;
                    }
                    tokio::select! {
                        () = sleep(RARELY) => break Duration::ZERO,
                        // The server may still need a moment, or serve other versions only.
                        () = installed(client.clone(), kind) => break pause.next(),
                    }
                }
                // The watch is resumed where it was.
                Some(Err(failure)) if watching && silent(&failure) => continue,
                Some(Err(failure)) => {
                    metrics.error(kind, classify(&failure));
                    if listed {
                        let expired = classify(&failure) == ApiError::Expired;
                        cause = if expired { ListCause::Expired } else { ListCause::Error };
                    }
                    // Discard an earlier notification.
                    let _ = granted.notified().now_or_never();
                    recovered = None;
                    let listening = told.state(Some(explain(&failure))).await;
                    if forgets(&failure) {
                        break pause.next();
                    }
                    sleep(pause.next()).await;
                    listening
                }
                None => break pause.next(),
            };
            if !listening {
                return;
            }
        };
        sleep(begin_anew).await;
    }
}

/// Reported state of a kind.
struct Told {
    kind: Kind,
    news: Sender<Vec<News>>,
    error: Option<String>,
    metrics: ApiMetrics,
}

impl Told {
    /// Reports the server's state, if it has changed. Returns false if the receiver is gone.
    async fn state(&mut self, error: Option<String>) -> bool {
        self.metrics.set_connected(self.kind, error.is_none());
        if self.error == error {
            return true;
        }
        match &error {
            Some(reason) => warn!(kind = self.kind.name(), "cannot watch objects of this kind, retrying: {reason}"),
            None => info!(kind = self.kind.name(), "the Kubernetes API is reachable again"),
        }
        self.error.clone_from(&error);
        self.metrics.given(1);
        self.news.send(vec![News::State(self.kind, error)]).await.is_ok()
    }

    /// Reports objects. Returns false if the receiver is gone.
    async fn all(&self, news: Vec<News>) -> bool {
        for one in &news {
            if let News::Mistake { complaint: Complaint { key: ObjectKey { kind, name }, reason, .. }, kept } = one {
                warn!(
                    object.kind = kind.name(),
                    object.namespace = name.namespace,
                    object.name = name.name,
                    "invalid object: {reason} ({})",
                    what_holds(*kept)
                );
            }
        }
        self.metrics.given(news.len());
        news.is_empty() || self.news.send(news).await.is_ok()
    }
}

/// A client that notifies when a request is accepted and when data arrives, and limits the rate of watches: a server
/// that ends each at once would otherwise be asked continuously.
fn telling(client: Client, granted: Arc<Notify>, kind: Kind, metrics: ApiMetrics) -> Client {
    let begun = Arc::new(Mutex::new(None::<Instant>));
    let service = service_fn(move |request: Request<Body>| {
        let (client, granted, begun) = (client.clone(), granted.clone(), begun.clone());
        let metrics = metrics.clone();
        async move {
            if request.uri().query().is_some_and(|query| query.contains("watch=")) {
                let mut begun = begun.lock().await;
                if let Some(last) = *begun {
                    sleep_until(last + CALM).await;
                }
                *begun = Some(Instant::now());
            }
            let response = client.send(request).await?;
            if response.status().is_success() {
                granted.notify_one();
            }
            // kube doesn't pass bookmarks on, but they are signs of life too.
            Ok::<_, kube::Error>(response.map(|body| {
                body.map_frame(move |frame| {
                    metrics.heard(kind);
                    frame
                })
            }))
        }
    });
    Client::new(service, "default")
}

/// The known objects of a kind, needed to find those deleted before a relist. A list is reported as a whole, so that
/// reading it doesn't wait for the event loop.
#[derive(Debug)]
struct Tracker {
    kind: Kind,
    /// Objects that have been reported.
    known: BTreeSet<ObjectName>,
    /// Those of them that have never been valid.
    never: BTreeSet<ObjectName>,
    /// Objects of the list being read.
    seen: BTreeSet<ObjectName>,
    /// Pending reports for the list being read.
    held: Vec<News>,
}

impl Tracker {
    fn new(kind: Kind) -> Self {
        Self { kind, known: BTreeSet::new(), never: BTreeSet::new(), seen: BTreeSet::new(), held: Vec::new() }
    }

    fn take(&mut self, event: Event<Sent>) -> Vec<News> {
        match event {
            Event::Init => {
                // An interrupted list is discarded: the new one repeats its objects or lacks them, and all that were
                // reported are known.
                self.held.clear();
                self.seen.clear();
                Vec::new()
            }
            Event::InitApply(sent) => {
                let news = self.apply(sent);
                if let News::Change(Change { key, .. }) | News::Mistake { complaint: Complaint { key, .. }, .. } = &news
                {
                    self.seen.insert(key.name.clone());
                }
                self.held.push(news);
                Vec::new()
            }
            Event::InitDone => {
                let gone: Vec<_> = self.known.difference(&self.seen).cloned().collect();
                let mut news = std::mem::take(&mut self.held);
                news.extend(gone.into_iter().map(|name| self.remove(name)));
                self.seen = BTreeSet::new();
                news.push(News::Listed(self.kind));
                news
            }
            Event::Apply(sent) => vec![self.apply(sent)],
            Event::Delete(sent) => vec![self.remove(sent.key(self.kind).name)],
        }
    }

    /// The server doesn't serve this kind, or it isn't wanted, so there are no objects.
    fn none(&mut self) -> Vec<News> {
        self.seen.clear();
        self.held.clear();
        self.take(Event::InitDone)
    }

    /// Whether no objects are known.
    fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn apply(&mut self, sent: Sent) -> News {
        let (trigger, uid) = (sent.trigger(), sent.uid());
        let (key, object) = sent.check(self.kind);
        // Invalid objects are recorded too, so that their deletion is reported.
        let new = self.known.insert(key.name.clone());
        match object {
            Ok(object) => {
                self.never.remove(&key.name);
                let mut change = Change::new(key, Some(object));
                change.origin.trigger = trigger;
                News::Change(change)
            }
            Err(reason) => {
                if new {
                    self.never.insert(key.name.clone());
                }
                let kept = !self.never.contains(&key.name);
                News::Mistake { complaint: Complaint { key, uid, reason }, kept }
            }
        }
    }

    fn remove(&mut self, name: ObjectName) -> News {
        self.known.remove(&name);
        self.never.remove(&name);
        News::Change(Change::new(ObjectKey { kind: self.kind, name }, None))
    }
}

#[cfg(test)]
mod tests {
    use kube::api::WatchParams;
    use kube::runtime::watcher::Error;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn node(name: &str, cidr: &str) -> Sent {
        let json = format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {{"podCIDRs": [{cidr}]}}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn told(news: Vec<News>) -> Vec<String> {
        let tell = |one: News| match one {
            News::Change(Change { key, object, .. }) => {
                format!("{}{}", if object.is_some() { "+" } else { "-" }, key.name)
            }
            News::Mistake { complaint, kept } => format!("!{}{}", complaint.key.name, if kept { " kept" } else { "" }),
            News::Listed(_) => "listed".into(),
            News::State(..) => "state".into(),
        };
        news.into_iter().map(tell).collect()
    }

    /// The error of a watch whose server is silent for a while, and then breaks it off.
    async fn end_of_watch(silence: Duration) -> Error {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = kube::Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        config.read_timeout = Some(Duration::from_millis(100));
        config.default_retry = false;
        let client = telling(Client::try_from(config).unwrap(), Arc::default(), Kind::Node, ApiMetrics::default());
        let answer = async {
            let mut stream = listener.accept().await.unwrap().0;
            assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0, "no request");
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
            sleep(silence).await;
            // Not a valid chunk size.
            stream.write_all(b"x\r\n").await.unwrap();
        };
        let api: Api<Sent> = Api::all_with(client, &Kind::Node);
        let watch = async { Box::pin(api.watch(&WatchParams::default(), "1").await.unwrap()).next().await };
        let (ended, ()) = tokio::join!(watch, answer);
        Error::WatchFailed(ended.unwrap().unwrap_err())
    }

    #[tokio::test]
    async fn a_silent_server_is_told_from_a_failing_one() {
        let error = end_of_watch(Duration::from_millis(300)).await;
        assert!(silent(&error), "{}", explain(&error));
        let error = end_of_watch(Duration::ZERO).await;
        assert!(!silent(&error), "{}", explain(&error));
    }

    #[test]
    fn a_relist_deletes_missing_objects() {
        let mut tracker = Tracker::new(Kind::Node);
        let good = r#""10.0.0.0/24""#;
        assert!(tracker.take(Event::Init).is_empty());
        assert!(tracker.take(Event::InitApply(node("a", good))).is_empty(), "the list is given as one");
        // The list is interrupted, and begins again.
        tracker.take(Event::Init);
        tracker.take(Event::InitApply(node("b", good)));
        tracker.take(Event::InitApply(node("c", "5")));
        assert_eq!(told(tracker.take(Event::InitDone)), ["+b", "!c", "-a", "listed"]);
        assert_eq!(told(tracker.take(Event::Apply(node("d", good)))), ["+d"]);
        assert_eq!(told(tracker.take(Event::Delete(node("b", good)))), ["-b"]);
        tracker.take(Event::Init);
        tracker.take(Event::InitApply(node("d", "6")));
        assert_eq!(told(tracker.take(Event::InitDone)), ["!d kept", "-c", "listed"], "what it was before holds");
        assert_eq!(told(tracker.none()), ["-d", "listed"]);
    }
}
