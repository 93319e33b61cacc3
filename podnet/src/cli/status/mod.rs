//! `podnet status`: the node on one screen, the most urgent first.
//!
//! It has three sources: the daemon's report (from its socket, or from a file while the daemon doesn't answer, and a
//! lock that tells whether it is running), the kernel's tables, and the host's settings, which are read afresh. So the
//! answer is correct even while the daemon is down.

mod report;
mod text;
mod warnings;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use podnet_common::{
    addr::IfIndex,
    layout::{Config, Frontend, FrontendKey, Hook, Interface, Network},
    tables::{self, SIZED, Table},
    verdict::Counter,
};

use super::drops;
use super::nat::TakenPorts;
use crate::compile::of_node;
use crate::datapath::inspect::{View, ViewError};
use crate::datapath::view::interface_name;
use crate::host::firewall::{self, Report};
use crate::host::settings::{self, Deviation};
use crate::host::sysctl::Sysctl;
use crate::host::uplinks::{self, Uplinks};
use crate::host::{Families, Host};
use crate::status::{DaemonLock, DaemonState, DaemonStatus, UnixTime};
use report::{Daemon, Datapath, Fill, HookRow, Sockets, Status};
use warnings::{daemon_warnings, drop_warnings, hook_warnings, repair_warnings, setting_warning, table_warnings};

/// The loopback interface, which has this index in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK: IfIndex = IfIndex(1);

/// Input of [`assemble`].
struct Witnesses {
    daemon: Daemon,
    datapath: Result<Datapath, ViewError>,
    settings: Vec<Deviation>,
    firewall: Report,
    /// Sources that could not be read.
    problems: Vec<String>,
    now: UnixTime,
}

/// Reads all sources. `answer` is the daemon's report, if the daemon has answered. A failure of one source doesn't hide
/// the others.
pub(super) async fn gather(
    view: Result<Box<dyn View>, ViewError>,
    run_dir: &Path,
    answer: Option<DaemonStatus>,
) -> Status {
    let mut problems = Vec::new();
    let daemon = daemon(run_dir, answer, &mut problems);
    let config = daemon.report.as_ref().and_then(|report| report.config.as_ref());
    let named = config.and_then(|config| serde_json::from_value(config.get("uplinks")?.clone()).ok());
    let named: Vec<String> = named.unwrap_or_default();
    let addresses = view.as_ref().map(|view| node_addresses(view.as_ref()).unwrap_or_default()).unwrap_or_default();
    let sysctl = Sysctl::default();
    let (mut deviations, mut uplinks) = (Vec::new(), Uplinks::default());
    // Without a datapath the host needs no settings.
    if view.is_ok() {
        match Host::open() {
            Ok(host) => match host.snapshot().await {
                Ok(snapshot) => uplinks = uplinks::find(&snapshot, &addresses, &named),
                Err(e) => problems.push(e.to_string()),
            },
            Err(e) => problems.push(e.to_string()),
        }
        let table = settings::wanted(Families::of(&addresses), &uplinks);
        match settings::check(&sysctl, &table) {
            Ok(found) => deviations = found,
            Err(e) => problems.push(e.to_string()),
        }
    }
    let firewall = firewall::detect(&sysctl, &uplinks.found);
    let datapath = view.and_then(|view| datapath(view.as_ref()));
    assemble(Witnesses { daemon, datapath, settings: deviations, firewall, problems, now: UnixTime::now() })
}

fn daemon(run_dir: &Path, answer: Option<DaemonStatus>, problems: &mut Vec<String>) -> Daemon {
    let (locked, pid) = match DaemonLock::state(run_dir) {
        Ok(DaemonState::Running { pid }) => (true, pid),
        Ok(DaemonState::Down) => (false, None),
        Err(e) => {
            problems.push(e.to_string());
            (false, None)
        }
    };
    let running = locked || answer.is_some();
    let report = answer.or_else(|| {
        DaemonStatus::read(run_dir).unwrap_or_else(|e| {
            problems.push(e.to_string());
            None
        })
    });
    Daemon { running, pid, report }
}

/// The node's addresses, according to the programs' configuration.
fn node_addresses(view: &dyn View) -> Result<Vec<IpAddr>, ViewError> {
    let config = view.config()?;
    Ok([config.node_v4, config.node_v6].into_iter().filter(|addr| !addr.is_none()).map(IpAddr::from).collect())
}

/// Reads the tables, and the attachments of the programs.
fn datapath(view: &dyn View) -> Result<Datapath, ViewError> {
    let config = view.config()?;
    let frontends = view.frontends()?;
    let (mut slots, mut backends) = (0, BTreeSet::new());
    for (_, Frontend { slot_base, slot_count, .. }) in &frontends {
        slots += u64::from(*slot_count);
        if *slot_count > 0 {
            backends.extend(view.slots(*slot_base, *slot_count)?);
        }
    }
    let endpoints = view.endpoints()?.len() as u64;
    let networks = view.networks()?;
    let mut conntrack = 0;
    let mut taken = TakenPorts::new(&view.snat_ports()?);
    view.conntrack(&mut |tuple, entry| {
        conntrack += 1;
        taken.visit(tuple, entry);
    })?;
    let counted: [(Table, u64); SIZED.len()] = [
        (tables::FRONTENDS.table(), frontends.len() as u64),
        (tables::SLOTS.table(), slots),
        (tables::BACKENDS.table(), backends.len() as u64),
        (tables::CONNTRACK.table(), conntrack),
        (tables::ENDPOINTS.table(), endpoints),
        (tables::NODES.table(), networks.len() as u64),
        (tables::SOURCE_RANGES.table(), view.source_ranges()?.len() as u64),
        (tables::AFFINITY.table(), view.affinity()?.len() as u64),
        (tables::SUBJECTS.table(), view.count(tables::SUBJECTS.table())?),
        (tables::POLICY_PEERS.table(), view.count(tables::POLICY_PEERS.table())?),
        (tables::POLICY_BLOCKS.table(), view.count(tables::POLICY_BLOCKS.table())?),
        (tables::POLICY_RULES.table(), view.count(tables::POLICY_RULES.table())?),
    ];
    let fill = |(table, entries)| {
        Ok(Fill { table, version: table.version(), entries, capacity: u64::from(view.capacity(table)?) })
    };
    let tables = counted.into_iter().map(fill).collect::<Result<_, _>>()?;
    let counters = view.counters()?;
    let count = |counter: Counter| counters.get(counter as usize).copied().unwrap_or_default();
    let drops = drops::read(view)?;
    let node_ports = networks.iter().filter(|(_, network)| network.flags & Network::NODE_PORTS != 0);
    let mut node_port_addresses: Vec<IpAddr> = node_ports.map(|(prefix, _)| prefix.addr.into()).collect();
    node_port_addresses.sort();
    Ok(Datapath {
        generation: view.generation()?,
        endpoints,
        frontends: frontends.iter().filter(|(key, _)| is_frontend(key)).count() as u64,
        host_ports: host_ports(&frontends),
        node_port_addresses,
        hooks: hooks(view, &config)?,
        sockets: match (view.sockets_attached(), config.flags & Config::SOCKET_PODS != 0) {
            (false, _) => Sockets::Off,
            (true, false) => Sockets::Host,
            (true, true) => Sockets::All,
        },
        masquerade: config.flags & Config::MASQUERADE != 0,
        snat_ports: u64::from(config.snat_count),
        snat_most: taken.by_use().into_iter().next(),
        tables,
        dropped: drops.total(),
        drops: drops.occurred().into_iter().cloned().collect(),
        counters: Counter::ALL.iter().map(|counter| (counter.name(), count(*counter))).collect(),
    })
}

/// Whether an entry is the main one of a frontend: neither for another scope nor one that marks an address.
fn is_frontend(key: &FrontendKey) -> bool {
    key.scope == FrontendKey::ANY && *key != FrontendKey::address(key.addr)
}

fn host_ports(frontends: &[(FrontendKey, Frontend)]) -> u64 {
    let host_port = |(key, value): &&(FrontendKey, Frontend)| {
        is_frontend(key) && of_node(key) && value.flags & Frontend::NODE_PORT == 0
    };
    let ports: BTreeSet<_> = frontends.iter().filter(host_port).map(|(key, _)| (key.port, key.proto)).collect();
    ports.len() as u64
}

/// Asks the kernel about every hook that the programs' configuration requires.
fn hooks(view: &dyn View, config: &Config) -> Result<Vec<HookRow>, ViewError> {
    let mut interfaces = view.interfaces()?;
    interfaces.sort_unstable_by_key(|(ifindex, _)| *ifindex);
    let mut places = Vec::new();
    for (ifindex, interface) in interfaces {
        let raw = interface.flags & Interface::RAW != 0;
        let tc = if raw { [Hook::FromRaw, Hook::ToRaw] } else { [Hook::FromUplink, Hook::ToUplink] };
        let xdp = (interface.flags & Interface::MAIN != 0 && !raw).then_some(Hook::UplinkXdp);
        places.extend(tc.into_iter().chain(xdp).map(|hook| (hook, ifindex)));
    }
    if config.tunnel != IfIndex::default() {
        places.extend([Hook::FromUplink, Hook::ToUplink].map(|hook| (hook, config.tunnel)));
    }
    if config.podnet1 != IfIndex::default() {
        places.extend([(Hook::FromHost, config.podnet1), (Hook::FromLoopback, LOOPBACK)]);
    }
    let row = |(hook, ifindex): (Hook, IfIndex)| {
        Ok(HookRow {
            hook: hook.name(),
            ifindex: ifindex.0,
            interface: interface_name(ifindex),
            attached: view.attached(hook, ifindex)?,
        })
    };
    places.into_iter().map(row).collect()
}

/// Combines the sources.
fn assemble(witnesses: Witnesses) -> Status {
    let Witnesses { daemon, datapath, settings, firewall, problems, now } = witnesses;
    let mut warnings = Vec::new();
    let datapath = datapath.map_err(|e| warnings.push(e.to_string())).ok();
    daemon_warnings(&daemon, datapath.is_some(), &mut warnings);
    repair_warnings(daemon.report.iter().flat_map(|report| &report.repairs), now, &mut warnings);
    if let Some(datapath) = &datapath {
        hook_warnings(datapath, &daemon, &mut warnings);
        table_warnings(datapath, &mut warnings);
        drop_warnings(datapath, &daemon, now, &mut warnings);
    }
    warnings.extend(settings.iter().map(|deviation| setting_warning(deviation, daemon.running)));
    warnings.extend(firewall.findings.iter().map(|finding| format!("{}: {}", finding.what, finding.advice)));
    warnings.extend(problems);
    // The daemon may have reported the same.
    let mut told = BTreeSet::new();
    warnings.retain(|warning| told.insert(warning.clone()));
    Status { warnings, daemon, datapath, settings, firewall, now }
}

#[cfg(test)]
mod tests;
