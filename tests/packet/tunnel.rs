//! Named packets through the tunnel, to a node that shares no link with this one.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use podnet_common::{
    addr::{Addr, IfIndex, Mac},
    layout::{Hook, Network, Out, TUNNEL_PORT},
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{
    cluster::{
        Addresses, BACKEND_HOST_MAC, BACKEND_MAC, Both, CLIENT_OUTSIDE_MAC, NODE_PORT_DIRECT, NODE_PORT_FAR, NODE3_MAC,
        UPLINK_MAC, addresses,
    },
    expect::{both_families_with, expect, expect_drop, from_client},
    frame::{ACK, Frame, SYN},
};

/// Tunnel device, and this node's MAC there.
const TUNNEL: IfIndex = IfIndex(60);
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];
const INTO_TUNNEL: FinalVerdict = FinalVerdict::Forward(Out::Tunnel, TUNNEL);
const INTO_BACKEND: FinalVerdict = FinalVerdict::Forward(Out::Pod, IfIndex(71));

/// Puts the third node behind the tunnel.
pub fn third_node_is_far(t: &mut HostTables) {
    (t.config.tunnel, t.config.tunnel_mac, t.config.tunnel_mtu) = (TUNNEL, Mac(OWN_MAC), 1450);
    let nodes: [Addr; 2] = [false, true].map(|v6| addresses(v6).node3.into());
    let of_node = |network: &&mut Network| nodes.contains(&network.node);
    t.networks.values_mut().filter(of_node).for_each(|network| network.flags |= Network::TUNNEL);
}

fn both_families(test: fn(&mut Both, &Addresses, IfIndex) -> Result<()>) {
    both_families_with(third_node_is_far, test);
}

#[test]
fn pods_reach_tunnelled_pods_and_their_nodes() {
    both_families(|both, a, uplink| {
        for to in [a.remote3, a.node3] {
            for input in from_client((a.client, 40_100), (to, 8080)) {
                let there = input.clone().ttl(63).macs(OWN_MAC, NODE3_MAC);
                expect(both, Hook::FromPod, &input, INTO_TUNNEL, &there)?;
            }
        }
        // The second node shares a link with this one.
        for input in from_client((a.client, 40_100), (a.remote, 8080)) {
            let there = input.clone().ttl(63);
            expect(both, Hook::FromPod, &input, FinalVerdict::Forward(Out::Uplink, uplink), &there)?;
        }
        for input in from_client((a.client, 40_100), (a.node2, 8080)) {
            expect(both, Hook::FromPod, &input, FinalVerdict::Pass, &input)?;
        }
        Ok(())
    });
}

#[test]
fn packets_too_big_for_the_tunnel_get_icmp_errors() {
    both_families(|both, a, _| {
        let long = |to| {
            let [_, mut frame] = from_client((a.client, 40_101), (to, 8080));
            frame.payload = vec![0x5a; 1460];
            frame
        };
        // The stack, whose route points into the tunnel, sends the error; packets to the node itself take another path.
        expect(both, Hook::FromPod, &long(a.remote3), FinalVerdict::Pass, &long(a.remote3))?;
        let (end, _) = both.run(Hook::FromPod, &long(a.node3).bytes())?;
        ensure!(matches!(end, FinalVerdict::Reject(Reason::TooBig, _)), "{end:?}");
        let mut last = long(a.node3).ttl(1);
        expect(both, Hook::FromPod, &last, FinalVerdict::Pass, &last)?;
        last.payload.truncate(12);
        expect(both, Hook::FromPod, &last, FinalVerdict::Pass, &last)
    });
}

#[test]
fn node_port_with_tunnelled_backend_translates_both_directions() {
    both_families(|both, a, uplink| {
        let frame = |flags| {
            Frame::tcp((a.outside, 41_100), (a.node, NODE_PORT_FAR), flags).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC)
        };
        let input = frame(ACK);
        for input in [frame(SYN), frame(ACK), frame(ACK)] {
            let (end, _) = both.run(Hook::FromUplink, &input.bytes())?;
            ensure!(end == INTO_TUNNEL, "{end:?}");
            // XDP leaves it to the hooks that handle the tunnel.
            expect(both, Hook::UplinkXdp, &input, FinalVerdict::Pass, &input)?;
        }
        let flows = both.kernel.conntrack()?;
        let (_, flow) = flows.iter().find(|(key, _)| key.src == a.outside.into()).expect("a flow");
        ensure!(flow.src == a.node.into() && flow.dst == a.remote3.into(), "{flow:?}");
        let sport = flow.sport.get();
        let there = input.translated((a.node, sport), (a.remote3, 8080)).ttl(63).macs(OWN_MAC, NODE3_MAC);
        expect(both, Hook::FromUplink, &input, INTO_TUNNEL, &there)?;
        let answer = Frame::tcp((a.remote3, 8080), (a.node, sport), ACK).macs(NODE3_MAC, OWN_MAC);
        let (end, bytes) = both.run(Hook::FromUplink, &answer.bytes())?;
        ensure!(end == FinalVerdict::Forward(Out::Uplink, uplink), "{end:?}");
        let back = answer.translated((a.node, NODE_PORT_FAR), (a.outside, 41_100)).ttl(63);
        ensure!(bytes == back.bytes(), "{bytes:02x?}");
        Ok(())
    });
}

#[test]
fn direct_server_return_passes_the_tunnel_unchanged() {
    both_families(|both, a, _| {
        for input in [
            Frame::tcp((a.outside, 41_101), (a.node, NODE_PORT_DIRECT), SYN),
            Frame::udp((a.outside, 41_101), (a.node, NODE_PORT_DIRECT)),
            Frame::udp((a.outside, 41_101), (a.node, NODE_PORT_DIRECT)),
        ] {
            let input = input.macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            let on = input.clone().ttl(63).macs(OWN_MAC, NODE3_MAC);
            expect(both, Hook::FromUplink, &input, INTO_TUNNEL, &on)?;
        }
        // Packets from the tunnel are recognised by the other node's MAC there.
        let came = Frame::tcp((a.outside, 41_102), (a.node3, NODE_PORT_DIRECT), SYN).macs(NODE3_MAC, OWN_MAC);
        let there = came.translated((a.outside, 41_102), (a.backend, 8080)).ttl(63);
        expect(both, Hook::FromUplink, &came, INTO_BACKEND, &there.macs(BACKEND_HOST_MAC, BACKEND_MAC))
    });
}

#[test]
fn tunnel_accepts_packets_from_nodes_only() {
    both_families(|both, a, _| {
        let to = |src, dst| Frame::udp((src, 50_000), (dst, TUNNEL_PORT)).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
        for hook in [Hook::FromUplink, Hook::UplinkXdp] {
            for stranger in [a.outside, a.internet] {
                expect_drop(both, hook, &to(stranger, a.node), Reason::TunnelFromOutside)?;
            }
            expect(both, hook, &to(a.node3, a.node), FinalVerdict::Pass, &to(a.node3, a.node))?;
            // The port has no meaning in TCP, nor at other addresses.
            let tcp = Frame::tcp((a.outside, 50_000), (a.node, TUNNEL_PORT), SYN).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            expect(both, hook, &tcp, FinalVerdict::Pass, &tcp)?;
            expect(both, hook, &to(a.outside, a.node2), FinalVerdict::Pass, &to(a.outside, a.node2))?;
            // Packets for the host at an address that is not its own.
            let nobodys: IpAddr = if a.node.is_ipv6() { "ff02::1" } else { "172.30.0.255" }.parse()?;
            expect_drop(both, hook, &to(a.outside, nobodys), Reason::TunnelFromOutside)?;
        }
        let [tcp, udp] = from_client((a.client, 50_000), (a.node, TUNNEL_PORT));
        expect_drop(both, Hook::FromPod, &udp, Reason::TunnelFromOutside)?;
        expect(both, Hook::FromPod, &tcp, FinalVerdict::Pass, &tcp)?;
        // Pods may run tunnels of their own.
        let [_, udp] = from_client((a.client, 50_000), (a.remote3, TUNNEL_PORT));
        expect(both, Hook::FromPod, &udp, INTO_TUNNEL, &udp.clone().ttl(63).macs(OWN_MAC, NODE3_MAC))
    });
}

#[test]
fn service_traffic_of_the_node_itself_bypasses_the_tunnel() {
    both_families_with(
        |t| {
            third_node_is_far(t);
            // The backend is a process on the third node.
            for v6 in [false, true] {
                let a = addresses(v6);
                let backends = t.backends.values_mut().filter(|backend| backend.addr == a.remote3.into());
                backends.for_each(|backend| backend.addr = a.node3.into());
            }
        },
        |both, a, uplink| {
            // With the node's source address it is sent directly between nodes, with a pod's through the tunnel.
            let outside =
                Frame::tcp((a.outside, 41_103), (a.node, NODE_PORT_FAR), SYN).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            let (end, _) = both.run(Hook::FromUplink, &outside.bytes())?;
            ensure!(end == FinalVerdict::Forward(Out::Uplink, uplink), "{end:?}");
            // Even with another source port, which keeps the replies of two services apart.
            for port in [NODE_PORT_FAR, NODE_PORT_DIRECT, NODE_PORT_DIRECT] {
                let [tcp, _] = from_client((a.client, 41_105), (a.node, port));
                let (end, _) = both.run(Hook::FromPod, &tcp.bytes())?;
                ensure!(end == INTO_TUNNEL, "{port}: {end:?}");
            }
            for input in from_client((a.client, 41_104), (a.node, NODE_PORT_FAR)) {
                let there = input.translated((a.client, 41_104), (a.node3, 8080)).ttl(63).macs(OWN_MAC, NODE3_MAC);
                expect(both, Hook::FromPod, &input, INTO_TUNNEL, &there)?;
            }
            Ok(())
        },
    );
}
