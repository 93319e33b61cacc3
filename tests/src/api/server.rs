//! The server: answers to requests, and watches.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::state::{Entry, Fields, Mood, State, Stored, Streaming};

/// Number of lines buffered for a slow client.
const LINES: usize = 64;

type Body = BoxBody<Bytes, Broken>;

/// The connection was closed by the server.
#[derive(Debug, thiserror::Error)]
#[error("broken off")]
struct Broken;

#[derive(Clone)]
pub(super) struct Server {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) changed: watch::Sender<u64>,
}

impl Server {
    pub(super) async fn accept(self, listener: TcpListener) {
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
        match resource.as_str() {
            "networkpolicies" | "clusternetworkpolicies" if !abilities.policies => {
                return Ok(refusal(403, &format!("{resource} is forbidden")));
            }
            "servicecidrs" if abilities.service_cidrs => {}
            "clusternetworkpolicies" if abilities.cluster_policies => {}
            "servicecidrs" | "clusternetworkpolicies" => {
                return Ok(whole(404, "404 page not found\n".into()));
            }
            _ => {}
        }
        let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let Some(fields) = Fields::parse(query.get("fieldSelector").copied().unwrap_or_default()) else {
            return Ok(refusal(400, "field label not supported"));
        };
        if query.get("watch") != Some(&"true") {
            return Ok(self.list(&resource, &fields, query.get("continue").copied()));
        }
        let streamed = query.get("sendInitialEvents") == Some(&"true");
        if streamed && abilities.streaming_lists == Streaming::Refused {
            return Ok(refusal(422, "sendInitialEvents: Forbidden"));
        }
        let since = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let (forgotten, connection) = {
            let state = self.lock();
            (state.forgotten, state.connection)
        };
        // Some servers notice before they answer, others within the watch.
        if !streamed && since < forgotten && connection % 2 == 1 {
            return Ok(refusal(410, "too old resource version"));
        }
        Ok(self.watch(resource, fields, if streamed { None } else { Some(since) }))
    }

    /// A page of a list.
    fn list(&self, resource: &str, fields: &Fields, from: Option<&str>) -> Response<Body> {
        let state = self.lock();
        let items = state.list(resource, fields);
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
    fn watch(&self, resource: String, fields: Fields, since: Option<u64>) -> Response<Body> {
        let (lines, mut receiver) = mpsc::channel::<String>(LINES);
        let server = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = server.send(&resource, &fields, since, &lines) => {}
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
        fields: &Fields,
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
                    (state.list(resource, fields), state.version)
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
                (state.since(resource, fields, at), state.forgotten, state.abilities.stutter)
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
