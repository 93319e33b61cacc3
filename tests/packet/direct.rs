//! Named packets without a flow, whose forwarding path is cached from the first one.

use anyhow::ensure;
use podnet_common::{
    addr::{Addr, IfIndex, Mac, Port, Proto},
    layout::{Backend, Frontend, FrontendKey, Hook, Network, Out, TUNNEL_PORT},
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{
    cluster::{
        BACKEND_MAC, CLIENT_MAC, CLIENT_OUTSIDE_MAC, HERE, HOST_MAC, NODE_PORT, NODE_PORT_FAR, NODE2_MAC, NODE3_MAC,
        UPLINK_MAC, addresses,
    },
    expect::{both_families_with, expect, expect_drop},
    frame::{ACK, Frame, SYN},
};

/// Tunnel device, and this node's MAC there.
const TUNNEL: IfIndex = IfIndex(60);
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];
/// Port of a service at the third node's address, and its number.
const PORT: u16 = 7777;
const SERVICE: u32 = 9000;

/// Service at the address of the third node, which is behind the tunnel, with a backend on this node.
fn service_at_a_far_node(t: &mut HostTables) {
    (t.config.tunnel, t.config.tunnel_mac, t.config.tunnel_mtu) = (TUNNEL, Mac(OWN_MAC), 1450);
    for (id, v6) in [(SERVICE, false), (SERVICE + 1, true)] {
        let a = addresses(v6);
        let node: Addr = a.node3.into();
        let of_node = |network: &&mut Network| network.node == node;
        t.networks.values_mut().filter(of_node).for_each(|network| network.flags |= Network::TUNNEL);
        for proto in [Proto::TCP, Proto::UDP] {
            let key = FrontendKey { addr: node, port: Port::new(PORT), proto, scope: FrontendKey::ANY };
            let flags = Frontend::EXTERNAL;
            let frontend = Frontend { service: id, slot_base: id, slot_count: 1, flags, ..Frontend::default() };
            t.frontends.insert(key, frontend);
            let backend = Backend { addr: a.backend.into(), port: Port::new(8080), proto, _pad: 0 };
            t.slots.insert(id, id);
            t.backends.insert(id, backend);
        }
    }
}

#[test]
fn pod_packets_to_another_node_use_the_cached_macs() {
    both_families_with(
        |_| {},
        |both, a, uplink| {
            both.remembers_routes = true;
            let to = (a.remote3, 9000);
            let udp = Frame::udp((a.client, 40_500), to).macs(CLIENT_MAC, HOST_MAC);
            let tcp = Frame::tcp((a.client, 40_501), to, ACK).macs(CLIENT_MAC, HOST_MAC);
            let by_macs = |frame: &Frame| frame.clone().ttl(63).macs(UPLINK_MAC, NODE3_MAC);
            expect(both, Hook::FromPod, &udp, FinalVerdict::Forward(Out::Uplink, uplink), &udp.clone().ttl(63))?;
            for frame in [&udp, &tcp] {
                expect(both, Hook::FromPod, frame, FinalVerdict::Forward(Out::Link, uplink), &by_macs(frame))?;
            }
            // The stack handles packets that the cached path cannot.
            expect(both, Hook::FromPod, &udp.clone().ttl(1), FinalVerdict::Pass, &udp.clone().ttl(1))?;
            let mut long = udp.clone();
            long.payload = vec![7; 1500];
            expect(both, Hook::FromPod, &long, FinalVerdict::Pass, &long)?;
            // A cached path applies to the pod that created it only.
            expect_drop(both, Hook::FromPod, &udp.clone().macs(BACKEND_MAC, HOST_MAC), Reason::SpoofedSource)
        },
    );
}

#[test]
fn packets_from_a_remote_pod_use_the_cached_path_only_from_its_node() {
    both_families_with(
        |_| {},
        |both, a, _| {
            both.remembers_routes = true;
            for dport in [9000, 9001] {
                let udp = Frame::udp((a.remote3, 40_500), (a.client, dport)).macs(NODE3_MAC, UPLINK_MAC);
                let there = udp.clone().ttl(63).macs(HOST_MAC, CLIENT_MAC);
                expect(both, Hook::FromUplink, &udp, FinalVerdict::Forward(Out::Pod, HERE), &there)?;
                let forged = udp.macs(NODE2_MAC, UPLINK_MAC);
                expect_drop(both, Hook::FromUplink, &forged, Reason::PodFromWrongNode)?;
            }
            Ok(())
        },
    );
}

#[test]
fn new_connection_is_examined_despite_cached_path() {
    both_families_with(
        |_| {},
        |both, a, _| {
            both.remembers_routes = true;
            let client = (a.client, 40_502);
            // The service selects the backend to which the client then connects directly, from the same port.
            let service = Frame::tcp(client, (a.node, NODE_PORT_FAR), SYN).macs(CLIENT_MAC, HOST_MAC);
            let (end, _) = both.run(Hook::FromPod, &service.bytes())?;
            ensure!(matches!(end, FinalVerdict::Forward(..)), "{end:?}");
            let probe = Frame::udp((a.client, 40_503), (a.remote3, 9000)).macs(CLIENT_MAC, HOST_MAC);
            both.run(Hook::FromPod, &probe.bytes())?;
            let direct = Frame::tcp(client, (a.remote3, 8080), SYN).macs(CLIENT_MAC, HOST_MAC);
            let (end, bytes) = both.run(Hook::FromPod, &direct.bytes())?;
            ensure!(matches!(end, FinalVerdict::Forward(..)), "{end:?}");
            let at = if a.client.is_ipv6() { 14 + 40 } else { 14 + 20 };
            let port = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            ensure!(port != 40_502, "its answers would be taken for the service's");
            Ok(())
        },
    );
}

/// A kernel may use a source port for several connections at once, as long as their destinations differ.
#[test]
fn connections_to_a_pod_and_to_its_service_from_one_port_are_kept_apart() {
    both_families_with(
        |t| t.endpoints.values_mut().for_each(|endpoint| endpoint.ifindex = HERE),
        |both, a, _| {
            for (number, (service, backend)) in [(a.local, a.backend), (a.far, a.remote)].into_iter().enumerate() {
                let client = (a.client, 40_510 + number as u16);
                let direct = Frame::tcp(client, (backend, 8080), SYN).macs(CLIENT_MAC, HOST_MAC);
                let (end, bytes) = both.run(Hook::FromPod, &direct.bytes())?;
                ensure!(matches!(end, FinalVerdict::Forward(..)), "{end:?}");
                let at = if a.client.is_ipv6() { 14 + 40 } else { 14 + 20 };
                ensure!(bytes[at..at + 2] == client.1.to_be_bytes(), "its port has changed");
                let to_service = Frame::tcp(client, (service, 80), SYN).macs(CLIENT_MAC, HOST_MAC);
                let (end, bytes) = both.run(Hook::FromPod, &to_service.bytes())?;
                ensure!(matches!(end, FinalVerdict::Forward(..)), "{end:?}");
                let port = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
                ensure!(port != client.1, "both would have the same replies");
                for (to, from) in [(client, (backend, 8080)), ((a.client, port), (service, 80))] {
                    let (hook, [smac, dmac]) = if backend == a.backend {
                        (Hook::FromPod, [BACKEND_MAC, HOST_MAC])
                    } else {
                        (Hook::FromUplink, [NODE2_MAC, UPLINK_MAC])
                    };
                    let reply = Frame::tcp((backend, 8080), to, SYN | ACK).macs(smac, dmac);
                    let there = reply.translated(from, client).ttl(63).macs(HOST_MAC, CLIENT_MAC);
                    expect(both, hook, &reply, FinalVerdict::Forward(Out::Pod, HERE), &there)?;
                }
            }
            Ok(())
        },
    );
}

#[test]
fn packets_to_a_node_are_not_cached_because_ports_matter() {
    both_families_with(service_at_a_far_node, |both, a, _| {
        both.remembers_routes = true;
        for _ in 0..2 {
            let node = Frame::udp((a.client, 40_504), (a.node3, 9000)).macs(CLIENT_MAC, HOST_MAC);
            let there = node.clone().ttl(63).macs(OWN_MAC, NODE3_MAC);
            expect(both, Hook::FromPod, &node, FinalVerdict::Forward(Out::Tunnel, TUNNEL), &there)?;
        }
        let service = Frame::udp((a.client, 40_504), (a.node3, PORT)).macs(CLIENT_MAC, HOST_MAC);
        let (end, _) = both.run(Hook::FromPod, &service.bytes())?;
        ensure!(end == FinalVerdict::Forward(Out::Pod, IfIndex(71)), "{end:?}: past the service");
        Ok(())
    });
}

#[test]
fn only_tunnel_packets_have_a_cached_path_to_the_stack() {
    both_families_with(service_at_a_far_node, |both, a, _| {
        both.remembers_routes = true;
        for sport in [50_000, 50_001, 50_002] {
            let outer = Frame::udp((a.node2, sport), (a.node, TUNNEL_PORT)).macs(NODE2_MAC, UPLINK_MAC);
            expect(both, Hook::FromUplink, &outer, FinalVerdict::Pass, &outer)?;
        }
        let service = Frame::udp((a.node2, 50_003), (a.node, NODE_PORT)).macs(NODE2_MAC, UPLINK_MAC);
        let (end, _) = both.run(Hook::FromUplink, &service.bytes())?;
        ensure!(end == FinalVerdict::Forward(Out::Pod, IfIndex(71)), "{end:?}: past the service");
        for _ in 0..2 {
            let stranger = Frame::udp((a.outside, 50_004), (a.node, TUNNEL_PORT)).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            expect_drop(both, Hook::FromUplink, &stranger, Reason::TunnelFromOutside)?;
        }
        Ok(())
    });
}
