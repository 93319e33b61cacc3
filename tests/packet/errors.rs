//! ICMP errors about translated packets, both ways, with what they quote.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use podnet_common::{
    layout::{Hook, Out},
    simulator::End,
    verdict::Reason,
};

use crate::{
    cases::both_families,
    cluster::{
        Both, CLIENT_MAC, CLIENT_OUTSIDE_MAC, HERE, HOST_MAC, NODE_PORT_DIRECT, NODE2_MAC, UPLINK_MAC, addresses,
        in_namespace,
    },
    frame::{Frame, SYN, Transport, checksum},
};

/// An error that quotes a packet: its IP header and `quote` bytes behind it. Type and code are "unreachable: too big" and
/// the like; the MTU in it must stay.
fn error(src: IpAddr, dst: IpAddr, about: &Frame, quote: usize) -> Frame {
    let ip = if src.is_ipv4() { 20 } else { 40 };
    let quoted = about.bytes()[14..14 + ip + quote].to_vec();
    let (protocol, kind) = if src.is_ipv4() { (1, [3, 4]) } else { (58, [2, 0]) };
    let mut body = [&kind[..], &[0, 0], &1280u32.to_be_bytes(), &quoted].concat();
    let sum = match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let len = (body.len() as u16).to_be_bytes();
            checksum(&[&src.octets()[..], &dst.octets(), &[0, protocol], &len, &body].concat())
        }
        _ => checksum(&body),
    };
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    Frame::new(src, dst, Transport::Raw(protocol, body))
}

/// Compares frames, and ICMP checksums as numbers: zero has two forms in one's complement.
fn expect(both: &Both, hook: Hook, input: &Frame, end: End, output: &Frame) -> Result<()> {
    let (got, mut bytes) = both.run(hook, &input.bytes())?;
    ensure!(got == end, "{hook:?} {input:?}: {got:?}, expected {end:?}");
    let mut expected = output.bytes();
    let at = if output.src.is_ipv4() { 36 } else { 56 };
    for frame in [&mut bytes, &mut expected] {
        if frame[at..at + 2] == [0xff, 0xff] {
            frame[at..at + 2].fill(0);
        }
    }
    ensure!(bytes == expected, "{hook:?} {input:?}\n  got      {bytes:02x?}\n  expected {expected:02x?}");
    Ok(())
}

/// First packets of both protocols, and how much of them an error quotes: the least that RFC 792 allows, and enough
/// for TCP's checksum to be in it.
fn packets(src: (IpAddr, u16), dst: (IpAddr, u16)) -> [(Frame, usize); 3] {
    let tcp = Frame::tcp(src, dst, SYN).macs(CLIENT_MAC, HOST_MAC);
    [(tcp.clone(), 8), (tcp, 20), (Frame::udp(src, dst).macs(CLIENT_MAC, HOST_MAC), 8)]
}

#[test]
fn a_routers_error_reaches_the_client_and_quotes_what_it_sent() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_000), (a.far, 80)) {
            both.run(Hook::FromPod, &packet.bytes())?;
            let sent = packet.translated((a.client, 41_000), (a.remote, 8080));
            let from_router = error(a.node2, a.client, &sent, quote).macs(NODE2_MAC, UPLINK_MAC);
            let seen = error(a.node2, a.client, &packet, quote).macs(HOST_MAC, CLIENT_MAC).ttl(63);
            expect(both, Hook::FromUplink, &from_router, End::Forward(Out::Pod, HERE), &seen)?;
        }
        Ok(())
    });
}

#[test]
fn an_error_about_a_packet_with_source_nat_finds_its_client() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_001), (a.snat, 80)) {
            let (_, bytes) = both.run(Hook::FromPod, &packet.bytes())?;
            let at = if a.client.is_ipv4() { 34 } else { 54 };
            let port = u16::from_be_bytes(bytes[at..at + 2].try_into()?);
            let sent = packet.translated((a.node, port), (a.remote, 8080));
            let from_router = error(a.node2, a.node, &sent, quote).macs(NODE2_MAC, UPLINK_MAC);
            let seen = error(a.node2, a.client, &packet, quote).macs(HOST_MAC, CLIENT_MAC).ttl(63);
            expect(both, Hook::FromUplink, &from_router, End::Forward(Out::Pod, HERE), &seen)?;
        }
        Ok(())
    });
}

#[test]
fn an_error_of_the_stack_here_is_translated_on_its_way_to_the_pod() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_002), (a.local, 80)) {
            both.run(Hook::FromPod, &packet.bytes())?;
            let sent = packet.translated((a.client, 41_002), (a.backend, 8080));
            let from_stack = error(a.node, a.client, &sent, quote).macs(HOST_MAC, CLIENT_MAC);
            let seen = error(a.node, a.client, &packet, quote).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::ToPod, &from_stack, End::Pass, &seen)?;
        }
        Ok(())
    });
}

#[test]
fn an_error_of_the_backend_itself_comes_from_the_service() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_003), (a.far, 80)) {
            both.run(Hook::FromPod, &packet.bytes())?;
            let sent = packet.translated((a.client, 41_003), (a.remote, 8080));
            let from_backend = error(a.remote, a.client, &sent, quote).macs(NODE2_MAC, UPLINK_MAC);
            let seen = error(a.far, a.client, &packet, quote).macs(HOST_MAC, CLIENT_MAC).ttl(63);
            expect(both, Hook::FromUplink, &from_backend, End::Forward(Out::Pod, HERE), &seen)?;
        }
        Ok(())
    });
}

#[test]
fn a_clients_error_about_an_answer_reaches_the_backend() {
    in_namespace(|uplink| {
        let both = Both::new(uplink, |_| {})?;
        for a in [addresses(false), addresses(true)] {
            for (packet, quote) in packets((a.client, 41_004), (a.far, 80)) {
                both.run(Hook::FromPod, &packet.bytes())?;
                let answer = packet.translated((a.far, 80), (a.client, 41_004));
                let from_client = error(a.client, a.far, &answer, quote).macs(CLIENT_MAC, HOST_MAC);
                let as_sent = packet.translated((a.remote, 8080), (a.client, 41_004));
                let seen = error(a.client, a.remote, &as_sent, quote).macs(CLIENT_MAC, HOST_MAC).ttl(63);
                expect(&both, Hook::FromPod, &from_client, End::Forward(Out::Uplink, uplink), &seen)?;
            }
        }
        Ok(())
    });
}

#[test]
fn an_error_about_nothing_that_was_translated_quotes_what_it_quoted() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_005), (a.outside, 80)) {
            let untouched = error(a.node2, a.client, &packet, quote).macs(NODE2_MAC, UPLINK_MAC);
            let seen = untouched.clone().macs(HOST_MAC, CLIENT_MAC).ttl(63);
            expect(both, Hook::FromUplink, &untouched, End::Forward(Out::Pod, HERE), &seen)?;
            expect(both, Hook::ToPod, &untouched, End::Pass, &untouched)?;
        }
        Ok(())
    });
}

/// Errors about flows that their sender has no part in: what would end them, or make them slow, goes nowhere.
#[test]
fn an_error_from_who_cannot_know_goes_nowhere() {
    both_families(|both, a, _| {
        let internet = (a.internet, 443);
        let flows = [
            // Another pod's flow to a service, to another pod and to what is outside; and one of the client's own.
            ((a.backend, 41_006), (a.far, 80)),
            ((a.backend, 41_006), (a.remote, 8080)),
            ((a.backend, 41_006), internet),
            ((a.client, 41_006), internet),
        ];
        for (about, quote) in flows.into_iter().flat_map(|(src, dst)| packets(src, dst)) {
            let to = about.src;
            let forged = error(a.client, to, &about, quote).macs(CLIENT_MAC, HOST_MAC);
            expect(both, Hook::FromPod, &forged, End::Drop(Reason::UnrelatedIcmpError), &forged)?;
        }
        // About what was sent to it, but told to another.
        for (about, quote) in packets((a.remote, 8080), (a.client, 41_006)) {
            let forged = error(a.client, a.backend, &about, quote).macs(CLIENT_MAC, HOST_MAC);
            expect(both, Hook::FromPod, &forged, End::Drop(Reason::UnrelatedIcmpError), &forged)?;
        }
        // Outside, nobody knows of what stays on this node.
        for (packet, quote) in packets((a.client, 41_007), (a.local, 80)) {
            both.run(Hook::FromPod, &packet.bytes())?;
            let sent = packet.translated((a.client, 41_007), (a.backend, 8080));
            let forged = error(a.outside, a.client, &sent, quote).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            expect(both, Hook::FromUplink, &forged, End::Drop(Reason::UnrelatedIcmpError), &forged)?;
        }
        // Nor tells them a pod of what another has sent.
        for (packet, quote) in packets((a.backend, 41_008), internet) {
            let forged = error(a.outside, a.client, &packet, quote).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            expect(both, Hook::FromUplink, &forged, End::Drop(Reason::UnrelatedIcmpError), &forged)?;
        }
        Ok(())
    });
}

/// Else the rest of it would be seen by its receiver only.
#[test]
fn an_error_in_pieces_goes_nowhere() {
    both_families(|both, a, _| {
        let (about, quote) = packets((a.backend, 41_009), (a.far, 80)).into_iter().next().unwrap();
        let mut forged = error(a.client, a.backend, &about, quote).macs(CLIENT_MAC, HOST_MAC);
        forged.fragment = Some(if a.client.is_ipv4() { 0x2000 } else { 1 });
        expect(both, Hook::FromPod, &forged, End::Drop(Reason::UnrelatedIcmpError), &forged)
    });
}

/// A router may send an error to another node than the one that has the flow, which it finds by the quotation all the same.
#[test]
fn an_error_about_a_direct_answer_is_sent_on_without_a_flow() {
    in_namespace(|uplink| {
        let both = Both::new(uplink, |_| {})?;
        for a in [addresses(false), addresses(true)] {
            for (answer, quote) in packets((a.node, NODE_PORT_DIRECT), (a.outside, 41_011)) {
                // From a node that has chosen this one it isn't sent to another.
                let from_node = error(a.outside, a.node, &answer, quote).macs(NODE2_MAC, UPLINK_MAC);
                let (end, _) = both.run(Hook::FromUplink, &from_node.bytes())?;
                ensure!(!matches!(end, End::Forward(..)), "{end:?}");
            }
            for (answer, quote) in packets((a.node, NODE_PORT_DIRECT), (a.outside, 41_010)) {
                let from_router = error(a.outside, a.node, &answer, quote).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
                let on = from_router.clone().ttl(63);
                let (end, bytes) = both.run(Hook::FromUplink, &from_router.bytes())?;
                ensure!(matches!(end, End::Forward(Out::Via | Out::Link, _)), "{end:?}");
                ensure!(bytes[12..] == on.bytes()[12..], "it was changed");
            }
        }
        Ok(())
    });
}
