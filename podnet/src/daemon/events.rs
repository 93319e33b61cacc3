//! The only reader of the ring buffer of dropped packets: passes each event on to all clients that follow them, and
//! logs some, as well as messages of the programs, rate-limited per reason, so that a flood of packets doesn't become a
//! flood of lines.

use std::{collections::BTreeMap, time::Instant};

use podnet_common::layout::Event;
use tokio::{io::unix::AsyncFd, sync::broadcast};
use tracing::info;

use crate::{
    datapath::{Events, ProgramLog},
    limit::Limit,
    socket::Dropped,
};

/// Maximum number of lines per reason and second.
const LINES: u32 = 5;

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
            if let Some(omitted) = limits.entry(event.reason).or_insert_with(|| Limit::new(LINES, now)).admit(now) {
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
