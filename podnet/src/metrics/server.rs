//! The listener at `metricsBindAddress`.

use std::{io, net::SocketAddr, sync::Arc};

use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::runtime::{Builder, Runtime};

use crate::http::{Answer, Answering, Places, Server};

/// Content type by which scrapers recognise the format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Maximum number of connections: from the node itself, and from elsewhere.
const OWN_CONNECTIONS: usize = 16;
const OTHER_CONNECTIONS: usize = 32;

/// Serves `/metrics` on a thread of its own.
#[derive(Debug)]
pub struct Listener {
    /// Taken on drop.
    runtime: Option<Runtime>,
    registry: Arc<Registry>,
    places: Places,
    server: Option<(SocketAddr, io::Result<Server>)>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Without waiting, which isn't allowed in asynchronous code.
            runtime.shutdown_background();
        }
    }
}

impl Listener {
    /// Starts serving, if there is an address. An unavailable address is a problem, not an error.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start(registry: Registry, address: Option<SocketAddr>) -> io::Result<Self> {
        let places = Places::new(OWN_CONNECTIONS, OTHER_CONNECTIONS);
        let mut listener = Self { runtime: None, registry: Arc::new(registry), places, server: None };
        if let Some(address) = address {
            let mut builder = Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).thread_name("metrics").enable_all().build()?;
            listener.server = Some((address, listener.serve(&runtime, address)));
            listener.runtime = Some(runtime);
        }
        Ok(listener)
    }

    fn serve(&self, runtime: &Runtime, address: SocketAddr) -> io::Result<Server> {
        let registry = self.registry.clone();
        let answering: Answering = Arc::new(move |path| answer(path, &registry));
        Server::start(runtime.handle(), address, &self.places, answering)
    }

    /// Retries after a failure.
    pub fn retry(&mut self) {
        if let (Some(runtime), Some((address, Err(_)))) = (&self.runtime, &self.server) {
            let address = *address;
            self.server = Some((address, self.serve(runtime, address)));
        }
    }

    /// Why nothing is served, as a sentence.
    pub fn problem(&self) -> Option<String> {
        let (address, server) = self.server.as_ref()?;
        let error = server.as_ref().err()?;
        Some(format!(
            "cannot serve metrics on {address}, retrying: {error}; free the port or change metricsBindAddress"
        ))
    }
}

/// The answer for a path.
fn answer(path: &str, registry: &Registry) -> Answer {
    let text = |status, body| Answer { status, content_type: "text/plain; charset=utf-8", body, header: None };
    if path != "/metrics" {
        return text(404, "only /metrics is served\n".into());
    }
    let mut body = String::new();
    match encode(&mut body, registry) {
        Ok(()) => Answer { status: 200, content_type: OPENMETRICS, body, header: None },
        Err(error) => text(500, format!("{error}\n")),
    }
}
