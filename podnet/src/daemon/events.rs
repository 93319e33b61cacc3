//! Logs dropped packets and messages of the programs, rate-limited per reason, so that a flood of packets doesn't
//! become a flood of lines.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use podnet_common::{
    layout::{Event, Hook},
    verdict::Reason,
};
use tokio::io::unix::AsyncFd;
use tracing::info;

use crate::datapath::{Events, ProgramLog};

/// Maximum number of lines per reason within [`WINDOW`].
const LINES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(1);

/// Logs drops until the task is aborted.
pub(super) async fn log(mut events: AsyncFd<Events>) {
    let mut seen: BTreeMap<u16, (Instant, u32)> = BTreeMap::new();
    loop {
        match events.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!("dropped packets are no longer logged: {error}");
                return;
            }
        }
        while let Some(event) = events.get_mut().next_event() {
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
    while let Ok(mut ready) = log.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

fn tell(event: &Event) {
    let reason = Reason::ALL.iter().find(|reason| **reason as u16 == event.reason);
    let hook = Hook::ALL.into_iter().find(|hook| *hook as u16 == event.hook);
    info!(
        reason = reason.map_or("unknown", |reason| reason.name()),
        hook = hook.map_or("unknown", Hook::name),
        interface.index = event.ifindex.0,
        packet.len = event.len,
        packet.tuple = tuple(&event.head),
        "packet dropped"
    );
}

/// Addresses and protocol of a packet, as far as the captured head of the frame contains them.
fn tuple(head: &[u8]) -> String {
    match head {
        [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, ip @ ..] => {
            let octets = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).map(std::net::Ipv4Addr::from);
            match (octets(12), octets(16)) {
                (Ok(src), Ok(dst)) => format!("{src} > {dst} protocol {}", ip[9]),
                _ => String::new(),
            }
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ip @ ..] => {
            let octets = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).map(std::net::Ipv6Addr::from);
            match (octets(8), octets(24)) {
                (Ok(src), Ok(dst)) => format!("{src} > {dst} protocol {}", ip[6]),
                _ => String::new(),
            }
        }
        _ => "not IP".into(),
    }
}
