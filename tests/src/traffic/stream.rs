//! Long-lived flows that detect every packet that is lost, late, or answered by another server.
//!
//! TCP hides loss, so a TCP stream reports how many segments both ends had to repeat, besides errors and the longest
//! round trip. A UDP stream numbers its datagrams and reports those without an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::server::LOST_SEGMENTS;
use super::{Transport, segments};
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
    /// Segments of either end that were lost (TCP).
    pub lost_segments: u32,
    /// The longest time from a message to its answer.
    pub slowest: Duration,
    /// Packets that this machine's receive queues dropped meanwhile, of any flow: a possible cause of losses.
    pub backlog_drops: u64,
    /// Error that ended the stream early, or errors reported by the socket.
    pub errors: Vec<String>,
}

impl StreamReport {
    /// Whether all messages were answered on a single connection, and no packet was lost.
    pub fn is_clean(&self) -> bool {
        self.sent > 0 && self.lost == 0 && self.lost_segments == 0 && self.errors.is_empty()
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
    let mut ask = |question: &str| -> io::Result<[String; 2]> {
        let mut writer = stream;
        writer.write_all(format!("{question}\n").as_bytes())?;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split(' ').collect::<Vec<_>>()[..] {
            [server, _, answer] => Ok([server, answer].map(str::to_owned)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{question} was answered by {line:?}"))),
        }
    };
    let wrong = |question: &str, answer: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{question} was answered by {answer:?}"))
    };
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        report.sent += 1;
        let number = report.sent.to_string();
        let outcome = ask(&number).and_then(|[server, echo]| match echo == number {
            true => Ok(server),
            false => Err(wrong(&number, &echo)),
        });
        match outcome {
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
    if report.errors.is_empty() {
        let of_server =
            ask(LOST_SEGMENTS).and_then(|[_, count]| count.parse().map_err(|_| wrong(LOST_SEGMENTS, &count)));
        match of_server.and_then(|of_server: u32| Ok(of_server + segments::lost(stream)?)) {
            Ok(count) => report.lost_segments = count,
            Err(error) => report.errors.push(format!("lost segments: {error}")),
        }
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
