//! Network policy for flows from before a pod became a subject, which have no entries.

use std::net::IpAddr;

use anyhow::ensure;
use podnet_common::{
    addr::{Port, Proto},
    layout::{Config, CtEntry, Subject, Tuple},
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{
    cluster::{Addresses, Both},
    frame::{ACK, Frame, SYN, Transport},
    policy::{FRIENDS, WEB, arrives, denied, firsts, isolate, passes, with},
};

/// A pod may be isolated while it has connections that are not tracked.
#[test]
fn connections_from_before_the_isolation_go_on_if_they_are_allowed() {
    with(
        |t, a| {
            isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]);
            isolate(t, a.backend, 0, true, &[]);
            isolate(t, a.client, 0, false, &[]);
            t.policy_peers.insert(a.remote.into(), FRIENDS);
        },
        |both, a| {
            // The server sends first.
            passes(both, a, Frame::tcp((a.backend, 8080), (a.remote, 40_000), ACK))?;
            let client = Frame::tcp((a.remote, 40_000), (a.backend, 8080), ACK);
            let key = Tuple {
                src: a.backend.into(),
                dst: a.remote.into(),
                sport: Port::new(8080),
                dport: Port::new(40_000),
                proto: Proto::TCP,
                _pad: [0; 3],
            };
            let flags = both.host.conntrack.borrow().get(&key).map(|entry| entry.flags & CtEntry::REPLY);
            ensure!(flags == Some(CtEntry::REPLY), "{flags:?}");
            passes(both, a, client)?;
            // The client sends first.
            passes(both, a, Frame::tcp((a.remote, 40_001), (a.backend, 8080), ACK))?;
            passes(both, a, Frame::tcp((a.backend, 8080), (a.remote, 40_001), ACK))?;
            // The policies allow none of these, in either direction.
            denied(both, a, Frame::tcp((a.backend, 99), (a.remote, 40_002), ACK), Reason::PolicyIngress)?;
            denied(both, a, Frame::tcp((a.remote, 40_002), (a.backend, 99), ACK), Reason::PolicyIngress)?;
            denied(both, a, Frame::tcp((a.outside, 40_002), (a.backend, 8080), ACK), Reason::PolicyIngress)?;
            // A forged answer can't be used to open a connection.
            for flags in [SYN | ACK, ACK] {
                let forged = (a.outside, 80 + u16::from(flags));
                let (end, _) = {
                    let (hook, frame) = arrives(Frame::tcp(forged, (a.client, 8080), flags), a);
                    both.run(hook, &frame.bytes())?
                };
                ensure!(matches!(end, FinalVerdict::Forward(..)), "{end:?}: the pod may send there");
                denied(both, a, Frame::tcp(forged, (a.client, 8080), SYN), Reason::PolicyIngress)?;
            }
            // Nor may the pod open one from the port that it serves.
            denied(both, a, Frame::tcp((a.backend, 8080), (a.remote, 40_003), SYN), Reason::PolicyEgress)?;
            denied(both, a, Frame::udp((a.backend, 8080), (a.remote, 40_003)), Reason::PolicyEgress)
        },
    );
}

/// A request has been delivered before the pod became a subject, so its answer is the first packet that is tracked.
#[test]
fn answers_of_new_subjects_begin_no_flow_that_is_denied() {
    const WEB_PORT: u16 = 8080;
    let answers = |pod: (IpAddr, u16), peer: (IpAddr, u16)| firsts(pod, peer).into_iter().skip(1);
    let change = |t: &mut HostTables, a: &Addresses| {
        isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]);
        isolate(t, a.client, 0, true, &[]);
    };
    let lately = move |t: &mut HostTables, a: &Addresses| {
        change(t, a);
        t.config.flags |= Config::NEW_SUBJECTS;
    };
    with(lately, move |both, a| {
        for port in [40_000, WEB_PORT] {
            for frame in answers((a.backend, WEB_PORT), (a.remote, port)) {
                denied(both, a, frame, Reason::PolicyIngress)?;
            }
            for frame in answers((a.remote, 53), (a.client, port)) {
                denied(both, a, frame, Reason::PolicyEgress)?;
            }
        }
        // Requests of the pod itself; and echoes tell requests from answers.
        for frame in answers((a.backend, 40_000), (a.remote, 53)) {
            passes(both, a, frame)?;
        }
        passes(both, a, Frame::new(a.backend, a.remote, Transport::Echo { id: 9, reply: false }))
    });
    let of_friend = move |t: &mut HostTables, a: &Addresses| {
        lately(t, a);
        t.policy_peers.insert(a.remote.into(), FRIENDS);
    };
    let answers_pass = move |both: &mut Both, a: &Addresses| {
        for frame in answers((a.backend, WEB_PORT), (a.remote, 40_000)) {
            passes(both, a, frame)?;
        }
        Ok(())
    };
    with(of_friend, answers_pass);
    // Subjects of a while ago may send from low ports to high ones.
    with(change, answers_pass);
}
