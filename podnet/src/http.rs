//! A small HTTP server, for health and metrics: one answer a connection, and little time for each.
//!
//! Whoever connects gets a place, if need be that of a connection which has waited longer, so that clients which are slow,
//! silent or many keep nobody out ([`Crowd`]). What comes from the node itself, such as the kubelet's probes, comes by
//! its loopback interface, and has a socket with a queue of its own and places of its own.

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

/// How long the head of a request may take to come.
const HEAD_PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may take as a whole, which bounds how slowly an answer may be read.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the head of a request may be, in bytes: the least that hyper takes.
const REQUEST_MAX: usize = 8192;
/// How soon accepting is tried again where the process has no descriptors for it.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

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

/// How many connections servers have at once, together.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// From the node itself.
    own: Crowd,
    /// From elsewhere.
    others: Crowd,
}

impl Places {
    /// Room for so many from the node itself, and so many from elsewhere; less if that were more than an eighth of the
    /// files that the process may open.
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
    /// Listens at an address, and answers on a runtime.
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

/// Two sockets that listen: for whoever comes, and for what comes by the loopback interface, which the kernel gives to
/// the socket that is bound to it. The unspecified address stands for all addresses of both families, where the kernel
/// has both.
fn listeners(address: SocketAddr) -> io::Result<[std::net::TcpListener; 2]> {
    let both = |address| {
        let both = [open(address, None)?, open(address, Some("lo"))?];
        // Among sockets that share a port the kernel takes the first that it finds, among others the one that fits best.
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
    // Without it two sockets can't have one port, not even if one of them is bound to an interface.
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

/// Serves until the task is aborted, which ends the connections too.
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
                    // What those who are here have sent is looked at before more of them have to go.
                    yield_now().await;
                }
            }
            Err(error) if is_shortage(&error) => {
                // One more has to end first, which takes a moment.
                let pause = if crowd.end_one() { Duration::from_millis(1) } else { RETRY_INTERVAL };
                sleep(pause).await;
            }
            // A client that went away while it waited.
            Err(_) => {}
        }
    }
}

/// Whether there is no room for another socket in the process or in the kernel.
fn is_shortage(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM]
        .map(|e| e as i32)
        .contains(&error.raw_os_error().unwrap_or(0))
}

/// Gives a client its answer, unless it takes too long or its place is needed.
async fn converse(stream: TcpStream, mut place: Place, answering: Answering) {
    let respond = service_fn(move |request: Request<_>| {
        std::future::ready(Ok::<_, Infallible>(response(answering(request.uri().path()))))
    });
    // Until something comes, a connection costs little more than its socket.
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
        // A client that goes away is no error of ours.
        _ = &mut connection => return,
        () = place.over() => {}
        () = sleep(PATIENCE) => {}
    }
    // Or else the kernel would keep what the client doesn't read.
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
