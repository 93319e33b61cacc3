//! One task for each kind: list, watch, and begin again when the server has forgotten where we were.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Error, Event, watcher};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tower::service_fn;
use tracing::{debug, info, warn};

use super::object::Sent;
use crate::model::{Kind, ObjectKey, ObjectName};
use crate::source::Change;

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
    let mut tracker = Tracker::new(kind);
    let mut error: Option<String> = None;
    let answered = Arc::new(Notify::new());
    let api: Api<Sent> = Api::all_with(telling(client, answered.clone()), &kind);
    // Streaming lists (KEP-3157) spare the server and us a copy of everything; a server without them says so.
    let mut config = watcher::Config::default().streaming_lists();
    let mut listed = false;
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()).default_backoff());
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                // Of an object that doesn't change the server may have nothing else to say for a long time.
                () = answered.notified(), if error.is_some() => {
                    info!(kind = kind.name(), "the Kubernetes API answers again");
                    error = None;
                    if news.send(News::State(kind, None)).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let told = match event {
                Some(Ok(event)) => {
                    listed |= matches!(event, Event::InitDone);
                    tracker.take(event)
                }
                Some(Err(failure)) if lacks_streaming(&failure) && !listed && config != watcher::Config::default() => {
                    debug!(kind = kind.name(), "the server has no streaming lists");
                    config = watcher::Config::default();
                    break;
                }
                Some(Err(failure)) if not_served(&failure) && kind == Kind::ServiceCidr => tracker.none(),
                // The watch begins anew by itself.
                Some(Err(Error::WatchError(status))) if status.code == 410 => {
                    debug!(kind = kind.name(), "the server has forgotten where the watch was");
                    continue;
                }
                Some(Err(failure)) => {
                    // What it has answered before.
                    let _ = answered.notified().now_or_never();
                    let reason = explain(&failure);
                    if error.as_ref() == Some(&reason) {
                        continue;
                    }
                    warn!(kind = kind.name(), "{reason}");
                    error = Some(reason.clone());
                    vec![News::State(kind, Some(reason))]
                }
                None => break,
            };
            for one in told {
                if let News::Mistake(key, reason) = &one {
                    warn!("{key} can't be used, what it was before stays: {reason}");
                }
                if news.send(one).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A client that tells when a request has been granted.
fn telling(client: Client, granted: Arc<Notify>) -> Client {
    let service = service_fn(move |request| {
        let (client, granted) = (client.clone(), granted.clone());
        async move {
            let response = client.send(request).await?;
            if response.status().is_success() {
                granted.notify_one();
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, "default")
}

/// Whether the server doesn't know how to send a list as a stream.
fn lacks_streaming(error: &Error) -> bool {
    match error {
        Error::WatchStartFailed(kube::Error::Api(status)) => matches!(status.code, 400 | 422),
        // With an etcd before 3.4.25 or 3.5.8 the server notices only when it has begun.
        Error::WatchError(status) => status.code != 410,
        _ => false,
    }
}

/// Whether the server doesn't serve the kind.
fn not_served(error: &Error) -> bool {
    use Error::{InitialListFailed, WatchStartFailed};
    matches!(error, WatchStartFailed(kube::Error::Api(status)) | InitialListFailed(kube::Error::Api(status))
        if status.code == 404)
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
    let code = match error {
        Error::InitialListFailed(kube::Error::Api(status)) | Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code
        }
        _ => 0,
    };
    match code {
        401 => format!("{text}; the service account's token isn't accepted"),
        403 => format!("{text}; apply the ClusterRole of deploy/podnet.yaml"),
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
        match sent.check(self.kind) {
            (key, Ok(object)) => {
                // Also one that can't be used is gone some day, which is then to be told.
                self.known.insert(key.name.clone());
                News::Change(Change { key, object: Some(object) })
            }
            (key, Err(reason)) => {
                self.known.insert(key.name.clone());
                News::Mistake(key, reason)
            }
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
