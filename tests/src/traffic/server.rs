//! The server: it answers each line (TCP) or datagram (UDP) with its name, the client's address, and the request, such
//! as `web-0 10.244.1.5:4242 hello`.
//!
//! The request `send 1000` is answered with a thousand bytes instead. A line `GET …` gets the same answer as an HTTP
//! response, so that curl works in the lab's shell. The answer to [`LOST_SEGMENTS`] is the number of segments of the
//! server that were lost.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use super::{Transport, segments, socket_here};
use crate::place::Place;

/// Open connections, by number, so that stopping the server can close them.
type Connections = Arc<Mutex<BTreeMap<u64, TcpStream>>>;

/// A TCP and UDP server on one address and port. Dropping it closes its sockets and connections.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
    connections: Connections,
}

impl Server {
    /// Starts the server; `name` is the name in its answers.
    pub fn start(place: &Place, name: &str, addr: SocketAddr) -> Result<Self> {
        Self::start_with(name, addr, |transport| place.socket_for(addr, transport.kind(), transport.protocol()))
    }

    /// Starts it in this process's own network namespace.
    pub fn start_here(name: &str, addr: SocketAddr) -> Result<Self> {
        Self::start_with(name, addr, |transport| socket_here(transport, addr))
    }

    fn start_with(name: &str, addr: SocketAddr, make: impl Fn(Transport) -> io::Result<Socket>) -> Result<Self> {
        let what = || format!("{name} cannot listen on {addr}");
        let bind = |transport: Transport| -> io::Result<Socket> {
            let socket = make(transport)?;
            socket.set_reuse_address(transport == Transport::Tcp)?;
            socket.bind(&addr.into())?;
            Ok(socket)
        };
        let tcp = bind(Transport::Tcp).with_context(what)?;
        tcp.listen(1024).with_context(what)?;
        let udp: UdpSocket = bind(Transport::Udp).with_context(what)?.into();
        let (stopped, stop) = io::pipe()?;
        let connections = Connections::default();
        let threads = vec![
            {
                let (name, stopped, connections) = (name.to_owned(), stopped.try_clone()?, connections.clone());
                thread::spawn(move || accept(&tcp.into(), &name, &stopped, &connections))
            },
            {
                let name = name.to_owned();
                thread::spawn(move || answer_datagrams(&udp, &name, &stopped))
            },
        ];
        Ok(Self { addr, stop: Some(stop), threads, connections })
    }

    /// Address on which it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            // A panic in the thread has already been reported, and clients without answers fail.
            let _ = thread.join();
        }
        for connection in self.connections.lock().unwrap_or_else(PoisonError::into_inner).values() {
            // It may have been closed by its peer.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// The request for the number of lost segments.
pub(super) const LOST_SEGMENTS: &str = "lost-segments";

/// The request for an answer of this many bytes.
pub(super) fn send(bytes: usize) -> String {
    format!("send {bytes}")
}

/// The answer to a request, behind the names of server and client.
pub(super) fn answer_to(question: &str) -> Cow<'_, str> {
    let bytes = question.strip_prefix("send ").and_then(|bytes| bytes.parse().ok());
    bytes.map_or(question.into(), |bytes| "x".repeat(bytes).into())
}

/// Waits until the socket is readable; false if the server is to stop.
fn readable(socket: impl AsFd, stopped: &PipeReader) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
    // Errors of the socket show in the following read.
    let _ = poll(&mut fds, PollTimeout::NONE);
    !fds[1].any().unwrap_or(true)
}

fn accept(listener: &TcpListener, name: &str, stopped: &PipeReader, connections: &Connections) {
    for number in 0.. {
        if !readable(listener, stopped) {
            return;
        }
        let Ok((stream, peer)) = listener.accept() else { continue };
        let Ok(copy) = stream.try_clone() else { continue };
        let lock =
            |connections: &Connections| connections.lock().unwrap_or_else(PoisonError::into_inner).insert(number, copy);
        lock(connections);
        let (name, connections) = (name.to_owned(), connections.clone());
        thread::spawn(move || {
            // The client detects a broken connection.
            let _ = answer_lines(&stream, &name, peer);
            connections.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        });
    }
}

fn answer_lines(mut stream: &TcpStream, name: &str, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next() {
        let line = line?;
        if line.starts_with("GET ") {
            while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
            return stream
                .write_all(format!("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n{name} {peer}\n").as_bytes());
        }
        let answer = if line == LOST_SEGMENTS { segments::lost(stream)?.to_string().into() } else { answer_to(&line) };
        stream.write_all(format!("{name} {peer} {answer}\n").as_bytes())?;
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, name: &str, stopped: &PipeReader) {
    let mut buffer = vec![0; 65_536];
    while readable(socket, stopped) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let answer = format!("{name} {peer} {}", answer_to(&String::from_utf8_lossy(&buffer[..length])));
        // The client detects a missing answer.
        let _ = socket.send_to(answer.as_bytes(), peer);
    }
}
