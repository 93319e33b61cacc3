//! One task for each kind: list, watch, and begin again when the server has forgotten where we were.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use hyper::Request;
use kube::client::Body;
use kube::runtime::watcher::{self, Error, Event, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc::Sender;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tower::service_fn;
use tracing::{debug, info, warn};

use super::object::Sent;
use crate::model::{Kind, ObjectKey, ObjectName};
use crate::source::Change;

/// After so long without another failure a server answers again; and the least time between two watches of a kind.
const CALM: Duration = Duration::from_secs(1);
/// How often a server is asked for a kind that it doesn't have.
const RARELY: Duration = Duration::from_secs(600);

/// What a task has to tell.
#[derive(Debug)]
pub(super) enum News {
    /// An object is new or different, or gone.
    Change(Change),
    /// An object is such that it can't be used; what it was before holds.
    Mistake(ObjectKey, String),
    /// All objects of the kind have been read.
    Listed(Kind),
    /// The server can't be asked for the kind, or can again.
    State(Kind, Option<String>),
}

/// Watches all kinds, until nobody listens.
pub(super) async fn all(client: Client, news: Sender<News>) {
    let mut tasks = JoinSet::new();
    for kind in Kind::ALL {
        tasks.spawn(watch(client.clone(), kind, news.clone()));
    }
    tasks.join_all().await;
}

/// Watches a kind, until nobody listens.
async fn watch(client: Client, kind: Kind, news: Sender<News>) {
    let mut told = Told { kind, news, error: None };
    let mut tracker = Tracker::new(kind);
    let mut pause = Pause::default();
    let granted = Arc::new(Notify::new());
    let api: Api<Sent> = Api::all_with(telling(client, granted.clone()), &kind);
    // Streaming lists (KEP-3157) spare the server and us a copy of everything; a server without them says so.
    let mut streaming = true;
    let mut listed = false;
    // Each watcher begins with a list.
    loop {
        let config = watcher::Config::default();
        let config = if streaming { config.streaming_lists() } else { config };
        let mut events = pin!(watcher(api.clone(), config));
        // When an error is over, if nothing else comes: of objects that don't change there is nothing to say.
        let mut recovered: Option<Instant> = None;
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
                    listed |= matches!(event, Event::InitDone);
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
                    if !told.all(tracker.none()).await || !told.state(None).await {
                        return;
                    }
                    break RARELY;
                }
                Some(Err(failure)) => {
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
    news: Sender<News>,
    error: Option<String>,
}

impl Told {
    /// Tells how the server answers, if that differs. Says whether anybody listens.
    async fn state(&mut self, error: Option<String>) -> bool {
        if self.error == error {
            return true;
        }
        match &error {
            Some(reason) => warn!(kind = self.kind.name(), "{reason}"),
            None => info!(kind = self.kind.name(), "the Kubernetes API answers again"),
        }
        self.error.clone_from(&error);
        self.news.send(News::State(self.kind, error)).await.is_ok()
    }

    /// Tells of objects. Says whether anybody listens.
    async fn all(&self, news: Vec<News>) -> bool {
        for one in news {
            if let News::Mistake(key, reason) = &one {
                warn!("{key} can't be used, what it was before stays: {reason}");
            }
            if self.news.send(one).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// How long to wait after a failure: longer after each, and not all nodes alike.
#[derive(Debug, Default)]
struct Pause {
    /// When the last one ended, and how long it was.
    last: Option<(Instant, Duration)>,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(400);
    const LONGEST: Duration = Duration::from_secs(30);
    /// Without a failure for so long, the next one is the first again.
    const FORGOTTEN: Duration = Duration::from_secs(120);

    fn next(&mut self) -> Duration {
        let now = Instant::now();
        let longer = |(ended, length): (Instant, Duration)| {
            let recent = now.saturating_duration_since(ended) < Self::FORGOTTEN;
            recent.then(|| (length * 2).min(Self::LONGEST))
        };
        let length = self.last.and_then(longer).unwrap_or(Self::FIRST);
        self.last = Some((now + length, length));
        // From a half to all of it; the state is seeded at random.
        let random = RandomState::new().hash_one(0) % 1000;
        length.mul_f64(0.5 + random as f64 / 2000.0)
    }
}

/// A client that tells when a request has been granted, and begins no two watches within a moment: a server that ends
/// each at once would be asked without end.
fn telling(client: Client, granted: Arc<Notify>) -> Client {
    let begun = Arc::new(Mutex::new(None::<Instant>));
    let service = service_fn(move |request: Request<Body>| {
        let (client, granted, begun) = (client.clone(), granted.clone(), begun.clone());
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
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, "default")
}

/// The server's answer to a request that it refused.
fn has_code(error: &Error, code: u16) -> bool {
    use Error::{InitialListFailed, WatchStartFailed};
    matches!(error, WatchStartFailed(kube::Error::Api(status)) | InitialListFailed(kube::Error::Api(status))
        if status.code == code)
}

/// Whether the server doesn't know how to send a list as a stream.
fn lacks_streaming(error: &Error, listed: bool) -> bool {
    let refused = matches!(error, Error::WatchStartFailed(_)) && (has_code(error, 422) || has_code(error, 400));
    // With an etcd before 3.4.25 or 3.5.8 it notices only when it has begun.
    refused || (!listed && matches!(error, Error::WatchError(status) if status.code != 410))
}

/// Whether what has changed can be found by a new list only: something came that nobody understands, or the server doesn't
/// know any more where the watch was and kube goes on asking. A 410 within a watch it sees to by itself.
fn forgets(error: &Error) -> bool {
    match error {
        Error::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_)) => true,
        Error::WatchError(status) => status.code != 410,
        Error::WatchStartFailed(_) => has_code(error, 410),
        _ => false,
    }
}

/// An error with its causes, and what to do about the commonest.
fn explain(error: &Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let part = error.to_string();
        // Many errors repeat their cause.
        if text.is_empty() {
            text = part;
        } else if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    let code = [401, 403].into_iter().find(|code| has_code(error, *code));
    match code {
        Some(401) => format!("{text}; the credentials aren't accepted"),
        Some(403) => format!("{text}; apply the ClusterRole of deploy/podnet.yaml"),
        _ => text,
    }
}

/// What is known of a kind's objects: what is needed to say which are gone when a list begins anew.
#[derive(Debug)]
struct Tracker {
    kind: Kind,
    /// Objects that have been given.
    known: BTreeSet<ObjectName>,
    /// Objects of the list that is being read.
    seen: BTreeSet<ObjectName>,
}

impl Tracker {
    fn new(kind: Kind) -> Self {
        Self { kind, known: BTreeSet::new(), seen: BTreeSet::new() }
    }

    fn take(&mut self, event: Event<Sent>) -> Vec<News> {
        match event {
            Event::Init => {
                self.seen.clear();
                Vec::new()
            }
            Event::InitApply(sent) => {
                self.seen.insert(sent.key(self.kind).name);
                vec![self.apply(sent)]
            }
            Event::InitDone => {
                let gone: Vec<_> = self.known.difference(&self.seen).cloned().collect();
                let mut news: Vec<_> = gone.into_iter().map(|name| self.remove(name)).collect();
                self.seen.clear();
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
        let (key, object) = sent.check(self.kind);
        // Also one that can't be used is gone some day, which is then to be told.
        self.known.insert(key.name.clone());
        match object {
            Ok(object) => News::Change(Change { key, object: Some(object) }),
            Err(reason) => News::Mistake(key, reason),
        }
    }

    fn remove(&mut self, name: ObjectName) -> News {
        self.known.remove(&name);
        News::Change(Change { key: ObjectKey { kind: self.kind, name }, object: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cidr: &str) -> Sent {
        let json = format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {{"podCIDRs": ["{cidr}"]}}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn told(news: Vec<News>) -> Vec<String> {
        let tell = |one: News| match one {
            News::Change(Change { key, object }) => {
                format!("{}{}", if object.is_some() { "+" } else { "-" }, key.name)
            }
            News::Mistake(key, _) => format!("!{}", key.name),
            News::Listed(_) => "listed".into(),
            News::State(..) => "state".into(),
        };
        news.into_iter().map(tell).collect()
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone() {
        let mut tracker = Tracker::new(Kind::Node);
        let good = "10.0.0.0/24";
        assert!(tracker.take(Event::Init).is_empty());
        assert_eq!(told(tracker.take(Event::InitApply(node("a", good)))), ["+a"]);
        // The list was broken off, and begins anew.
        tracker.take(Event::Init);
        assert_eq!(told(tracker.take(Event::InitApply(node("b", good)))), ["+b"]);
        assert_eq!(told(tracker.take(Event::InitApply(node("c", "x")))), ["!c"]);
        assert_eq!(told(tracker.take(Event::InitDone)), ["-a", "listed"]);
        assert_eq!(told(tracker.take(Event::Apply(node("d", good)))), ["+d"]);
        assert_eq!(told(tracker.take(Event::Delete(node("b", good)))), ["-b"]);
        tracker.take(Event::Init);
        assert_eq!(told(tracker.take(Event::InitApply(node("d", "y")))), ["!d"], "what it was before holds");
        assert_eq!(told(tracker.take(Event::InitDone)), ["-c", "listed"]);
        assert_eq!(told(tracker.none()), ["-d", "listed"]);
    }
}
