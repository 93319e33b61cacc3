//! Tens of thousands of simultaneous flows, each of which can be checked individually.
//!
//! A message is the flow's number in four bytes, which the server returns. This detects mixed-up flows as well as lost
//! ones.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::Transport;
use crate::place::Place;

/// Number of flows that are opened or checked at the same time.
const AT_A_TIME: usize = 128;
/// Maximum number of connections waiting to be accepted.
const BACKLOG: i32 = 4096;
/// Sockets per thread of a crowd. Each thread has its own descriptor table, since many systems limit a table to some
/// ten thousand.
const PER_THREAD: usize = 10_000;
/// Threads of a server, over which the kernel distributes the connections.
const SERVER_THREADS: usize = 4;

/// Interval at which a server checks whether to stop.
const LOOK: Duration = Duration::from_millis(20);

/// A TCP and UDP server for crowds. Dropping it ends its connections.
#[derive(Debug)]
pub struct CrowdServer {
    // Polled rather than waited for: waking a runtime uses a descriptor, whose number refers to another file in other
    // tables.
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl CrowdServer {
    /// Starts it.
    pub fn start(place: &Place, addr: SocketAddr) -> Result<Self> {
        share_runtimes()?;
        let mut server = Self { stop: Arc::default(), threads: Vec::new() };
        for _ in 0..SERVER_THREADS {
            server.add_thread(place, addr).with_context(|| format!("cannot listen on {addr} of {}", place.name()))?;
        }
        Ok(server)
    }

    fn add_thread(&mut self, place: &Place, addr: SocketAddr) -> Result<()> {
        let (place, stop) = (place.clone(), self.stop.clone());
        let (ready, begun) = mpsc::channel();
        self.threads.push(thread::spawn(move || {
            // The sockets are created here, so that no other descriptor table keeps them open.
            let begin = || -> Result<_> {
                let _inherited = own_descriptors()?;
                Ok((runtime()?, listen(&place, addr)?))
            };
            let (runtime, (tcp, udp)) = match begin() {
                Ok(begun) => begun,
                Err(error) => return drop(ready.send(Err(error))),
            };
            runtime.block_on(async {
                let tokio = TcpListener::from_std(tcp).and_then(|tcp| Ok((tcp, UdpSocket::from_std(udp)?)));
                let (tcp, udp) = match tokio {
                    Ok(sockets) => sockets,
                    Err(error) => return drop(ready.send(Err(error.into()))),
                };
                let _ = ready.send(Ok(()));
                tokio::select! {
                    () = accept(tcp) => {}
                    () = echo_datagrams(udp) => {}
                    () = until(&stop) => {}
                }
            });
        }));
        begun.recv().context("the server's thread ended")?
    }
}

impl Drop for CrowdServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in the thread has already been reported, and clients without answers fail.
            let _ = thread.join();
        }
    }
}

/// Sockets of one of a server's threads.
fn listen(place: &Place, addr: SocketAddr) -> Result<(std::net::TcpListener, std::net::UdpSocket)> {
    let bind = |transport: Transport| -> io::Result<socket2::Socket> {
        let socket = place.socket_for(addr, transport.kind(), transport.protocol())?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    let tcp = bind(Transport::Tcp)?;
    tcp.listen(BACKLOG)?;
    let udp = bind(Transport::Udp)?;
    // Buffers a burst of datagrams.
    udp.set_recv_buffer_size(4 << 20)?;
    Ok((tcp.into(), udp.into()))
}

async fn until(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK).await;
    }
}

async fn accept(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let mut message = [0; 4];
            // The client detects a broken connection.
            while stream.read_exact(&mut message).await.is_ok() && stream.write_all(&message).await.is_ok() {}
        });
    }
}

async fn echo_datagrams(socket: UdpSocket) {
    let mut message = [0; 4];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut message).await {
            // The client detects a missing answer.
            let _ = socket.send_to(&message[..length], from).await;
        }
    }
}

/// Flows from one place to one address.
#[derive(Debug)]
pub struct Crowd {
    parts: Vec<Part>,
}

/// The flows of one thread.
#[derive(Debug)]
struct Part {
    opened: usize,
    failed: usize,
    /// Requests a check of all flows, whose result is sent back. The flows are closed when this is dropped.
    check: Option<mpsc::Sender<mpsc::Sender<Vec<io::Error>>>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Flow {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Crowd {
    /// Opens flows, each with a first exchange of messages within `patience`.
    ///
    /// # Errors
    /// The process cannot have that many sockets. Flows that fail to open are not errors; see [`Crowd::failed`].
    pub fn open(place: &Place, transport: Transport, to: SocketAddr, count: usize, patience: Duration) -> Result<Self> {
        share_runtimes()?;
        let sizes = (0..count).step_by(PER_THREAD).map(|first| PER_THREAD.min(count - first));
        let parts = sizes.map(|count| Part::open(place, transport, to, count, patience));
        Ok(Self { parts: parts.collect::<Result<_>>()? })
    }

    /// Number of open flows.
    pub fn opened(&self) -> usize {
        self.parts.iter().map(|part| part.opened).sum()
    }

    /// Number of flows that failed to open.
    pub fn failed(&self) -> usize {
        self.parts.iter().map(|part| part.failed).sum()
    }

    /// Exchanges another message over every flow.
    ///
    /// # Errors
    /// Some flows get no answer, or that of another flow.
    pub fn check(&mut self) -> Result<()> {
        let mut errors = Vec::new();
        for part in &self.parts {
            errors.extend(part.check()?);
        }
        ensure!(errors.is_empty(), "{} of {} flows are lost: {}", errors.len(), self.opened(), errors[0]);
        Ok(())
    }
}

impl Part {
    fn open(place: &Place, transport: Transport, to: SocketAddr, count: usize, patience: Duration) -> Result<Self> {
        let place = place.clone();
        let (check, checks) = mpsc::channel::<mpsc::Sender<Vec<io::Error>>>();
        let (ready, opened) = mpsc::channel();
        let thread = thread::spawn(move || {
            let open = || -> Result<_> {
                let inherited = own_descriptors()?;
                let runtime = runtime()?;
                let (flows, failed) = place.netns().run(|| {
                    drop(inherited);
                    runtime.block_on(open_flows(transport, to, count, patience))
                })?;
                Ok((runtime, flows, failed))
            };
            let (runtime, mut flows, failed) = match open() {
                Ok(flows) => flows,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok((flows.len(), failed)));
            for answer in checks {
                let (kept, errors) = runtime.block_on(ask(flows));
                flows = kept;
                let _ = answer.send(errors);
            }
            // They are registered with the runtime, which has to exist when they are dropped.
            runtime.block_on(async { drop(flows) });
        });
        let (opened, failed) = opened.recv().context("the crowd's thread ended")??;
        Ok(Self { opened, failed, check: Some(check), thread: Some(thread) })
    }

    fn check(&self) -> Result<Vec<io::Error>> {
        let (answer, errors) = mpsc::channel();
        let check = self.check.as_ref().context("the crowd has ended")?;
        check.send(answer).ok().context("the crowd's thread ended")?;
        errors.recv().context("the crowd's thread ended")
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.check = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has already been reported.
            let _ = thread.join();
        }
    }
}

async fn open_flows(transport: Transport, to: SocketAddr, count: usize, patience: Duration) -> (Vec<Flow>, usize) {
    let next = Arc::new(AtomicU32::new(0));
    let worker = move || {
        let next = next.clone();
        async move {
            let (mut flows, mut failed) = (Vec::new(), 0);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number as usize >= count {
                    return (flows, failed);
                }
                let open = async {
                    let mut flow = Flow::open(transport, to).await?;
                    flow.exchange(number).await?;
                    io::Result::Ok(flow)
                };
                match tokio::time::timeout(patience, open).await {
                    Ok(Ok(flow)) => flows.push(flow),
                    _ => failed += 1,
                }
            }
        }
    };
    let mut workers = JoinSet::new();
    (0..AT_A_TIME).for_each(|_| drop(workers.spawn(worker())));
    let opened = workers.join_all().await;
    let failed = opened.iter().map(|(_, failed)| failed).sum();
    (opened.into_iter().flat_map(|(flows, _)| flows).collect(), failed)
}

/// Exchanges a message over each flow.
async fn ask(flows: Vec<Flow>) -> (Vec<Flow>, Vec<io::Error>) {
    let mut parts: Vec<Vec<Flow>> = (0..AT_A_TIME).map(|_| Vec::new()).collect();
    for (index, flow) in flows.into_iter().enumerate() {
        parts[index % AT_A_TIME].push(flow);
    }
    let mut workers = JoinSet::new();
    for (part, mut flows) in parts.into_iter().enumerate() {
        workers.spawn(async move {
            let mut errors = Vec::new();
            for (index, flow) in flows.iter_mut().enumerate() {
                let number = (index * AT_A_TIME + part) as u32 | 1 << 31;
                let exchange = tokio::time::timeout(Duration::from_secs(3), flow.exchange(number)).await;
                errors.extend(exchange.unwrap_or_else(|late| Err(late.into())).err());
            }
            (flows, errors)
        });
    }
    let (mut flows, mut errors) = (Vec::new(), Vec::new());
    for (kept, found) in workers.join_all().await {
        flows.extend(kept);
        errors.extend(found);
    }
    (flows, errors)
}

impl Flow {
    async fn open(transport: Transport, to: SocketAddr) -> io::Result<Self> {
        Ok(match transport {
            Transport::Tcp => {
                let stream = TcpStream::connect(to).await?;
                stream.set_nodelay(true)?;
                // Thousands of connections end at once; this avoids TIME-WAIT.
                stream.set_zero_linger()?;
                Self::Tcp(stream)
            }
            Transport::Udp => {
                let socket = UdpSocket::bind((super::unspecified(to), 0)).await?;
                socket.connect(to).await?;
                Self::Udp(socket)
            }
        })
    }

    async fn exchange(&mut self, number: u32) -> io::Result<()> {
        let message = number.to_be_bytes();
        let mut answer = [0; 4];
        match self {
            Self::Tcp(stream) => {
                stream.write_all(&message).await?;
                stream.read_exact(&mut answer).await?;
            }
            Self::Udp(socket) => {
                socket.send(&message).await?;
                socket.recv(&mut answer).await?;
            }
        }
        if answer == message { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "another's answer")) }
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Makes tokio create the descriptors shared by all of its runtimes, for signals, in the table that the threads copy.
fn share_runtimes() -> io::Result<()> {
    runtime().map(drop)
}

/// Descriptors with which a thread's table was copied; dropping this closes the copies.
///
/// A remaining copy would keep files open after other threads have closed them: connections, and the pipes whose end
/// tells the harness that a child of it runs. The thread drops this as soon as it has the descriptors that it needs.
#[derive(Debug)]
struct Inherited(Vec<RawFd>);

impl Drop for Inherited {
    fn drop(&mut self) {
        for fd in self.0.drain(..) {
            // SAFETY: the table belongs to this thread only, and the descriptor's owner uses the number in the common
            // table.
            unsafe { libc::close(fd) };
        }
    }
}

/// Gives the calling thread its own descriptor table, large enough for its part of a crowd.
fn own_descriptors() -> Result<Inherited> {
    unshare(CloneFlags::CLONE_FILES)?;
    let open = fs::read_dir("/proc/thread-self/fd")?.map(|entry| entry.map(|entry| entry.file_name()));
    let open = open.collect::<io::Result<Vec<_>>>()?;
    let numbers = open.iter().filter_map(|name| name.to_str()?.parse::<RawFd>().ok());
    // The list includes the directory's own descriptor, which is closed by now.
    let inherited = Inherited(numbers.filter(|fd| *fd > libc::STDERR_FILENO && is_open(*fd)).collect());
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes to the structure.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(read == 0, "getrlimit: {}", io::Error::last_os_error());
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the kernel reads the structure.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        ensure!(set == 0, "setrlimit: {}", io::Error::last_os_error());
    }
    let needed = PER_THREAD as libc::rlim_t * 3 / 2;
    ensure!(
        limit.rlim_max >= needed,
        "at most {} descriptors: raise the limit (ulimit -n) to {needed}",
        limit.rlim_max
    );
    Ok(inherited)
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: reading a descriptor's flags changes nothing.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};

    use super::*;

    #[test]
    fn own_descriptor_table_keeps_no_closed_files_open() {
        share_runtimes().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        let (ready, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let inherited = own_descriptors().unwrap();
            let _runtime = runtime().unwrap();
            drop(inherited);
            ready.send(()).unwrap();
            let _ = ended.recv();
        });
        begun.recv().unwrap();
        drop(writer);
        // Ends only when no table has the other end of the pipe.
        let (done, read) = mpsc::channel();
        thread::spawn(move || done.send(reader.read(&mut [0]).unwrap()));
        let length = read.recv_timeout(Duration::from_secs(5));
        drop(end);
        thread.join().unwrap();
        assert_eq!(length, Ok(0));
    }
}
