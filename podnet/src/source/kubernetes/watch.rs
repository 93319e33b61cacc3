//! One task for each kind: list, watch, and begin again when the server has forgotten where we were.

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
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tower::service_fn;
use tracing::{debug, info, warn};

use super::failure::{classify, explain, forgets, has_code, lacks_streaming, silent};
use super::object::Sent;
use super::pause::Pause;
use crate::metrics::api::{ApiError, ApiMetrics, ListCause};
use crate::model::{Change, Complaint, Kind, ObjectKey, ObjectName};
use crate::source::what_holds;

/// After so long without another failure a server answers again; and the least time between two watches of a kind.
const CALM: Duration = Duration::from_secs(1);
/// How often a server is asked for a kind that it doesn't have.
const RARELY: Duration = Duration::from_secs(600);

/// What a task has to tell.
#[derive(Debug)]
pub(super) enum News {
    /// An object is new or different, or gone.
    Change(Change),
    /// An object is such that it can't be used.
    Mistake {
        /// What there is to say of it.
        complaint: Complaint,
        /// Whether what it was before holds; else it has never been such that it could be used.
        kept: bool,
    },
    /// All objects of the kind have been read.
    Listed(Kind),
    /// The server can't be asked for the kind, or can again.
    State(Kind, Option<String>),
}

/// Watches all kinds, until nobody listens.
pub(super) async fn all(client: Client, news: Sender<Vec<News>>, metrics: ApiMetrics) {
    let mut tasks = JoinSet::new();
    for kind in Kind::ALL {
        tasks.spawn(watch(client.clone(), kind, news.clone(), metrics.clone()));
    }
    tasks.join_all().await;
}

/// Watches a kind, until nobody listens.
async fn watch(client: Client, kind: Kind, news: Sender<Vec<News>>, metrics: ApiMetrics) {
    let mut told = Told { kind, news, error: None, metrics: metrics.clone() };
    let mut tracker = Tracker::new(kind);
    let mut pause = Pause::default();
    let granted = Arc::new(Notify::new());
    let api: Api<Sent> = Api::all_with(telling(client, granted.clone(), kind, metrics.clone()), &kind);
    // Streaming lists (KEP-3157) spare the server and us a copy of everything; a server without them says so.
    let mut streaming = true;
    let mut listed = false;
    let mut cause = ListCause::Start;
    // Each watcher begins with a list.
    loop {
        let config = watcher::Config::default();
        let config = if streaming { config.streaming_lists() } else { config };
        let mut events = pin!(watcher(api.clone(), config));
        // When an error is over, if nothing else comes: of objects that don't change there is nothing to say.
        let mut recovered: Option<Instant> = None;
        // Whether this one has got to the end of its list.
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
                        // Unless something else is said meanwhile, the next one follows from an error.
                        Event::InitDone => metrics.list(kind, std::mem::replace(&mut cause, ListCause::Error)),
                        Event::Init | Event::InitApply(_) => {}
                    }
                    // An attempt alone says nothing of the server.
                    let heard = !matches!(event, Event::Init);
                    told.all(tracker.take(event)).await && (!heard || told.state(None).await)
                }
                Some(Err(failure)) if streaming && lacks_streaming(&failure, listed) => {
                    debug!(kind = kind.name(), "the server has no streaming lists");
                    streaming = false;
                    break Duration::ZERO;
                }
                Some(Err(failure)) if kind == Kind::ServiceCidr && !listed && has_code(&failure, 404) => {
                    cause = ListCause::Error;
                    if !told.all(tracker.none()).await || !told.state(None).await {
                        return;
                    }
                    break RARELY;
                }
                // The watch goes on from where it was.
                Some(Err(failure)) if watching && silent(&failure) => continue,
                Some(Err(failure)) => {
                    metrics.error(kind, classify(&failure));
                    if listed {
                        let expired = classify(&failure) == ApiError::Expired;
                        cause = if expired { ListCause::Expired } else { ListCause::Error };
                    }
                    // What was granted before.
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

/// What has been told of a kind.
struct Told {
    kind: Kind,
    news: Sender<Vec<News>>,
    error: Option<String>,
    metrics: ApiMetrics,
}

impl Told {
    /// Tells how the server answers, if that differs. Says whether anybody listens.
    async fn state(&mut self, error: Option<String>) -> bool {
        self.metrics.set_connected(self.kind, error.is_none());
        if self.error == error {
            return true;
        }
        match &error {
            Some(reason) => warn!(kind = self.kind.name(), "{reason}"),
            None => info!(kind = self.kind.name(), "the Kubernetes API is reachable again"),
        }
        self.error.clone_from(&error);
        self.metrics.given(1);
        self.news.send(vec![News::State(self.kind, error)]).await.is_ok()
    }

    /// Tells of objects. Says whether anybody listens.
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

/// A client that tells when a request has been granted and when something comes, and begins no two watches within a
/// moment: a server that ends each at once would be asked without end.
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
            // Bookmarks, which kube keeps to itself, are signs of life too.
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

/// What is known of a kind's objects: what is needed to say which are gone when a list begins anew. A list is given as
/// one, so that it is read also while the event loop has no time for it yet.
#[derive(Debug)]
struct Tracker {
    kind: Kind,
    /// Objects that have been given.
    known: BTreeSet<ObjectName>,
    /// Those of them that could never be used.
    never: BTreeSet<ObjectName>,
    /// Objects of the list that is being read.
    seen: BTreeSet<ObjectName>,
    /// What there is to say of them.
    held: Vec<News>,
}

impl Tracker {
    fn new(kind: Kind) -> Self {
        Self { kind, known: BTreeSet::new(), never: BTreeSet::new(), seen: BTreeSet::new(), held: Vec::new() }
    }

    fn take(&mut self, event: Event<Sent>) -> Vec<News> {
        match event {
            Event::Init => {
                // What an earlier one had, the new one has too, or doesn't, which is then told: all of it is known.
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

    /// The server serves no such kind, so there are no such objects.
    fn none(&mut self) -> Vec<News> {
        self.seen.clear();
        self.take(Event::InitDone)
    }

    fn apply(&mut self, sent: Sent) -> News {
        let (trigger, uid) = (sent.trigger(), sent.uid());
        let (key, object) = sent.check(self.kind);
        // Also one that can't be used is gone some day, which is then to be told.
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

    /// How a watch ends of a server that says nothing for a while, and then, if it is told to, breaks off.
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
            // No chunk is that long.
            stream.write_all(b"x\r\n").await.unwrap();
        };
        let api: Api<Sent> = Api::all_with(client, &Kind::Node);
        let watch = async { Box::pin(api.watch(&WatchParams::default(), "1").await.unwrap()).next().await };
        let (ended, ()) = tokio::join!(watch, answer);
        Error::WatchFailed(ended.unwrap().unwrap_err())
    }

    #[tokio::test]
    async fn a_server_may_have_nothing_to_say() {
        let error = end_of_watch(Duration::from_millis(300)).await;
        assert!(silent(&error), "{}", explain(&error));
        let error = end_of_watch(Duration::ZERO).await;
        assert!(!silent(&error), "{}", explain(&error));
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone() {
        let mut tracker = Tracker::new(Kind::Node);
        let good = r#""10.0.0.0/24""#;
        assert!(tracker.take(Event::Init).is_empty());
        assert!(tracker.take(Event::InitApply(node("a", good))).is_empty(), "the list is given as one");
        // The list was broken off, and begins anew.
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
