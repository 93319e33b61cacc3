//! A frontend according to the tables.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use podnet_common::layout::{Frontend, FrontendKey};
use serde::Serialize;

use super::super::output::protocol;
use crate::compile::{ServiceId, ServiceNames, of_node};
use crate::datapath::inspect::{View, ViewError};
use crate::frontend::{FrontendKind, ServicePortName, SourceMode};
use crate::model::ObjectName;

/// Table entries of a frontend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// For all clients without an entry of their own.
    pub(super) any: Frontend,
    /// For clients that arrive on an uplink.
    pub(super) outside: Option<Frontend>,
    /// For packets forwarded by other nodes.
    pub(super) peer: Option<Frontend>,
}

/// Frontends by key with scope `ANY`; excludes entries that only mark an address.
pub(super) type Entries = BTreeMap<FrontendKey, Entry>;

/// Reads the frontends for whose service id `wanted` is true.
pub(super) fn entries(view: &dyn View, wanted: impl Fn(u32) -> bool) -> Result<Entries, ViewError> {
    let all = view
        .frontends()?
        .into_iter()
        .filter(|(key, value)| *key != FrontendKey::address(key.addr) && wanted(value.service));
    let (any, scoped): (Vec<_>, Vec<_>) = all.partition(|(key, _)| key.scope == FrontendKey::ANY);
    let mut entries: Entries =
        any.into_iter().map(|(key, any)| (key, Entry { any, outside: None, peer: None })).collect();
    for (key, value) in scoped {
        let Some(entry) = entries.get_mut(&FrontendKey { scope: FrontendKey::ANY, ..key }) else { continue };
        match key.scope {
            FrontendKey::OUTSIDE => entry.outside = Some(value),
            _ => entry.peer = Some(value),
        }
    }
    Ok(entries)
}

/// Address of a frontend, or all addresses of the node of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Place {
    /// `None`: all addresses of the node.
    pub(super) address: Option<IpAddr>,
    pub(super) family: Family,
    pub(super) port: u16,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Place {
    pub(super) fn new(key: &FrontendKey) -> Self {
        Self {
            address: (!of_node(key)).then(|| key.addr.into()),
            family: if key.addr.is_v4() { Family::V4 } else { Family::V6 },
            port: key.port.get(),
        }
    }

    /// The address in readable form.
    pub(super) fn shown_address(&self) -> String {
        match (self.address, self.family) {
            (Some(address), _) => address.to_string(),
            (None, Family::V4) => "*".to_owned(),
            (None, Family::V6) => "[*]".to_owned(),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).fmt(f),
            None => write!(f, "{}:{}", self.shown_address(), self.port),
        }
    }
}

/// An address and port of a service.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FrontendRow {
    /// `None` if the daemon's file of names is missing.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) port_name: Option<String>,
    /// `None` if it is the address of a load balancer or an external IP, and the objects are unknown.
    pub(super) kind: Option<FrontendKind>,
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) protocol: String,
    /// Which source address backends see.
    pub(super) source: SourceMode,
    pub(super) affinity_seconds: Option<u32>,
    /// Number of distinct backends; with `outsideBackends`, those for pods and processes of this node.
    pub(super) backends: usize,
    /// Number of distinct backends for clients outside, if these have others.
    pub(super) outside_backends: Option<usize>,
    /// Flags of the table's entry, in words.
    pub(super) flags: Vec<&'static str>,
    pub(super) service_id: u32,
}

/// Sort key of frontends.
pub(super) fn order(row: &FrontendRow) -> impl Ord {
    (&row.namespace, &row.name, &row.port_name, row.kind, &row.place, &row.protocol)
}

pub(super) fn row(
    view: &dyn View,
    names: &ServiceNames,
    key: &FrontendKey,
    entry: &Entry,
) -> Result<FrontendRow, ViewError> {
    let name = names.name(ServiceId(entry.any.service));
    Ok(FrontendRow {
        namespace: name.map(|n| n.service.namespace.clone()),
        name: name.map(|n| n.service.name.clone()),
        port_name: name.map(|n| n.port.clone()).filter(|port| !port.is_empty()),
        kind: kind(key, entry.any.flags).or(name.filter(|n| is_pods(n)).map(|_| FrontendKind::HostPort)),
        place: Place::new(key),
        protocol: protocol(key.proto),
        source: source(entry.any.flags),
        affinity_seconds: Some(entry.any.affinity).filter(|seconds| *seconds != 0),
        backends: shares(view, &entry.any)?.len(),
        outside_backends: entry.outside.map(|outside| shares(view, &outside)).transpose()?.map(|s| s.len()),
        flags: flags(entry.any.flags),
        service_id: ServiceId(entry.any.service).port().0,
    })
}

/// Adds what only the objects contain.
pub(super) fn complete(row: &mut FrontendRow, kind: impl FnOnce(&ObjectName, IpAddr) -> Option<FrontendKind>) {
    if let (None, Some(ip), Some(namespace), Some(name)) = (row.kind, row.place.address, &row.namespace, &row.name) {
        row.kind = kind(&ObjectName { namespace: namespace.clone(), name: name.clone() }, ip);
    }
}

/// Kind of a frontend's address, as far as the tables tell.
fn kind(key: &FrontendKey, flags: u16) -> Option<FrontendKind> {
    match flags {
        flags if flags & Frontend::NODE_PORT != 0 => Some(FrontendKind::NodePort),
        _ if of_node(key) => Some(FrontendKind::HostPort),
        flags if flags & Frontend::EXTERNAL == 0 => Some(FrontendKind::ClusterIp),
        // Only load balancers have source ranges.
        flags if flags & Frontend::SOURCE_RANGES != 0 => Some(FrontendKind::LoadBalancer),
        _ => None,
    }
}

/// Whether a frontend is named after a pod, as host ports are: names of services have no spaces.
fn is_pods(name: &ServicePortName) -> bool {
    name.service.name.contains(' ')
}

/// In readable form.
pub(super) const fn kind_name(kind: Option<FrontendKind>) -> &'static str {
    match kind {
        Some(FrontendKind::ClusterIp) => "ClusterIP",
        Some(FrontendKind::NodePort) => "NodePort",
        Some(FrontendKind::LoadBalancer) => "LoadBalancer",
        Some(FrontendKind::ExternalIp) => "ExternalIP",
        Some(FrontendKind::HostPort) => "HostPort",
        None => "external",
    }
}

/// Which source address backends see. Those of a ClusterIP see the client's, whether or not preserving it has a cost.
const fn source(flags: u16) -> SourceMode {
    if flags & Frontend::SNAT != 0 {
        SourceMode::Snat
    } else if flags & Frontend::DIRECT_RETURN != 0 || flags & Frontend::EXTERNAL == 0 {
        SourceMode::Preserve
    } else {
        SourceMode::Auto
    }
}

/// As in the configuration.
pub(super) const fn source_name(source: SourceMode) -> &'static str {
    match source {
        SourceMode::Auto => "auto",
        SourceMode::Preserve => "preserve",
        SourceMode::Snat => "snat",
    }
}

/// The flags of an entry in words.
fn flags(flags: u16) -> Vec<&'static str> {
    const WORDS: [(u16, &str); 7] = [
        (Frontend::SNAT, "snat"),
        (Frontend::EXTERNAL, "external"),
        (Frontend::OUTSIDE_DIFFERS, "outsideDiffers"),
        (Frontend::DROP, "drop"),
        (Frontend::DIRECT_RETURN, "directReturn"),
        (Frontend::SOURCE_RANGES, "sourceRanges"),
        (Frontend::NODE_PORT, "nodePort"),
    ];
    WORDS.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, word)| *word).collect()
}

/// The ids in a frontend's slots, with the number of slots of each: more than one where nodes must agree (Maglev).
pub(super) fn shares(view: &dyn View, value: &Frontend) -> Result<BTreeMap<u32, usize>, ViewError> {
    let mut shares = BTreeMap::new();
    if value.slot_count > 0 {
        for id in view.slots(value.slot_base, value.slot_count)? {
            *shares.entry(id).or_default() += 1;
        }
    }
    Ok(shares)
}
