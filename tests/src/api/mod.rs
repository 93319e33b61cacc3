//! A Kubernetes API server for tests: the lists and watches that the daemon uses, over HTTP, with faults on request.
//!
//! It keeps objects as JSON text with versions, and a log of changes like etcd, so that serving a large cluster is
//! cheap. A test changes objects through [`Api`] and controls the server's behaviour: it loses history (410),
//! disconnects, refuses, hangs up, sends undecodable events, and sends events twice.

mod server;
mod state;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use server::Server;
pub use state::{Abilities, Mood, Streaming};
use state::{State, Stored, key};

/// The server. It stops when this is dropped.
#[derive(Debug)]
pub struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    addr: SocketAddr,
    _end: oneshot::Sender<()>,
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
        let api = Self { state, changed, addr, _end: end };
        if abilities.cluster_policies {
            api.apply(definition());
        }
        Ok(api)
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
        for resource in [
            "services",
            "endpointslices",
            "nodes",
            "servicecidrs",
            "networkpolicies",
            "clusternetworkpolicies",
            "namespaces",
            "pods",
        ] {
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

    /// Lets clients read network policies.
    pub fn grant_policies(&self) {
        self.lock().abilities.policies = true;
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

    /// Installs the definition of ClusterNetworkPolicy.
    pub fn define_cluster_policies(&self) {
        self.lock().abilities.cluster_policies = true;
        self.apply(definition());
    }

    /// Removes the definition of ClusterNetworkPolicy, and with it all objects of the kind.
    pub fn remove_cluster_policies(&self) {
        for object in self.objects().iter().filter(|object| object["kind"] == "ClusterNetworkPolicy") {
            self.delete(object);
        }
        self.delete(&definition());
        self.lock().abilities.cluster_policies = false;
        self.disconnect();
    }

    /// Requests since the last call: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().requests)
    }

    /// Writes of clients since the last call: method, path, body.
    pub fn writes(&self) -> Vec<(String, String, Value)> {
        std::mem::take(&mut self.lock().writes)
    }

    /// All current objects, and the definition of ClusterNetworkPolicy.
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

/// The definition of ClusterNetworkPolicy.
fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "clusternetworkpolicies.policy.networking.k8s.io"}})
}
