//! ClusterNetworkPolicies: the first rule of each tier, in whatever key it is, and what lies outside of its reach.

use anyhow::{Context as _, Result, ensure};
use podnet_common::{
    addr::Proto,
    layout::{Config, PolicyDenial, PolicyRule, PolicyVerdict, Subject},
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{
    frame::{ACK, Frame, SYN, Transport},
    policy::{FRIENDS, SET, WEB, denied, firsts, leaves, passes, with},
};

/// All kinds of keys, so that each is looked up.
const KINDS: u32 = Subject::CLASS_PORTS
    | Subject::CLASS_PROTOCOL
    | Subject::CLASS_ALL
    | Subject::ANY_PORTS
    | Subject::ANY_PROTOCOL
    | Subject::ANY_ALL
    | Subject::CLUSTER;
type V = PolicyVerdict;
/// Class, ports and verdict.
type Entry = (u32, u32, V);

const ALL: u32 = PolicyRule::ALL;
const ANY: u32 = PolicyRule::ANY;

const fn admin(number: u32, action: u32) -> PolicyVerdict {
    PolicyVerdict { admin: PolicyVerdict::rule(number, action), network: 0, baseline: 0 }
}

const fn baseline(number: u32, action: u32) -> PolicyVerdict {
    PolicyVerdict { admin: 0, network: 0, baseline: PolicyVerdict::rule(number, action) }
}

const NETWORK: PolicyVerdict = PolicyVerdict { admin: 0, network: 3, baseline: 0 };

/// Makes a pod a subject with these entries: class, ports and verdict.
fn apply(t: &mut HostTables, pod: std::net::IpAddr, flags: u32, egress: bool, rules: &[Entry]) {
    t.config.flags |= Config::POLICY;
    let subject = t.subjects.entry(pod.into()).or_default();
    let set = SET + u32::from(egress);
    *(if egress { &mut subject.egress } else { &mut subject.ingress }) = set | KINDS | flags;
    t.policy_rules.extend(rules.iter().map(|&(class, ports, verdict)| (PolicyRule { set, class, ports }, verdict)));
    // Of isolation, and of more rules than a case has.
    t.policy_denials.get_mut().extend((0..10).map(|rule| (PolicyDenial { set, rule }, 0)));
}

const TCP: u32 = PolicyRule::protocol(Proto::TCP);
const ISOLATED: u32 = Subject::ISOLATED;
const NOTHING: u32 = PolicyDenial::NOTHING;

/// Flags of a set, its entries, and the rule that denies TCP from a friend to the port of the class `WEB`.
const CASES: &[(u32, &[Entry], u32)] = &[
    (0, &[], NOTHING),
    (ISOLATED, &[], 0),
    (ISOLATED, &[(FRIENDS, WEB, NETWORK)], NOTHING),
    // The smallest number decides, whichever key has it.
    (0, &[(FRIENDS, WEB, admin(2, V::ACCEPT)), (ANY, ALL, admin(1, V::DENY))], 1),
    (0, &[(FRIENDS, WEB, admin(2, V::DENY)), (FRIENDS, TCP, admin(1, V::ACCEPT))], NOTHING),
    (0, &[(ANY, TCP, admin(1, V::DENY)), (FRIENDS, ALL, admin(2, V::ACCEPT))], 1),
    (0, &[(ANY, WEB, admin(1, V::ACCEPT)), (FRIENDS, WEB, admin(2, V::DENY))], NOTHING),
    // Another peer, another port.
    (0, &[(FRIENDS + 1, ALL, admin(1, V::DENY)), (ANY, WEB + 1, admin(2, V::DENY))], NOTHING),
    // Admin comes before NetworkPolicies.
    (ISOLATED, &[(FRIENDS, ALL, admin(1, V::ACCEPT))], NOTHING),
    (ISOLATED, &[(FRIENDS, ALL, admin(1, V::DENY)), (FRIENDS, WEB, NETWORK)], 1),
    // Pass leads to NetworkPolicies, and beyond if they don't isolate.
    (ISOLATED, &[(FRIENDS, WEB, admin(1, V::PASS)), (ANY, ALL, admin(2, V::ACCEPT))], 0),
    (ISOLATED, &[(FRIENDS, WEB, admin(1, V::PASS)), (ANY, ALL, admin(2, V::DENY)), (FRIENDS, TCP, NETWORK)], NOTHING),
    (0, &[(FRIENDS, WEB, admin(1, V::PASS)), (ANY, ALL, baseline(2, V::DENY))], 2),
    // NetworkPolicies come before Baseline.
    (ISOLATED, &[(FRIENDS, WEB, NETWORK), (ANY, ALL, baseline(1, V::DENY))], NOTHING),
    (ISOLATED, &[(ANY, ALL, baseline(1, V::ACCEPT))], 0),
    (0, &[(FRIENDS, ALL, baseline(2, V::DENY)), (ANY, WEB, baseline(1, V::ACCEPT))], NOTHING),
    (0, &[(FRIENDS, ALL, baseline(2, V::DENY)), (ANY, WEB, baseline(1, V::PASS))], NOTHING),
    (0, &[(FRIENDS, ALL, baseline(1, V::DENY)), (ANY, WEB, baseline(2, V::ACCEPT))], 1),
];

#[test]
fn the_first_rule_of_the_first_tier_that_decides() {
    for &(flags, rules, denied_by) in CASES {
        with(
            move |t, a| {
                apply(t, a.backend, flags, false, rules);
                t.policy_peers.insert(a.remote.into(), FRIENDS);
            },
            move |both, a| {
                let [tcp, ..] = firsts((a.remote, 40_000), (a.backend, 8080));
                let counted = || {
                    let denials = both.host.policy_denials.borrow();
                    denials.get(&PolicyDenial { set: SET, rule: denied_by }).copied().unwrap_or_default()
                };
                let before = counted();
                let result = match denied_by {
                    NOTHING => passes(both, a, tcp),
                    _ => denied(both, a, tcp, Reason::PolicyIngress),
                };
                let case = || format!("{flags:x} {rules:x?}");
                result.with_context(case)?;
                let more = counted() - before;
                ensure!(more == u64::from(denied_by != NOTHING), "{}: {more} by rule {denied_by}", case());
                Ok(())
            },
        );
    }
}

#[test]
fn a_pod_may_be_kept_from_its_node_and_never_the_node_from_it() {
    with(
        |t, a| {
            for pod in [a.client, a.backend] {
                apply(t, pod, 0, true, &[(ANY, ALL, admin(1, V::DENY))]);
                apply(t, pod, 0, false, &[(ANY, ALL, admin(1, V::DENY))]);
            }
        },
        |both, a| {
            for dst in [a.node2, a.remote, a.internet] {
                for frame in firsts((a.client, 40_000), (dst, 99)) {
                    denied(both, a, frame, Reason::PolicyEgress)?;
                }
                denied(both, a, echo(a.client, dst), Reason::PolicyEgress)?;
            }
            // Of a connection from before the policies.
            passes(both, a, Frame::tcp((a.client, 97), (a.node, 40_000), SYN | ACK))?;
            passes(both, a, Frame::tcp((a.client, 97), (a.node, 40_000), ACK))?;
            // It answers its node and begins nothing.
            let port = (a.client, 98);
            let answers = [
                Frame::tcp(port, (a.node, 40_000), SYN | ACK),
                Frame::udp(port, (a.node, 40_000)),
                Frame::new(a.client, a.node, Transport::Echo { id: 9, reply: true }),
            ];
            let [tcp, udp, sctp] = firsts((a.node, 40_000), port);
            denied(both, a, answers[1].clone(), Reason::PolicyEgress)?;
            for (request, answer) in [tcp, udp, echo(a.node, a.client)].into_iter().zip(answers) {
                leaves(both, &request, FinalVerdict::Pass)?;
                passes(both, a, answer)?;
            }
            leaves(both, &sctp, FinalVerdict::Pass)?;
            for frame in firsts((a.client, 40_000), (a.node, 99)) {
                denied(both, a, frame, Reason::PolicyEgress)?;
            }
            denied(
                both,
                a,
                Frame::new(a.client, a.node, Transport::Echo { id: 8, reply: false }),
                Reason::PolicyEgress,
            )?;
            // By a service it reaches neither its node nor itself.
            for (service, count) in [(a.host, 1), (a.itself, 2)] {
                for frame in firsts((a.client, 40_001), (service, 80)).into_iter().take(count) {
                    denied(both, a, frame, Reason::PolicyEgress)?;
                }
            }
            Ok(())
        },
    );
}

#[test]
fn network_policies_never_come_between_a_pod_and_its_node_or_itself() {
    with(
        |t, a| {
            // Rules of the cluster that match nothing here, and a NetworkPolicy that allows nothing.
            for egress in [false, true] {
                apply(t, a.client, Subject::ISOLATED, egress, &[(FRIENDS, ALL, admin(1, V::DENY))]);
            }
        },
        |both, a| -> Result<()> {
            for frame in firsts((a.client, 40_000), (a.node, 99)) {
                passes(both, a, frame)?;
            }
            passes(both, a, echo(a.client, a.node))?;
            for frame in firsts((a.client, 40_001), (a.itself, 80)) {
                passes(both, a, frame)?;
            }
            denied(both, a, echo(a.client, a.remote), Reason::PolicyEgress)?;
            denied(both, a, echo(a.remote, a.client), Reason::PolicyIngress)
        },
    );
}

fn echo(src: std::net::IpAddr, dst: std::net::IpAddr) -> Frame {
    Frame::new(src, dst, Transport::Echo { id: 9, reply: false })
}
