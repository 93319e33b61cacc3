//! `golden/layouts.txt` lists every version of every table's layout; `golden/entries.txt` contains entries of kept
//! tables as written by these versions.

extern crate std;

use core::fmt::Write as _;
use std::{format, string::String, vec, vec::Vec};

use bytemuck::bytes_of;

use super::*;
use crate::{
    addr::{Addr, Port, Proto},
    layout::macs,
    tables::{ALL, Class, Migration, Table},
};

const LAYOUTS: &str = include_str!("../../../golden/layouts.txt");
const ENTRIES: &str = include_str!("../../../golden/entries.txt");

/// Formats fields as `name:offset+size`; a plain number as its size.
fn text(fields: &[Field<'_>], size: usize) -> String {
    if fields.is_empty() {
        return format!("{size}");
    }
    let mut fields = fields.to_vec();
    fields.sort_by_key(|field| field.offset);
    fields.iter().map(|field| format!("{}:{}+{}", field.name, field.offset, field.size)).collect::<Vec<_>>().join(" ")
}

/// Inverse of [`text`].
fn parsed(text: &str) -> Vec<Field<'_>> {
    let field = |field| {
        let (name, place) = str::split_once(field, ':')?;
        let (offset, size) = place.split_once('+')?;
        Some(Field { name, offset: offset.parse().ok()?, size: size.parse().ok()? })
    };
    text.split(' ').filter_map(field).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Key and value layouts of a table in some version.
fn layouts(name: &str, version: &str) -> (Vec<Field<'static>>, Vec<Field<'static>>) {
    let start = format!("{name} {version}: ");
    let line = LAYOUTS.lines().find_map(|line| line.strip_prefix(&start[..])).unwrap();
    let (key, value) = line.split_once(" → ").unwrap();
    (parsed(key), parsed(value))
}

#[test]
fn another_layout_has_another_version() {
    let mut missing = String::new();
    for table in ALL {
        let Some(Migration { key, value, .. }) = table.migration() else { continue };
        let (key, value) = (text(key, table.key_size()), text(value, table.value_size()));
        let line = format!("{} {}: {key} → {value}", table.name(), table.version());
        if !LAYOUTS.lines().any(|known| known == line) {
            writeln!(missing, "{line}").unwrap();
        }
        // All fields are listed, so the last one ends where the layout does.
        let end = |fields: &[Field<'_>], size| fields.iter().map(|f| f.offset + f.size).max().unwrap_or(size);
        assert!(parsed(&value).is_empty() || end(&parsed(&value), 0) == table.value_size(), "{}", table.name());
    }
    let fields =
        "a layout of a released version never changes: give it a new version in for_each_table!, and add here:";
    assert!(missing.is_empty(), "{fields}\n{missing}");
}

fn addr(last: u8) -> Addr {
    core::net::Ipv4Addr::new(10, 244, 1, last).into()
}

/// The entry of `golden/entries.txt` in this version's layout.
fn entry_of(table: &Table) -> (Vec<u8>, Vec<u8>) {
    let (port, target, proto) = (Port::new(80), Port::new(8080), Proto::TCP);
    let entry = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
    match table.name() {
        "conntrack" => entry(
            bytes_of(&Tuple { src: addr(2), dst: addr(3), sport: Port::new(40_000), dport: port, proto, _pad: [0; 3] }),
            bytes_of(&CtEntry {
                last_seen: 0x0102_0304,
                in_ifindex: IfIndex(7),
                out_ifindex: IfIndex(8),
                out_mtu: 1450,
                flags: CtEntry::REPLIED | CtEntry::REWRITE_DST,
                out: 4,
                sport: Port::new(40_000),
                dport: target,
                macs: macs(crate::addr::Mac([2, 0, 0, 0, 0, 1]), crate::addr::Mac([2, 0, 0, 0, 0, 2])),
                service: 9,
                src: addr(2),
                dst: addr(4),
            }),
        ),
        "affinity" => entry(
            bytes_of(&AffinityKey { client: addr(2), service: 9 }),
            bytes_of(&Affinity { addr: addr(4), port: target, _pad: 0, last_used: 0x0102_0304 }),
        ),
        "fragments" => entry(
            bytes_of(&FragmentKey { src: addr(2), dst: addr(3), id: 0x0506, proto, _pad: [0; 3] }),
            bytes_of(&FragmentPorts { sport: Port::new(40_000), dport: port }),
        ),
        "sock_reverse" => entry(
            bytes_of(&SockKey { cookie: 0x0102_0304_0506_0708, addr: addr(4), port: target, proto, _pad: [0; 5] }),
            bytes_of(&SockPeer { addr: addr(3), port, _pad: [0; 6] }),
        ),
        name => panic!("no entry of {name}"),
    }
}

#[test]
fn entries_of_all_versions_become_this_ones() {
    let mut wanted: Vec<_> = ALL.iter().filter(|table| table.class() == Class::Kept).collect();
    for line in ENTRIES.lines().filter(|line| !line.starts_with('#')) {
        let [name, version, key, value] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let table = ALL.iter().find(|table| table.name() == name).unwrap();
        let (key_fields, value_fields) = layouts(name, version);
        let (key, value) = (bytes(key), bytes(value));
        let (mut new_key, mut new_value) = (vec![0; table.key_size()], vec![0; table.value_size()]);
        let convert = table.migration().unwrap().convert;
        let (key, value) =
            (Record { fields: &key_fields, bytes: &key }, Record { fields: &value_fields, bytes: &value });
        assert!(convert(&key, &value, &mut new_key, &mut new_value), "{line}");
        assert_eq!((new_key, new_value), entry_of(table), "{line}");
        wanted.retain(|other| *other != table || format!("{}", table.version()) != version);
    }
    let missing = wanted.iter().map(|table| {
        let (key, value) = entry_of(table);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("{} {} {} {}", table.name(), table.version(), hex(&key), hex(&value))
    });
    let missing: Vec<_> = missing.collect();
    assert!(missing.is_empty(), "add to golden/entries.txt:\n{}", missing.join("\n"));
}

/// Later versions may have moved fields or added unknown ones.
#[test]
fn fields_are_found_by_name_and_size_wherever_they_are() {
    let layout = |text| parsed(text);
    let bytes: Vec<u8> = (0..64).collect();
    let migrate = |text| {
        let fields = layout(text);
        FragmentPorts::migrate(&Record { fields: &fields, bytes: &bytes })
    };
    let ports = |sport: u8, dport: u8| {
        let port = |first: u8| Port::from_wire(u16::from_ne_bytes([first, first + 1]));
        Some(FragmentPorts { sport: port(sport), dport: port(dport) })
    };
    assert_eq!(migrate("sport:0+2 dport:2+2"), ports(0, 2));
    assert_eq!(migrate("zone:0+4 dport:8+2 flags:10+6 sport:16+2"), ports(16, 8));
    assert_eq!(migrate("sport:0+2"), None, "a field that has no value otherwise");
    assert_eq!(migrate("sport:0+2 dport:4+4"), None, "of another size it is another field");
    assert_eq!(migrate("sport:0+2 dport:63+2"), None, "beyond the end");
    let fields = layout("port:0+2 addr:16+16");
    let peer = SockPeer::migrate(&Record { fields: &fields, bytes: &bytes }).unwrap();
    assert_eq!(peer._pad, [0; 6], "one that has");
}
