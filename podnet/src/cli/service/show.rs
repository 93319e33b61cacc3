//! A service according to the tables, with its flows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use podnet_common::addr::{Addr, IfIndex};
use podnet_common::{
    layout::{Backend, CtEntry, Frontend, FrontendKey, Network, NetworkKind, Prefix, ServiceClient},
    tables,
};

use super::super::conntrack::NodeNames;
use super::super::endpoint::Pods;
use super::super::output::socket;
use super::detail::{Choice, Clients, Forwarded, FrontendDetail, ServiceDetail, Target};
use super::row::{Entries, Entry, complete, entries, order, row, shares};
use super::why;
use crate::compile::{ServiceId, ServiceNames};
use crate::datapath::inspect::{View, ViewError};
use crate::entry_counts::EntryCounts;
use crate::frontend::{FrontendKind, IfNone};
use crate::model::ObjectName;
use crate::select::Explained;
use crate::socket::Explanation;

/// Reads a service. `explanation` is what its objects ask for, or why that is unknown. `None`: neither the tables nor
/// the objects contain the service.
pub(in crate::cli) fn show(
    view: &dyn View,
    names: &ServiceNames,
    pods: &Pods,
    nodes: &NodeNames,
    name: &ObjectName,
    explanation: Result<Explanation, String>,
) -> Result<Option<ServiceDetail>, ViewError> {
    let entries = entries(view, |id| names.name(ServiceId(id)).is_some_and(|port| port.service == *name))?;
    let places = Places::read(view, nodes)?;
    let flows = Flows::count(view, &entries)?;
    let mut frontends = Vec::new();
    for (key, entry) in &entries {
        let mut row = row(view, names, key, entry)?;
        if let Ok(Explanation { service: Some(explained), .. }) = &explanation {
            complete(&mut row, |_, ip| kind(explained, ip));
        }
        frontends.push(FrontendDetail {
            frontend: row,
            source_ranges: source_ranges(view, key, &entry.any)?,
            choices: choices(view, pods, &places, &flows, key, entry)?,
            forwarded: flows.forwarded(key, nodes),
        });
    }
    frontends.sort_by(|a, b| order(&a.frontend).cmp(&order(&b.frontend)));
    let is_host_port = || frontends.iter().any(|f| f.frontend.kind == Some(FrontendKind::HostPort));
    let (explanation, invalid, not_explained) = match explanation {
        Ok(Explanation { service: Some(explained), invalid }) => (Some(explained), invalid, None),
        Ok(_) if is_host_port() => {
            (None, Vec::new(), Some("a host port maps to the one pod that requested it".to_owned()))
        }
        Ok(_) => (None, Vec::new(), Some(format!("Service {name} not found"))),
        Err(reason) => (None, Vec::new(), Some(reason)),
    };
    if frontends.is_empty() && explanation.is_none() {
        return Ok(None);
    }
    let mut differences = explanation.as_ref().map(|e| why::differences(&frontends, e)).unwrap_or_default();
    if !differences.is_empty() {
        let invalid = invalid.iter();
        differences
            .extend(invalid.map(|file| format!("{file} is invalid: its last valid version, if any, stays in effect")));
    }
    let ObjectName { namespace, name } = name.clone();
    Ok(Some(ServiceDetail { namespace, name, frontends, explanation, not_explained, differences }))
}

/// Kind of an external address of a service.
fn kind(service: &Explained, ip: IpAddr) -> Option<FrontendKind> {
    service.frontends.iter().find(|frontend| frontend.address == ip).map(|frontend| frontend.kind)
}

/// Sizes of the service tables.
pub(in crate::cli) fn tables(view: &dyn View) -> Result<EntryCounts, ViewError> {
    Ok(EntryCounts::of_tables(
        view.capacity(tables::FRONTENDS.into())?,
        view.capacity(tables::SLOTS.into())?,
        view.capacity(tables::BACKENDS.into())?,
        view.capacity(tables::SOURCE_RANGES.into())?,
    ))
}

fn choices(
    view: &dyn View,
    pods: &Pods,
    places: &Places<'_>,
    flows: &Flows,
    key: &FrontendKey,
    entry: &Entry,
) -> Result<Vec<Choice>, ViewError> {
    let inside = if entry.outside.is_some() { Clients::ThisNode } else { Clients::All };
    let mut choices = Vec::new();
    for (clients, value) in
        [(inside, Some(entry.any)), (Clients::Outside, entry.outside), (Clients::Forwarded, entry.peer)]
    {
        let Some(value) = value else { continue };
        let mut targets = Vec::new();
        for (id, slots) in shares(view, &value)? {
            let backend = view.backend(id)?;
            let at = socket(backend.addr, backend.port);
            targets.push(Target {
                address: at.ip(),
                port: at.port(),
                pod: pods.name(at.ip()),
                local: places.is_local(&backend),
                node: places.node(&backend),
                slots,
                flows: flows.to(key, clients, at),
            });
        }
        targets.sort_by_key(|t| (t.address, t.port));
        let none = if value.flags & Frontend::DROP != 0 || clients == Clients::Forwarded {
            IfNone::Drop
        } else {
            IfNone::Reject
        };
        choices.push(Choice { clients, if_none: targets.is_empty().then_some(none), slots: value.slot_count, targets });
    }
    Ok(choices)
}

/// Source ranges of a service, of the frontend's family, if the frontend is restricted.
fn source_ranges(view: &dyn View, key: &FrontendKey, value: &Frontend) -> Result<Option<Vec<IpNetwork>>, ViewError> {
    if value.flags & Frontend::SOURCE_RANGES == 0 {
        return Ok(None);
    }
    let clients = ServiceClient::new(value.service, key.addr).service;
    let ranges = view.source_ranges()?.into_iter().filter(|range| range.data.service == clients);
    let ranges = ranges.filter_map(|range| {
        let clients = range.clients();
        IpNetwork::new(clients.addr.into(), u8::try_from(clients.own_len()).ok()?).ok()
    });
    let mut ranges: Vec<IpNetwork> = ranges.collect();
    ranges.sort();
    Ok(Some(ranges))
}

/// Location of backends.
struct Places<'a> {
    local: BTreeSet<Addr>,
    networks: Vec<(Prefix, Network)>,
    nodes: &'a NodeNames,
}

impl<'a> Places<'a> {
    fn read(view: &dyn View, nodes: &'a NodeNames) -> Result<Self, ViewError> {
        let config = view.config()?;
        let pods = view.endpoints()?.into_iter().map(|(addr, _)| addr);
        Ok(Self { local: pods.chain([config.node_v4, config.node_v6]).collect(), networks: view.networks()?, nodes })
    }

    /// The network that contains an address.
    fn network(&self, addr: Addr) -> Option<&Network> {
        let bits = |addr: Addr| match IpAddr::from(addr) {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let holds = |prefix: &Prefix| {
            let mask = u128::MAX.checked_shl(128 - prefix.len.min(128)).unwrap_or_default();
            (bits(prefix.addr) ^ bits(addr)) & mask == 0
        };
        let holding = self.networks.iter().filter(|(prefix, _)| holds(prefix));
        holding.max_by_key(|(prefix, _)| prefix.len).map(|(_, network)| network)
    }

    fn is_local(&self, backend: &Backend) -> bool {
        let local = |network: &Network| {
            network.kind == NetworkKind::LocalNode as u32 || network.kind == NetworkKind::LocalPods as u32
        };
        self.local.contains(&backend.addr) || self.network(backend.addr).is_some_and(local)
    }

    /// Name of the node where a backend is, if it is another node.
    fn node(&self, backend: &Backend) -> Option<String> {
        let network = self.network(backend.addr)?;
        let remote = network.kind == NetworkKind::RemotePods as u32 || network.kind == NetworkKind::RemoteNode as u32;
        self.nodes.get(&network.node.into()).filter(|_| remote).cloned()
    }
}

/// Number of flows of these frontends.
#[derive(Debug, Default)]
struct Flows {
    /// By frontend, whether they arrived on an uplink, and backend.
    translated: BTreeMap<(FrontendKey, bool, SocketAddr), usize>,
    /// By frontend and node.
    forwarded: BTreeMap<(FrontendKey, IpAddr), usize>,
}

impl Flows {
    fn count(view: &dyn View, entries: &Entries) -> Result<Self, ViewError> {
        let mut flows = Self::default();
        if entries.is_empty() {
            return Ok(flows);
        }
        let uplinks: BTreeSet<IfIndex> = view.interfaces()?.into_iter().map(|(ifindex, _)| ifindex).collect();
        view.conntrack(&mut |tuple, entry| {
            if entry.flags & CtEntry::REPLY != 0 {
                return;
            }
            let exact = FrontendKey { addr: tuple.dst, port: tuple.dport, proto: tuple.proto, scope: FrontendKey::ANY };
            let addr = if tuple.dst.is_v4() { FrontendKey::NODE_V4 } else { FrontendKey::NODE_V6 };
            let of_node = FrontendKey { addr, ..exact };
            // The upper bits of ids are the group of clients.
            let port = ServiceId(entry.service).port();
            let is_used =
                |key: &&FrontendKey| entries.get(key).is_some_and(|e| ServiceId(e.any.service).port() == port);
            let Some(key) = [exact, of_node].iter().find(is_used).copied() else { return };
            let to = socket(entry.dst, entry.dport);
            if entry.flags & CtEntry::ONE_WAY != 0 {
                *flows.forwarded.entry((key, to.ip())).or_default() += 1;
            } else {
                let outside = uplinks.contains(&entry.in_ifindex);
                *flows.translated.entry((key, outside, to)).or_default() += 1;
            }
        })?;
        Ok(flows)
    }

    fn to(&self, key: &FrontendKey, clients: Clients, backend: SocketAddr) -> Option<usize> {
        let of = |outside| self.translated.get(&(*key, outside, backend)).copied().unwrap_or_default();
        match clients {
            Clients::All => Some(of(false) + of(true)),
            Clients::ThisNode => Some(of(false)),
            Clients::Outside => Some(of(true)),
            Clients::Forwarded => None,
        }
    }

    fn forwarded(&self, key: &FrontendKey, nodes: &NodeNames) -> Vec<Forwarded> {
        let of_key = self.forwarded.iter().filter(|((of, _), _)| of == key);
        of_key
            .map(|((_, address), flows)| Forwarded {
                address: *address,
                node: nodes.get(address).cloned(),
                flows: *flows,
            })
            .collect()
    }
}
