//! Named packets of everything that goes between the cluster and the outside: node ports, load balancers' addresses, direct
//! server return, masquerade.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use podnet_common::{
    addr::IfIndex,
    layout::{Hook, Network, NetworkKind, Out, Prefix, ServiceClient, SourceRange},
    simulator::{End, HostTables, prefix},
    verdict::Reason,
};

use crate::{
    cases::{both_families, both_families_with, expect, expect_drop, from_client},
    cluster::{
        Addresses, BACKEND_HOST_MAC, BACKEND_MAC, Both, CLIENT_MAC, CLIENT_OUTSIDE_MAC, HERE, HOST_MAC, NODE_PORT,
        NODE_PORT_DIRECT, NODE_PORT_FAR, NODE2_MAC, NODE3_MAC, PODNET0, UPLINK_MAC, addresses,
    },
    frame::{ACK, FIN, Frame, SYN, Transport},
};

const INTO_BACKEND: End = End::Forward(Out::Pod, IfIndex(71));

/// Frames of all protocols from a client outside.
fn from_outside(src: (IpAddr, u16), dst: (IpAddr, u16)) -> [Frame; 3] {
    let sctp = Frame::new(src.0, dst.0, Transport::Sctp { sport: src.1, dport: dst.1 });
    [Frame::tcp(src, dst, SYN), Frame::udp(src, dst), sctp].map(|f| f.macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC))
}

/// The same flow's next packet.
fn next(frame: &Frame) -> Frame {
    let mut frame = frame.clone();
    if let Transport::Tcp { flags, .. } = &mut frame.transport {
        *flags = ACK;
    }
    frame
}

/// The source port of a frame as bytes.
fn source_port(frame: &[u8], v6: bool) -> Result<u16> {
    let at = if v6 { 54 } else { 34 };
    Ok(u16::from_be_bytes(frame.get(at..at + 2).context("no ports")?.try_into()?))
}

#[test]
fn a_node_port_with_a_backend_here_keeps_the_client() {
    both_families(|both, a, _| {
        for input in from_outside((a.outside, 41_000), (a.node, NODE_PORT)) {
            let there =
                input.translated((a.outside, 41_000), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromUplink, &input, INTO_BACKEND, &there)?;
            // A later packet says the same, now from the entry.
            let (input, there) = (next(&input), next(&there));
            expect(both, Hook::FromUplink, &input, INTO_BACKEND, &there)?;
            // An answer that comes by the stack, as from a backend with traffic shaping.
            let answer = next(&there).translated((a.backend, 8080), (a.outside, 41_000));
            let back = answer.translated((a.node, NODE_PORT), (a.outside, 41_000));
            expect(both, Hook::ToUplink, &answer, End::Pass, &back)?;
        }
        Ok(())
    });
}

#[test]
fn a_node_port_with_a_backend_on_another_node_shows_it_this_node() {
    both_families(|both, a, uplink| {
        let v6 = a.node.is_ipv6();
        for input in from_outside((a.outside, 41_001), (a.node, NODE_PORT_FAR)) {
            let (end, bytes) = both.run(Hook::FromUplink, &input.bytes())?;
            // The first packet goes by the neighbour table, so that the neighbour stays known.
            ensure!(end == End::Forward(Out::Uplink, uplink), "{end:?}");
            let port = source_port(&bytes, v6)?;
            ensure!((10_000..30_000).contains(&port), "port {port} is not of the range");
            let there = input.translated((a.node, port), (a.remote3, 8080)).ttl(63);
            ensure!(bytes == there.bytes(), "{input:?}");
            let (input, there) = (next(&input), next(&there).macs(UPLINK_MAC, NODE3_MAC));
            let answer = there.translated((a.remote3, 8080), (a.node, port)).ttl(64).macs(NODE3_MAC, UPLINK_MAC);
            let back = answer.translated((a.node, NODE_PORT_FAR), (a.outside, 41_001)).ttl(63);
            if matches!(input.transport, Transport::Sctp { .. }) {
                // It always takes the way of first packets.
                let there = there.macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
                expect(both, Hook::FromUplink, &input, End::Forward(Out::Uplink, uplink), &there)?;
                expect(both, Hook::FromUplink, &answer, End::Forward(Out::Uplink, uplink), &back)?;
                continue;
            }
            // Before TC has seen an answer, XDP leaves it alone; then it sends it on by itself.
            expect(both, Hook::UplinkXdp, &answer, End::Pass, &answer)?;
            expect(both, Hook::FromUplink, &answer, End::Forward(Out::Uplink, uplink), &back)?;
            // What confirms a connection is examined once more.
            both.run(Hook::FromUplink, &input.bytes())?;
            expect(both, Hook::FromUplink, &input, End::Forward(Out::Link, uplink), &there)?;
            expect(both, Hook::UplinkXdp, &input, End::Forward(Out::Link, uplink), &there)?;
            let back = back.macs(UPLINK_MAC, CLIENT_OUTSIDE_MAC);
            expect(both, Hook::FromUplink, &answer, End::Forward(Out::Link, uplink), &back)?;
            expect(both, Hook::UplinkXdp, &answer, End::Forward(Out::Link, uplink), &back)?;
        }
        Ok(())
    });
}

#[test]
fn a_clients_ports_become_ports_in_a_row_and_the_same_ones_again() {
    both_families(|both, a, _| {
        let at = (a.node, NODE_PORT_FAR);
        let ports = |flags| -> Result<Vec<u16>> {
            let source = |port| {
                let frame = Frame::tcp((a.outside, port), at, flags).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
                source_port(&both.run(Hook::FromUplink, &frame.bytes())?.1, a.node.is_ipv6())
            };
            (41_100..41_164).map(source).collect()
        };
        let first = ports(SYN)?;
        for pair in first.windows(2) {
            // The range is 10,000 to 29,999.
            let next = if pair[0] == 29_999 { 10_000 } else { pair[0] + 1 };
            ensure!(pair[1] == next, "{pair:?}");
        }
        ensure!(ports(FIN | ACK)? == first && ports(SYN)? == first);
        Ok(())
    });
}

#[test]
fn node_ports_are_for_pods_and_processes_of_the_node_too() {
    both_families(|both, a, _| {
        for input in from_client((a.client, 41_002), (a.node, NODE_PORT)) {
            let there =
                input.translated((a.client, 41_002), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromPod, &input, INTO_BACKEND, &there)?;
        }
        let [input, _] = from_client((a.node, 41_003), (a.node, NODE_PORT));
        let on = input.clone().macs([2, 0, 0, 0, 9, 0], [2, 0, 0, 0, 9, 1]);
        expect(both, Hook::FromLoopback, &input, End::Forward(Out::Link, PODNET0), &on)?;
        let [other, _] = from_client((a.node, 41_004), (a.node, 80));
        expect(both, Hook::FromLoopback, &other, End::Pass, &other)?;
        // From podnet1 on, and back to the process by podnet0.
        let input = Frame::tcp((a.node, 41_003), (a.node, NODE_PORT_FAR), SYN);
        let (end, _) = both.run(Hook::FromHost, &input.bytes())?;
        ensure!(matches!(end, End::Forward(Out::Uplink, _)), "{end:?}");
        let answer = Frame::tcp((a.remote3, 8080), (a.node, 41_003), SYN | ACK).macs(NODE3_MAC, UPLINK_MAC);
        let back =
            answer.translated((a.node, NODE_PORT_FAR), (a.node, 41_003)).macs([2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 0]);
        expect(both, Hook::FromUplink, &answer, End::Forward(Out::Host, PODNET0), &back)
    });
}

#[test]
fn with_direct_server_return_the_packet_goes_on_unchanged() {
    both_families(|both, a, uplink| {
        for input in from_outside((a.outside, 41_005), (a.node, NODE_PORT_DIRECT)) {
            let on = input.clone().ttl(63);
            expect(both, Hook::FromUplink, &input, End::Forward(Out::Via, uplink), &on)?;
            if matches!(input.transport, Transport::Sctp { .. }) {
                continue;
            }
            let (input, on) = (next(&input), next(&on).macs(UPLINK_MAC, NODE3_MAC));
            expect(both, Hook::FromUplink, &input, End::Forward(Out::Link, uplink), &on)?;
            expect(both, Hook::UplinkXdp, &input, End::Forward(Out::Link, uplink), &on)?;
        }
        let flows = both.kernel.conntrack()?;
        ensure!(flows.keys().all(|key| key.src != a.remote3.into()), "a flow that is sent on has one entry: {flows:?}");
        Ok(())
    });
}

/// Has everything of IPv6, and nothing of IPv4, reached with pods' own addresses.
fn ipv6_is_reached_without_nat(t: &mut HostTables) {
    let network = |kind: NetworkKind| Network { kind: kind as u32, ..Network::default() };
    t.networks.insert(Prefix::default(), network(NetworkKind::NonMasquerade));
    let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0, 0]);
    t.networks.insert(prefix(mapped, 96), network(NetworkKind::Nothing));
    // And the same of a service's clients.
    let clients = ServiceClient::new(1081, IpAddr::from([0u16; 8]).into());
    t.source_ranges.insert(SourceRange { len: 32, data: clients });
}

#[test]
fn a_range_of_all_ipv6_addresses_holds_no_ipv4() {
    both_families_with(ipv6_is_reached_without_nat, |both, a, uplink| {
        for input in from_outside((a.internet, 41_012), (a.balancer, 81)) {
            if a.node.is_ipv6() {
                let (end, _) = both.run(Hook::FromUplink, &input.bytes())?;
                ensure!(end == INTO_BACKEND, "{end:?}");
            } else {
                expect_drop(both, Hook::FromUplink, &input, Reason::SourceRange)?;
            }
        }
        for input in from_client((a.client, 41_012), (a.internet, 80)) {
            let (end, _) = both.run(Hook::FromPod, &input.bytes())?;
            let expected = if a.node.is_ipv6() { End::Pass } else { End::Forward(Out::Uplink, uplink) };
            ensure!(end == expected, "{end:?}");
        }
        // Who is reached without NAT may still be sent on for direct server return.
        let [input, ..] = from_outside((a.outside, 41_012), (a.node, NODE_PORT_DIRECT));
        expect(both, Hook::FromUplink, &input, End::Forward(Out::Via, uplink), &input.clone().ttl(63))
    });
}

#[test]
fn answers_to_a_process_on_a_node_ports_number_are_its_own() {
    both_families(|both, a, _| {
        for flags in [SYN | ACK, ACK] {
            for port in [NODE_PORT, NODE_PORT_FAR, NODE_PORT_DIRECT] {
                let [from_pod, from_outside] =
                    [(a.client, CLIENT_MAC, HOST_MAC), (a.outside, CLIENT_OUTSIDE_MAC, UPLINK_MAC)]
                        .map(|(from, src, dst)| Frame::tcp((from, 80), (a.node, port), flags).macs(src, dst));
                expect(both, Hook::FromPod, &from_pod, End::Pass, &from_pod)?;
                expect(both, Hook::FromUplink, &from_outside, End::Pass, &from_outside)?;
            }
        }
        ensure!(both.kernel.conntrack()?.is_empty());
        Ok(())
    });
}

#[test]
fn a_backend_outside_of_the_cluster_sees_the_node() {
    both_families_with(backends_outside, |both, a, uplink| {
        for input in from_client((a.client, 41_014), (a.local, 80)) {
            let (end, bytes) = both.run(Hook::FromPod, &input.bytes())?;
            ensure!(end == End::Forward(Out::Uplink, uplink), "{end:?}");
            let port = source_port(&bytes, a.node.is_ipv6())?;
            let there = input.translated((a.node, port), (a.internet, 8080)).ttl(63);
            ensure!(bytes == there.bytes(), "{bytes:02x?}");
            let answer =
                there.translated((a.internet, 8080), (a.node, port)).ttl(64).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            let back = answer.translated((a.local, 80), (a.client, 41_014)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::FromUplink, &answer, End::Forward(Out::Pod, HERE), &back)?;
        }
        Ok(())
    });
}

/// Has all services lead to a host outside.
fn backends_outside(t: &mut HostTables) {
    for backend in t.backends.values_mut() {
        let internet = addresses(!backend.addr.is_v4()).internet;
        backend.addr = internet.into();
    }
}

#[test]
fn what_another_node_sends_back_is_not_sent_on_again() {
    both_families(|both, a, uplink| {
        let [input, ..] = from_outside((a.outside, 41_013), (a.node, NODE_PORT_DIRECT));
        let (end, _) = both.run(Hook::FromUplink, &input.bytes())?;
        ensure!(end == End::Forward(Out::Via, uplink), "{end:?}");
        // The third node doesn't know this one's MAC yet, and routes the packet by its destination.
        let back = input.ttl(62).macs(NODE3_MAC, UPLINK_MAC);
        let (end, bytes) = both.run(Hook::FromUplink, &back.bytes())?;
        ensure!(end == End::Forward(Out::Uplink, uplink), "{end:?}");
        let port = source_port(&bytes, a.node.is_ipv6())?;
        let there = back.translated((a.node, port), (a.remote3, 8080)).ttl(61);
        ensure!(bytes == there.bytes(), "{bytes:02x?}");
        Ok(())
    });
}

#[test]
fn what_another_node_sends_on_goes_to_a_backend_here_and_answers_leave_in_its_name() {
    both_families(|both, a, _| {
        for input in from_outside((a.outside, 41_006), (a.node2, NODE_PORT_DIRECT)) {
            // From anyone else it is a packet to another host.
            expect(both, Hook::FromUplink, &input, End::Pass, &input)?;
            let input = input.macs(NODE2_MAC, UPLINK_MAC);
            let there =
                input.translated((a.outside, 41_006), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromUplink, &input, INTO_BACKEND, &there)?;
            let answer = there.translated((a.backend, 8080), (a.outside, 41_006)).ttl(64);
            let back = answer.translated((a.node2, NODE_PORT_DIRECT), (a.outside, 41_006));
            expect(both, Hook::ToUplink, &answer, End::Pass, &back)?;
        }
        // Of frontends without direct server return nothing is sent on.
        let [stray, ..] = from_outside((a.outside, 41_007), (a.node2, NODE_PORT_FAR));
        let stray = stray.macs(NODE2_MAC, UPLINK_MAC);
        expect(both, Hook::FromUplink, &stray, End::Pass, &stray)
    });
}

#[test]
fn a_load_balancers_address_has_ranges_policies_and_an_echo() {
    both_families(|both, a, _| {
        for input in from_outside((a.internet, 41_008), (a.balancer, 81)) {
            expect_drop(both, Hook::FromUplink, &input, Reason::SourceRange)?;
        }
        for input in from_outside((a.outside, 41_008), (a.balancer, 81)) {
            let there =
                input.translated((a.outside, 41_008), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromUplink, &input, INTO_BACKEND, &there)?;
        }
        // externalTrafficPolicy: Local without an endpoint here.
        for input in from_outside((a.outside, 41_009), (a.balancer, 82)) {
            expect_drop(both, Hook::FromUplink, &input, Reason::NoLocalEndpoint)?;
        }
        // This node's pods get any.
        let [input, _] = from_client((a.client, 41_009), (a.balancer, 82));
        let (end, _) = both.run(Hook::FromPod, &input.bytes())?;
        ensure!(matches!(end, End::Forward(Out::Uplink, _)), "{end:?}");
        // An undefined port is rejected, an echo answered.
        let [input, ..] = from_outside((a.outside, 41_010), (a.balancer, 999));
        let (end, _) = both.run(Hook::FromUplink, &input.bytes())?;
        ensure!(end == End::Reject(Reason::UndefinedPort, HERE), "{end:?}");
        let ping = |reply| Transport::Echo { id: 77, reply };
        let input = Frame::new(a.outside, a.balancer, ping(false)).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC).ttl(9);
        let answer = Frame::new(a.balancer, a.outside, ping(true)).macs(UPLINK_MAC, CLIENT_OUTSIDE_MAC);
        expect(both, Hook::FromUplink, &input, End::Answer(HERE), &answer)?;
        // An address without a backend doesn't answer.
        let input = Frame::new(a.client, a.empty, ping(false)).macs(CLIENT_MAC, HOST_MAC);
        expect_drop(both, Hook::FromPod, &input, Reason::NotTranslatable)?;
        Ok(())
    });
}

/// The balancer's address may be a real machine's: a service has its ports there and nothing else.
#[test]
fn what_a_service_does_not_define_at_an_external_address_is_not_its_own() {
    both_families(|both, a, uplink| {
        let out = End::Forward(Out::Uplink, uplink);
        let ping = Frame::new(a.node, a.balancer, Transport::Echo { id: 78, reply: false });
        let [tcp, udp, sctp] = from_outside((a.node, 41_030), (a.balancer, 999));
        let answer = Frame::tcp((a.node, 22), (a.balancer, 41_031), SYN | ACK);
        for input in [tcp, udp, sctp, ping, answer] {
            // A host process's packet leaves as it is, whatever its protocol.
            expect(both, Hook::FromHost, &input, out, &input)?;
        }
        for input in from_client((a.client, 41_032), (a.balancer, 999)) {
            let (end, bytes) = both.run(Hook::FromPod, &input.bytes())?;
            ensure!(end == out, "{end:?}");
            let port = source_port(&bytes, a.node.is_ipv6())?;
            let there = input.translated((a.node, port), (a.balancer, 999)).ttl(63);
            ensure!(bytes[14..] == there.bytes()[14..], "a pod's packet leaves in its node's name");
        }
        // What the machine itself sends.
        let input = Frame::tcp((a.balancer, 41_033), (a.node, 22), SYN).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
        expect(both, Hook::FromUplink, &input, End::Pass, &input)
    });
}

#[test]
fn a_client_stays_with_its_backend() {
    both_families(|both, a, _| {
        let mut seen = std::collections::BTreeSet::new();
        for port in 42_000..42_040 {
            let [input, _, _] = from_outside((a.internet, port), (a.balancer, 83));
            let (_, bytes) = both.run(Hook::FromUplink, &input.bytes())?;
            let destination = if a.node.is_ipv4() { bytes[30..34].to_vec() } else { bytes[38..54].to_vec() };
            seen.insert(destination);
        }
        ensure!(seen.len() == 1, "one client met {} backends", seen.len());
        Ok(())
    });
}

#[test]
fn pods_reach_the_outside_with_the_nodes_address() {
    both_families(|both, a, uplink| {
        let v6 = a.node.is_ipv6();
        let [tcp, udp] = from_client((a.client, 41_011), (a.internet, 443));
        let echo = Frame::new(a.client, a.internet, Transport::Echo { id: 41_011, reply: false });
        for input in [tcp, udp, echo.macs(CLIENT_MAC, HOST_MAC)] {
            let ping = matches!(input.transport, Transport::Echo { .. });
            let (end, bytes) = both.run(Hook::FromPod, &input.bytes())?;
            ensure!(end == End::Forward(Out::Uplink, uplink), "{input:?}: {end:?}");
            let at = if v6 { 54 } else { 34 } + if ping { 4 } else { 0 };
            let port = u16::from_be_bytes(bytes[at..at + 2].try_into()?);
            let (remote, fixed) = if ping { (0, 0) } else { (443, 443) };
            let there = input.translated((a.node, port), (a.internet, remote)).ttl(63);
            ensure!(bytes == there.bytes(), "{input:?}\n  got      {bytes:02x?}\n  expected {:02x?}", there.bytes());
            let mut answer = there.translated((a.internet, fixed), (a.node, port)).ttl(64);
            if let Transport::Echo { reply, .. } = &mut answer.transport {
                *reply = true;
            }
            let answer = answer.macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            let back = answer.translated((a.internet, fixed), (a.client, 41_011)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::FromUplink, &answer, End::Forward(Out::Pod, HERE), &back)?;
        }
        // The cluster's own are reached as one is.
        let [input, _] = from_client((a.client, 41_012), (a.node2, 443));
        expect(both, Hook::FromPod, &input, End::Pass, &input)
    });
}

#[test]
fn without_masquerade_the_stack_has_it() {
    both_families_with(
        |tables| tables.config.flags = 0,
        |both: &mut Both, a: &Addresses, _| {
            let [input, _] = from_client((a.client, 41_013), (a.internet, 443));
            expect(both, Hook::FromPod, &input, End::Pass, &input)
        },
    );
}

#[test]
fn fragments_follow_the_first() {
    both_families(|both, a, uplink| {
        let (first_flag, later_flag) = if a.node.is_ipv4() { (0x2000, 0x0003) } else { (0x0001, 0x0018) };
        let mut first = Frame::udp((a.client, 41_014), (a.local, 80)).macs(CLIENT_MAC, HOST_MAC);
        first.fragment = Some(first_flag);
        let mut later = Frame::new(a.client, a.local, Transport::Raw(17, vec![5; 64])).macs(CLIENT_MAC, HOST_MAC);
        later.fragment = Some(later_flag);
        expect_drop(both, Hook::FromPod, &later, Reason::OrphanFragment)?;
        for _ in 0..2 {
            let (end, bytes) = both.run(Hook::FromPod, &first.bytes())?;
            ensure!(end == INTO_BACKEND, "{end:?}");
            let there = first.translated((a.client, 41_014), (a.backend, 8080)).ttl(63);
            ensure!(bytes == there.macs(BACKEND_HOST_MAC, BACKEND_MAC).bytes());
            let there = later.translated((a.client, 0), (a.backend, 0)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromPod, &later, INTO_BACKEND, &there)?;
        }
        // Between pods nothing changes.
        let mut direct = Frame::udp((a.client, 41_014), (a.remote, 53)).macs(CLIENT_MAC, HOST_MAC);
        direct.fragment = Some(first_flag);
        expect(both, Hook::FromPod, &direct, End::Forward(Out::Uplink, uplink), &direct.clone().ttl(63))?;
        let mut direct = Frame::new(a.client, a.remote, Transport::Raw(17, vec![5; 64])).macs(CLIENT_MAC, HOST_MAC);
        direct.fragment = Some(later_flag);
        expect(both, Hook::FromPod, &direct, End::Forward(Out::Uplink, uplink), &direct.clone().ttl(63))
    });
}

#[test]
fn a_direct_connection_from_a_port_that_a_service_has_gets_another() {
    both_families(|both, a, uplink| {
        let v6 = a.node.is_ipv6();
        let [service, _] = from_client((a.client, 41_015), (a.far, 80));
        both.run(Hook::FromPod, &service.bytes())?;
        let [direct, _] = from_client((a.client, 41_015), (a.remote, 8080));
        let (end, bytes) = both.run(Hook::FromPod, &direct.bytes())?;
        ensure!(end == End::Forward(Out::Uplink, uplink), "{end:?}");
        let port = source_port(&bytes, v6)?;
        ensure!(port != 41_015, "both connections have one source port");
        let answer = Frame::tcp((a.remote, 8080), (a.client, port), SYN | ACK).macs(NODE2_MAC, UPLINK_MAC);
        let back = answer.translated((a.remote, 8080), (a.client, 41_015)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
        expect(both, Hook::FromUplink, &answer, End::Forward(Out::Pod, HERE), &back)
    });
}
