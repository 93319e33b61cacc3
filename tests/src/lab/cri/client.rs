//! Calls of the runtime service, over its socket.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use hyper::http::uri::PathAndQuery;
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::lab::PATIENCE;

/// A client that threads may share. It connects on first use, and reconnects after a restart of the runtime.
#[derive(Debug)]
pub(super) struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let _inside = runtime.enter();
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect_lazy();
        Ok(Self { runtime, channel })
    }

    /// Calls a method of `runtime.v1.RuntimeService`.
    ///
    /// # Errors
    /// The runtime's error message, a connection error, or a timeout after [`PATIENCE`].
    pub(super) fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))?;
        let call = async {
            let mut service = Grpc::new(self.channel.clone());
            service.ready().await?;
            let answer = service.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await;
            answer.map_err(|status| anyhow!("{} ({:?})", status.message(), status.code()))
        };
        let answer = self.runtime.block_on(async { timeout(PATIENCE, call).await });
        let answer = answer.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
        answer.map(tonic::Response::into_inner).with_context(|| format!("{method} failed"))
    }
}
