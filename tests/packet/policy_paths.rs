//! Network policy on all paths through a service: rules are about the real client and the real backend.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use podnet_common::{
    layout::{Frontend, Hook, Out, Subject},
    simulator::{FinalVerdict, HostTables, prefix},
    verdict::Reason,
};

use crate::{
    cluster::{Addresses, Both, NODE_PORT, NODE_PORT_DIRECT, NODE_PORT_FAR, NODE2_MAC, UPLINK_MAC},
    frame::Frame,
    policy::{FRIENDS, WEB, denied, end, firsts, isolate, passes, with},
    tunnel::third_node_is_far,
};

/// The backend accepts one client outside.
fn backend_accepts_friends(t: &mut HostTables, a: &Addresses) {
    isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]);
    t.policy_blocks.insert(prefix(a.outside, if a.outside.is_ipv6() { 128 } else { 32 }), FRIENDS);
}

/// Service ports with the backend on this node, as clients outside reach them.
fn external_ports(a: &Addresses) -> [(IpAddr, u16); 2] {
    [(a.node, NODE_PORT), (a.balancer, 80)]
}

#[test]
fn real_client_of_an_external_port_is_evaluated() {
    with(backend_accepts_friends, |both, a| {
        for (number, to) in (0..).zip(external_ports(a)) {
            for frame in firsts((a.outside, 41_000 + number), to) {
                passes(both, a, frame)?;
            }
            for frame in firsts((a.internet, 41_010 + number), to) {
                denied(both, a, frame, Reason::PolicyIngress)?;
            }
        }
        Ok(())
    });
}

#[test]
fn real_client_of_a_source_nat_service_is_evaluated() {
    let policies = |t: &mut HostTables, a: &Addresses| {
        backend_accepts_friends(t, a);
        for frontend in t.frontends.values_mut() {
            frontend.flags |= Frontend::SNAT;
        }
    };
    with(policies, |both, a| {
        // The node always reaches its pods, but these clients are not the node.
        for to in external_ports(a) {
            for frame in firsts((a.internet, 41_020), to) {
                denied(both, a, frame, Reason::PolicyIngress)?;
            }
            for frame in firsts((a.outside, 41_021), to) {
                passes(both, a, frame)?;
            }
        }
        for frame in firsts((a.client, 41_022), (a.local, 80)) {
            denied(both, a, frame, Reason::PolicyIngress)?;
        }
        Ok(())
    });
}

#[test]
fn real_client_of_a_forwarded_packet_is_evaluated() {
    with(backend_accepts_friends, |both, a| {
        let ends = |client, port| -> Result<Vec<FinalVerdict>> {
            let forwarded = |frame: Frame| frame.macs(NODE2_MAC, UPLINK_MAC);
            // The address is still the forwarding node's.
            let frames = firsts((client, port), (a.node2, NODE_PORT_DIRECT)).map(forwarded);
            frames.iter().map(|frame| Ok(both.run(Hook::FromUplink, &frame.bytes())?.0)).collect()
        };
        for end in ends(a.outside, 41_030)? {
            ensure!(matches!(end, FinalVerdict::Forward(Out::Pod, _)), "{end:?}");
        }
        for end in ends(a.internet, 41_031)? {
            ensure!(end == FinalVerdict::Drop(Reason::PolicyIngress), "{end:?}");
        }
        Ok(())
    });
}

/// Pods and service ports, with the pod that receives the packets.
fn destinations(a: &Addresses) -> [((IpAddr, u16), IpAddr); 7] {
    [
        ((a.remote, 8080), a.remote),
        ((a.far, 80), a.remote),
        ((a.snat, 80), a.remote),
        ((a.remote3, 8080), a.remote3),
        ((a.node, NODE_PORT_FAR), a.remote3),
        ((a.balancer, 82), a.remote3),
        ((a.local, 80), a.backend),
    ]
}

/// The client's egress is limited to one pod.
fn client_reaches(t: &mut HostTables, a: &Addresses, friend: IpAddr) {
    isolate(t, a.client, Subject::CLASS_PORTS, true, &[(FRIENDS, WEB)]);
    t.policy_peers.insert(friend.into(), FRIENDS);
}

/// Requires that packets reach the friend, by these kinds of egress, and no other pod.
fn client_reaches_only(both: &Both, a: &Addresses, friend: IpAddr, by: &[Out]) -> Result<()> {
    for (port, (to, backend)) in (41_050..).zip(destinations(a)) {
        for frame in firsts((a.client, port), to) {
            if backend == friend {
                let end = end(both, a, frame.clone())?;
                ensure!(matches!(end, FinalVerdict::Forward(out, _) if by.contains(&out)), "{frame:?}: {end:?}");
            } else {
                denied(both, a, frame, Reason::PolicyEgress)?;
            }
        }
    }
    Ok(())
}

#[test]
fn real_backend_is_evaluated() {
    with(
        |t, a| client_reaches(t, a, a.remote),
        |both, a| client_reaches_only(both, a, a.remote, &[Out::Uplink, Out::Link]),
    );
}

#[test]
fn real_backend_behind_the_tunnel_is_evaluated() {
    let policies = |t: &mut HostTables, a: &Addresses| {
        third_node_is_far(t);
        client_reaches(t, a, a.remote3);
    };
    with(policies, |both, a| client_reaches_only(both, a, a.remote3, &[Out::Tunnel]));
}
