//! Named packets, with the expected verdict and output compared byte by byte.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use podnet_common::{
    addr::{IfIndex, Proto},
    layout::{CtEntry, Hook, NetworkKind, Out, Tuple},
    simulator::FinalVerdict,
    verdict::{Counter, Reason},
};

use crate::{
    cluster::{
        Addresses, BACKEND_HOST_MAC, BACKEND_MAC, Both, CLIENT_MAC, HERE, HOST_MAC, NODE2_MAC, PODNET0, UPLINK_MAC,
        addresses, in_namespace,
    },
    expect::{both_families, both_families_with, expect, expect_drop, from_client},
    frame::{ACK, FIN, Frame, RST, SYN, Transport},
};

#[test]
fn service_with_local_backend_translates_both_directions() {
    both_families(|both, a, _| {
        for input in from_client((a.client, 40_000), (a.local, 80)) {
            let there =
                input.translated((a.client, 40_000), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            let to_backend = FinalVerdict::Forward(Out::Pod, IfIndex(71));
            // First packet, and packet of an established flow.
            expect(both, Hook::FromPod, &input, to_backend, &there)?;
            expect(both, Hook::FromPod, &input, to_backend, &there)?;
            // The backend's reply, as if its veth were this interface.
            let key = a.backend.into();
            both.host.endpoints.entry(key).and_modify(|e| e.ifindex = HERE);
            let answer =
                there.translated((a.backend, 8080), (a.client, 40_000)).ttl(64).macs(BACKEND_MAC, BACKEND_HOST_MAC);
            let back = answer.translated((a.local, 80), (a.client, 40_000)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            let (verdict, bytes) = {
                // The kernel's table still has the real interface, so this runs on the host only.
                let mut packet = podnet_common::simulator::HostPacket { data: answer.bytes(), ifindex: HERE };
                let verdict = podnet_common::simulator::run(Hook::FromPod, &mut packet, &both.host);
                (verdict, packet.data)
            };
            both.host.endpoints.entry(key).and_modify(|e| e.ifindex = IfIndex(71));
            ensure!(verdict == FinalVerdict::Forward(Out::Pod, HERE) && bytes == back.bytes(), "{verdict:?}");
        }
        Ok(())
    });
}

#[test]
fn service_with_remote_backend_translates_both_directions() {
    both_families(|both, a, uplink| {
        for input in from_client((a.client, 40_001), (a.far, 80)) {
            let there = input.translated((a.client, 40_001), (a.remote, 8080)).ttl(63);
            expect(both, Hook::FromPod, &input, FinalVerdict::Forward(Out::Uplink, uplink), &there)?;
            expect(both, Hook::FromPod, &input, FinalVerdict::Forward(Out::Uplink, uplink), &there)?;
            let answer = there.translated((a.remote, 8080), (a.client, 40_001)).ttl(64).macs(NODE2_MAC, UPLINK_MAC);
            let back = answer.translated((a.far, 80), (a.client, 40_001)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Pod, HERE), &back)?;
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Pod, HERE), &back)?;
        }
        Ok(())
    });
}

#[test]
fn snat_uses_node_address_and_port_range_and_is_reversed() {
    both_families(|both, a, uplink| {
        for input in from_client((a.client, 40_002), (a.snat, 80)) {
            let (verdict, bytes) = both.run(Hook::FromPod, &input.bytes())?;
            ensure!(verdict == FinalVerdict::Forward(Out::Uplink, uplink), "{verdict:?}");
            let port = u16::from_be_bytes(bytes[if a.client.is_ipv4() { 34..36 } else { 54..56 }].try_into()?);
            ensure!((10_000..30_000).contains(&port), "port {port} is not of the range");
            let there = input.translated((a.node, port), (a.remote, 8080)).ttl(63);
            ensure!(bytes == there.bytes());
            // The flow keeps its port.
            expect(both, Hook::FromPod, &input, verdict, &there)?;
            let answer = there.translated((a.remote, 8080), (a.node, port)).ttl(64).macs(NODE2_MAC, UPLINK_MAC);
            let back = answer.translated((a.snat, 80), (a.client, 40_002)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Pod, HERE), &back)?;
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Pod, HERE), &back)?;
        }
        Ok(())
    });
}

#[test]
fn hairpin_connection_has_hairpin_source() {
    both_families(|both, a, _| {
        for input in from_client((a.client, 40_003), (a.itself, 80)) {
            let there = input.translated((a.hairpin, 40_003), (a.client, 8080)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::FromPod, &input, FinalVerdict::Forward(Out::Pod, HERE), &there)?;
            let answer = there.translated((a.client, 8080), (a.hairpin, 40_003)).ttl(64).macs(CLIENT_MAC, HOST_MAC);
            let back = answer.translated((a.itself, 80), (a.client, 40_003)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::FromPod, &answer, FinalVerdict::Forward(Out::Pod, HERE), &back)?;
        }
        Ok(())
    });
}

#[test]
fn host_network_backend_is_reached_through_the_stack_and_replies_through_to_pod() {
    both_families(|both, a, _| {
        for input in from_client((a.client, 40_004), (a.host, 80)) {
            // The stack decrements the TTL.
            let there = input.translated((a.client, 40_004), (a.node, 8080));
            expect(both, Hook::FromPod, &input, FinalVerdict::Pass, &there)?;
            let answer = there.translated((a.node, 8080), (a.client, 40_004)).macs(HOST_MAC, CLIENT_MAC);
            let back = answer.translated((a.host, 80), (a.client, 40_004));
            expect(both, Hook::ToPod, &answer, FinalVerdict::Pass, &back)?;
            expect(both, Hook::ToPod, &answer, FinalVerdict::Pass, &back)?;
        }
        Ok(())
    });
}

#[test]
fn host_processes_reach_services_through_podnet0() {
    both_families(|both, a, uplink| {
        for input in from_client((a.node, 40_005), (a.far, 80)) {
            let there = input.translated((a.node, 40_005), (a.remote, 8080)).ttl(63);
            expect(both, Hook::FromHost, &input, FinalVerdict::Forward(Out::Uplink, uplink), &there)?;
            let answer = there.translated((a.remote, 8080), (a.node, 40_005)).ttl(64).macs(NODE2_MAC, UPLINK_MAC);
            // Delivered through podnet0, where the route to the service points, so that reverse path filtering accepts
            // it.
            let back = answer.translated((a.far, 80), (a.node, 40_005)).macs([2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 0]);
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Host, PODNET0), &back)?;
        }
        Ok(())
    });
}

#[test]
fn host_process_reaching_its_own_host_has_hairpin_source() {
    both_families(|both, a, _| {
        for input in from_client((a.node, 40_006), (a.host, 80)) {
            let (verdict, bytes) = both.run(Hook::FromHost, &input.bytes())?;
            ensure!(verdict == FinalVerdict::Forward(Out::Host, PODNET0), "{verdict:?}");
            let port = u16::from_be_bytes(bytes[if a.client.is_ipv4() { 34..36 } else { 54..56 }].try_into()?);
            let there =
                input.translated((a.hairpin, port), (a.node, 8080)).macs([2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 0]);
            ensure!(bytes == there.bytes());
            let answer = there.translated((a.node, 8080), (a.hairpin, port));
            let back = answer.translated((a.host, 80), (a.node, 40_006));
            expect(both, Hook::FromHost, &answer, FinalVerdict::Forward(Out::Host, PODNET0), &back)?;
        }
        Ok(())
    });
}

#[test]
fn services_sharing_a_backend_do_not_collide_on_a_client_port() {
    both_families(|both, a, _| {
        for (first, second) in from_client((a.client, 40_007), (a.local, 80))
            .into_iter()
            .zip(from_client((a.client, 40_007), (a.twin, 80)))
        {
            both.run(Hook::FromPod, &first.bytes())?;
            let (_, bytes) = both.run(Hook::FromPod, &second.bytes())?;
            let port = u16::from_be_bytes(bytes[if a.client.is_ipv4() { 34..36 } else { 54..56 }].try_into()?);
            ensure!(port != 40_007, "the second flow has the first one's port");
            // The address stays the same, the port changes.
            let there =
                second.translated((a.client, port), (a.backend, 8080)).ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            ensure!(bytes == there.bytes());
            ensure!(both.kernel.count(Counter::SourcePortsChanged)? > 0);
        }
        Ok(())
    });
}

#[test]
fn services_without_endpoints_and_undefined_ports_are_rejected() {
    both_families(|both, a, _| {
        for (dst, reason) in [((a.empty, 80), Reason::NoEndpoint), ((a.local, 81), Reason::UndefinedPort)] {
            let [tcp, udp] = from_client((a.client, 40_008), dst);
            // RST|ACK that acknowledges SYN and payload (RFC 9293, section 3.10.7.1).
            let mut reset = Frame::tcp(dst, (a.client, 40_008), RST | ACK).macs(HOST_MAC, CLIENT_MAC);
            reset.transport = Transport::Tcp {
                sport: dst.1,
                dport: 40_008,
                flags: RST | ACK,
                seq: 0,
                ack: 1000 + 1 + tcp.payload.len() as u32,
            };
            reset.payload.clear();
            let (verdict, bytes) = both.run(Hook::FromPod, &tcp.bytes())?;
            ensure!(verdict == FinalVerdict::Reject(reason, HERE), "{verdict:?}");
            ensure!(
                without_window_and_id(&bytes) == without_window_and_id(&reset.bytes()),
                "{bytes:02x?}\n{:02x?}",
                reset.bytes()
            );

            let (verdict, bytes) = both.run(Hook::FromPod, &udp.bytes())?;
            ensure!(verdict == FinalVerdict::Reject(reason, HERE), "{verdict:?}");
            check_unreachable(&udp.bytes(), &bytes, a)?;
        }
        let reset = Frame::tcp((a.client, 40_009), (a.empty, 80), RST).macs(CLIENT_MAC, HOST_MAC);
        let (verdict, _) = both.run(Hook::FromPod, &reset.bytes())?;
        ensure!(matches!(verdict, FinalVerdict::Drop(_)), "a reset is never answered by a reset: {verdict:?}");
        expect_drop(both, Hook::FromPod, &from_client((a.client, 1), (a.nobody, 80))[0], Reason::UnallocatedService)
    });
}

/// Clears the fields that an answer may choose, and the checksums over them. Checksums are verified first.
fn without_window_and_id(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let v4 = frame[12] == 8;
    let l4 = if v4 { 34 } else { 54 };
    assert_eq!(transport_checksum(&frame, l4, 6), 0, "the transport checksum is wrong: {frame:02x?}");
    if v4 {
        assert_eq!(crate::frame::checksum(&frame[14..34]), 0, "the header checksum is wrong");
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    frame[l4 + 14..l4 + 18].fill(0);
    frame
}

/// Sum over segment and pseudo header; 0 if the checksum is correct.
fn transport_checksum(frame: &[u8], l4: usize, proto: u8) -> u16 {
    let addresses = if frame[12] == 8 { &frame[26..34] } else { &frame[22..54] };
    let segment = &frame[l4..];
    let pseudo = [addresses, &[0, proto], &(segment.len() as u16).to_be_bytes()].concat();
    crate::frame::checksum(&[&pseudo, segment].concat())
}

/// Checks an ICMP port unreachable about a packet against its specification.
fn check_unreachable(packet: &[u8], answer: &[u8], a: &Addresses) -> Result<()> {
    let (l4, proto, kind) = if a.client.is_ipv4() { (34, 1, [3, 3]) } else { (54, 58, [1, 4]) };
    ensure!(answer[l4..l4 + 2] == kind, "type and code: {:?}", &answer[l4..l4 + 2]);
    let sum = if a.client.is_ipv4() {
        ensure!(answer[26..30] == packet[30..34] && answer[30..34] == packet[26..30] && answer[23] == proto);
        crate::frame::checksum(&answer[l4..])
    } else {
        ensure!(answer[22..38] == packet[38..54] && answer[38..54] == packet[22..38] && answer[20] == proto);
        transport_checksum(answer, l4, proto)
    };
    ensure!(sum == 0, "the ICMP checksum is wrong");
    // It quotes the packet's IP header and ports.
    ensure!(answer[l4 + 8..] == packet[14..l4 + 8], "the quotation differs");
    Ok(())
}

#[test]
fn pod_to_pod_traffic_is_not_translated() {
    both_families(|both, a, uplink| {
        for input in from_client((a.client, 40_010), (a.backend, 8080)) {
            let there = input.clone().ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromPod, &input, FinalVerdict::Forward(Out::Pod, IfIndex(71)), &there)?;
            let from_node2 = input.translated((a.remote, 40_010), (a.backend, 8080)).macs(NODE2_MAC, UPLINK_MAC);
            let there = from_node2.clone().ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromUplink, &from_node2, FinalVerdict::Forward(Out::Pod, IfIndex(71)), &there)?;
        }
        for input in from_client((a.client, 40_010), (a.remote, 8080)) {
            let there = input.clone().ttl(63);
            expect(both, Hook::FromPod, &input, FinalVerdict::Forward(Out::Uplink, uplink), &there)?;
        }
        // Packets to the hosts themselves belong to the stack.
        for dst in [a.node, a.node2] {
            let [tcp, _] = from_client((a.client, 40_010), (dst, 80));
            expect(both, Hook::FromPod, &tcp, FinalVerdict::Pass, &tcp)?;
        }
        Ok(())
    });
}

#[test]
fn expired_and_oversized_packets_get_icmp_errors() {
    both_families(|both, a, _| {
        // Between pods, the stack answers, unless the packet opens a connection, which is tracked.
        for dst in [(a.backend, 8080), (a.remote, 8080)] {
            let [tcp, udp] = from_client((a.client, 40_011), dst).map(|input| input.ttl(1));
            expect(both, Hook::FromPod, &udp, FinalVerdict::Pass, &udp)?;
            let (end, _) = both.run(Hook::FromPod, &tcp.bytes())?;
            ensure!(end == FinalVerdict::Reject(Reason::TtlExceeded, HERE), "{end:?}");
        }
        for dst in [(a.backend, 8080), (a.remote, 8080)] {
            let [_, mut long] = from_client((a.client, 40_011), dst);
            long.payload = vec![7; 1600];
            expect(both, Hook::FromPod, &long, FinalVerdict::Pass, &long)?;
        }
        ensure!(both.kernel.count(Counter::ToStack)? >= 4);
        // On the way to a service, the error comes from the service's address and quotes the packet as sent.
        let (exceeded, too_big) = if a.client.is_ipv4() { ([11, 0], [3, 4]) } else { ([3, 0], [2, 0]) };
        for dst in [a.local, a.far, a.snat] {
            for input in from_client((a.client, 40_012), (dst, 80)) {
                let dying = input.clone().ttl(1);
                check_error(both, a, &dying, Reason::TtlExceeded, exceeded, 0)?;
                let mut long = input;
                long.payload = vec![7; 1600];
                check_error(both, a, &long, Reason::TooBig, too_big, 1500)?;
            }
        }
        // Packets that may be fragmented are translated and left to the stack.
        if a.client.is_ipv4() {
            let [_, mut long] = from_client((a.client, 40_013), (a.local, 80));
            (long.payload, long.fragment) = (vec![7; 1600], Some(0));
            expect(
                both,
                Hook::FromPod,
                &long,
                FinalVerdict::Pass,
                &long.translated((a.client, 40_013), (a.backend, 8080)),
            )?;
            let (end, _) = both.run(Hook::FromPod, &long.translated((a.client, 40_014), (a.snat, 80)).bytes())?;
            ensure!(
                end == FinalVerdict::Forward(Out::Host, PODNET0),
                "the stack takes no packet with its own source: {end:?}"
            );
        }
        Ok(())
    });
}

/// Requires an ICMP error that quotes the packet as it was sent.
fn check_error(both: &Both, a: &Addresses, input: &Frame, reason: Reason, kind: [u8; 2], mtu: u32) -> Result<()> {
    let sent = input.bytes();
    let (end, answer) = both.run(Hook::FromPod, &sent)?;
    ensure!(end == FinalVerdict::Reject(reason, HERE), "{input:?}: {end:?}");
    let ip = if input.src.is_ipv4() { 20 } else { 40 };
    let icmp = &answer[14 + ip..];
    ensure!(icmp[..2] == kind && icmp[4..8] == mtu.to_be_bytes(), "{icmp:02x?}");
    ensure!(icmp[8..8 + ip + 8] == sent[14..14 + ip + 8], "it quotes {:02x?} of {sent:02x?}", &icmp[8..]);
    let (from, to) = if ip == 20 { (26..30, 30..34) } else { (22..38, 38..54) };
    let node = match a.node {
        IpAddr::V4(node) => node.octets().to_vec(),
        IpAddr::V6(node) => node.octets().to_vec(),
    };
    ensure!(answer[from.clone()] == node && answer[to] == sent[from], "the node tells the sender");
    let sum = if ip == 20 { crate::frame::checksum(icmp) } else { transport_checksum(&answer, 14 + ip, 58) };
    ensure!(sum == 0, "{answer:02x?}");
    Ok(())
}

#[test]
fn full_conntrack_refuses_new_flows_and_keeps_existing_ones() {
    in_namespace(|uplink| {
        let mut both = Both::new(uplink, |_| {})?;
        let a = addresses(false);
        let flow = |n: u32| {
            from_client((a.client, 1024 + (n % 60_000) as u16), (if n < 60_000 { a.local } else { a.far }, 80))[1]
                .bytes()
        };
        let mut full_at = None;
        for n in 0..20_000 {
            let before = both.kernel.drops(Reason::ConntrackFull)?;
            both.kernel.run(Hook::FromPod, &flow(n))?;
            if both.kernel.drops(Reason::ConntrackFull)? > before {
                full_at = Some(n);
                break;
            }
        }
        let full_at = full_at.ok_or_else(|| anyhow::anyhow!("20,000 flows went into a table of 16,384 entries"))?;
        // Every accepted flow has both entries; none was evicted for another.
        let table = both.kernel.conntrack()?;
        ensure!(table.len() as u32 == 2 * full_at, "{} entries for {full_at} flows", table.len());
        for (tuple, entry) in &table {
            ensure!(table.contains_key(&entry.reply_key(tuple.proto)), "half a flow: {tuple:?}");
        }
        for n in [0, full_at / 2, full_at - 1] {
            let result = both.kernel.run(Hook::FromPod, &flow(n))?;
            ensure!(result.is_some_and(|(end, _)| end == crate::kernel::Seen::Redirect), "flow {n} was cut");
        }
        // The host refuses in the same way.
        both.host.conntrack_max = Some(1);
        let mut packet = podnet_common::simulator::HostPacket { data: flow(1), ifindex: HERE };
        let verdict = podnet_common::simulator::run(Hook::FromPod, &mut packet, &both.host);
        ensure!(verdict == FinalVerdict::Drop(Reason::ConntrackFull), "{verdict:?}");
        ensure!(both.host.conntrack.borrow().is_empty(), "half a flow stays");
        Ok(())
    });
}

#[test]
fn lost_half_is_rebuilt_from_the_other() {
    both_families(|both, a, uplink| {
        let to = (a.snat, 80);
        for first in from_client((a.client, 40_017), to) {
            let udp = matches!(first.transport, Transport::Udp { .. });
            let (_, there) = both.run(Hook::FromPod, &first.bytes())?;
            let port = u16::from_be_bytes(there[if a.client.is_ipv4() { 34..36 } else { 54..56 }].try_into()?);
            let (later, answer) = if udp {
                (first, Frame::udp((a.remote, 8080), (a.node, port)))
            } else {
                (Frame::tcp((a.client, 40_017), to, ACK), Frame::tcp((a.remote, 8080), (a.node, port), ACK))
            };
            let (later, answer) = (later.macs(CLIENT_MAC, HOST_MAC), answer.macs(NODE2_MAC, UPLINK_MAC));
            let whole = both.kernel.conntrack()?;
            let halves: Vec<_> = whole
                .keys()
                .filter(|key| (key.proto == Proto::UDP) == udp && key.src.is_v4() == a.client.is_ipv4())
                .collect();
            ensure!(halves.len() == 2, "{halves:?}");
            for lost in halves {
                both.kernel.remove_flow(lost)?;
                both.host.conntrack.borrow_mut().remove(lost);
                // A tick later, so that the packet leaves the fast path.
                both.age_flows(1)?;
                let clients = lost.src == a.client.into();
                if clients {
                    let (end, _) = both.run(Hook::FromUplink, &answer.bytes())?;
                    ensure!(end == FinalVerdict::Forward(Out::Pod, HERE), "{end:?}");
                    // The backend of a datagram may be gone; the next datagram has to reach another one.
                    ensure!(both.kernel.conntrack()?.contains_key(lost) != udp, "udp: {udp}");
                }
                if udp || !clients {
                    let (end, _) = both.run(Hook::FromPod, &later.bytes())?;
                    ensure!(end == FinalVerdict::Forward(Out::Uplink, uplink), "{end:?}");
                }
                let made: CtEntry = *both.kernel.conntrack()?.get(lost).context("it is still lost")?;
                let was = whole[lost];
                ensure!((made.src, made.dst, made.sport, made.dport) == (was.src, was.dst, was.sport, was.dport));
            }
        }
        ensure!(both.kernel.count(Counter::FlowEntriesRebuilt)? >= 3);
        Ok(())
    });
}

#[test]
fn closed_connection_can_be_reopened_on_the_same_ports() {
    both_families(|both, a, uplink| {
        let packet = |flags| Frame::tcp((a.client, 40_018), (a.far, 80), flags).macs(CLIENT_MAC, HOST_MAC);
        let answer = |flags| Frame::tcp((a.remote, 8080), (a.client, 40_018), flags).macs(NODE2_MAC, UPLINK_MAC);
        for (hook, frame) in [
            (Hook::FromPod, packet(SYN)),
            (Hook::FromUplink, answer(SYN | ACK)),
            (Hook::FromPod, packet(ACK)),
            (Hook::FromPod, packet(FIN | ACK)),
            (Hook::FromUplink, answer(FIN | ACK)),
        ] {
            both.run(hook, &frame.bytes())?;
        }
        let key = Tuple {
            src: a.client.into(),
            dst: a.far.into(),
            sport: podnet_common::addr::Port::new(40_018),
            dport: podnet_common::addr::Port::new(80),
            proto: podnet_common::addr::Proto::TCP,
            _pad: [0; 3],
        };
        ensure!(both.kernel.conntrack()?[&key].closed(), "both have said FIN");
        // The final ACK still passes.
        let last = packet(ACK);
        let there = last.translated((a.client, 40_018), (a.remote, 8080)).ttl(63);
        expect(both, Hook::FromPod, &last, FinalVerdict::Forward(Out::Uplink, uplink), &there)?;
        both.run(Hook::FromPod, &packet(SYN).bytes())?;
        ensure!(!both.kernel.conntrack()?[&key].closed(), "a new connection");
        Ok(())
    });
}

#[test]
fn network_kinds_have_stable_numbers() {
    // The kernel's tables contain these numbers, and outlive the daemon that wrote them.
    assert_eq!(
        [NetworkKind::LocalPods, NetworkKind::RemotePods, NetworkKind::Services, NetworkKind::LocalNode]
            .map(|k| k as u32),
        [1, 2, 3, 4]
    );
}

#[test]
fn packets_to_a_bandwidth_limited_pod_pass_its_qdisc() {
    let change = |tables: &mut podnet_common::simulator::HostTables| {
        tables.endpoints.values_mut().for_each(|endpoint| endpoint.flags = podnet_common::layout::Endpoint::NO_PEER);
    };
    both_families_with(change, |both, a, _| {
        for input in from_client((a.client, 40_021), (a.backend, 8080)) {
            let there = input.clone().ttl(63).macs(BACKEND_HOST_MAC, BACKEND_MAC);
            expect(both, Hook::FromPod, &input, FinalVerdict::Forward(Out::Queue, IfIndex(71)), &there)?;
        }
        // Through a service: first and later packets, in both directions.
        for input in from_client((a.client, 40_022), (a.itself, 80)) {
            let there = input.translated((a.hairpin, 40_022), (a.client, 8080)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            let answer = there.translated((a.client, 8080), (a.hairpin, 40_022)).ttl(64).macs(CLIENT_MAC, HOST_MAC);
            let back = answer.translated((a.itself, 80), (a.client, 40_022)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            for _ in 0..2 {
                expect(both, Hook::FromPod, &input, FinalVerdict::Forward(Out::Queue, HERE), &there)?;
                expect(both, Hook::FromPod, &answer, FinalVerdict::Forward(Out::Queue, HERE), &back)?;
            }
        }
        Ok(())
    });
}
