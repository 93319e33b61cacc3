//! Named packets between the cluster and the outside: NodePorts, load balancer addresses, direct server return,
//! masquerade.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use podnet_common::{
    addr::IfIndex,
    layout::{Hook, Network, NetworkKind, Out, Prefix, ServiceClient, SourceRange},
    simulator::{FinalVerdict, HostTables, prefix},
    verdict::Reason,
};

use crate::{
    cluster::{
        Addresses, BACKEND_HOST_MAC, BACKEND_MAC, Both, CLIENT_MAC, CLIENT_OUTSIDE_MAC, HERE, HOST_MAC, NODE_PORT,
        NODE_PORT_DIRECT, NODE_PORT_FAR, NODE2_MAC, NODE3_MAC, PODNET0, UPLINK_MAC, addresses,
    },
    expect::{both_families, both_families_with, expect, expect_drop, from_client},
    frame::{ACK, FIN, Frame, SYN, Transport},
};

const INTO_BACKEND: FinalVerdict = FinalVerdict::Forward(Out::Pod, IfIndex(71));

/// Frames of all protocols from an external client.
fn from_outside(src: (IpAddr, u16), dst: (IpAddr, u16)) -> [Frame; 3] {
    let sctp = Frame::new(src.0, dst.0, Transport::Sctp { sport: src.1, dport: dst.1 });
    [Frame::tcp(src, dst, SYN), Frame::udp(src, dst), sctp].map(|f| f.macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC))
}

/// Next packet of the same flow.
fn next(frame: &Frame) -> Frame {
    let mut frame = frame.clone();
    if let Transport::Tcp { flags, .. } = &mut frame.transport {
        *flags = ACK;
    }
    frame
}

/// Source port of a frame, read from its bytes.
fn source_port(frame: &[u8], v6: bool) -> Result<u16> {
    let at = if v6 { 54 } else { 34 };
    Ok(u16::from_be_bytes(frame.get(at..at + 2).context("no ports")?.try_into()?))
}

#[test]
fn node_port_with_local_backend_preserves_the_client_address() {
    both_families(|both, a, _| {
        for input in from_outside((a.outside, 41_000), (a.node, NODE_PORT)) {
            let there =
                input.translated((a.outside, 41_000), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromUplink, &input, INTO_BACKEND, &there)?;
            // A later packet gets the same result, now from the entry.
            let (input, there) = (next(&input), next(&there));
            expect(both, Hook::FromUplink, &input, INTO_BACKEND, &there)?;
            // A reply that comes through the stack, as from a backend with traffic shaping.
            let answer = next(&there).translated((a.backend, 8080), (a.outside, 41_000));
            let back = answer.translated((a.node, NODE_PORT), (a.outside, 41_000));
            expect(both, Hook::ToUplink, &answer, FinalVerdict::Pass, &back)?;
        }
        Ok(())
    });
}

#[test]
fn node_port_with_remote_backend_uses_the_node_address() {
    both_families(|both, a, uplink| {
        let v6 = a.node.is_ipv6();
        for input in from_outside((a.outside, 41_001), (a.node, NODE_PORT_FAR)) {
            let (end, bytes) = both.run(Hook::FromUplink, &input.bytes())?;
            // The first packet uses the neighbour table, which keeps the neighbour entry alive.
            ensure!(end == FinalVerdict::Forward(Out::Uplink, uplink), "{end:?}");
            let port = source_port(&bytes, v6)?;
            ensure!((10_000..30_000).contains(&port), "port {port} is not of the range");
            let there = input.translated((a.node, port), (a.remote3, 8080)).ttl(63);
            ensure!(bytes == there.bytes(), "{input:?}");
            let (input, there) = (next(&input), next(&there).macs(UPLINK_MAC, NODE3_MAC));
            let answer = there.translated((a.remote3, 8080), (a.node, port)).ttl(64).macs(NODE3_MAC, UPLINK_MAC);
            let back = answer.translated((a.node, NODE_PORT_FAR), (a.outside, 41_001)).ttl(63);
            if matches!(input.transport, Transport::Sctp { .. }) {
                // SCTP packets never take the fast path.
                expect(both, Hook::FromUplink, &input, FinalVerdict::Forward(Out::Link, uplink), &there)?;
                expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Uplink, uplink), &back)?;
                continue;
            }
            // XDP leaves replies to TC until TC has seen one; afterwards it forwards them.
            expect(both, Hook::UplinkXdp, &answer, FinalVerdict::Pass, &answer)?;
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Uplink, uplink), &back)?;
            // The packet that confirms a connection leaves the fast path once more.
            both.run(Hook::FromUplink, &input.bytes())?;
            expect(both, Hook::FromUplink, &input, FinalVerdict::Forward(Out::Link, uplink), &there)?;
            expect(both, Hook::UplinkXdp, &input, FinalVerdict::Forward(Out::Link, uplink), &there)?;
            let back = back.macs(UPLINK_MAC, CLIENT_OUTSIDE_MAC);
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Link, uplink), &back)?;
            expect(both, Hook::UplinkXdp, &answer, FinalVerdict::Forward(Out::Link, uplink), &back)?;
        }
        Ok(())
    });
}

#[test]
fn consecutive_client_ports_get_consecutive_and_repeatable_snat_ports() {
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
fn node_ports_serve_pods_and_host_processes() {
    both_families(|both, a, _| {
        for input in from_client((a.client, 41_002), (a.node, NODE_PORT)) {
            let there =
                input.translated((a.client, 41_002), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromPod, &input, INTO_BACKEND, &there)?;
        }
        let [input, _] = from_client((a.node, 41_003), (a.node, NODE_PORT));
        let on = input.clone().macs([2, 0, 0, 0, 9, 0], [2, 0, 0, 0, 9, 1]);
        expect(both, Hook::FromLoopback, &input, FinalVerdict::Forward(Out::Link, PODNET0), &on)?;
        let [other, _] = from_client((a.node, 41_004), (a.node, 80));
        expect(both, Hook::FromLoopback, &other, FinalVerdict::Pass, &other)?;
        // Leaves through podnet1, and returns to the process through podnet0.
        let input = Frame::tcp((a.node, 41_003), (a.node, NODE_PORT_FAR), SYN);
        let (end, _) = both.run(Hook::FromHost, &input.bytes())?;
        ensure!(matches!(end, FinalVerdict::Forward(Out::Uplink, _)), "{end:?}");
        let answer = Frame::tcp((a.remote3, 8080), (a.node, 41_003), SYN | ACK).macs(NODE3_MAC, UPLINK_MAC);
        let back =
            answer.translated((a.node, NODE_PORT_FAR), (a.node, 41_003)).macs([2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 0]);
        expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Host, PODNET0), &back)
    });
}

#[test]
fn direct_server_return_forwards_the_packet_unchanged() {
    both_families(|both, a, uplink| {
        for input in from_outside((a.outside, 41_005), (a.node, NODE_PORT_DIRECT)) {
            let on = input.clone().ttl(63);
            expect(both, Hook::FromUplink, &input, FinalVerdict::Forward(Out::Via, uplink), &on)?;
            if matches!(input.transport, Transport::Sctp { .. }) {
                continue;
            }
            let (input, on) = (next(&input), next(&on).macs(UPLINK_MAC, NODE3_MAC));
            expect(both, Hook::FromUplink, &input, FinalVerdict::Forward(Out::Link, uplink), &on)?;
            expect(both, Hook::UplinkXdp, &input, FinalVerdict::Forward(Out::Link, uplink), &on)?;
        }
        let flows = both.kernel.conntrack()?;
        ensure!(flows.keys().all(|key| key.src != a.remote3.into()), "a flow that is sent on has one entry: {flows:?}");
        Ok(())
    });
}

/// All IPv6 destinations, and no IPv4 ones, are reached with pod addresses.
fn ipv6_is_reached_without_nat(t: &mut HostTables) {
    let network = |kind: NetworkKind| Network { kind: kind as u32, ..Network::default() };
    t.networks.insert(Prefix::default(), network(NetworkKind::NonMasquerade));
    let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0, 0]);
    t.networks.insert(prefix(mapped, 96), network(NetworkKind::Nothing));
    // The same for source ranges of a service.
    let clients = ServiceClient::new(1081, IpAddr::from([0u16; 8]).into());
    t.source_ranges.insert(SourceRange { len: 32, data: clients });
}

#[test]
fn range_of_all_ipv6_addresses_contains_no_ipv4() {
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
            let expected =
                if a.node.is_ipv6() { FinalVerdict::Pass } else { FinalVerdict::Forward(Out::Uplink, uplink) };
            ensure!(end == expected, "{end:?}");
        }
        // Clients reached without NAT may still be forwarded with direct server return.
        let [input, ..] = from_outside((a.outside, 41_012), (a.node, NODE_PORT_DIRECT));
        expect(both, Hook::FromUplink, &input, FinalVerdict::Forward(Out::Via, uplink), &input.clone().ttl(63))
    });
}

#[test]
fn replies_to_a_process_on_a_node_port_are_not_translated() {
    both_families(|both, a, _| {
        for flags in [SYN | ACK, ACK] {
            for port in [NODE_PORT, NODE_PORT_FAR, NODE_PORT_DIRECT] {
                let [from_pod, from_outside] =
                    [(a.client, CLIENT_MAC, HOST_MAC), (a.outside, CLIENT_OUTSIDE_MAC, UPLINK_MAC)]
                        .map(|(from, src, dst)| Frame::tcp((from, 80), (a.node, port), flags).macs(src, dst));
                expect(both, Hook::FromPod, &from_pod, FinalVerdict::Pass, &from_pod)?;
                expect(both, Hook::FromUplink, &from_outside, FinalVerdict::Pass, &from_outside)?;
            }
        }
        ensure!(both.kernel.conntrack()?.is_empty());
        Ok(())
    });
}

#[test]
fn backend_outside_the_cluster_sees_the_node_address() {
    both_families_with(backends_outside, |both, a, uplink| {
        for input in from_client((a.client, 41_014), (a.local, 80)) {
            let (end, bytes) = both.run(Hook::FromPod, &input.bytes())?;
            ensure!(end == FinalVerdict::Forward(Out::Uplink, uplink), "{end:?}");
            let port = source_port(&bytes, a.node.is_ipv6())?;
            let there = input.translated((a.node, port), (a.internet, 8080)).ttl(63);
            ensure!(bytes == there.bytes(), "{bytes:02x?}");
            let answer =
                there.translated((a.internet, 8080), (a.node, port)).ttl(64).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            let back = answer.translated((a.local, 80), (a.client, 41_014)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Pod, HERE), &back)?;
        }
        Ok(())
    });
}

/// Makes a host outside the cluster the backend of all services.
fn backends_outside(t: &mut HostTables) {
    for backend in t.backends.values_mut() {
        let internet = addresses(!backend.addr.is_v4()).internet;
        backend.addr = internet.into();
    }
}

#[test]
fn packet_returned_by_a_node_is_translated_instead_of_forwarded_again() {
    both_families(|both, a, uplink| {
        let [input, ..] = from_outside((a.outside, 41_013), (a.node, NODE_PORT_DIRECT));
        let (end, _) = both.run(Hook::FromUplink, &input.bytes())?;
        ensure!(end == FinalVerdict::Forward(Out::Via, uplink), "{end:?}");
        // The third node does not have this node's MAC yet, and routes the packet by destination.
        let back = input.ttl(62).macs(NODE3_MAC, UPLINK_MAC);
        let (end, bytes) = both.run(Hook::FromUplink, &back.bytes())?;
        ensure!(end == FinalVerdict::Forward(Out::Uplink, uplink), "{end:?}");
        let port = source_port(&bytes, a.node.is_ipv6())?;
        let there = back.translated((a.node, port), (a.remote3, 8080)).ttl(61);
        ensure!(bytes == there.bytes(), "{bytes:02x?}");
        Ok(())
    });
}

#[test]
fn forwarded_packet_reaches_a_local_backend_that_replies_from_the_service() {
    both_families(|both, a, _| {
        for input in from_outside((a.outside, 41_006), (a.node2, NODE_PORT_DIRECT)) {
            // From any other sender it is a packet for another host.
            expect(both, Hook::FromUplink, &input, FinalVerdict::Pass, &input)?;
            let input = input.macs(NODE2_MAC, UPLINK_MAC);
            let there =
                input.translated((a.outside, 41_006), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromUplink, &input, INTO_BACKEND, &there)?;
            let answer = there.translated((a.backend, 8080), (a.outside, 41_006)).ttl(64);
            let back = answer.translated((a.node2, NODE_PORT_DIRECT), (a.outside, 41_006));
            expect(both, Hook::ToUplink, &answer, FinalVerdict::Pass, &back)?;
        }
        // Without direct server return, nothing is forwarded.
        let [stray, ..] = from_outside((a.outside, 41_007), (a.node2, NODE_PORT_FAR));
        let stray = stray.macs(NODE2_MAC, UPLINK_MAC);
        expect(both, Hook::FromUplink, &stray, FinalVerdict::Pass, &stray)
    });
}

#[test]
fn load_balancer_address_has_source_ranges_policies_and_echo_replies() {
    both_families(|both, a, _| {
        for input in from_outside((a.internet, 41_008), (a.balancer, 81)) {
            expect_drop(both, Hook::FromUplink, &input, Reason::SourceRange)?;
        }
        for input in from_outside((a.outside, 41_008), (a.balancer, 81)) {
            let there =
                input.translated((a.outside, 41_008), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromUplink, &input, INTO_BACKEND, &there)?;
        }
        // externalTrafficPolicy: Local without a local endpoint.
        for input in from_outside((a.outside, 41_009), (a.balancer, 82)) {
            expect_drop(both, Hook::FromUplink, &input, Reason::NoLocalEndpoint)?;
        }
        // Pods of this node reach any backend.
        let [input, _] = from_client((a.client, 41_009), (a.balancer, 82));
        let (end, _) = both.run(Hook::FromPod, &input.bytes())?;
        ensure!(matches!(end, FinalVerdict::Forward(Out::Uplink, _)), "{end:?}");
        // An undefined port is rejected, an echo request answered.
        let [input, ..] = from_outside((a.outside, 41_010), (a.balancer, 999));
        let (end, _) = both.run(Hook::FromUplink, &input.bytes())?;
        ensure!(end == FinalVerdict::Reject(Reason::UndefinedPort, HERE), "{end:?}");
        let ping = |reply| Transport::Echo { id: 77, reply };
        let input = Frame::new(a.outside, a.balancer, ping(false)).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC).ttl(9);
        let answer = Frame::new(a.balancer, a.outside, ping(true)).macs(UPLINK_MAC, CLIENT_OUTSIDE_MAC);
        expect(both, Hook::FromUplink, &input, FinalVerdict::Answer(HERE), &answer)?;
        // An address without backends does not answer echo requests.
        let input = Frame::new(a.client, a.empty, ping(false)).macs(CLIENT_MAC, HOST_MAC);
        expect_drop(both, Hook::FromPod, &input, Reason::NotTranslatable)?;
        Ok(())
    });
}

/// The load balancer address may belong to a real machine; podnet handles the ports of services only.
#[test]
fn undefined_ports_of_an_external_address_belong_to_its_machine() {
    both_families(|both, a, uplink| {
        let out = FinalVerdict::Forward(Out::Uplink, uplink);
        let ping = Frame::new(a.node, a.balancer, Transport::Echo { id: 78, reply: false });
        let [tcp, udp, sctp] = from_outside((a.node, 41_030), (a.balancer, 999));
        let answer = Frame::tcp((a.node, 22), (a.balancer, 41_031), SYN | ACK);
        for input in [tcp, udp, sctp, ping, answer] {
            // A packet of a host process leaves unchanged, whatever its protocol.
            expect(both, Hook::FromHost, &input, out, &input)?;
        }
        for input in from_client((a.client, 41_032), (a.balancer, 999)) {
            let (end, bytes) = both.run(Hook::FromPod, &input.bytes())?;
            ensure!(end == out, "{end:?}");
            let port = source_port(&bytes, a.node.is_ipv6())?;
            let there = input.translated((a.node, port), (a.balancer, 999)).ttl(63);
            ensure!(bytes[14..] == there.bytes()[14..], "a pod's packet leaves in its node's name");
        }
        // Sent by the machine itself.
        let input = Frame::tcp((a.balancer, 41_033), (a.node, 22), SYN).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
        expect(both, Hook::FromUplink, &input, FinalVerdict::Pass, &input)
    });
}

#[test]
fn session_affinity_keeps_the_backend() {
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
fn pods_are_masqueraded_towards_the_outside() {
    both_families(|both, a, uplink| {
        let v6 = a.node.is_ipv6();
        let [tcp, udp] = from_client((a.client, 41_011), (a.internet, 443));
        let echo = Frame::new(a.client, a.internet, Transport::Echo { id: 41_011, reply: false });
        for input in [tcp, udp, echo.macs(CLIENT_MAC, HOST_MAC)] {
            let ping = matches!(input.transport, Transport::Echo { .. });
            let (end, bytes) = both.run(Hook::FromPod, &input.bytes())?;
            ensure!(end == FinalVerdict::Forward(Out::Uplink, uplink), "{input:?}: {end:?}");
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
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Pod, HERE), &back)?;
        }
        // Destinations in the cluster see the pod's address.
        let [input, _] = from_client((a.client, 41_012), (a.node2, 443));
        expect(both, Hook::FromPod, &input, FinalVerdict::Pass, &input)
    });
}

#[test]
fn without_masquerade_the_stack_handles_packets_to_the_outside() {
    both_families_with(
        |tables| tables.config.flags = 0,
        |both: &mut Both, a: &Addresses, _| {
            let [input, _] = from_client((a.client, 41_013), (a.internet, 443));
            expect(both, Hook::FromPod, &input, FinalVerdict::Pass, &input)
        },
    );
}

#[test]
fn fragments_are_translated_like_the_first() {
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
        // Pod-to-pod fragments are not changed.
        let mut direct = Frame::udp((a.client, 41_014), (a.remote, 53)).macs(CLIENT_MAC, HOST_MAC);
        direct.fragment = Some(first_flag);
        expect(both, Hook::FromPod, &direct, FinalVerdict::Forward(Out::Uplink, uplink), &direct.clone().ttl(63))?;
        let mut direct = Frame::new(a.client, a.remote, Transport::Raw(17, vec![5; 64])).macs(CLIENT_MAC, HOST_MAC);
        direct.fragment = Some(later_flag);
        expect(both, Hook::FromPod, &direct, FinalVerdict::Forward(Out::Uplink, uplink), &direct.clone().ttl(63))
    });
}

#[test]
fn direct_connection_gets_another_port_when_a_service_flow_has_its_own() {
    both_families(|both, a, uplink| {
        let v6 = a.node.is_ipv6();
        let [service, _] = from_client((a.client, 41_015), (a.far, 80));
        both.run(Hook::FromPod, &service.bytes())?;
        let [direct, _] = from_client((a.client, 41_015), (a.remote, 8080));
        let (end, bytes) = both.run(Hook::FromPod, &direct.bytes())?;
        ensure!(end == FinalVerdict::Forward(Out::Uplink, uplink), "{end:?}");
        let port = source_port(&bytes, v6)?;
        ensure!(port != 41_015, "both connections have one source port");
        let answer = Frame::tcp((a.remote, 8080), (a.client, port), SYN | ACK).macs(NODE2_MAC, UPLINK_MAC);
        let back = answer.translated((a.remote, 8080), (a.client, 41_015)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
        expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Pod, HERE), &back)
    });
}
