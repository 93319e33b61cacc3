//! Rejected and answered packets.

use podnet_common::{layout::Hook, simulator::FinalVerdict, verdict::Reason};

use super::{Outcome, egress};
use crate::{
    frame::{ACK, FIN, RST, SYN},
    view::View,
    world::World,
};

/// Checks an answer.
pub fn check(world: &World, o: &Outcome<'_>) {
    let (FinalVerdict::Reject(_, to) | FinalVerdict::Answer(to)) = o.end else { return };
    assert!(!egress(o.entry.hook) && o.entry.hook != Hook::UplinkXdp, "{o}no answers are made there");
    assert!(to == o.entry.ifindex, "{o}it leaves elsewhere");
    let (Some(packet), Some(answer)) = (View::of(o.input), View::of(&o.output)) else {
        panic!("{o}it is no packet, or none was answered")
    };
    let macs = [&o.input[6..12], &o.input[..6], &o.input[12..14]].concat();
    assert!(o.output[..14] == macs, "{o}it goes to another station");
    assert!(answer.dst == packet.src, "{o}it is for somebody else");
    // ICMP errors about TTL or size may come from the node itself, as a router; all other answers come from the
    // packet's destination.
    let node = if packet.v6() { world.tables.config.node_v6 } else { world.tables.config.node_v4 };
    let of_router =
        matches!(o.end, FinalVerdict::Reject(Reason::TtlExceeded | Reason::TooBig, _)) && node == answer.src.into();
    assert!(answer.src == packet.dst || of_router, "{o}it is from somebody else");
    assert!(answer.ttl == 64, "{o}it lives too short or too long");
    // RFC 1122, section 3.2.2.
    assert!(!packet.later(), "{o}only a first fragment is answered");
    assert!(!packet.error(), "{o}no error is answered");
    match o.end {
        FinalVerdict::Answer(_) => echo(o, &packet, &answer),
        FinalVerdict::Reject(reason, _) if answer.protocol == 6 => reset(o, reason, &packet, &answer),
        _ => error(o, &packet, &answer),
    }
}

/// Same as the packet except for ICMP type, TTL and checksums; the checksums are verified separately.
fn echo(o: &Outcome<'_>, packet: &View<'_>, answer: &View<'_>) {
    assert!(packet.echo() == Some(true) && answer.echo() == Some(false), "{o}that is no echo");
    assert!(o.output.len() == o.input.len(), "{o}its length has changed");
    assert!(answer.residue() == packet.residue(), "{o}the checksum is spoilt");
    assert!(answer.header_residue() == packet.header_residue(), "{o}the IPv4 header's checksum is spoilt");
    assert!(o.output[packet.l4 + 4..] == o.input[packet.l4 + 4..], "{o}the data is another");
}

/// RFC 9293, section 3.10.7.1.
fn reset(o: &Outcome<'_>, reason: Reason, packet: &View<'_>, answer: &View<'_>) {
    let word = |frame: &[u8], at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("4 bytes"));
    let (l4, at) = (packet.l4, answer.l4);
    let flags = packet.tcp_flags().unwrap_or_else(|| panic!("{o}a reset for what is not TCP"));
    assert!(flags & RST == 0, "{o}a reset is not answered");
    assert!(
        matches!(reason, Reason::NoEndpoint | Reason::UndefinedPort | Reason::NoRoute),
        "{o}a reset says something else"
    );
    whole_and_right(o, answer);
    assert!(answer.ports() == packet.ports().map(|(sport, dport)| (dport, sport)), "{o}the ports are others");
    let expected = if flags & ACK != 0 {
        (word(o.input, l4 + 8), 0, RST)
    } else {
        let header = usize::from(o.input[l4 + 12] >> 4) * 4;
        let data = packet.end.saturating_sub(l4 + header) as u32;
        let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        (0, word(o.input, l4 + 4).wrapping_add(data + control), RST | ACK)
    };
    let got = (word(&o.output, at + 4), word(&o.output, at + 8), o.output[at + 13]);
    assert!(got == expected, "{o}sequence, acknowledgement, flags: {got:x?}, not {expected:x?}");
    assert!(answer.end == at + 20, "{o}a reset is no longer than its header");
}

/// ICMP error with the packet's destination as source.
fn error(o: &Outcome<'_>, packet: &View<'_>, answer: &View<'_>) {
    let FinalVerdict::Reject(reason, _) = o.end else { return };
    let v6 = packet.v6();
    assert!(answer.error(), "{o}that is no error");
    whole_and_right(o, answer);
    let kind: [u8; 2] = match (reason, v6) {
        (Reason::TtlExceeded, false) => [11, 0],
        (Reason::TtlExceeded, true) => [3, 0],
        (Reason::TooBig, false) => [3, 4],
        (Reason::TooBig, true) => [2, 0],
        (Reason::NoEndpoint | Reason::UndefinedPort | Reason::NoRoute, false) => [3, 3],
        (Reason::NoEndpoint | Reason::UndefinedPort | Reason::NoRoute, true) => [1, 4],
        _ => panic!("{o}no sender is informed of that"),
    };
    assert!(o.output[answer.l4..answer.l4 + 2] == kind, "{o}it says something else");
    // Addresses and first bytes of the payload, by which the sender finds its socket.
    let quoted = answer.l4 + 8;
    let (addresses, header) = if v6 { (8..40, 40) } else { (12..20, 20) };
    let of = |frame: &[u8], at: usize| frame[at + addresses.start..at + addresses.end].to_vec();
    assert!(of(&o.output, quoted) == of(o.input, 14), "{o}it quotes other addresses");
    let beginning = &o.output[quoted + header..];
    assert!(
        beginning.len() >= 8 && beginning == &o.input[packet.l4..packet.l4 + beginning.len()],
        "{o}it quotes other data"
    );
}

/// A packet that fills its frame and has correct checksums.
fn whole_and_right(o: &Outcome<'_>, answer: &View<'_>) {
    assert!(answer.end == o.output.len() && answer.fragment.is_none(), "{o}the answer is not whole");
    assert!(answer.header_residue() == 0 && answer.residue() == Some(0), "{o}the answer's checksums are wrong");
}
