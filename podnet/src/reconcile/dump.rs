//! Deterministic dump of the tables as text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podnet_common::layout::{Frontend, FrontendKey, ServiceClient, SourceRange};

use super::tables::Tables;
use crate::compile::{BackendId, Segment, ServiceId, ServiceNames, show};
use crate::mirror::TableError;

/// Names of the flags, in the order of their bits.
const FLAGS: [(u16, &str); 8] = [
    (Frontend::SNAT, "snat"),
    (Frontend::EXTERNAL, "external"),
    (Frontend::OUTSIDE_DIFFERS, "outside-differs"),
    (Frontend::DROP, "drop"),
    (Frontend::DIRECT_RETURN, "direct-return"),
    (Frontend::SOURCE_RANGES, "source-ranges"),
    (Frontend::ANSWERS_ECHO, "answers-echo"),
    (Frontend::NODE_PORT, "node-port"),
];

/// One line per frontend, followed by its source ranges and backends, ordered by address, port, protocol and scope. A
/// backend with several slots, as with Maglev, has one line.
///
/// # Errors
/// The first read that fails.
pub fn dump(tables: &dyn Tables, names: &ServiceNames) -> Result<String, TableError> {
    let mut frontends = tables.frontends()?;
    frontends.sort_by_key(|(key, _)| (IpAddr::from(key.addr), key.port.get(), key.proto, key.scope));
    let ranges = tables.source_ranges()?;
    let mut text = String::new();
    for (key, value) in frontends {
        let mut line = show(&key).to_string();
        if key == FrontendKey::address(key.addr) {
            line += " address";
        } else {
            let id = ServiceId(value.service);
            let name = names.name(id).map_or_else(|| "?".to_owned(), ToString::to_string);
            add(&mut line, format_args!(" service {} {name}", id.port().0));
        }
        for (_, name) in FLAGS.iter().filter(|(bit, _)| value.flags & bit != 0) {
            add(&mut line, format_args!(" {name}"));
        }
        if value.affinity != 0 {
            let group = ServiceId(value.service).affinity_group();
            add(&mut line, format_args!(" affinity {} s group {group}", value.affinity));
        }
        if key != FrontendKey::address(key.addr) {
            add(&mut line, format_args!(" slots {}+{}", value.slot_base, value.slot_count));
        }
        add(&mut text, format_args!("{line}\n"));
        if value.flags & Frontend::SOURCE_RANGES != 0 {
            let clients = ServiceClient::new(value.service, key.addr).service;
            let own = ranges.iter().filter(|range| range.data.service == clients);
            let mut own: Vec<_> = own.filter_map(network).collect();
            own.sort();
            own.iter().for_each(|range| add(&mut text, format_args!("  range {range}\n")));
        }
        backends(&mut text, Segment { base: value.slot_base, count: value.slot_count }, tables)?;
    }
    Ok(text)
}

fn network(range: &SourceRange) -> Option<IpNetwork> {
    let clients = range.clients();
    IpNetwork::new(clients.addr.into(), u8::try_from(clients.own_len()).ok()?).ok()
}

fn backends(text: &mut String, segment: Segment, tables: &dyn Tables) -> Result<(), TableError> {
    let slots = if segment.count == 0 { Vec::new() } else { tables.slots(segment)? };
    let mut shares: BTreeMap<BackendId, u32> = BTreeMap::new();
    slots.iter().for_each(|id| *shares.entry(*id).or_default() += 1);
    let spread = shares.len() != slots.len();
    let order = if spread { shares.keys().copied().collect() } else { slots };
    for id in order {
        let backend = tables.backends(id, 1)?.first().copied().unwrap_or_default();
        let key = FrontendKey { addr: backend.addr, port: backend.port, proto: backend.proto, scope: FrontendKey::ANY };
        add(text, format_args!("  backend {} {}", id.0, show(&key)));
        if spread {
            add(text, format_args!(" in {} slots", shares[&id]));
        }
        text.push('\n');
    }
    Ok(())
}

fn add(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a String can't fail.
    let _ = text.write_fmt(content);
}
