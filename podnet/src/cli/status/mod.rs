//! `podnet status`: the node on one screen, the most urgent first.
//!
//! It has three sources: the daemon's report (from its socket, or from a file while the daemon doesn't answer, and a lock
//! that tells whether it is running), the kernel's tables, and the host's settings, which are read afresh. So the answer
//! is correct even while the daemon is down.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use podnet_common::{
    addr::IfIndex,
    layout::{Config, Frontend, FrontendKey, Hook, Interface, Network},
    tables::{self, Kind, SIZED, Table},
    verdict::Counter,
};
use serde::{Serialize, Serializer};

use super::drops::{self, DropRow};
use super::nat::{PortUse, TakenPorts};
use super::output::duration;
use crate::compile::of_node;
use crate::datapath::inspect::{View, ViewError};
use crate::datapath::view::interface_name;
use crate::host::firewall::{self, Report};
use crate::host::settings::{self, Deviation};
use crate::host::sysctl::Sysctl;
use crate::host::uplinks::{self, Uplinks};
use crate::host::{Families, Host};
use crate::source::what_holds;
use crate::status::{ALARMING, DaemonLock, DaemonState, DaemonStatus, DropStatus, RepairStatus, UnixTime};

/// Usage of its capacity from which a table is called nearly full: nine tenths.
const NEARLY_FULL: (u64, u64) = (9, 10);

/// How long warnings about drops last, in seconds.
const LATELY: u64 = 600;
/// How long the repair of a pod's link is reported, in seconds.
const REPAIR_IS_NEWS: u64 = 600;

/// The loopback interface, which has this index in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK: IfIndex = IfIndex(1);

/// `podnet status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    /// Warnings, as sentences, the most severe first.
    pub(super) warnings: Vec<String>,
    pub(super) daemon: Daemon,
    /// `None` if nothing is pinned or it can't be read.
    pub(super) datapath: Option<Datapath>,
    /// Host settings that differ from what podnet needs.
    pub(super) settings: Vec<Deviation>,
    /// Packet filters of other programs.
    pub(super) firewall: Report,
    pub(super) now: UnixTime,
}

/// The daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Daemon {
    running: bool,
    pid: Option<i32>,
    /// Its last report, even if it is down.
    report: Option<DaemonStatus>,
}

/// State in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Datapath {
    /// Number of the running generation of programs.
    generation: u32,
    /// Addresses of local pods.
    endpoints: u64,
    /// Addresses and ports of services.
    frontends: u64,
    /// Host ports at all addresses of this node.
    host_ports: u64,
    /// Addresses of the node that serve NodePorts.
    node_port_addresses: Vec<IpAddr>,
    /// Where the programs are attached.
    hooks: Vec<HookRow>,
    /// Whether the socket hooks are attached, and whether they translate for pods too.
    sockets: Sockets,
    /// Whether pods reach destinations outside the cluster with the node's address.
    masquerade: bool,
    /// Number of source ports for each destination.
    snat_ports: u64,
    /// The destination with the most source ports in use.
    snat_most: Option<PortUse>,
    tables: Vec<Fill>,
    /// Packets dropped since the datapath was set up.
    dropped: u64,
    drops: Vec<DropRow>,
    /// Counters of events other than drops.
    counters: BTreeMap<&'static str, u64>,
}

/// A hook and an interface that should have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct HookRow {
    hook: &'static str,
    ifindex: u32,
    /// `None` if the interface doesn't exist.
    interface: Option<String>,
    attached: bool,
}

/// Whose sockets are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Sockets {
    /// No sockets.
    #[default]
    Off,
    /// Sockets of host processes.
    Host,
    /// Sockets of pods too.
    All,
}

impl Status {
    /// Why the state of the datapath is unknown; it is then the first warning.
    pub(super) fn no_datapath(&self) -> Option<&str> {
        if self.datapath.is_some() { None } else { self.warnings.first().map(String::as_str) }
    }
}

/// Usage of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fill {
    #[serde(serialize_with = "table_name")]
    table: Table,
    /// Version of its layout.
    version: u32,
    entries: u64,
    capacity: u64,
}

fn table_name<S: Serializer>(table: &Table, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(table.name())
}

/// Remedy for each table that is nearly full.
const ADVICE: [(Table, &str); SIZED.len()] = [
    (tables::CONNTRACK.table(), "raise conntrackMax in the daemon's configuration"),
    (tables::ENDPOINTS.table(), "move pods to other nodes"),
    (tables::NODES.table(), "its size is fixed: use fewer nodes or fewer load balancer addresses"),
    (
        tables::SOURCE_RANGES.table(),
        "raise frontendsMax in the daemon's configuration, or use fewer, larger loadBalancerSourceRanges",
    ),
    (tables::FRONTENDS.table(), FEWER_SERVICES),
    (tables::SLOTS.table(), FEWER_SERVICES),
    (tables::BACKENDS.table(), FEWER_SERVICES),
    (tables::AFFINITY.table(), "the kernel evicts the least recently used clients"),
];
const FEWER_SERVICES: &str = "raise frontendsMax in the daemon's configuration, or remove services or endpoints";

impl Fill {
    fn nearly_full(&self) -> bool {
        // The kernel evicts entries of an LRU hash.
        self.table.kind() != Kind::LruHash && nearly_full(self.entries, self.capacity)
    }

    fn advice(&self) -> &'static str {
        ADVICE.iter().find(|(table, _)| *table == self.table).map_or("", |(_, advice)| advice)
    }
}

fn nearly_full(entries: u64, capacity: u64) -> bool {
    let (part, whole) = NEARLY_FULL;
    entries * whole >= capacity * part
}

/// Input of [`assemble`].
pub(super) struct Witnesses {
    pub(super) daemon: Daemon,
    pub(super) datapath: Result<Datapath, ViewError>,
    pub(super) settings: Vec<Deviation>,
    pub(super) firewall: Report,
    /// Sources that could not be read.
    pub(super) problems: Vec<String>,
    pub(super) now: UnixTime,
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
pub(super) fn assemble(witnesses: Witnesses) -> Status {
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

fn daemon_warnings(daemon: &Daemon, datapath: bool, warnings: &mut Vec<String>) {
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
        let times = pending.failures;
        warnings
            .push(format!("{} could not be written in {times} attempts so far: {}", pending.frontend, pending.reason));
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
fn repair_warnings<'a>(repairs: impl Iterator<Item = &'a RepairStatus>, now: UnixTime, warnings: &mut Vec<String>) {
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
fn hook_warnings(datapath: &Datapath, daemon: &Daemon, warnings: &mut Vec<String>) {
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
        "the daemon reattaches it within half a minute; find the program that detaches it"
    } else {
        "start the daemon to attach it"
    }
}

fn table_warnings(datapath: &Datapath, warnings: &mut Vec<String>) {
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
fn drop_warnings(datapath: &Datapath, daemon: &Daemon, now: UnixTime, warnings: &mut Vec<String>) {
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

fn setting_warning(deviation: &Deviation, running: bool) -> String {
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

/// How long something has lasted, in words.
fn since(then: UnixTime, now: UnixTime) -> String {
    duration(then.seconds_until(now))
}

#[cfg(test)]
mod tests;
