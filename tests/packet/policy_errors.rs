//! Network policy and ICMP errors. Errors about admitted flows pass, whatever their source; all others are evaluated.

use std::net::IpAddr;

use podnet_common::{layout::Subject, simulator::HostTables, verdict::Reason};

use crate::{
    cluster::Addresses,
    errors::error,
    frame::Frame,
    policy::{FRIENDS, WEB, denied, deny, firsts, isolate, passes, with},
};

/// Number of bytes behind the IP header that an error quotes.
const QUOTE: usize = 8;

/// Isolates the backend: peers may open connections to its port 8080, and it may open none.
fn isolate_backend(t: &mut HostTables, a: &Addresses) {
    isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]);
    isolate(t, a.backend, 0, true, &[]);
    for peer in [a.client, a.remote, a.outside] {
        t.policy_peers.insert(peer.into(), FRIENDS);
    }
}

/// The backend's error about a request, and a router's about the answer. A router is no peer.
fn errors(a: &Addresses, client: (IpAddr, u16), port: u16) -> impl Iterator<Item = (Frame, Frame)> {
    let Addresses { backend, node2: router, .. } = *a;
    firsts(client, (backend, port)).into_iter().map(move |request| {
        let answer = request.translated((backend, port), client);
        (error(backend, client.0, &request, QUOTE), error(router, backend, &answer, QUOTE))
    })
}

#[test]
fn errors_about_admitted_flows_pass() {
    with(isolate_backend, |both, a| {
        for client in [a.client, a.remote, a.outside].map(|client| (client, 40_000)) {
            for frame in firsts(client, (a.backend, 8080)) {
                passes(both, a, frame)?;
            }
            for (from_backend, from_router) in errors(a, client, 8080) {
                passes(both, a, from_backend)?;
                // Packets between pods of this node pass no router.
                if client.0 == a.client {
                    denied(both, a, from_router, Reason::UnrelatedIcmpError)?;
                } else {
                    passes(both, a, from_router)?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn errors_about_flows_of_services_pass() {
    let policies = |t: &mut HostTables, a: &Addresses| {
        isolate_backend(t, a);
        isolate(t, a.client, Subject::CLASS_PORTS, true, &[(FRIENDS, WEB)]);
        isolate(t, a.client, 0, false, &[]);
        t.policy_peers.insert(a.backend.into(), FRIENDS);
    };
    with(policies, |both, a| {
        let client = (a.client, 40_000);
        for request in firsts(client, (a.local, 80)) {
            passes(both, a, request.clone())?;
            let seen = request.translated(client, (a.backend, 8080));
            passes(both, a, error(a.backend, a.client, &seen, QUOTE))?;
        }
        Ok(())
    });
}

#[test]
fn errors_about_unknown_flows_are_evaluated() {
    with(isolate_backend, |both, a| {
        for (from_backend, from_router) in errors(a, (a.remote, 40_000), 8080) {
            denied(both, a, from_backend, Reason::PolicyEgress)?;
            denied(both, a, from_router, Reason::PolicyIngress)?;
        }
        Ok(())
    });
}

#[test]
fn errors_about_flows_that_are_denied_by_now_are_evaluated() {
    with(isolate_backend, |both, a| {
        let client = (a.remote, 40_000);
        for frame in firsts(client, (a.backend, 8080)) {
            passes(both, a, frame)?;
        }
        both.host.policy_peers.remove(&a.remote.into());
        both.kernel.set_policy_peer(a.remote.into(), None)?;
        let keys: Vec<_> = both.kernel.conntrack()?.into_keys().collect();
        deny(both, &keys, 6)?;
        for (from_backend, from_router) in errors(a, client, 8080) {
            denied(both, a, from_backend, Reason::PolicyEgress)?;
            denied(both, a, from_router, Reason::PolicyIngress)?;
        }
        Ok(())
    });
}
