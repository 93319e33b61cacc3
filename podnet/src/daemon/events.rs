//! The only reader of the ring buffer of dropped packets: passes each event on to all clients that follow them, and
//! logs some, as well as messages of the programs, rate-limited per reason, so that a flood of packets doesn't become a
//! flood of lines.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use podnet_common::layout::Event;
use tokio::{io::unix::AsyncFd, sync::broadcast};
use tracing::info;

use crate::{
    datapath::{Events, ProgramLog},
    socket::Dropped,
};

/// Maximum number of lines per reason within [`WINDOW`].
const LINES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(1);

/// Logs drops, and passes them on, until the task is aborted.
pub(super) async fn log(mut events: AsyncFd<Events>, followers: broadcast::Sender<Event>) {
    let mut limits: BTreeMap<u16, Limit> = BTreeMap::new();
    loop {
        match events.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!(
                    "dropped packets are no longer logged or sent to followers: {error}; restart the daemon"
                );
                return;
            }
        }
        while let Some(event) = events.get_mut().next_event() {
            // There may be no followers.
            let _ = followers.send(event);
            let now = Instant::now();
            if let Some(omitted) = limits.entry(event.reason).or_insert_with(|| Limit::new(now)).admit(now) {
                tell(&event, omitted);
            }
        }
    }
}

/// Logs messages of the programs until the task is aborted.
pub(super) async fn relay(mut log: AsyncFd<ProgramLog>) {
    loop {
        match log.readable_mut().await {
            Ok(mut ready) => {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
            Err(error) => {
                tracing::warn!("messages of the eBPF programs are no longer logged: {error}; restart the daemon");
                return;
            }
        }
    }
}

/// Limits the lines of one reason.
#[derive(Debug)]
struct Limit {
    /// Start of the window.
    since: Instant,
    /// Number of events in it.
    events: u32,
    /// Number of events without a line since the last line.
    omitted: u64,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self { since: now, events: 0, omitted: 0 }
    }

    /// Counts an event. If it gets a line, returns the number of those that got none since the last line.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) > WINDOW {
            (self.since, self.events) = (now, 0);
        }
        self.events = self.events.saturating_add(1);
        if self.events > LINES {
            self.omitted += 1;
            return None;
        }
        Some(std::mem::take(&mut self.omitted))
    }
}

fn tell(event: &Event, omitted: u64) {
    let dropped = Dropped::of(event);
    info!(
        reason = dropped.reason,
        hook = dropped.hook,
        interface.index = dropped.ifindex,
        packet.len = dropped.length,
        packet.tuple = %dropped,
        omitted = (omitted > 0).then_some(omitted),
        "packet dropped"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_a_few_lines_and_the_next_line_says_how_many_are_missing() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let lines: Vec<_> = (0..8).map(|_| limit.admit(start)).collect();
        assert_eq!(lines, [Some(0), Some(0), Some(0), Some(0), Some(0), None, None, None]);
        let later = start + 2 * WINDOW;
        assert_eq!((limit.admit(later), limit.admit(later)), (Some(3), Some(0)));
    }
}
