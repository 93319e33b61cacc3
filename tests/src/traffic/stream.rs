//! Long-lived flows that detect every packet that is lost, late, or answered by another server.
//!
//! TCP hides loss, so a TCP stream reports the kernel's count of retransmitted segments, besides errors and the longest
//! round trip. A UDP stream numbers its datagrams and reports those without an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::mem;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Transport;
use crate::place::Place;

/// Time allowed for the last answers of a UDP stream.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// A running stream.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    thread: JoinHandle<StreamReport>,
}

/// Results of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamReport {
    /// Messages sent.
    pub sent: u32,
    /// Messages answered, by server.
    pub answers: BTreeMap<String, u32>,
    /// Messages without an answer.
    pub lost: u32,
    /// Retransmitted segments (TCP).
    pub retransmits: u32,
    /// The longest time from a message to its answer.
    pub slowest: Duration,
    /// Packets that this machine's receive queues dropped meanwhile, of any flow: if there are some, a loss may have
    /// nothing to do with podnet.
    pub backlog_drops: u64,
    /// Error that ended the stream early, or errors reported by the socket.
    pub errors: Vec<String>,
}

impl StreamReport {
    /// Whether all messages were answered at the first attempt, on a single connection.
    pub fn is_clean(&self) -> bool {
        self.sent > 0 && self.lost == 0 && self.retransmits == 0 && self.errors.is_empty()
    }

    fn record(&mut self, server: &str, took: Duration) {
        *self.answers.entry(server.to_owned()).or_default() += 1;
        self.slowest = self.slowest.max(took);
    }
}

impl Stream {
    /// Opens the flow (a UDP socket is connected) and sends a message every `pause`.
    pub fn start(place: &Place, transport: Transport, to: SocketAddr, pause: Duration) -> io::Result<Self> {
        let socket = place.socket_for(to, transport.kind(), transport.protocol())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(10))?;
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let signals = (stop.clone(), answered.clone());
        let before = backlog_drops()?;
        let run: Box<dyn FnOnce() -> StreamReport + Send> = match transport {
            Transport::Tcp => {
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                let stream: TcpStream = socket.into();
                stream.set_nodelay(true)?;
                Box::new(move || over_tcp(&stream, pause, &signals.0, &signals.1))
            }
            Transport::Udp => {
                let socket: UdpSocket = socket.into();
                Box::new(move || over_udp(&socket, pause, &signals.0, &signals.1))
            }
        };
        let thread = thread::spawn(move || {
            let report = run();
            let after = backlog_drops().unwrap_or(before);
            StreamReport { backlog_drops: after.saturating_sub(before), ..report }
        });
        Ok(Self { stop, answered, thread })
    }

    /// Messages answered so far.
    pub fn answered(&self) -> u32 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Stops the stream and returns the results.
    pub fn stop(self) -> StreamReport {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Packets dropped so far because a processor's receive queue was full (`netdev_max_backlog`), which all network
/// namespaces share.
fn backlog_drops() -> io::Result<u64> {
    let counts = std::fs::read_to_string("/proc/net/softnet_stat")?;
    let dropped = |line: &str| u64::from_str_radix(line.split(' ').nth(1)?, 16).ok();
    Ok(counts.lines().filter_map(dropped).sum())
}

fn over_tcp(stream: &TcpStream, pause: Duration, stop: &AtomicBool, answered: &AtomicU32) -> StreamReport {
    let mut report = StreamReport::default();
    let mut reader = BufReader::new(stream);
    let mut exchange = |number: u32| -> io::Result<String> {
        let mut writer = stream;
        writer.write_all(format!("{number}\n").as_bytes())?;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split(' ').collect::<Vec<_>>()[..] {
            [server, _, echo] if echo == number.to_string() => Ok(server.to_owned()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("message {number} was answered by {line:?}"))),
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        report.sent += 1;
        match exchange(report.sent) {
            Ok(server) => report.record(&server, start.elapsed()),
            Err(error) => {
                report.lost += 1;
                report.errors.push(error.to_string());
                break;
            }
        }
        answered.fetch_add(1, Ordering::Relaxed);
        thread::sleep(pause);
    }
    match retransmits(stream) {
        Ok(count) => report.retransmits = count,
        Err(error) => report.errors.push(format!("TCP_INFO: {error}")),
    }
    report
}

fn over_udp(socket: &UdpSocket, pause: Duration, stop: &AtomicBool, answered: &AtomicU32) -> StreamReport {
    let mut report = StreamReport::default();
    let mut waiting: BTreeMap<u32, Instant> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut buffer = [0; 512];
    let mut next = Instant::now();
    let mut end = None;
    loop {
        let now = Instant::now();
        if end.is_none() && stop.load(Ordering::Relaxed) {
            end = Some(now + STRAGGLERS);
        }
        if end.is_some_and(|end| now >= end || waiting.is_empty()) {
            break;
        }
        if end.is_none() && now >= next {
            report.sent += 1;
            waiting.insert(report.sent, now);
            if let Err(error) = socket.send(report.sent.to_string().as_bytes()) {
                report.errors.push(error.to_string());
            }
            next = now + pause;
        }
        let until = end.unwrap_or(next).saturating_duration_since(Instant::now());
        // 0 would mean no timeout.
        let _ = socket.set_read_timeout(Some(until.max(Duration::from_micros(100))));
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&buffer[..length]);
                let mut parts = text.split(' ');
                let server = parts.next().unwrap_or_default();
                let number: Option<u32> = parts.nth(1).and_then(|text| text.parse().ok());
                match number.and_then(|number| Some((number, waiting.remove(&number)?))) {
                    Some((number, sent)) if seen.insert(number) => {
                        report.record(server, sent.elapsed());
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => report.errors.push(format!("unexpected datagram {text:?}")),
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => report.errors.push(error.to_string()),
        }
    }
    report.lost = waiting.len() as u32;
    report
}

/// Number of segments retransmitted on this connection.
fn retransmits(stream: &TcpStream) -> io::Result<u32> {
    let mut info = mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to a structure of that size.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the structure consists of integers, initialised to zero.
    Ok(unsafe { info.assume_init() }.tcpi_total_retrans)
}
