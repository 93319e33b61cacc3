//! Limits on one sender's share of the connection table and of the source ports.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Result, ensure};
use podnet_common::{
    layout::{Hook, holders},
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{
    cluster::{Both, CLIENT_MAC, CLIENT_OUTSIDE_MAC, HOST_MAC, NODE_PORT, UPLINK_MAC},
    expect::{both_families, both_families_with},
    frame::{Frame, SYN},
};

/// Capacity of a small connection table. Two families use it in turn.
const ROOM: u32 = 400;

fn with_room(tables: &mut HostTables) {
    tables.holders.borrow_mut().insert(holders::CAPACITY, ROOM);
}

/// Number of flows, each from its own port, that are admitted until one exceeds its sender's share.
fn fill(both: &Both, hook: Hook, flow: impl Fn(u16) -> Frame) -> Result<u32> {
    for i in 0..1000 {
        match both.run(hook, &flow(20_000 + i).bytes())?.0 {
            FinalVerdict::Drop(Reason::ConntrackShare) => return Ok(i.into()),
            FinalVerdict::Drop(reason) => anyhow::bail!("refused for another reason: {reason:?}"),
            _ => {}
        }
    }
    anyhow::bail!("nothing is refused")
}

#[test]
fn one_pod_leaves_a_fifth_of_the_table_to_others() {
    both_families_with(with_room, |both, a, _| {
        let before = both.kernel.held()?.get(&holders::ALL).copied().unwrap_or_default();
        let (client, to) = (a.client, a.internet);
        let flow = |port| Frame::udp((client, port), (to, 53)).macs(CLIENT_MAC, HOST_MAC);
        let taken = 2 * fill(both, Hook::FromPod, flow)?;
        let free = ROOM - before;
        ensure!(taken > free / 2, "{taken} of {free} entries");
        // The last flow takes two entries.
        ensure!(free - taken >= free / 5 - 2, "only {} of {free} entries are left", free - taken);
        // Existing flows continue, and may be opened again.
        let known = both.run(Hook::FromPod, &flow(20_000).bytes())?.0;
        ensure!(matches!(known, FinalVerdict::Forward(..)), "{known:?}");
        // Other senders may use the rest.
        let outside = Frame::tcp((a.outside, 42_001), (a.node, NODE_PORT), SYN).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
        let (end, _) = both.run(Hook::FromUplink, &outside.bytes())?;
        ensure!(matches!(end, FinalVerdict::Forward(..)), "{end:?}");
        // The next family starts with an empty table.
        forget(both)
    });
}

#[test]
fn external_clients_with_many_addresses_leave_a_fifth_to_pods() {
    both_families_with(with_room, |both, a, _| {
        let to = (a.node, NODE_PORT);
        let from = |i: u16| -> IpAddr {
            let [high, low] = i.to_be_bytes();
            if to.0.is_ipv4() { [198, 51, high, low].into() } else { [0x2001, 0xdb8, i, 0, 0, 0, 0, 1].into() }
        };
        let flow = |i| Frame::udp((from(i), 42_000), to).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
        let taken = 2 * fill(both, Hook::FromUplink, flow)?;
        ensure!((ROOM / 2..=ROOM - ROOM / 5 + 2).contains(&taken), "{taken} of {ROOM} entries");
        let pods = Frame::udp((a.client, 42_000), (a.far, 80)).macs(CLIENT_MAC, HOST_MAC);
        let (end, _) = both.run(Hook::FromPod, &pods.bytes())?;
        ensure!(matches!(end, FinalVerdict::Forward(..)), "{end:?}");
        forget(both)
    });
}

/// Until the daemon has written the table's capacity.
#[test]
fn no_share_is_enforced_while_the_capacity_is_unknown() {
    both_families(|both, a, _| {
        for port in 0..300 {
            let frame = Frame::udp((a.client, 20_000 + port), (a.internet, 53)).macs(CLIENT_MAC, HOST_MAC);
            let (end, _) = both.run(Hook::FromPod, &frame.bytes())?;
            ensure!(matches!(end, FinalVerdict::Forward(..)), "{end:?}");
        }
        Ok(())
    });
}

#[test]
fn one_pod_leaves_source_ports_towards_a_server_to_others() {
    fn few_ports(tables: &mut HostTables) {
        tables.snat_ports.truncate(64);
        tables.config.snat_count = 64;
    }
    both_families_with(few_ports, |both, a, _| {
        let mut ports = BTreeSet::new();
        let mut refused = 0;
        for port in 0..200 {
            let frame = Frame::udp((a.client, 20_000 + port), (a.internet, 53)).macs(CLIENT_MAC, HOST_MAC);
            let (end, bytes) = both.run(Hook::FromPod, &frame.bytes())?;
            match end {
                FinalVerdict::Drop(Reason::SnatExhausted) => refused += 1,
                FinalVerdict::Forward(..) => {
                    let at = if a.client.is_ipv4() { 34 } else { 54 };
                    ports.insert(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
                }
                other => anyhow::bail!("{other:?}"),
            }
        }
        // The last four ports are reserved for others, except for ports drawn while few were in use.
        ensure!((40..64).contains(&ports.len()) && refused > 0, "{} of 64 ports", ports.len());
        forget(both)
    });
}

/// A server recognises a new connection in TIME-WAIT only if the client's port has the same source port again.
#[test]
fn source_ports_follow_the_clients_however_many_entries_it_has() {
    const FIRST: u16 = 20_000;
    both_families_with(
        |tables: &mut HostTables| {
            tables.snat_ports.truncate(2100);
            tables.config.snat_count = 2100;
        },
        |both, a, _| {
            let mut indexes = Vec::new();
            // Beyond an eighth of the ports, the sender may not use the last sixteenth.
            for port in FIRST..FIRST + 600 {
                let frame = Frame::tcp((a.client, port), (a.internet, 80), SYN).macs(CLIENT_MAC, HOST_MAC);
                let (end, bytes) = both.run(Hook::FromPod, &frame.bytes())?;
                ensure!(matches!(end, FinalVerdict::Forward(..)), "{end:?}");
                let at = if a.client.is_ipv4() { 34 } else { 54 };
                indexes.push(u16::from_be_bytes([bytes[at], bytes[at + 1]]) - 10_000);
            }
            // 2,100 less a sixteenth is 1,969.
            for (n, index) in (0..).zip(&indexes) {
                ensure!((indexes[0] + n) % 1024 == *index, "port {}: {index}, the first: {}", FIRST + n, indexes[0]);
            }
            forget(both)
        },
    );
}

/// Clears flows and their counts.
fn forget(both: &mut Both) -> Result<()> {
    both.host.conntrack.borrow_mut().clear();
    let room = both.host.holders.borrow().get(&holders::CAPACITY).copied().unwrap_or_default();
    both.host.holders.borrow_mut().retain(|place, _| *place == holders::CAPACITY);
    both.kernel.forget_flows(room)
}
