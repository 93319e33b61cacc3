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
    policy::{FRIENDS, WEB, denied, firsts, isolate, passes, with},
    tunnel::third_node_is_far,
};

/// The backend accepts one client outside and one pod of another node.
fn backend_accepts_friends(t: &mut HostTables, a: &Addresses) {
    isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]);
    t.policy_blocks.insert(prefix(a.outside, if a.outside.is_ipv6() { 128 } else { 32 }), FRIENDS);
    t.policy_peers.insert(a.remote.into(), FRIENDS);
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

/// The node that forwards packets for direct server return leaves the evaluation to the backend's.
#[test]
fn forwarding_node_evaluates_nothing() {
    with(backend_accepts_friends, |both, a| {
        for frame in firsts((a.internet, 41_040), (a.node, NODE_PORT_DIRECT)) {
            passes(both, a, frame)?;
        }
        Ok(())
    });
}

/// Service ports and pods, and whether the real destination is a friend.
fn destinations(a: &Addresses) -> [((IpAddr, u16), bool); 7] {
    [
        ((a.remote, 8080), true),
        ((a.far, 80), true),
        ((a.snat, 80), true),
        ((a.remote3, 8080), false),
        ((a.node, NODE_PORT_FAR), false),
        ((a.balancer, 82), false),
        ((a.local, 80), false),
    ]
}

fn client_reaches_friends(t: &mut HostTables, a: &Addresses) {
    isolate(t, a.client, Subject::CLASS_PORTS, true, &[(FRIENDS, WEB)]);
    t.policy_peers.insert(a.remote.into(), FRIENDS);
}

fn client_reaches_friends_only(both: &mut Both, a: &Addresses) -> Result<()> {
    for (port, (to, allowed)) in (41_050..).zip(destinations(a)) {
        for frame in firsts((a.client, port), to) {
            if allowed { passes(both, a, frame)? } else { denied(both, a, frame, Reason::PolicyEgress)? }
        }
    }
    Ok(())
}

#[test]
fn real_backend_is_evaluated() {
    with(client_reaches_friends, client_reaches_friends_only);
}

#[test]
fn real_backend_behind_the_tunnel_is_evaluated() {
    let policies = |t: &mut HostTables, a: &Addresses| {
        third_node_is_far(t);
        client_reaches_friends(t, a);
        t.policy_peers.insert(a.remote3.into(), FRIENDS);
        t.policy_peers.remove(&a.remote.into());
    };
    with(policies, |both, a| {
        for (port, (to, near)) in (41_060..).zip(destinations(a)) {
            for frame in firsts((a.client, port), to) {
                if near || to.0 == a.local {
                    denied(both, a, frame, Reason::PolicyEgress)?;
                } else {
                    passes(both, a, frame)?;
                }
            }
        }
        Ok(())
    });
}
