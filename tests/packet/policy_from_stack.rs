//! Network policy for packets that the host's stack sends to pods: from the node itself, and from interfaces without
//! hooks.

use std::net::IpAddr;

use anyhow::ensure;
use podnet_common::{layout::Subject, simulator::FinalVerdict, verdict::Reason};

use crate::{
    frame::{ACK, Frame, SYN, Transport},
    policy::{FRIENDS, WEB, denied, end, firsts, isolate, leaves, passes, with},
};

#[test]
fn packets_from_the_stack_are_evaluated_on_their_way_into_the_pod() {
    with(
        |t, a| {
            isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]);
            isolate(t, a.backend, 0, true, &[]);
            t.policy_peers.insert(a.outside.into(), FRIENDS);
            t.policy_peers.insert(a.client.into(), FRIENDS);
        },
        |both, a| {
            let denied_here = FinalVerdict::Drop(Reason::PolicyIngress);
            for (port, src, expected) in [
                (8080, a.outside, FinalVerdict::Pass),
                (99, a.outside, denied_here),
                (8080, a.internet, denied_here),
                (99, a.node, FinalVerdict::Pass),
            ] {
                for frame in firsts((src, 40_000), (a.backend, port)) {
                    leaves(both, &frame, expected)?;
                }
            }
            for src in [a.outside, a.node] {
                let echo = Frame::new(src, a.backend, Transport::Echo { id: 9, reply: false });
                leaves(both, &echo, if src == a.node { FinalVerdict::Pass } else { denied_here })?;
            }
            // The answers go back through the stack, whatever the routes, since it may have translated the requests.
            for answer in [
                Frame::tcp((a.backend, 8080), (a.outside, 40_000), SYN | ACK),
                Frame::udp((a.backend, 8080), (a.outside, 40_000)),
            ] {
                ensure!(end(both, a, answer.clone())? == FinalVerdict::Pass, "{answer:?}");
                // Again, when the flow is known.
                ensure!(end(both, a, answer.clone())? == FinalVerdict::Pass, "{answer:?}");
            }
            denied(both, a, Frame::udp((a.backend, 8081), (a.outside, 40_000)), Reason::PolicyEgress)?;
            // What a hook has translated and left to the stack belongs to a flow that was evaluated.
            let [tcp, udp, _] = firsts((a.client, 40_000), (a.local, 80));
            for (first, translated) in [tcp, udp].into_iter().zip(firsts((a.client, 40_000), (a.backend, 8080))) {
                passes(both, a, first)?;
                leaves(both, &translated, FinalVerdict::Pass)?;
            }
            Ok(())
        },
    );
}

#[test]
fn fragments_from_the_stack_are_evaluated_with_their_datagram() {
    with(
        |t, a| {
            isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]);
            t.policy_peers.insert(a.outside.into(), FRIENDS);
        },
        |both, a| {
            let denied_here = FinalVerdict::Drop(Reason::PolicyIngress);
            let fragment = |src: IpAddr, port, later: bool| {
                let mut frame = Frame::udp((src, 40_000), (a.backend, port));
                frame.fragment = Some(match (src.is_ipv4(), later) {
                    (true, false) => 0x2000,
                    (true, true) => 185,
                    (false, false) => 1,
                    (false, true) => 185 << 3,
                });
                frame
            };
            for (port, expected) in [(8080, FinalVerdict::Pass), (99, denied_here)] {
                for later in [false, true] {
                    leaves(both, &fragment(a.outside, port, later), expected)?;
                }
            }
            leaves(both, &fragment(a.node, 99, false), FinalVerdict::Pass)?;
            leaves(both, &fragment(a.node, 99, true), FinalVerdict::Pass)?;
            // Its first fragment has not come this way.
            leaves(both, &fragment(a.internet, 8080, true), denied_here)
        },
    );
}

#[test]
fn answers_from_the_stack_pass_and_connections_in_their_direction_do_not() {
    with(
        |t, a| isolate(t, a.client, 0, false, &[]),
        |both, a| {
            let denied_here = FinalVerdict::Drop(Reason::PolicyIngress);
            let (client, service) = ((a.client, 40_000), (a.local, 80));
            let answers = [Frame::tcp(service, client, SYN | ACK), Frame::udp(service, client)];
            for answer in &answers {
                leaves(both, answer, denied_here)?;
            }
            let [tcp, udp, _] = firsts(client, service);
            passes(both, a, tcp)?;
            passes(both, a, udp)?;
            // An answer that is too long for the pod's link is translated, and left to the stack.
            for answer in &answers {
                leaves(both, answer, FinalVerdict::Pass)?;
            }
            leaves(both, &Frame::tcp(service, client, SYN), denied_here)?;
            leaves(both, &Frame::udp((a.local, 81), client), denied_here)
        },
    );
}
