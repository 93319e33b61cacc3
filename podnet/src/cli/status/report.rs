//! The answer of `podnet status`, as its JSON form has it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podnet_common::tables::{self, Kind, SIZED, Table};
use serde::{Serialize, Serializer};

use crate::cli::drops::DropRow;
use crate::cli::nat::PortUse;
use crate::cli::output::duration;
use crate::datapath::{NODES_ADVICE, POLICIES_ADVICE};
use crate::host::firewall::Report;
use crate::host::settings::Deviation;
use crate::status::{DaemonStatus, UnixTime};

/// `podnet status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Status {
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

impl Status {
    /// Why the state of the datapath is unknown; it is then the first warning.
    pub(in crate::cli) fn no_datapath(&self) -> Option<&str> {
        if self.datapath.is_some() { None } else { self.warnings.first().map(String::as_str) }
    }
}

/// The daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Daemon {
    pub(super) running: bool,
    pub(super) pid: Option<i32>,
    /// Its last report, even if it is down.
    pub(super) report: Option<DaemonStatus>,
}

/// State in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Datapath {
    /// Number of the running generation of programs.
    pub(super) generation: u32,
    /// Addresses of local pods.
    pub(super) endpoints: u64,
    /// Addresses and ports of services.
    pub(super) frontends: u64,
    /// Host ports at all addresses of this node.
    pub(super) host_ports: u64,
    /// Addresses of the node that serve NodePorts.
    pub(super) node_port_addresses: Vec<IpAddr>,
    /// Where the programs are attached.
    pub(super) hooks: Vec<HookRow>,
    /// Whether the socket hooks are attached, and whether they translate for pods too.
    pub(super) sockets: Sockets,
    /// Whether pods reach destinations outside the cluster with the node's address.
    pub(super) masquerade: bool,
    /// Number of source ports for each destination.
    pub(super) snat_ports: u64,
    /// The destination with the most source ports in use.
    pub(super) snat_most: Option<PortUse>,
    pub(super) tables: Vec<Fill>,
    /// Packets dropped since the datapath was set up.
    pub(super) dropped: u64,
    pub(super) drops: Vec<DropRow>,
    /// Counters of events other than drops.
    pub(super) counters: BTreeMap<&'static str, u64>,
}

/// A hook and an interface that should have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HookRow {
    pub(super) hook: &'static str,
    pub(super) ifindex: u32,
    /// `None` if the interface doesn't exist.
    pub(super) interface: Option<String>,
    pub(super) attached: bool,
}

/// Whose sockets are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Sockets {
    /// No sockets.
    #[default]
    Off,
    /// Sockets of host processes.
    Host,
    /// Sockets of pods too.
    All,
}

/// Usage of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fill {
    #[serde(serialize_with = "table_name")]
    pub(super) table: Table,
    /// Version of its layout.
    pub(super) version: u32,
    pub(super) entries: u64,
    pub(super) capacity: u64,
}

fn table_name<S: Serializer>(table: &Table, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(table.name())
}

impl Fill {
    pub(super) fn nearly_full(&self) -> bool {
        // The kernel evicts entries of an LRU hash.
        self.table.kind() != Kind::LruHash && nearly_full(self.entries, self.capacity)
    }

    pub(super) fn advice(&self) -> &'static str {
        ADVICE.iter().find(|(table, _)| *table == self.table).map_or("", |(_, advice)| advice)
    }
}

/// Remedy for each table that is nearly full.
const ADVICE: [(Table, &str); SIZED.len()] = [
    (
        tables::CONNTRACK.table(),
        "raise conntrackMax in the daemon's configuration, then run `podnet cleanup` or reboot",
    ),
    (tables::ENDPOINTS.table(), "move pods to other nodes"),
    (tables::NODES.table(), NODES_ADVICE),
    (
        tables::SOURCE_RANGES.table(),
        "raise frontendsMax in the daemon's configuration, or use fewer, larger loadBalancerSourceRanges",
    ),
    (tables::FRONTENDS.table(), FEWER_SERVICES),
    (tables::SLOTS.table(), FEWER_SERVICES),
    (tables::BACKENDS.table(), FEWER_SERVICES),
    (tables::AFFINITY.table(), "the kernel evicts the least recently used clients"),
    (tables::SUBJECTS.table(), POLICIES_ADVICE),
    (tables::POLICY_PEERS.table(), POLICIES_ADVICE),
    (tables::POLICY_BLOCKS.table(), POLICIES_ADVICE),
    (tables::POLICY_RULES.table(), POLICIES_ADVICE),
];

const FEWER_SERVICES: &str = "raise frontendsMax in the daemon's configuration, or remove services or endpoints";

/// Usage of its capacity from which a table is called nearly full: nine tenths.
const NEARLY_FULL: (u64, u64) = (9, 10);

pub(super) fn nearly_full(entries: u64, capacity: u64) -> bool {
    let (part, whole) = NEARLY_FULL;
    entries * whole >= capacity * part
}

/// How long something has lasted, in words.
pub(super) fn since(then: UnixTime, now: UnixTime) -> String {
    duration(then.seconds_until(now))
}
