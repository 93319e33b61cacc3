//! CPU time of garbage collection in a large connection table: one sweep of the daemon, on its own thread.
//!
//! | row | of 1,000,000 entries |
//! |---|---|
//! | `conntrack/sweep_1000000_s/none_over` | all are kept |
//! | `conntrack/sweep_1000000_s/all_over` | all are removed |
//!
//! Half of the flows are UDP, to 10,000 services with 10 endpoints each; the sweep's bookkeeping for them is included.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use podnet::datapath;
use podnet_common::{
    addr::{Addr, IfIndex, Port, Proto},
    layout::{CtEntry, Out, Tuple},
    time,
};

use super::{
    Options,
    nanoseconds::MOST_ENTRIES,
    results::{Results, Series},
    rig::{Rig, cpu_time, secluded, shuffle},
    rounds, worker,
};

const NONE_OVER: &str = "conntrack/sweep_1000000_s/none_over";
const ALL_OVER: &str = "conntrack/sweep_1000000_s/all_over";

const ENTRIES: u32 = 1_000_000;
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
const CLIENTS: u32 = 200;
/// Longer than the lifetime of any flow here, in seconds.
const LONG: u64 = 200;

/// Measures both rows if either is requested, since they come from the same runs.
pub fn run(options: &Options, results: &mut Results) -> Result<()> {
    if ![NONE_OVER, ALL_OVER].into_iter().any(|row| options.wants(row)) {
        return Ok(());
    }
    let count = if options.quick { 2 } else { 9 };
    let (mut kept, mut removed) = (Vec::new(), Vec::new());
    secluded(|bpffs| {
        worker::settle()?;
        let rig = Rig::new(&bpffs.join("rig"), MOST_ENTRIES)?;
        let bar = rounds::progress("conntrack", 2 * count);
        for _ in 0..count {
            let now = datapath::now();
            rig.insert_flows(&entries(now))?;
            kept.push(sweep(&rig, ENTRIES, 0)?);
            bar.inc(1);
            rig.insert_flows(&entries(now.wrapping_sub(time::ticks_of_seconds(LONG))))?;
            removed.push(sweep(&rig, 0, ENTRIES)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    })?;
    for (name, values) in [(NONE_OVER, kept), (ALL_OVER, removed)] {
        results.push(Series { name: name.into(), unit: "s", values, baselines: Vec::new() });
    }
    Ok(())
}

/// CPU time of a sweep in seconds; it must keep and remove these numbers of entries.
fn sweep(rig: &Rig, entries: u32, removed: u32) -> Result<f64> {
    let sweep = rig.sweep((0..CLIENTS).map(|client| (pod(client), host_end(client))).collect())?;
    let start = cpu_time()?;
    let swept = sweep.run()?;
    let took = cpu_time()? - start;
    ensure!(
        (swept.entries, swept.removed) == (entries, removed),
        "a sweep kept {} entries and removed {}, not {entries} and {removed}",
        swept.entries,
        swept.removed
    );
    Ok(took.as_secs_f64())
}

fn pod(client: u32) -> Addr {
    v4([10, 244, 1, client as u8])
}

fn host_end(client: u32) -> IfIndex {
    IfIndex(100 + client)
}

/// Both halves of many flows last seen at the same time, in random order.
fn entries(last_seen: u32) -> Vec<(Tuple, CtEntry)> {
    let mut entries: Vec<_> = (0..ENTRIES / 2).flat_map(|number| flow(number, last_seen)).collect();
    shuffle(&mut entries);
    entries
}

fn v4(octets: [u8; 4]) -> Addr {
    Addr::from(IpAddr::from(octets))
}

/// Both halves of a flow from a pod to a service: a closed TCP connection, which is kept for another ten seconds, or a
/// UDP flow with replies.
fn flow(number: u32, last_seen: u32) -> [(Tuple, CtEntry); 2] {
    let client = number % CLIENTS;
    let [high, low] = ((number % SERVICES) as u16).to_be_bytes();
    let endpoint = (number / SERVICES % ENDPOINTS) as u8;
    let proto = if number.is_multiple_of(2) { Proto::TCP } else { Proto::UDP };
    let fins = if proto == Proto::TCP { CtEntry::FIN_CLIENT | CtEntry::FIN_BACKEND } else { 0 };
    let key = Tuple {
        src: pod(client),
        dst: v4([10, 96, high, low]),
        sport: Port::new((1024 + number / CLIENTS) as u16),
        dport: Port::new(80),
        proto,
        ..Tuple::default()
    };
    let entry = CtEntry {
        last_seen,
        flags: CtEntry::REPLIED | CtEntry::REWRITE_DST | fins,
        out: Out::Link as u8,
        service: 1 + number % SERVICES,
        src: key.src,
        dst: v4([20 + endpoint, 100, high, low]),
        sport: key.sport,
        dport: Port::new(8080),
        ..CtEntry::default()
    };
    let back = CtEntry { out: Out::Pod as u8, out_ifindex: host_end(client), ..entry.reverse(&key) };
    [(key, entry), (entry.reply_key(proto), back)]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn all_keys_differ() {
        let keys: HashSet<Tuple> = entries(1).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), ENTRIES as usize);
    }
}
