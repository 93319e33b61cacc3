//! A small HTTP server for health and metrics: one response per connection, within a short time.
//!
//! Each new connection gets a place, if necessary that of an older one, so slow, silent or numerous clients don't lock
//! others out ([`Crowd`]). Connections from the node itself, such as the kubelet's probes, arrive on the loopback
//! interface, and have a socket with a separate queue and separate places.

mod crowd;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    ffi::OsString,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
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
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit},
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
        },
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    task::{AbortHandle, JoinSet, yield_now},
    time::sleep,
};

use crowd::{Crowd, Place};

/// Time limit for the head of a request.
const HEAD_PATIENCE: Duration = Duration::from_secs(2);
/// Time limit for a connection as a whole, which bounds how slowly a response may be read.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum length of the head of a request, in bytes: the smallest limit that hyper allows.
const REQUEST_MAX: usize = 8192;
/// Pause before accepting again when the process has run out of file descriptors.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// Content type of the body.
    pub(crate) content_type: &'static str,
    /// The body.
    pub(crate) body: String,
    /// An additional header.
    pub(crate) header: Option<(&'static str, usize)>,
}

/// Returns the response for a path.
pub(crate) type Answering = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// Maximum number of connections of all servers together.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// From the node itself.
    own: Crowd,
    /// From elsewhere.
    others: Crowd,
}

impl Places {
    /// Places for `own` connections from the node itself, and `others` from elsewhere; fewer if that would exceed an
    /// eighth of the files that the process may open.
    pub(crate) fn new(own: usize, others: usize) -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let fit = |wanted: usize| Crowd::new(wanted.min(usize::try_from(files / 8).unwrap_or(usize::MAX)));
        Self { own: fit(own), others: fit(others) }
    }
}

/// A server; dropping it closes its sockets and its connections.
#[derive(Debug)]
pub(crate) struct Server {
    tasks: [AbortHandle; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Server {
    /// Listens on an address, and responds on a runtime.
    pub(crate) fn start(
        runtime: &Handle,
        address: SocketAddr,
        places: &Places,
        answering: Answering,
    ) -> io::Result<Self> {
        let [others, own] = listeners(address)?;
        let spawn = |listener, crowd: &Crowd| {
            let (crowd, answering) = (crowd.clone(), answering.clone());
            let serve = async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => serve(listener, crowd, answering).await,
                    Err(error) => tracing::warn!("cannot listen on {address}: {error}"),
                }
            };
            runtime.spawn(serve).abort_handle()
        };
        Ok(Self { tasks: [spawn(others, &places.others), spawn(own, &places.own)] })
    }
}

/// Two listening sockets: one for all connections, and one bound to the loopback interface, to which the kernel gives
/// the connections that arrive there. The unspecified address stands for all addresses of both families, if the kernel
/// has both.
fn listeners(address: SocketAddr) -> io::Result<[std::net::TcpListener; 2]> {
    let both = |address| {
        let both = [open(address, None)?, open(address, Some("lo"))?];
        // Among sockets with SO_REUSEPORT the kernel takes the first that it finds, otherwise the one that matches
        // best.
        both.iter().try_for_each(|listener| setsockopt(listener, sockopt::ReusePort, &false))?;
        Ok(both)
    };
    if !address.ip().is_unspecified() {
        return both(address);
    }
    match both(SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()))) {
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            both(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        result => result,
    }
}

fn open(address: SocketAddr, interface: Option<&str>) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // Without it two sockets can't share a port, even if one of them is bound to an interface.
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    if let Some(interface) = interface {
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface))?;
    }
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

/// Serves until the task is aborted, which also closes the connections.
async fn serve(listener: TcpListener, crowd: Crowd, answering: Answering) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, client)) => {
                let place = crowd.enter(client.ip());
                let crowded = place.is_anothers();
                connections.spawn(converse(stream, place, answering.clone()));
                if crowded {
                    // Requests of present connections are read before more of these have to give way.
                    yield_now().await;
                }
            }
            Err(error) if is_shortage(&error) => {
                // Another connection must be closed first, which takes a moment.
                let pause = if crowd.end_one() { Duration::from_millis(1) } else { RETRY_INTERVAL };
                sleep(pause).await;
            }
            // A client that left while it was waiting.
            Err(_) => {}
        }
    }
}

/// Whether the process or the kernel has no room for another socket.
fn is_shortage(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM]
        .map(|e| e as i32)
        .contains(&error.raw_os_error().unwrap_or(0))
}

/// Sends a client its response, unless it takes too long or its place is needed.
async fn converse(stream: TcpStream, mut place: Place, answering: Answering) {
    let respond = service_fn(move |request: Request<_>| {
        std::future::ready(Ok::<_, Infallible>(response(answering(request.uri().path()))))
    });
    // Until data arrives, a connection costs little more than its socket.
    let silent = tokio::select! {
        biased;
        readable = stream.readable() => readable.is_err(),
        () = place.over() => true,
        () = sleep(HEAD_PATIENCE) => true,
    };
    if silent {
        return;
    }
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(REQUEST_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), respond);
    tokio::select! {
        biased;
        // A client that leaves is no error of the server.
        _ = &mut connection => return,
        () = place.over() => {}
        () = sleep(PATIENCE) => {}
    }
    // Otherwise the kernel would keep data that the client doesn't read.
    let _ = connection.into_parts().io.into_inner().set_zero_linger();
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
