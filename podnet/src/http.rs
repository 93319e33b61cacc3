//! A small HTTP server, for health and metrics: one answer a connection, few connections, little time for each. Slow or
//! silent clients can't keep others out for long.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::AsRawFd as _,
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
    },
};
use tokio::{
    runtime::Handle,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

/// How many connections a server has at once. Others wait in the kernel's queue.
const CONNECTIONS: usize = 128;
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a request may be long, in bytes: the least that hyper takes.
const REQUEST_MAX: usize = 8192;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// What the body is.
    pub(crate) content_type: &'static str,
    /// The body.
    pub(crate) body: String,
    /// Another header.
    pub(crate) header: Option<(&'static str, usize)>,
}

/// Answers a path.
pub(crate) type Answering = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// A server; dropping it closes its socket and its connections.
#[derive(Debug)]
pub(crate) struct Server {
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Listens at an address, and answers on a runtime.
    pub(crate) fn start(runtime: &Handle, address: SocketAddr, answering: Answering) -> io::Result<Self> {
        let listener = socket_at(address)?;
        let serve = async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => serve(listener, answering).await,
                Err(error) => tracing::warn!("cannot serve at {address}: {error}"),
            }
        };
        Ok(Self { task: runtime.spawn(serve).abort_handle() })
    }
}

/// A socket that listens. The unspecified address stands for all addresses of both families, where the kernel has both.
fn socket_at(address: SocketAddr) -> io::Result<TcpListener> {
    let any = |ip: Ipv6Addr| SocketAddr::from((ip, address.port()));
    if !address.ip().is_unspecified() {
        return open(address);
    }
    match open(any(Ipv6Addr::UNSPECIFIED)) {
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        result => result,
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

/// Serves until the task is aborted, which ends the connections too.
async fn serve(listener: tokio::net::TcpListener, answering: Answering) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let answering = answering.clone();
                connections.spawn(timeout(PATIENCE, async move {
                    let respond = service_fn(move |request: Request<_>| {
                        std::future::ready(Ok::<_, Infallible>(response(answering(request.uri().path()))))
                    });
                    // A client that goes away is no error of ours.
                    let _ = http1::Builder::new()
                        .keep_alive(false)
                        .max_buf_size(REQUEST_MAX)
                        .serve_connection(TokioIo::new(stream), respond)
                        .await;
                }));
            }
            // No descriptors, most likely: it has to wait.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some((name, value)) = answer.header {
        headers.insert(HeaderName::from_static(name), value.into());
    }
    response
}
