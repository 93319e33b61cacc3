//! Warnings about the node: a sentence each, with the remedy.

use podnet_common::layout::Hook;

use super::report::{Daemon, Datapath, Fill, HookRow, Sockets, nearly_full, since};
use crate::cli::nat::PortUse;
use crate::host::settings::Deviation;
use crate::source::what_holds;
use crate::status::{ALARMING, DropStatus, RepairStatus, UnixTime};

/// How long warnings about drops last, in seconds.
const LATELY: u64 = 600;

/// How long the repair of a pod's link is reported, in seconds.
pub(super) const REPAIR_IS_NEWS: u64 = 600;

pub(super) fn daemon_warnings(daemon: &Daemon, datapath: bool, warnings: &mut Vec<String>) {
    if !daemon.running && datapath {
        warnings.push(
            "the daemon is not running: existing traffic and pods keep working, but service changes are not applied. \
             Start it with `podnet daemon --config FILE`"
                .to_owned(),
        );
    }
    let Some(report) = &daemon.report else { return };
    if daemon.running && report.ready.is_none() {
        warnings.push("the daemon is not ready yet: pods cannot be started until it is".to_owned());
    }
    for source in &report.sources {
        if !source.synced {
            warnings.push(format!(
                "{} has not been read completely yet: until then, services of an earlier daemon stay in effect, \
                 including deleted ones",
                source.name
            ));
        }
        for error in &source.errors {
            let line = error.line.map(|line| format!(":{line}")).unwrap_or_default();
            let file = &error.place;
            warnings.push(format!("{file}{line}: {} ({})", error.reason, what_holds(error.kept)));
        }
    }
    for pending in &report.tables.pending {
        warnings.push(format!(
            "the frontend {} could not be written to the tables (attempts: {}), retrying: {}",
            pending.frontend, pending.failures, pending.reason
        ));
    }
    for uplink in report.interfaces() {
        for hook in uplink.hooks.iter().filter(|hook| hook.attached.is_none()) {
            let reason = hook.error.as_deref().unwrap_or("see the daemon's log for the reason");
            warnings.push(format!("{} is not attached to {}: {reason}", hook.hook, uplink.name));
        }
    }
    if let Some(error) = &report.health.error {
        let address = report.health.address.as_deref().unwrap_or("no address");
        warnings.push(format!(
            "the health server cannot listen on {address}: {error}; free the port or change healthzBindAddress"
        ));
    }
    if datapath && report.ready.is_some() && report.uplinks.is_empty() {
        let advice = "list the interfaces that connect the node to its network as `uplinks` in the daemon's \
                      configuration";
        warnings.push(format!("no uplink found: {advice}"));
    }
    warnings.extend(report.warnings.iter().cloned());
}

/// Recently repaired links of pods; if there are many, only some are named.
pub(super) fn repair_warnings<'a>(
    repairs: impl Iterator<Item = &'a RepairStatus>,
    now: UnixTime,
    warnings: &mut Vec<String>,
) {
    const NAMED: usize = 5;
    let mut recent: Vec<_> = repairs.filter(|repair| repair.last.seconds_until(now) < REPAIR_IS_NEWS).collect();
    recent.sort_by_key(|repair| std::cmp::Reverse(repair.last));
    for RepairStatus { of, parts, times, last } in recent.iter().take(NAMED) {
        let count = if *times == 1 { String::new() } else { format!(", {times} times so far") };
        warnings.push(format!(
            "another program has changed the link of {of}: restored {parts} {} ago{count}; configure the host's \
             network managers to ignore pn* interfaces",
            since(*last, now)
        ));
    }
    if let Some(others) = recent.len().checked_sub(NAMED).filter(|others| *others > 0) {
        warnings.push(format!(
            "the links of {others} more pods were restored likewise: `podnet status -o json` lists them"
        ));
    }
}

/// Missing hooks. Failures that the daemon has reported are not repeated.
pub(super) fn hook_warnings(datapath: &Datapath, daemon: &Daemon, warnings: &mut Vec<String>) {
    let report = daemon.report.as_ref();
    let said = |row: &HookRow| report.and_then(|report| report.hook(row.ifindex, row.hook));
    for row in datapath.hooks.iter().filter(|row| !row.attached) {
        let said = said(row);
        let xdp = row.hook == Hook::UplinkXdp.name();
        // XDP is expected where the daemon reports that it is attached, in any mode.
        let wanted = said.and_then(|hook| hook.attached.as_deref()).map(|how| !how.starts_with("xdp off"));
        if said.is_some_and(|hook| hook.attached.is_none()) || (xdp && wanted != Some(true)) {
            continue;
        }
        let interface = row.interface.clone().unwrap_or_else(|| format!("interface {}", row.ifindex));
        warnings.push(format!("{} is not attached to {interface}: {}", row.hook, again(daemon.running)));
    }
    let wanted = report.and_then(|report| report.config.as_ref()?.get("socketLB")?.as_str());
    // The daemon's own problems explain why it could not attach them.
    let refused = report.is_some_and(|report| report.socket_hooks_refused);
    if datapath.sockets == Sockets::Off && wanted.is_some_and(|wanted| wanted != "off") && !refused {
        warnings.push(format!("the socket hooks are not attached: {}", again(daemon.running)));
    }
}

fn again(running: bool) -> &'static str {
    if running {
        "the daemon attaches what is missing within half a minute; find the program that detaches it"
    } else {
        "start the daemon, which attaches what is missing"
    }
}

pub(super) fn table_warnings(datapath: &Datapath, warnings: &mut Vec<String>) {
    for fill in datapath.tables.iter().filter(|fill| fill.nearly_full()) {
        let Fill { table, entries, capacity, .. } = fill;
        warnings.push(format!(
            "the table {} is nearly full ({entries} of {capacity}): {}",
            table.name(),
            fill.advice()
        ));
    }
    if let Some(PortUse { protocol, destination, used, ports, .. }) = &datapath.snat_most
        && nearly_full(*used as u64, *ports as u64)
    {
        warnings.push(format!(
            "SNAT source ports for {destination} ({protocol}) are nearly exhausted ({used} of {ports} in use): new \
             connections to it will fail; see `podnet nat list`, and narrow net.ipv4.ip_local_port_range or move \
             clients to other nodes"
        ));
    }
}

/// Recent drops that concern the operator.
pub(super) fn drop_warnings(datapath: &Datapath, daemon: &Daemon, now: UnixTime, warnings: &mut Vec<String>) {
    for reason in ALARMING {
        let Some(row) = datapath.drops.iter().find(|row| row.reason == reason.name()) else { continue };
        let seen = daemon.report.as_ref().map(|report| report.drops.get(reason.name()).copied().unwrap_or_default());
        let when = match seen {
            // The daemon observes the counters every half minute.
            Some(seen) if row.packets > seen.packets && daemon.running => ", the last just now".to_owned(),
            Some(DropStatus { packets, last }) if row.packets <= packets => {
                match last.filter(|last| last.seconds_until(now) < LATELY) {
                    Some(last) => format!(", the last {} ago", since(last, now)),
                    None => continue,
                }
            }
            _ => String::new(),
        };
        warnings.push(format!("{} packets dropped so far{when}: {}", row.packets, row.explanation));
    }
}

pub(super) fn setting_warning(deviation: &Deviation, running: bool) -> String {
    let Deviation { path, wanted, .. } = deviation;
    let advice = if running {
        "the daemon restores it; find the program that changes it".to_owned()
    } else {
        format!("set it with `sysctl -w {}={wanted}` or start the daemon", path_for_sysctl(path))
    };
    format!("{deviation}; {advice}")
}

/// sysctl(8) takes slashes as separators if a name contains dots.
fn path_for_sysctl(path: &str) -> String {
    if path.contains('.') { path.to_owned() } else { path.replace('/', ".") }
}
