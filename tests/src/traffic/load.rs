//! Consecutive requests, each over a new connection, until stopped: for changes that no request may notice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Transport;
use crate::place::Place;

/// A running load.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<LoadReport>,
}

/// Results of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Answers by server.
    pub answers: BTreeMap<String, u32>,
    /// Errors of requests without an answer.
    pub errors: Vec<String>,
    /// The longest duration of a request.
    pub slowest: Duration,
}

impl LoadReport {
    /// Number of requests that were answered.
    pub fn answered(&self) -> u32 {
        self.answers.values().sum()
    }
}

impl Load {
    /// Starts sending requests from a place, with a pause in between.
    pub fn start(place: &Place, transport: Transport, to: SocketAddr, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, place) = (stop.clone(), place.clone());
        let thread = thread::spawn(move || {
            let mut report = LoadReport::default();
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                match place.ask(transport, to) {
                    Ok(answer) => *report.answers.entry(answer.server).or_default() += 1,
                    Err(error) => report.errors.push(error.to_string()),
                }
                report.slowest = report.slowest.max(start.elapsed());
                thread::sleep(pause);
            }
            report
        });
        Self { stop, thread }
    }

    /// Stops the load and returns the results.
    pub fn stop(self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
