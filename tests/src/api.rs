//! A Kubernetes API server for tests: the lists and watches that the daemon uses, over HTTP, with faults on request.
//!
//! It keeps objects as JSON text with versions, and a log of changes like etcd, so that serving a large cluster is
//! cheap. A test changes objects through [`Api`] and controls the server's behaviour: it loses history (410),
//! disconnects, refuses, hangs up, sends undecodable events, and sends events twice.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use futures::StreamExt as _;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

/// Number of lines buffered for a slow client.
const LINES: usize = 64;

/// Behaviour of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Normal.
    #[default]
    Well,
    /// Answers every request with this HTTP status.
    Refusing(u16),
    /// Closes connections without a response.
    HangingUp,
}

/// Support of streaming lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// Supported.
    Served,
    /// Requests are rejected.
    Refused,
    /// Requests are accepted, and then fail, as with an etcd that is too old.
    Broken,
}

/// Features of the server.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Streaming lists (Kubernetes 1.32 and later).
    pub streaming_lists: Streaming,
    /// ServiceCIDRs (1.33 and later).
    pub service_cidrs: bool,
    /// Every event is sent twice, as after a restart of a proxy.
    pub stutter: bool,
    /// Clients may write Events.
    pub events: bool,
    /// Objects per page of a list, whatever the client requests.
    pub page: usize,
}

impl Default for Abilities {
    fn default() -> Self {
        // Small pages, so that lists have several.
        Self { streaming_lists: Streaming::Served, service_cidrs: true, stutter: false, events: true, page: 3 }
    }
}

/// The server. It stops when this is dropped.
#[derive(Debug)]
pub struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    addr: SocketAddr,
    _end: oneshot::Sender<()>,
}

#[derive(Debug)]
struct State {
    abilities: Abilities,
    mood: Mood,
    version: u64,
    /// Changes up to this version have been compacted.
    forgotten: u64,
    /// By resource, namespace and name.
    objects: BTreeMap<(String, String, String), Arc<Stored>>,
    /// Changes by resource, in the order of their versions.
    log: BTreeMap<String, Vec<Entry>>,
    /// Connections with a lower number are closed.
    connection: u64,
    /// Paths with queries, in the order of arrival.
    requests: Vec<String>,
    /// Writes of clients: method, path, body.
    writes: Vec<(String, String, Value)>,
    /// Number of next events that are sent without their object.
    garbled: usize,
    /// Objects applied together, by file name.
    files: BTreeMap<String, Vec<Value>>,
}

#[derive(Clone, Debug)]
struct Entry {
    version: u64,
    event: &'static str,
    object: Arc<Stored>,
}

/// An object as it is sent.
#[derive(Debug)]
struct Stored {
    /// apiVersion and kind as members of an object; elements of lists lack them.
    head: String,
    /// The rest of the object.
    body: String,
}

impl Stored {
    fn new(mut object: Value) -> Self {
        let mut head = String::new();
        for name in ["kind", "apiVersion"] {
            let member = object.as_object_mut().and_then(|members| members.remove(name));
            head.extend(member.map(|value| format!("\"{name}\":{value},")));
        }
        Self { head, body: object.to_string() }
    }

    fn value(&self) -> Value {
        serde_json::from_str(&format!("{{{}{}", self.head, &self.body[1..])).expect("it was JSON")
    }

    /// The line of a watch event. The type comes first, as in a real server.
    fn line(&self, event: &str) -> String {
        format!("{{\"type\":\"{event}\",\"object\":{{{}{}}}\n", self.head, &self.body[1..])
    }
}

impl Api {
    /// Starts the server on a listening socket.
    pub fn serve(listener: TcpListener, abilities: Abilities) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            abilities,
            mood: Mood::Well,
            version: 1,
            forgotten: 0,
            objects: BTreeMap::new(),
            log: BTreeMap::new(),
            connection: 0,
            requests: Vec::new(),
            writes: Vec::new(),
            garbled: 0,
            files: BTreeMap::new(),
        }));
        let (changed, _) = watch::channel(0);
        let (end, ended) = oneshot::channel::<()>();
        let server = Server { state: state.clone(), changed: changed.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("api".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = server.accept(listener) => {}
                    _ = ended => {}
                }
            });
        })?;
        Ok(Self { state, changed, addr, _end: end })
    }

    /// Address on which it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> String {
        let server = format!("http://{}", self.addr);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab"}}],
        })
        .to_string()
    }

    /// Creates or replaces an object.
    pub fn apply(&self, mut object: Value) {
        let mut state = self.lock();
        let key = key(&object);
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let object = Arc::new(Stored::new(object));
        let event = if state.objects.insert(key.clone(), object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        state.note(key.0, event, object);
        self.tell(&state);
    }

    /// Deletes an object, if it exists.
    pub fn delete(&self, object: &Value) {
        let mut state = self.lock();
        let key = key(object);
        if let Some(last) = state.objects.remove(&key) {
            state.version += 1;
            let mut last = last.value();
            last["metadata"]["resourceVersion"] = state.version.to_string().into();
            state.note(key.0, "DELETED", Arc::new(Stored::new(last)));
        }
        self.tell(&state);
    }

    /// Sets the objects of a file, in YAML; others that it had before are deleted.
    pub fn apply_file(&self, name: &str, yaml: &str) -> Result<()> {
        let documents = yaml.split("---\n").filter(|document| !document.trim().is_empty());
        let objects = documents.map(serde_saphyr::from_str).collect::<Result<Vec<Value>, _>>()?;
        let before = self.lock().files.insert(name.to_owned(), objects.clone()).unwrap_or_default();
        let kept: Vec<_> = objects.iter().map(key).collect();
        objects.into_iter().for_each(|object| self.apply(object));
        before.iter().filter(|object| !kept.contains(&key(object))).for_each(|object| self.delete(object));
        Ok(())
    }

    /// Deletes the objects of a file.
    pub fn withdraw_file(&self, name: &str) {
        let objects = self.lock().files.remove(name).unwrap_or_default();
        objects.iter().for_each(|object| self.delete(object));
    }

    /// Names of all files.
    pub fn files(&self) -> Vec<String> {
        self.lock().files.keys().cloned().collect()
    }

    /// Sends a bookmark to all watches.
    pub fn bookmark(&self) {
        let mut state = self.lock();
        state.version += 1;
        for resource in ["services", "endpointslices", "nodes", "servicecidrs"] {
            let version = state.version.to_string();
            let object = json!({"apiVersion": "v1", "kind": "x", "metadata": {"resourceVersion": version}});
            state.note(resource.into(), "BOOKMARK", Arc::new(Stored::new(object)));
        }
        self.tell(&state);
    }

    /// Compacts all changes so far; requests for them get 410.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.forgotten = state.version;
        state.log.clear();
    }

    /// Sends the next event without its object.
    pub fn garble(&self) {
        self.lock().garbled += 1;
    }

    /// Closes all watches.
    pub fn disconnect(&self) {
        let mut state = self.lock();
        state.connection += 1;
        self.tell(&state);
    }

    /// Sets the behaviour, and closes existing watches.
    pub fn set_mood(&self, mood: Mood) {
        let mut state = self.lock();
        state.mood = mood;
        state.connection += 1;
        self.tell(&state);
    }

    /// Sets the features.
    pub fn set_abilities(&self, abilities: Abilities) {
        self.lock().abilities = abilities;
    }

    /// Requests since the last call: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().requests)
    }

    /// Writes of clients since the last call: method, path, body.
    pub fn writes(&self) -> Vec<(String, String, Value)> {
        std::mem::take(&mut self.lock().writes)
    }

    /// All current objects.
    pub fn objects(&self) -> Vec<Value> {
        self.lock().objects.values().map(|object| object.value()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: &State) {
        self.changed.send_replace(state.version);
    }
}

impl State {
    fn note(&mut self, resource: String, event: &'static str, object: Arc<Stored>) {
        let version = self.version;
        self.log.entry(resource).or_default().push(Entry { version, event, object });
    }

    fn list(&self, resource: &str) -> Vec<Arc<Stored>> {
        self.objects.iter().filter(|((of, ..), _)| of == resource).map(|(_, object)| object.clone()).collect()
    }

    /// Changes since a version.
    fn since(&self, resource: &str, version: u64) -> Vec<Entry> {
        let log = self.log.get(resource).map(Vec::as_slice).unwrap_or_default();
        log[log.partition_point(|entry| entry.version <= version)..].to_vec()
    }
}

/// Resource, namespace and name of an object.
fn key(object: &Value) -> (String, String, String) {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (format!("{kind}s"), text("namespace"), text("name"))
}

type Body = BoxBody<Bytes, Broken>;

/// The connection was closed by the server.
#[derive(Debug, thiserror::Error)]
#[error("broken off")]
struct Broken;

#[derive(Clone)]
struct Server {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

impl Server {
    async fn accept(self, listener: TcpListener) {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        while let Ok((stream, _)) = listener.accept().await {
            let server = self.clone();
            tokio::spawn(async move {
                if server.mood() == Mood::HangingUp {
                    return;
                }
                let service = service_fn(|request| server.answer(request));
                // A client that disconnects is no error of the server.
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mood(&self) -> Mood {
        self.lock().mood
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let query = request.uri().query().unwrap_or_default().to_owned();
        self.lock().requests.push(format!("{method} {path}?{query}"));
        match self.mood() {
            Mood::Well => {}
            Mood::Refusing(code) => return Ok(refusal(code, "the server was told to refuse")),
            Mood::HangingUp => return Err(Broken),
        }
        if method != Method::GET {
            let body = request.into_body().collect().await.map_err(|_| Broken)?.to_bytes();
            let value: Value = serde_json::from_slice(&body).unwrap_or_default();
            let event = path.ends_with("/events");
            if event && !self.lock().abilities.events {
                return Ok(refusal(403, "events.events.k8s.io is forbidden"));
            }
            self.lock().writes.push((method.to_string(), path, value.clone()));
            if event {
                return Ok(whole(201, value.to_string()));
            }
            return Ok(whole(200, json!({"kind": "Node", "apiVersion": "v1", "metadata": {}}).to_string()));
        }
        let resource = path.rsplit('/').next().unwrap_or_default().to_owned();
        let abilities = self.lock().abilities;
        if resource == "servicecidrs" && !abilities.service_cidrs {
            return Ok(refusal(404, "the server could not find the requested resource"));
        }
        let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        if query.get("watch") != Some(&"true") {
            return Ok(self.list(&resource, query.get("continue").copied()));
        }
        let streamed = query.get("sendInitialEvents") == Some(&"true");
        if streamed && abilities.streaming_lists == Streaming::Refused {
            return Ok(refusal(422, "sendInitialEvents: Forbidden"));
        }
        let since = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        Ok(self.watch(resource, if streamed { None } else { Some(since) }))
    }

    /// A page of a list.
    fn list(&self, resource: &str, from: Option<&str>) -> Response<Body> {
        let state = self.lock();
        let items = state.list(resource);
        let page = state.abilities.page;
        let from = from.and_then(|from| from.parse().ok()).unwrap_or(0_usize).min(items.len());
        let more = items.len() > from + page;
        let mut metadata = json!({"resourceVersion": state.version.to_string()});
        if more {
            metadata["continue"] = (from + page).to_string().into();
        }
        // As in a real server, the elements do not repeat the type.
        let items: Vec<_> = items.iter().skip(from).take(page).map(|item| item.body.as_str()).collect();
        let items = items.join(",");
        whole(200, format!(r#"{{"kind":"List","apiVersion":"v1","metadata":{metadata},"items":[{items}]}}"#))
    }

    /// Changes since a version or, without one, all objects followed by changes.
    fn watch(&self, resource: String, since: Option<u64>) -> Response<Body> {
        let (lines, mut receiver) = mpsc::channel::<String>(LINES);
        let server = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = server.send(&resource, since, &lines) => {}
                () = server.broken_off() => {}
            }
        });
        let stream = futures::stream::poll_fn(move |context| receiver.poll_recv(context))
            .map(|line: String| Ok(Frame::data(Bytes::from(line))));
        Response::new(BodyExt::boxed(StreamBody::new(stream)))
    }

    async fn send(
        &self,
        resource: &str,
        since: Option<u64>,
        lines: &mpsc::Sender<String>,
    ) -> Result<(), mpsc::error::SendError<String>> {
        let mut changed = self.changed.subscribe();
        let line = |event: &str, object: Value| Stored::new(object).line(event);
        if since.is_none() && self.lock().abilities.streaming_lists == Streaming::Broken {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "the required storage feature is disabled", "reason": "InternalError", "code": 500});
            return lines.send(line("ERROR", status)).await;
        }
        let mut at = match since {
            Some(version) => version,
            None => {
                let (objects, version) = {
                    let state = self.lock();
                    (state.list(resource), state.version)
                };
                for object in &objects {
                    lines.send(object.line("ADDED")).await?;
                }
                let ended = json!({"k8s.io/initial-events-end": "true"});
                let metadata = json!({"resourceVersion": version.to_string(), "annotations": ended});
                lines.send(line("BOOKMARK", json!({"apiVersion": "v1", "kind": "x", "metadata": metadata}))).await?;
                version
            }
        };
        loop {
            let (news, forgotten, stutter) = {
                let state = self.lock();
                (state.since(resource, at), state.forgotten, state.abilities.stutter)
            };
            if at < forgotten {
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "too old resource version", "reason": "Expired", "code": 410});
                return lines.send(line("ERROR", status)).await;
            }
            for Entry { version, event, object } in news {
                at = version;
                if self.garbles() {
                    lines.send(line(event, json!({"metadata": {"labels": 7}}))).await?;
                    continue;
                }
                for _ in 0..if stutter { 2 } else { 1 } {
                    lines.send(object.line(event)).await?;
                }
            }
            if changed.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Whether this event is to be sent without its object.
    fn garbles(&self) -> bool {
        let mut state = self.lock();
        let garbles = state.garbled > 0;
        state.garbled -= usize::from(garbles);
        garbles
    }

    /// Waits until current connections are to be closed.
    async fn broken_off(&self) {
        let mut changed = self.changed.subscribe();
        let now = self.lock().connection;
        while self.lock().connection == now {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

fn whole(status: u16, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {});
    let mut response = Response::new(BodyExt::boxed(body));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    response
}

fn refusal(code: u16, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": "Refused", "code": code});
    whole(code, status.to_string())
}
