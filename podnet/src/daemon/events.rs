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
    let mut seen: BTreeMap<u16, (Instant, u32)> = BTreeMap::new();
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
            let (since, lines) = seen.entry(event.reason).or_insert((Instant::now(), 0));
            if since.elapsed() > WINDOW {
                (*since, *lines) = (Instant::now(), 0);
            }
            *lines += 1;
            if *lines <= LINES {
                tell(&event);
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

fn tell(event: &Event) {
    let dropped = Dropped::of(event);
    info!(
        reason = dropped.reason,
        hook = dropped.hook,
        interface.index = dropped.ifindex,
        packet.len = dropped.length,
        packet.tuple = %dropped,
        "packet dropped"
    );
}
