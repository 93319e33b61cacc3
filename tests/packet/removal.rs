//! Removal of flows as requested by the daemon, by the program in the kernel and by the same code on the host.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use podnet::datapath::removal::frames;
use podnet_common::{
    addr::{IfIndex, Port, Proto},
    layout::{CtEntry, Tuple},
    removal::{self, AT_ONCE, Removal},
    simulator::HostPacket,
};

use crate::{
    cluster::{Addresses, Both},
    expect::both_families,
};

const POD: IfIndex = IfIndex(20);
const ANOTHER: IfIndex = IfIndex(21);
const UPLINK: IfIndex = IfIndex(2);

/// Both halves of a flow from a client outside, with this source port, to a pod; last seen at this tick.
fn flow(a: &Addresses, port: u16, last_seen: u32) -> [(Tuple, CtEntry); 2] {
    let key = Tuple {
        src: a.outside.into(),
        dst: a.node.into(),
        sport: Port::new(port),
        dport: Port::new(80),
        proto: Proto::TCP,
        ..Tuple::default()
    };
    let entry = CtEntry {
        last_seen,
        in_ifindex: UPLINK,
        out_ifindex: POD,
        src: key.src,
        dst: a.backend.into(),
        sport: key.sport,
        dport: Port::new(8080),
        ..CtEntry::default()
    };
    let reply = CtEntry { in_ifindex: POD, out_ifindex: UPLINK, ..entry.reverse(&key) };
    [(key, entry), (entry.reply_key(key.proto), reply)]
}

/// Puts entries into both connection tables.
fn set(both: &mut Both, entries: &[(Tuple, CtEntry)]) -> Result<()> {
    for (key, entry) in entries {
        both.host.conntrack.borrow_mut().insert(*key, *entry);
        both.kernel.set_flow(key, entry)?;
    }
    Ok(())
}

/// Carries out removals in both, and expects this number of entries removed and these keys left.
#[track_caller]
fn expect(both: &mut Both, removals: &[Removal], removed: u32, left: &[Tuple]) -> Result<()> {
    let in_kernel = both.kernel.remove_flows(removals)?;
    let frames = frames(removals).map(|data| HostPacket { data, ifindex: UPLINK });
    let on_host: u32 = frames.map(|frame| removal::remove(&frame, &both.host)).sum();
    ensure!(
        (on_host, in_kernel) == (removed, removed),
        "{removals:?}: host {on_host}, kernel {in_kernel}, not {removed}"
    );
    let left: BTreeSet<Tuple> = left.iter().copied().collect();
    let on_host: BTreeSet<Tuple> = both.host.conntrack.borrow().keys().copied().collect();
    let in_kernel: BTreeSet<Tuple> = both.kernel.conntrack()?.into_keys().collect();
    ensure!(on_host == left && in_kernel == left, "{removals:?}: host {on_host:?}, kernel {in_kernel:?}, not {left:?}");
    Ok(())
}

#[test]
fn entries_with_newer_packets_are_kept() {
    both_families(|both, a, _| {
        let [(key, entry), (other, _)] = flow(a, 40_000, 7);
        let [(again, renewed), _] = flow(a, 40_001, 8);
        let [(gone, _), _] = flow(a, 40_002, 7);
        set(both, &[(key, entry), (again, renewed)])?;
        let removals = [key, again, gone, other].map(|key| Removal::unseen_since(key, 7));
        expect(both, &removals, 1, &[again])?;
        expect(both, &removals, 0, &[again])?;
        expect(both, &[Removal::always(gone), Removal::always(again)], 1, &[])
    });
}

#[test]
fn both_halves_are_removed_with_their_pod() {
    both_families(|both, a, _| {
        // The request may name either half.
        for named in [0, 1] {
            let halves = flow(a, 40_000, 7);
            let keys = halves.map(|(key, _)| key);
            set(both, &halves)?;
            // Requests that don't apply: the flow now belongs to another pod, or no longer exists.
            let [(gone, _), _] = flow(a, 40_002, 7);
            let others = [Removal::of_interface(keys[named], ANOTHER), Removal::of_interface(gone, POD)];
            expect(both, &others, 0, &keys)?;
            expect(both, &[Removal::of_interface(keys[named], POD)], 2, &[])?;
            // The other half is gone already.
            set(both, &halves[named..=named])?;
            expect(both, &[Removal::of_interface(keys[named], POD)], 1, &[])?;
        }
        Ok(())
    });
}

#[test]
fn halves_of_other_flows_are_kept() {
    both_families(|both, a, _| {
        let [(key, entry), (reply, other)] = flow(a, 40_000, 7);
        let another = CtEntry { dport: Port::new(40_009), ..other };
        set(both, &[(key, entry), (reply, another)])?;
        expect(both, &[Removal::of_interface(key, POD)], 1, &[reply])?;
        expect(both, &[Removal::always(reply)], 1, &[])
    });
}

#[test]
fn removals_may_fill_several_frames() {
    both_families(|both, a, _| {
        let count = u16::try_from(2 * AT_ONCE + 3).context("many")?;
        let flows = (0..count).map(|port| flow(a, 40_000 + port, 7 + u32::from(port % 2)));
        let flows: Vec<_> = flows.collect();
        set(both, flows.as_flattened())?;
        let removals: Vec<_> = flows.iter().map(|[(key, _), _]| Removal::unseen_since(*key, 7)).collect();
        let even = |flow: &&[(Tuple, CtEntry); 2]| flow[0].1.last_seen == 7;
        let left = flows.iter().flat_map(|flow| if even(&flow) { &flow[1..] } else { &flow[..] });
        let left: Vec<_> = left.map(|(key, _)| *key).collect();
        expect(both, &removals, u32::from(count.div_ceil(2)), &left)?;
        let rest: Vec<_> = left.iter().map(|key| Removal::always(*key)).collect();
        expect(both, &rest, left.len() as u32, &[])?;
        expect(both, &[], 0, &[])
    });
}
