//! ICMP errors about translated packets, in both directions, with their quotations.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use podnet_common::{
    layout::{Hook, Out},
    simulator::FinalVerdict,
    verdict::Reason,
};

use crate::{
    cluster::{
        Both, CLIENT_MAC, CLIENT_OUTSIDE_MAC, HERE, HOST_MAC, NODE_PORT_DIRECT, NODE2_MAC, UPLINK_MAC, addresses,
        in_namespace,
    },
    expect::both_families,
    frame::{Frame, SYN, Transport, checksum},
};

/// ICMP error that quotes a packet: its IP header and `quote` bytes behind it. Type and code mean "packet too big" and
/// similar; the MTU must be preserved.
pub fn error(src: IpAddr, dst: IpAddr, about: &Frame, quote: usize) -> Frame {
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

/// Compares frames, and ICMP checksums by value: zero has two representations in one's complement.
fn expect(both: &Both, hook: Hook, input: &Frame, end: FinalVerdict, output: &Frame) -> Result<()> {
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

/// First packets of both protocols, and how many bytes an error quotes: the minimum of RFC 792, and enough to include
/// TCP's checksum. The last one is the first fragment of a datagram, in IPv6 with a header of eight bytes.
fn packets(src: (IpAddr, u16), dst: (IpAddr, u16)) -> [(Frame, usize); 4] {
    let tcp = Frame::tcp(src, dst, SYN).macs(CLIENT_MAC, HOST_MAC);
    let udp = Frame::udp(src, dst).macs(CLIENT_MAC, HOST_MAC);
    let (more, quote) = if src.0.is_ipv4() { (0x2000, 8) } else { (1, 16) };
    let fragment = Frame { fragment: Some(more), ..udp.clone() };
    [(tcp.clone(), 8), (tcp, 20), (udp, 8), (fragment, quote)]
}

#[test]
fn error_from_a_router_reaches_the_client_with_its_original_packet() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_000), (a.far, 80)) {
            both.run(Hook::FromPod, &packet.bytes())?;
            let sent = packet.translated((a.client, 41_000), (a.remote, 8080));
            let from_router = error(a.node2, a.client, &sent, quote).macs(NODE2_MAC, UPLINK_MAC);
            let seen = error(a.node2, a.client, &packet, quote).macs(HOST_MAC, CLIENT_MAC).ttl(63);
            expect(both, Hook::FromUplink, &from_router, FinalVerdict::Forward(Out::Pod, HERE), &seen)?;
        }
        Ok(())
    });
}

#[test]
fn error_about_a_source_translated_packet_reaches_its_client() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_001), (a.snat, 80)) {
            let (_, bytes) = both.run(Hook::FromPod, &packet.bytes())?;
            let at = match (a.client.is_ipv4(), packet.fragment) {
                (true, _) => 34,
                (false, None) => 54,
                (false, Some(_)) => 62,
            };
            let port = u16::from_be_bytes(bytes[at..at + 2].try_into()?);
            let sent = packet.translated((a.node, port), (a.remote, 8080));
            let from_router = error(a.node2, a.node, &sent, quote).macs(NODE2_MAC, UPLINK_MAC);
            let seen = error(a.node2, a.client, &packet, quote).macs(HOST_MAC, CLIENT_MAC).ttl(63);
            expect(both, Hook::FromUplink, &from_router, FinalVerdict::Forward(Out::Pod, HERE), &seen)?;
        }
        Ok(())
    });
}

#[test]
fn error_from_the_local_stack_is_translated_for_the_pod() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_002), (a.local, 80)) {
            both.run(Hook::FromPod, &packet.bytes())?;
            let sent = packet.translated((a.client, 41_002), (a.backend, 8080));
            let from_stack = error(a.node, a.client, &sent, quote).macs(HOST_MAC, CLIENT_MAC);
            let seen = error(a.node, a.client, &packet, quote).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::ToPod, &from_stack, FinalVerdict::Pass, &seen)?;
        }
        Ok(())
    });
}

#[test]
fn error_from_the_backend_comes_from_the_service() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_003), (a.far, 80)) {
            both.run(Hook::FromPod, &packet.bytes())?;
            let sent = packet.translated((a.client, 41_003), (a.remote, 8080));
            let from_backend = error(a.remote, a.client, &sent, quote).macs(NODE2_MAC, UPLINK_MAC);
            let seen = error(a.far, a.client, &packet, quote).macs(HOST_MAC, CLIENT_MAC).ttl(63);
            expect(both, Hook::FromUplink, &from_backend, FinalVerdict::Forward(Out::Pod, HERE), &seen)?;
        }
        Ok(())
    });
}

#[test]
fn error_from_a_client_about_a_reply_reaches_the_backend() {
    in_namespace(|uplink| {
        let both = Both::new(uplink, |_| {})?;
        for a in [addresses(false), addresses(true)] {
            for (packet, quote) in packets((a.client, 41_004), (a.far, 80)) {
                both.run(Hook::FromPod, &packet.bytes())?;
                let answer = packet.translated((a.far, 80), (a.client, 41_004));
                let from_client = error(a.client, a.far, &answer, quote).macs(CLIENT_MAC, HOST_MAC);
                let as_sent = packet.translated((a.remote, 8080), (a.client, 41_004));
                let seen = error(a.client, a.remote, &as_sent, quote).macs(CLIENT_MAC, HOST_MAC).ttl(63);
                expect(&both, Hook::FromPod, &from_client, FinalVerdict::Forward(Out::Uplink, uplink), &seen)?;
            }
        }
        Ok(())
    });
}

#[test]
fn error_about_an_untranslated_packet_keeps_its_quotation() {
    both_families(|both, a, _| {
        for (packet, quote) in packets((a.client, 41_005), (a.outside, 80)) {
            let untouched = error(a.node2, a.client, &packet, quote).macs(NODE2_MAC, UPLINK_MAC);
            let seen = untouched.clone().macs(HOST_MAC, CLIENT_MAC).ttl(63);
            expect(both, Hook::FromUplink, &untouched, FinalVerdict::Forward(Out::Pod, HERE), &seen)?;
            expect(both, Hook::ToPod, &untouched, FinalVerdict::Pass, &untouched)?;
        }
        Ok(())
    });
}

/// Errors from senders that cannot have seen a packet of the flow are dropped: they could reset or slow down
/// connections of others.
#[test]
fn errors_from_senders_outside_the_flow_are_dropped() {
    both_families(|both, a, _| {
        let internet = (a.internet, 443);
        let flows = [
            // Another pod's flows to a service, to another pod and to the outside, and one of the client's own.
            ((a.backend, 41_006), (a.far, 80)),
            ((a.backend, 41_006), (a.remote, 8080)),
            ((a.backend, 41_006), internet),
            ((a.client, 41_006), internet),
        ];
        for (about, quote) in flows.into_iter().flat_map(|(src, dst)| packets(src, dst)) {
            let to = about.src;
            let forged = error(a.client, to, &about, quote).macs(CLIENT_MAC, HOST_MAC);
            expect(both, Hook::FromPod, &forged, FinalVerdict::Drop(Reason::UnrelatedIcmpError), &forged)?;
        }
        // Quotes a packet that was sent to it, but is addressed to another pod.
        for (about, quote) in packets((a.remote, 8080), (a.client, 41_006)) {
            let forged = error(a.client, a.backend, &about, quote).macs(CLIENT_MAC, HOST_MAC);
            expect(both, Hook::FromPod, &forged, FinalVerdict::Drop(Reason::UnrelatedIcmpError), &forged)?;
        }
        // Hosts outside cannot have seen flows that stay on this node.
        for (packet, quote) in packets((a.client, 41_007), (a.local, 80)) {
            both.run(Hook::FromPod, &packet.bytes())?;
            let sent = packet.translated((a.client, 41_007), (a.backend, 8080));
            let forged = error(a.outside, a.client, &sent, quote).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            expect(both, Hook::FromUplink, &forged, FinalVerdict::Drop(Reason::UnrelatedIcmpError), &forged)?;
        }
        // Nor may they send one pod errors about packets of another.
        for (packet, quote) in packets((a.backend, 41_008), internet) {
            let forged = error(a.outside, a.client, &packet, quote).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            expect(both, Hook::FromUplink, &forged, FinalVerdict::Drop(Reason::UnrelatedIcmpError), &forged)?;
        }
        Ok(())
    });
}

/// Only its receiver would see the remaining fragments.
#[test]
fn fragmented_errors_are_dropped() {
    both_families(|both, a, _| {
        let (about, quote) = packets((a.backend, 41_009), (a.far, 80)).into_iter().next().unwrap();
        let mut forged = error(a.client, a.backend, &about, quote).macs(CLIENT_MAC, HOST_MAC);
        forged.fragment = Some(if a.client.is_ipv4() { 0x2000 } else { 1 });
        expect(both, Hook::FromPod, &forged, FinalVerdict::Drop(Reason::UnrelatedIcmpError), &forged)
    });
}

/// A router may send an error to a node that does not have the flow; the quotation identifies the flow's node.
#[test]
fn error_about_a_direct_reply_is_forwarded_without_a_flow() {
    in_namespace(|uplink| {
        let both = Both::new(uplink, |_| {})?;
        for a in [addresses(false), addresses(true)] {
            for (answer, quote) in packets((a.node, NODE_PORT_DIRECT), (a.outside, 41_011)) {
                // An error forwarded by another node is not forwarded again.
                let from_node = error(a.outside, a.node, &answer, quote).macs(NODE2_MAC, UPLINK_MAC);
                let (end, _) = both.run(Hook::FromUplink, &from_node.bytes())?;
                ensure!(!matches!(end, FinalVerdict::Forward(..)), "{end:?}");
            }
            for (answer, quote) in packets((a.node, NODE_PORT_DIRECT), (a.outside, 41_010)) {
                let from_router = error(a.outside, a.node, &answer, quote).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
                let on = from_router.clone().ttl(63);
                let (end, bytes) = both.run(Hook::FromUplink, &from_router.bytes())?;
                ensure!(matches!(end, FinalVerdict::Forward(Out::Via | Out::Link, _)), "{end:?}");
                ensure!(bytes[12..] == on.bytes()[12..], "it was changed");
            }
        }
        Ok(())
    });
}
