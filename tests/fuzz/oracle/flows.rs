//! The connection table: both halves of a flow stay consistent, and later packets get the same result as the first.

use std::net::IpAddr;

use podnet_common::{
    layout::{CtEntry, Hook, NetworkKind, Out, Tuple, holders},
    pipeline::Tables as _,
    simulator::{self, FinalVerdict, HostPacket},
    verdict::Reason,
};

use super::{Outcome, State, egress, flow, leaves_for_another_pod};
use crate::{
    frame::{Frame, SYN, Transport},
    scenario::{Entry, macs, origin},
    view::{View, tuple},
    world::{Addresses, World},
};

/// Checks the table after a packet.
pub fn check(world: &World, o: &Outcome<'_>, state: &State) {
    let conntrack = world.tables.conntrack.borrow();
    let before = o.before.conntrack.borrow();
    if let Some(max) = world.tables.conntrack_max {
        assert!(conntrack.len() <= max, "{o}{} entries, of at most {max}", conntrack.len());
    }
    shares(world, o, conntrack.len());
    // These reasons may be found after the flow has been inserted.
    let late = [Reason::TtlExceeded, Reason::TooBig, Reason::NoRoute];
    if matches!(o.end, FinalVerdict::Drop(reason) if !late.contains(&reason)) {
        let new: Vec<_> = conntrack.keys().filter(|key| !before.contains_key(key)).collect();
        assert!(new.is_empty(), "{o}a dropped packet has begun {new:?}");
    }
    for (key, entry) in conntrack.iter() {
        if before.get(key) == Some(entry) && before.len() == conntrack.len() {
            continue;
        }
        assert!(key.src.is_v4() == entry.dst.is_v4(), "{o}two families: {key:?} {entry:?}");
        if entry.flags & CtEntry::ONE_WAY != 0 {
            let others = CtEntry::REPLY | CtEntry::REPLIED | CtEntry::REWRITE_SRC | CtEntry::REWRITE_DST;
            assert!(entry.flags & others == 0, "{o}what is sent on is not translated: {entry:?}");
            continue;
        }
        let other = entry.reply_key(key.proto);
        match conntrack.get(&other) {
            // If an entry has lost its other half, another flow may have taken the latter's key.
            Some(half) if half.reply_key(key.proto) != *key && state.widowed.contains(key) => {}
            Some(half) => halves(o, (key, entry), (&other, half)),
            None => assert!(state.widowed.contains(key), "{o}half a flow: {key:?} {entry:?}"),
        }
    }
}

/// Only senders that hold a large share are refused, and every added entry is counted.
fn shares(world: &World, o: &Outcome<'_>, entries: usize) {
    let all = world.tables.held(holders::ALL) as usize;
    assert!(all >= entries, "{o}{entries} entries, of which {all} were counted");
    if o.end == FinalVerdict::Drop(Reason::ConntrackShare) {
        let before = o.before.holders.borrow();
        let senders = before.iter().filter(|(place, _)| ![holders::ALL, holders::CAPACITY].contains(place));
        let most = senders.map(|(_, held)| *held).max().unwrap_or_default();
        let room = o.before.held(holders::CAPACITY);
        assert!(room != 0, "{o}the room to be shared is unknown");
        assert!(
            most > room.saturating_sub(o.before.held(holders::ALL)) * 4,
            "{o}no sender holds that much: {before:?}"
        );
    }
}

/// Both halves of a flow are consistent.
fn halves(o: &Outcome<'_>, (key, entry): (&Tuple, &CtEntry), (other, half): (&Tuple, &CtEntry)) {
    let context = format!("{o}{key:?} {entry:?}\n{other:?} {half:?}\n");
    assert!(half.reply_key(key.proto) == *key, "{context}two that don't belong together");
    let swapped = |flags: u8, from: u8, to: u8| if flags & from != 0 { to } else { 0 };
    let expected = swapped(entry.flags, CtEntry::REWRITE_SRC, CtEntry::REWRITE_DST)
        | swapped(entry.flags, CtEntry::REWRITE_DST, CtEntry::REWRITE_SRC)
        | (entry.flags & CtEntry::REPLY ^ CtEntry::REPLY);
    let compared = CtEntry::REWRITE_SRC | CtEntry::REWRITE_DST | CtEntry::REPLY;
    assert!(half.flags & compared == expected, "{context}one doesn't undo the other");
    let state = CtEntry::CLOSED | CtEntry::OPENING;
    assert!(half.flags & state == entry.flags & state, "{context}one knows the connection's state, the other doesn't");
    assert!(half.service == entry.service, "{context}of two services");
}

/// The same packet, sent again at once, gets the same result: fast path and slow path agree.
pub fn repeat(world: &World, o: &Outcome<'_>) {
    if matches!(o.end, FinalVerdict::Drop(_)) {
        return;
    }
    let (end, output) = replay(world, o.entry, o.input);
    // With a known MAC, the neighbour table is not needed any more.
    let alike = |end| match end {
        FinalVerdict::Forward(Out::Link | Out::Uplink | Out::Via, to) => FinalVerdict::Forward(Out::Uplink, to),
        end => end,
    };
    let same = alike(end) == alike(o.end) && output.get(12..) == o.output.get(12..);
    assert!(same && (end != o.end || output == o.output), "{o}again: {end:?}\n      {output:02x?}");
    // A packet that XDP forwards would get the same result at TC.
    if let (Hook::UplinkXdp, FinalVerdict::Forward(..)) = (o.entry.hook, o.end) {
        let (end, output) = replay(world, Entry { hook: Hook::FromUplink, ..o.entry }, o.input);
        let same = alike(end) == alike(o.end) && output.get(12..) == o.output.get(12..);
        assert!(same, "{o}later it would be {end:?}\n      {output:02x?}");
    }
}

/// Runs a packet on a copy of the tables.
fn replay(world: &World, entry: Entry, input: &[u8]) -> (FinalVerdict, Vec<u8>) {
    let tables = world.tables.clone();
    let mut packet = HostPacket { data: input.to_vec(), ifindex: entry.ifindex };
    let end = simulator::run(entry.hook, &mut packet, &tables);
    (end, packet.data)
}

/// A reply to the translated packet is delivered as a reply to the original.
pub fn answer(world: &World, o: &Outcome<'_>) {
    let (Some(packet), Some(output)) = (View::of(o.input), View::of(&o.output)) else { return };
    if !matches!(o.end, FinalVerdict::Pass | FinalVerdict::Forward(..))
        || matches!(o.entry.hook, Hook::UplinkXdp | Hook::FromLoopback)
    {
        return;
    }
    let Some((key, entry)) = flow(&world.tables, &packet) else { return };
    let half = world.tables.flow(&entry.reply_key(key.proto), |half| {
        (half.reply_key(key.proto), leaves_for_another_pod(&world.tables, half))
    });
    if half != Some((key, false)) {
        return;
    }
    let (Some((sport, dport)), Some(sent)) = (packet.ports(), output.ports()) else { return };
    let begins = packet.tcp_flags().is_some_and(|flags| flags & SYN != 0);
    // An unsolicited echo reply may begin a flow, but gets no reply.
    if packet.echo() == Some(false) && entry.flags & CtEntry::REPLY == 0 {
        return;
    }
    if entry.flags & CtEntry::ONE_WAY != 0 || (egress(o.entry.hook) && begins) || !answerable(world, &output) {
        return;
    }
    let Some(entry) = origin(world, output.dst, output.src) else { return };
    if entry.hook == Hook::FromLoopback {
        return;
    }
    let transport = match packet.protocol {
        6 => Transport::Tcp { sport: sent.1, dport: sent.0, flags: crate::frame::ACK },
        17 => Transport::Udp { sport: sent.1, dport: sent.0, checksum: true },
        132 => Transport::Sctp { sport: sent.1, dport: sent.0 },
        _ => Transport::Echo { request: packet.echo() == Some(false), identifier: sent.0 | sent.1 },
    };
    let mut frame = Frame::new(output.dst, output.src, transport);
    frame.macs = macs(world, entry, output.dst);
    let answer = frame.bytes();
    let (end, back) = replay(world, entry, &answer);
    let context = || format!("{o}its answer at {entry:?}: {end:?}\n  in  {answer:02x?}\n  out {back:02x?}\n");
    assert!(matches!(end, FinalVerdict::Pass | FinalVerdict::Forward(..)), "{}it is lost", context());
    let Some(back_view) = View::of(&back) else { panic!("{}it is no packet any more", context()) };
    let got = back_view.ports().map(|ports| back_view.tuple(ports));
    let expected = tuple(packet.dst, packet.src, (dport, sport), packet.protocol);
    assert!(got == Some(expected), "{}it is no answer to what was sent", context());
}

/// Whether the packet in its new form can be answered through this node's hooks.
fn answerable(world: &World, output: &View<'_>) -> bool {
    let odd = &Addresses::of(output.v6()).odd;
    let no_host = |addr: &IpAddr| matches!(addr, IpAddr::V4(addr) if matches!(addr.octets()[0], 0 | 127 | 224..));
    if [output.src, output.dst].iter().any(|addr| odd.contains(addr) || no_host(addr)) {
        return false;
    }
    // It is left to the stack, whose route is not in the tables.
    world.kind(&output.dst.into()) != Some(NetworkKind::NonMasquerade)
}
