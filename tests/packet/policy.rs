//! Network policy: the first packet of a flow is evaluated for both ends, replies and errors are not.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result, ensure};
use podnet::datapath::removal::frames_of_keys;
use podnet_common::{
    addr::{IfIndex, Port, Proto},
    layout::{Config, CtEntry, Hook, Out, PolicyDenial, PolicyRule, PolicyVerdict, ProtoPort, Subject, Tuple},
    removal,
    simulator::{FinalVerdict, HostPacket, HostTables, prefix},
    verdict::Reason,
};

use crate::{
    cluster::{
        Addresses, BACKEND_HOST_MAC, BACKEND_MAC, Both, CLIENT_MAC, CLIENT_OUTSIDE_MAC, HERE, HOST_MAC, NODE_PORT,
        NODE2_MAC, UPLINK_MAC, addresses,
    },
    expect::both_families_with,
    frame::{ACK, FIN, Frame, SYN, Transport},
};

/// Rule set of the subject.
pub const SET: u32 = 7;
/// Class of the port 8080.
pub const WEB: u32 = 5;
/// Class of the peers that are allowed.
pub const FRIENDS: u32 = 3;

/// What rules of a NetworkPolicy say.
const ALLOWED: PolicyVerdict = PolicyVerdict { admin: 0, network: 1, baseline: 0 };

/// Isolates a pod in one direction, with these keys: class and ports.
pub fn isolate(t: &mut HostTables, pod: IpAddr, flags: u32, egress: bool, rules: &[(u32, u32)]) {
    t.config.flags |= Config::POLICY;
    let subject = t.subjects.entry(pod.into()).or_default();
    let set = SET + u32::from(egress);
    *(if egress { &mut subject.egress } else { &mut subject.ingress }) = set | flags;
    t.policy_rules.extend(rules.iter().map(|&(class, ports)| (PolicyRule { set, class, ports }, ALLOWED)));
    t.policy_denials.get_mut().insert(PolicyDenial { set, rule: PolicyDenial::ISOLATION }, 0);
}

/// The port 8080 is a class of its own for TCP and SCTP, and the ports 8064–8095 for UDP.
fn name_ports(t: &mut HostTables) {
    let name = |proto, ports: RangeInclusive<u16>| ports.map(move |port| (ProtoPort::new(proto, Port::new(port)), WEB));
    let single = [Proto::TCP, Proto::SCTP].into_iter().flat_map(|proto| name(proto, 8080..=8080));
    t.policy_ports.extend(single.chain(name(Proto::UDP, 8064..=8095)));
}

/// First packets from one address to a port of another, one for each protocol.
pub fn firsts(src: (IpAddr, u16), dst: (IpAddr, u16)) -> [Frame; 3] {
    let sctp = Frame::new(src.0, dst.0, Transport::Sctp { sport: src.1, dport: dst.1 });
    [Frame::tcp(src, dst, SYN), Frame::udp(src, dst), sctp]
}

/// The way of a packet into the node: its hook, and its MACs.
pub fn arrives(frame: Frame, a: &Addresses) -> (Hook, Frame) {
    let (hook, from, to) = match frame.src {
        src if src == a.client => (Hook::FromPod, CLIENT_MAC, HOST_MAC),
        src if src == a.backend => (Hook::FromPod, BACKEND_MAC, BACKEND_HOST_MAC),
        src if src == a.remote => (Hook::FromUplink, NODE2_MAC, UPLINK_MAC),
        _ => (Hook::FromUplink, CLIENT_OUTSIDE_MAC, UPLINK_MAC),
    };
    (hook, frame.macs(from, to))
}

/// Where a packet ends.
pub fn end(both: &Both, a: &Addresses, frame: Frame) -> Result<FinalVerdict> {
    let (hook, frame) = arrives(frame, a);
    Ok(both.run(hook, &frame.bytes())?.0)
}

pub fn passes(both: &Both, a: &Addresses, frame: Frame) -> Result<()> {
    let end = end(both, a, frame.clone())?;
    ensure!(matches!(end, FinalVerdict::Forward(..) | FinalVerdict::Pass), "{frame:?}: {end:?}");
    Ok(())
}

pub fn denied(both: &Both, a: &Addresses, frame: Frame, reason: Reason) -> Result<()> {
    let end = end(both, a, frame.clone())?;
    ensure!(end == FinalVerdict::Drop(reason), "{frame:?}: {end:?}");
    Ok(())
}

/// Requires a verdict on a packet that the stack sends to a pod, and that the packet doesn't change.
pub fn leaves(both: &Both, frame: &Frame, expected: FinalVerdict) -> Result<()> {
    let bytes = frame.bytes();
    let (end, after) = both.run(Hook::ToPod, &bytes)?;
    ensure!(end == expected && after == bytes, "{frame:?}: {end:?}");
    Ok(())
}

/// Marks the halves of flows that are denied by now, of which there are this many.
pub fn deny(both: &mut Both, keys: &[Tuple], newly: u32) -> Result<()> {
    let data = frames_of_keys(keys).map(|data| HostPacket { data, ifindex: HERE });
    let on_host: u32 = data.map(|frame| removal::deny(&frame, &both.host)).sum();
    let in_kernel = both.kernel.deny(keys)?;
    ensure!((on_host, in_kernel) == (newly, newly), "host {on_host}, kernel {in_kernel}");
    Ok(())
}

/// Runs a test with both pods of the node and these policies.
pub fn with(
    policies: impl Fn(&mut HostTables, &Addresses) + Copy + Send + 'static,
    test: impl Fn(&mut Both, &Addresses) -> Result<()> + Copy + Send + 'static,
) {
    let change = move |t: &mut HostTables| {
        name_ports(t);
        for a in [false, true].map(addresses) {
            // Both pods send on the only interface.
            t.endpoints.entry(a.backend.into()).and_modify(|endpoint| endpoint.ifindex = HERE);
            policies(t, &a);
        }
    };
    both_families_with(change, move |both, a, _| test(both, a));
}

#[test]
fn isolated_pod_receives_from_allowed_peers_at_allowed_ports_only() {
    with(
        |t, a| {
            isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]);
            t.policy_peers.insert(a.client.into(), FRIENDS);
        },
        |both, a| {
            for (number, allowed) in firsts((a.client, 40_000), (a.backend, 8080)).into_iter().enumerate() {
                passes(both, a, allowed)?;
                for other in [8079, 8192, 1] {
                    let [frame] = [firsts((a.client, 40_001), (a.backend, other))[number].clone()];
                    // The range for UDP contains the neighbouring port.
                    if other == 8079 && number == 1 {
                        passes(both, a, frame)?
                    } else {
                        denied(both, a, frame, Reason::PolicyIngress)?
                    }
                }
            }
            for src in [a.remote, a.outside] {
                for frame in firsts((src, 40_002), (a.backend, 8080)) {
                    denied(both, a, frame, Reason::PolicyIngress)?;
                }
            }
            // Services are evaluated by their backend, NodePorts by the client outside.
            for frame in firsts((a.client, 40_003), (a.local, 80)) {
                passes(both, a, frame)?;
            }
            for frame in firsts((a.outside, 40_004), (a.node, NODE_PORT)) {
                denied(both, a, frame, Reason::PolicyIngress)?;
            }
            // It sends whatever it wants, and gets the answers.
            for dst in [a.client, a.remote, a.outside] {
                for frame in firsts((a.backend, 40_005), (dst, 99)) {
                    passes(both, a, frame)?;
                }
            }
            let answer = Frame::tcp((a.remote, 99), (a.backend, 40_005), SYN | ACK);
            passes(both, a, answer)?;
            // Pods that are no subjects are not concerned.
            for frame in firsts((a.remote, 40_006), (a.client, 99)) {
                passes(both, a, frame)?;
            }
            Ok(())
        },
    );
}

#[test]
fn isolated_pod_sends_to_allowed_peers_only_and_answers_everyone() {
    with(
        |t, a| {
            isolate(t, a.client, Subject::CLASS_PORTS, true, &[(FRIENDS, WEB)]);
            t.policy_peers.insert(a.backend.into(), FRIENDS);
        },
        |both, a| {
            for frame in firsts((a.client, 40_000), (a.backend, 8080)) {
                passes(both, a, frame)?;
            }
            for dst in [a.remote, a.outside, a.internet] {
                for frame in firsts((a.client, 40_001), (dst, 8080)) {
                    denied(both, a, frame, Reason::PolicyEgress)?;
                }
            }
            // The backend of this service is elsewhere, that of the other one is the allowed peer.
            for frame in firsts((a.client, 40_002), (a.far, 80)) {
                denied(both, a, frame, Reason::PolicyEgress)?;
            }
            for frame in firsts((a.client, 40_002), (a.local, 80)) {
                passes(both, a, frame)?;
            }
            // Its node is always reached, and so is the pod itself.
            for frame in firsts((a.client, 40_003), (a.node, 99)) {
                passes(both, a, frame)?;
            }
            for frame in firsts((a.client, 40_004), (a.itself, 80)) {
                passes(both, a, frame)?;
            }
            for (question, answer) in [
                (
                    Frame::tcp((a.remote, 40_005), (a.client, 99), SYN),
                    Frame::tcp((a.client, 99), (a.remote, 40_005), SYN | ACK),
                ),
                (Frame::udp((a.outside, 40_005), (a.client, 99)), Frame::udp((a.client, 99), (a.outside, 40_005))),
            ] {
                denied(both, a, Frame::udp((a.client, 98), (answer.dst, 40_005)), Reason::PolicyEgress)?;
                passes(both, a, question)?;
                passes(both, a, answer)?;
            }
            Ok(())
        },
    );
}

/// The ports don't tell which end is the client.
#[test]
fn flows_that_are_denied_by_now_carry_nothing_until_they_are_allowed_again() {
    with(
        |t, a| {
            isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]);
            t.policy_peers.insert(a.client.into(), FRIENDS);
            t.policy_peers.insert(a.remote.into(), FRIENDS);
        },
        |both, a| {
            let server = (a.backend, 8080);
            let frames = |client| {
                let (request, answer) = (firsts((client, 4000), server), firsts(server, (client, 4000)));
                let established = Frame::tcp((client, 4000), server, ACK);
                let answers = [Frame::tcp(server, (client, 4000), ACK), answer[1].clone(), answer[2].clone()];
                (request.into_iter().chain([established]), answers)
            };
            for (requests, answers) in [a.client, a.remote].map(frames) {
                requests.chain(answers).try_for_each(|frame| passes(both, a, frame))?;
            }
            let (mut requests, answers) = frames(a.remote);
            let opening = requests.next().into_iter();
            let keys: Vec<_> = both.kernel.conntrack()?.into_keys().collect();
            deny(both, &keys, 0)?;
            both.host.policy_peers.remove(&a.remote.into());
            both.kernel.set_policy_peer(a.remote.into(), None)?;
            deny(both, &keys, 6)?;
            deny(both, &keys, 0)?;
            for frame in opening.chain(requests.clone()).chain(answers.clone()) {
                denied(both, a, frame, Reason::PolicyIngress)?;
            }
            let (others, theirs) = frames(a.client);
            others.skip(1).chain(theirs).try_for_each(|frame| passes(both, a, frame))?;
            both.host.policy_peers.insert(a.remote.into(), FRIENDS);
            both.kernel.set_policy_peer(a.remote.into(), Some(FRIENDS))?;
            answers.into_iter().chain(requests).try_for_each(|frame| passes(both, a, frame))
        },
    );
}

#[test]
fn both_ends_must_allow_a_connection() {
    with(
        |t, a| {
            isolate(t, a.client, Subject::ANY_ALL, true, &[(PolicyRule::ANY, PolicyRule::ALL)]);
            isolate(t, a.backend, 0, false, &[]);
        },
        |both, a| {
            for frame in firsts((a.client, 40_000), (a.backend, 8080)) {
                denied(both, a, frame, Reason::PolicyIngress)?;
            }
            for frame in firsts((a.client, 40_000), (a.remote, 8080)) {
                passes(both, a, frame)?;
            }
            Ok(())
        },
    );
}

#[test]
fn rules_for_whole_protocols_and_for_all_peers_apply() {
    const TCP: u32 = PolicyRule::protocol(Proto::TCP);
    for (flags, rule, tcp, others) in [
        (Subject::CLASS_ALL, (FRIENDS, PolicyRule::ALL), true, true),
        (Subject::CLASS_PROTOCOL, (FRIENDS, TCP), true, false),
        (Subject::ANY_PORTS, (PolicyRule::ANY, WEB), true, true),
        (Subject::ANY_PROTOCOL, (PolicyRule::ANY, TCP), true, false),
        (Subject::ANY_ALL, (PolicyRule::ANY, PolicyRule::ALL), true, true),
        (Subject::CLASS_ALL, (FRIENDS + 1, PolicyRule::ALL), false, false),
        (Subject::ANY_PORTS, (PolicyRule::ANY, WEB + 1), false, false),
        (0, (PolicyRule::ANY, PolicyRule::ALL), false, false),
    ] {
        with(
            move |t, a| {
                isolate(t, a.backend, flags, false, &[rule]);
                t.policy_peers.insert(a.remote.into(), FRIENDS);
            },
            move |both, a| {
                let frames = firsts((a.remote, 40_000), (a.backend, 8080));
                for (frame, allowed) in frames.into_iter().zip([tcp, others, others]) {
                    let evaluate = if allowed {
                        passes
                    } else {
                        |both: &Both, a: &Addresses, frame| denied(both, a, frame, Reason::PolicyIngress)
                    };
                    evaluate(both, a, frame).with_context(|| format!("{rule:x?} with {flags:x}"))?;
                }
                // Only a rule for all protocols is one for echoes.
                let echo = Frame::new(a.remote, a.backend, Transport::Echo { id: 9, reply: false });
                let all = rule.1 == PolicyRule::ALL && tcp;
                if all { passes(both, a, echo) } else { denied(both, a, echo, Reason::PolicyIngress) }
            },
        );
    }
}

#[test]
fn blocks_apply_to_addresses_that_are_no_peers() {
    with(
        |t, a| {
            isolate(t, a.backend, Subject::CLASS_ALL, false, &[(FRIENDS, PolicyRule::ALL)]);
            let bits = if a.node.is_ipv4() { 24 } else { 64 };
            t.policy_blocks.insert(prefix(a.outside, bits), FRIENDS);
            t.policy_blocks.insert(prefix(a.remote, bits), FRIENDS);
            t.policy_peers.insert(a.remote.into(), FRIENDS + 1);
        },
        |both, a| {
            for frame in firsts((a.outside, 40_000), (a.backend, 99)) {
                passes(both, a, frame)?;
            }
            for frame in firsts((a.outside, 40_000), (a.node, NODE_PORT)) {
                passes(both, a, frame)?;
            }
            for frame in firsts((a.remote, 40_000), (a.backend, 99)) {
                denied(both, a, frame, Reason::PolicyIngress)?;
            }
            Ok(())
        },
    );
}

#[test]
fn closed_pod_reaches_its_node_only() {
    with(
        |t, a| {
            t.config.flags |= Config::POLICY;
            t.subjects.insert(a.client.into(), Subject { ingress: Subject::CLOSED, egress: Subject::CLOSED });
        },
        |both, a| {
            for dst in [a.backend, a.remote, a.outside, a.local, a.internet] {
                for frame in firsts((a.client, 40_000), (dst, 80)).into_iter().take(if dst == a.local { 2 } else { 3 })
                {
                    denied(both, a, frame, Reason::PolicyEgress)?;
                }
            }
            for src in [a.backend, a.remote, a.outside] {
                for frame in firsts((src, 40_000), (a.client, 80)) {
                    denied(both, a, frame, Reason::PolicyIngress)?;
                }
            }
            for frame in firsts((a.client, 40_001), (a.node, 10_250)) {
                passes(both, a, frame)?;
            }
            let other = Frame::new(a.client, a.remote, Transport::Raw(47, vec![0; 8]));
            denied(both, a, other, Reason::PolicyEgress)
        },
    );
}

/// The pod that gets the address next has policies of its own.
#[test]
fn no_flow_begins_to_an_address_without_a_pod() {
    with(
        |t, a| {
            isolate(t, a.client, Subject::ANY_ALL, true, &[(PolicyRule::ANY, PolicyRule::ALL)]);
            t.endpoints.remove(&a.backend.into());
        },
        |both, a| {
            for frame in firsts((a.client, 40_000), (a.backend, 8080)) {
                let end = end(both, a, frame.clone())?;
                ensure!(end == FinalVerdict::Pass, "{frame:?}: {end:?}");
            }
            // Its services are refused.
            for frame in firsts((a.client, 40_001), (a.local, 80)) {
                let end = end(both, a, frame.clone())?;
                ensure!(matches!(end, FinalVerdict::Reject(Reason::NoRoute, _)), "{frame:?}: {end:?}");
            }
            ensure!(both.kernel.conntrack()?.is_empty(), "a flow has begun");
            Ok(())
        },
    );
}

/// A host end that no longer exists.
const FORMER: IfIndex = IfIndex(77);

/// A UDP flow without translation, with these interfaces, in both sets of tables. Returns its next packet.
fn flow(
    both: &mut Both,
    client: (IpAddr, u16),
    server: (IpAddr, u16),
    in_ifindex: IfIndex,
    (out, out_ifindex): (Out, IfIndex),
) -> Result<Frame> {
    let key = Tuple {
        src: client.0.into(),
        dst: server.0.into(),
        sport: Port::new(client.1),
        dport: Port::new(server.1),
        proto: Proto::UDP,
        _pad: [0; 3],
    };
    let entry = CtEntry {
        in_ifindex,
        out: out as u8,
        out_ifindex,
        out_mtu: 1500,
        src: key.src,
        dst: key.dst,
        sport: key.sport,
        dport: key.dport,
        ..CtEntry::default()
    };
    for (key, entry) in [(key, entry), (entry.reply_key(key.proto), entry.reverse(&key))] {
        both.host.conntrack.borrow_mut().insert(key, entry);
        both.kernel.set_flow(&key, &entry)?;
    }
    Ok(Frame::udp(client, server))
}

#[test]
fn a_flow_into_another_pod_than_before_is_evaluated_again() {
    with(
        |t, a| isolate(t, a.backend, Subject::CLASS_PORTS, false, &[(FRIENDS, WEB)]),
        |both, a| {
            // Begun before any pod had the address, and while another pod had it.
            for (port, to) in [(40_000, (Out::Stack, IfIndex(0))), (40_001, (Out::Pod, FORMER))] {
                let frame = flow(both, (a.remote, port), (a.backend, 8080), HERE, to)?;
                denied(both, a, frame, Reason::PolicyIngress)?;
            }
            Ok(())
        },
    );
}

#[test]
fn a_flow_of_another_pod_than_before_is_evaluated_again() {
    with(
        |t, a| isolate(t, a.client, Subject::CLASS_PORTS, true, &[(FRIENDS, WEB)]),
        |both, a| {
            let to = (Out::Stack, IfIndex(0));
            let own = flow(both, (a.client, 40_002), (a.remote, 8080), HERE, to)?;
            passes(both, a, own)?;
            let formers = flow(both, (a.client, 40_003), (a.remote, 8080), FORMER, to)?;
            denied(both, a, formers, Reason::PolicyEgress)
        },
    );
}

#[test]
fn ports_of_a_closed_connection_begin_a_new_one() {
    with(
        |t, a| isolate(t, a.client, Subject::ANY_ALL, true, &[(PolicyRule::ANY, PolicyRule::ALL)]),
        |both, a| {
            let pod = (a.remote, 8080);
            // The second one through a service, whose answers are those of the pod.
            for (port, first) in [(40_080, pod), (40_081, (a.far, 80))] {
                let there = |dst, flags| Frame::tcp((a.client, port), dst, flags);
                let back = |flags| Frame::tcp(pod, (a.client, port), flags);
                let close = [there(first, FIN | ACK), back(FIN | ACK), there(first, ACK)];
                for frame in [there(first, SYN), back(SYN | ACK), there(first, ACK)].into_iter().chain(close) {
                    passes(both, a, frame)?;
                }
                passes(both, a, there(pod, SYN))?;
                let flows = both.kernel.conntrack()?;
                let client = (a.client.into(), Port::new(port));
                let ours = |key: &Tuple| (key.src, key.sport) == client || (key.dst, key.dport) == client;
                let ours: Vec<_> = flows.iter().filter(|(key, _)| ours(key)).collect();
                ensure!(ours.len() == 2, "{ours:?}");
                for (key, half) in ours {
                    ensure!(half.opening() && !half.closed(), "{key:?} {half:?}");
                    ensure!(half.reply_key(key.proto) == key.reversed(), "translated: {key:?} {half:?}");
                }
            }
            Ok(())
        },
    );
}
