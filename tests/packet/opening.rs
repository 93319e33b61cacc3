//! When a connection counts as established or closed, and when its ports begin a new one.

use anyhow::{Context as _, Result, ensure};
use podnet_common::{
    addr::{Port, Proto},
    layout::{CtEntry, Frontend, FrontendKey, Hook, Out, Tuple},
    simulator::FinalVerdict,
};

use crate::{
    cluster::{
        Addresses, Both, CLIENT_MAC, CLIENT_OUTSIDE_MAC, HOST_MAC, NODE_PORT, NODE_PORT_FAR, NODE2_MAC, NODE3_MAC,
        UPLINK_MAC,
    },
    expect::both_families,
    frame::{ACK, FIN, Frame, RST, SYN, Transport},
};

/// Longer than any wait for a reply, in ticks.
const LONG: u32 = 3;

fn run(both: &Both, hook: Hook, frame: &Frame) -> Result<FinalVerdict> {
    Ok(both.run(hook, &frame.bytes())?.0)
}

/// Key of the client's half of a flow to a service.
fn key(src: (std::net::IpAddr, u16), dst: (std::net::IpAddr, u16), proto: Proto) -> Tuple {
    let (sport, dport) = (Port::new(src.1), Port::new(dst.1));
    Tuple { src: src.0.into(), dst: dst.0.into(), sport, dport, proto, _pad: [0; 3] }
}

/// Flags on which both halves of a flow agree.
fn state(both: &Both, key: &Tuple) -> Result<u8> {
    const STATE: u8 = CtEntry::REPLIED | CtEntry::OPENING | CtEntry::CLOSED;
    let flows = both.kernel.conntrack()?;
    let entry = flows.get(key).context("no flow")?;
    let other = flows.get(&entry.reply_key(key.proto)).context("half a flow")?;
    ensure!(entry.flags & STATE == other.flags & STATE, "{entry:?} {other:?}");
    Ok(entry.flags & STATE)
}

/// Tick of the last recorded packet.
fn last_seen(both: &Both, key: &Tuple) -> u32 {
    both.host.conntrack.borrow()[key].last_seen
}

/// Same, for the other half.
fn last_seen_of_replies(both: &Both, key: &Tuple) -> u32 {
    let reply = both.host.conntrack.borrow()[key].reply_key(key.proto);
    last_seen(both, &reply)
}

/// Connection from the client pod to a service whose backend is on the other node.
struct Connection {
    key: Tuple,
    client: (std::net::IpAddr, u16),
    service: (std::net::IpAddr, u16),
    backend: (std::net::IpAddr, u16),
}

impl Connection {
    fn new(a: &Addresses, port: u16) -> Self {
        let (client, service) = ((a.client, port), (a.far, 80));
        Self { key: key(client, service, Proto::TCP), client, service, backend: (a.remote, 8080) }
    }

    fn there(&self, flags: u8) -> Frame {
        Frame::tcp(self.client, self.service, flags).macs(CLIENT_MAC, HOST_MAC)
    }

    fn back(&self, flags: u8) -> Frame {
        Frame::tcp(self.backend, self.client, flags).macs(NODE2_MAC, UPLINK_MAC)
    }

    fn establish(&self, both: &Both) -> Result<()> {
        run(both, Hook::FromPod, &self.there(SYN))?;
        run(both, Hook::FromUplink, &self.back(SYN | ACK))?;
        run(both, Hook::FromPod, &self.there(ACK))?;
        ensure!(state(both, &self.key)? == CtEntry::REPLIED, "{:#x}", state(both, &self.key)?);
        Ok(())
    }
}

#[test]
fn handshake_is_complete_with_its_ack_and_retransmissions_do_not_extend_it() {
    both_families(|both, a, _| {
        let c = Connection::new(a, 41_000);
        run(both, Hook::FromPod, &c.there(SYN))?;
        ensure!(state(both, &c.key)? == CtEntry::OPENING);
        for _ in 0..2 {
            both.age_flows(1)?;
            let before = last_seen(both, &c.key);
            run(both, Hook::FromUplink, &c.back(SYN | ACK))?;
            ensure!(state(both, &c.key)? == CtEntry::OPENING | CtEntry::REPLIED);
            ensure!(last_seen(both, &c.key) == before, "an answer that nobody acknowledges keeps it alive");
        }
        both.age_flows(1)?;
        run(both, Hook::FromPod, &c.there(ACK))?;
        ensure!(state(both, &c.key)? == CtEntry::REPLIED);
        ensure!(last_seen(both, &c.key) == both.host.now.get(), "now it is alive");
        Ok(())
    });
}

#[test]
fn handshake_can_complete_within_a_tick() {
    both_families(|both, a, _| Connection::new(a, 41_001).establish(both));
}

/// Each half finds its egress once per tick, with the first packet, which passes the neighbour table. In a handshake
/// within a tick these are the SYNs, so that both ends' data takes the fast path.
#[test]
fn egress_is_found_once_per_tick() {
    both_families(|both, a, uplink| {
        let found = FinalVerdict::Forward(Out::Uplink, uplink);
        let kept = FinalVerdict::Forward(Out::Link, uplink);
        let (client, service) = ((a.outside, 41_011), (a.node, NODE_PORT_FAR));
        let there = |flags| Frame::tcp(client, service, flags).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
        ensure!(run(both, Hook::FromUplink, &there(SYN))? == found);
        let key = key(client, service, Proto::TCP);
        let port = both.host.conntrack.borrow()[&key].sport.get();
        let back = |flags| Frame::tcp((a.remote3, 8080), (a.node, port), flags).macs(NODE3_MAC, UPLINK_MAC);
        ensure!(run(both, Hook::FromUplink, &back(SYN | ACK))? == found);
        ensure!(run(both, Hook::FromUplink, &there(ACK))? == kept);
        let now = both.host.now.get();
        ensure!(last_seen(both, &key) == now && last_seen_of_replies(both, &key) == now);
        ensure!(run(both, Hook::FromUplink, &back(ACK))? == kept);
        ensure!(run(both, Hook::FromUplink, &there(FIN | ACK))? == kept);
        both.age_flows(1)?;
        ensure!(run(both, Hook::FromUplink, &back(ACK))? == found);
        // As recent as the other half, but without an egress of this tick.
        ensure!(run(both, Hook::FromUplink, &there(ACK))? == found);
        ensure!(run(both, Hook::FromUplink, &there(ACK))? == kept);
        // That is enough for XDP, too.
        ensure!(run(both, Hook::UplinkXdp, &back(FIN | ACK))? == kept);
        ensure!(state(both, &key)? == CtEntry::CLOSED | CtEntry::REPLIED);
        ensure!(run(both, Hook::UplinkXdp, &there(ACK))? == kept);
        // A new connection on these ports needs another look.
        ensure!(run(both, Hook::UplinkXdp, &there(SYN))? == FinalVerdict::Pass);
        ensure!(matches!(run(both, Hook::FromUplink, &there(SYN))?, FinalVerdict::Forward(..)));
        ensure!(state(both, &key)? == CtEntry::OPENING);
        Ok(())
    });
}

/// Whatever the state that the other half's packets give to the flow in this tick, and with it the meaning of times.
#[test]
fn egress_of_replies_is_found_after_any_packets_of_the_client() {
    const SEQUENCES: [&[u8]; 9] = [
        &[ACK],
        &[FIN | ACK],
        &[RST],
        &[SYN],
        &[RST, RST],
        &[RST, SYN],
        &[RST, ACK],
        &[RST, RST, SYN],
        &[RST, RST, ACK],
    ];
    both_families(|both, a, uplink| {
        for (port, sequence) in (41_020..).zip(SEQUENCES) {
            for answer in [ACK, FIN | ACK, RST, SYN | ACK] {
                let (client, service) = ((a.outside, port), (a.node, NODE_PORT_FAR));
                let there = |flags| Frame::tcp(client, service, flags).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
                run(both, Hook::FromUplink, &there(SYN))?;
                let source = both.host.conntrack.borrow()[&key(client, service, Proto::TCP)].sport.get();
                let back = |flags| Frame::tcp((a.remote3, 8080), (a.node, source), flags).macs(NODE3_MAC, UPLINK_MAC);
                run(both, Hook::FromUplink, &back(SYN | ACK))?;
                run(both, Hook::FromUplink, &there(ACK))?;
                both.age_flows(1)?;
                for flags in sequence {
                    run(both, Hook::FromUplink, &there(*flags))?;
                }
                let verdict = run(both, Hook::FromUplink, &back(answer))?;
                let found = FinalVerdict::Forward(Out::Uplink, uplink);
                ensure!(verdict == found, "{verdict:?}: {answer:#x} after {sequence:x?}");
                // Ends it, for the next connection on these ports.
                both.age_flows(LONG)?;
                run(both, Hook::FromUplink, &there(RST))?;
                run(both, Hook::FromUplink, &there(RST))?;
            }
        }
        Ok(())
    });
}

#[test]
fn handshake_of_several_ticks_leaves_the_egress_of_replies_to_be_found() {
    both_families(|both, a, _| {
        let c = Connection::new(a, 41_012);
        run(both, Hook::FromPod, &c.there(SYN))?;
        run(both, Hook::FromUplink, &c.back(SYN | ACK))?;
        both.age_flows(1)?;
        run(both, Hook::FromPod, &c.there(ACK))?;
        let now = both.host.now.get();
        ensure!(last_seen(both, &c.key) == now && last_seen_of_replies(both, &c.key) == now - 1);
        Ok(())
    });
}

#[test]
fn data_from_the_backend_implies_a_completed_handshake() {
    both_families(|both, a, _| {
        let c = Connection::new(a, 41_002);
        run(both, Hook::FromPod, &c.there(SYN))?;
        run(both, Hook::FromUplink, &c.back(SYN | ACK))?;
        run(both, Hook::FromUplink, &c.back(ACK))?;
        ensure!(state(both, &c.key)? == CtEntry::REPLIED);
        Ok(())
    });
}

#[test]
fn udp_flow_is_established_when_the_client_continues_after_a_reply() {
    both_families(|both, a, _| {
        let there = Frame::udp((a.client, 41_003), (a.far, 80)).macs(CLIENT_MAC, HOST_MAC);
        let back = Frame::udp((a.remote, 8080), (a.client, 41_003)).macs(NODE2_MAC, UPLINK_MAC);
        let key = key((a.client, 41_003), (a.far, 80), Proto::UDP);
        run(both, Hook::FromPod, &there)?;
        both.age_flows(1)?;
        run(both, Hook::FromPod, &there)?;
        ensure!(state(both, &key)? == CtEntry::OPENING);
        run(both, Hook::FromUplink, &back)?;
        ensure!(state(both, &key)? == CtEntry::OPENING | CtEntry::REPLIED);
        both.age_flows(1)?;
        run(both, Hook::FromPod, &there)?;
        ensure!(state(both, &key)? == CtEntry::REPLIED);
        Ok(())
    });
}

#[test]
fn external_reset_does_not_end_an_active_connection() {
    both_families(|both, a, _| {
        let c = Connection::new(a, 41_004);
        c.establish(both)?;
        run(both, Hook::FromUplink, &c.back(RST | ACK))?;
        ensure!(state(both, &c.key)? == CtEntry::DOUBTFUL | CtEntry::REPLIED);
        run(both, Hook::FromPod, &c.there(ACK))?;
        ensure!(state(both, &c.key)? == CtEntry::REPLIED, "they go on");
        run(both, Hook::FromUplink, &c.back(RST | ACK))?;
        // The client itself closes it.
        run(both, Hook::FromPod, &c.there(RST))?;
        ensure!(state(both, &c.key)? == CtEntry::CLOSED | CtEntry::REPLIED);
        // Before the connection is established, an RST ends it.
        let refused = Connection::new(a, 41_005);
        run(both, Hook::FromPod, &refused.there(SYN))?;
        run(both, Hook::FromUplink, &refused.back(RST | ACK))?;
        ensure!(state(both, &refused.key)? == CtEntry::CLOSED | CtEntry::REPLIED);
        Ok(())
    });
}

/// Makes a service use another service's backend, in both sets of tables.
fn lead_elsewhere(both: &mut Both, from: (std::net::IpAddr, u16), like: (std::net::IpAddr, u16)) -> Result<()> {
    let of = |(addr, port): (std::net::IpAddr, u16)| FrontendKey {
        addr: addr.into(),
        port: Port::new(port),
        proto: Proto::TCP,
        scope: FrontendKey::ANY,
    };
    let other = both.host.frontends[&of(like)];
    let frontend = both.host.frontends.get_mut(&of(from)).context("no such service")?;
    *frontend = Frontend { slot_base: other.slot_base, slot_count: other.slot_count, ..*frontend };
    let frontend = *frontend;
    both.kernel.set_frontend(&of(from), &frontend)
}

#[test]
fn local_client_that_reconnects_gets_another_backend_if_its_own_is_gone() {
    both_families(|both, a, uplink| {
        let c = Connection::new(a, 41_006);
        c.establish(both)?;
        lead_elsewhere(both, c.service, (a.local, 80))?;
        let on = run(both, Hook::FromPod, &c.there(ACK))?;
        ensure!(on == FinalVerdict::Forward(Out::Uplink, uplink), "{on:?}");
        let again = run(both, Hook::FromPod, &c.there(SYN))?;
        ensure!(matches!(again, FinalVerdict::Forward(Out::Pod, _)), "{again:?}");
        ensure!(state(both, &c.key)? == CtEntry::OPENING);
        ensure!(
            !both.kernel.conntrack()?.contains_key(&key(c.backend, c.client, Proto::TCP)),
            "the old one is forgotten"
        );
        lead_elsewhere(both, c.service, (a.snat, 80))
    });
}

#[test]
fn external_connection_is_replaced_only_if_its_backend_is_silent() {
    both_families(|both, a, _| {
        let (client, port) = ((a.outside, 41_007), (a.node, NODE_PORT));
        let there = |flags| Frame::tcp(client, port, flags).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
        let key = key(client, port, Proto::TCP);
        run(both, Hook::FromUplink, &there(SYN))?;
        let entry = both.kernel.conntrack()?[&key];
        // The entries of an answered flow, as if the pod here were not the client.
        let answered = |both: &mut Both| -> Result<()> {
            let reply = entry.reply_key(Proto::TCP);
            for flows in [&both.host.conntrack] {
                for (key, flags) in [(key, CtEntry::REPLIED), (reply, CtEntry::REPLIED | CtEntry::REPLY)] {
                    let mut flows = flows.borrow_mut();
                    let entry = flows.get_mut(&key).context("no flow")?;
                    entry.flags = entry.flags & !(CtEntry::OPENING | CtEntry::REPLIED | CtEntry::REPLY) | flags;
                }
            }
            let flows: Vec<_> = both.host.conntrack.borrow().iter().map(|(k, v)| (*k, *v)).collect();
            flows.iter().try_for_each(|(key, entry)| both.kernel.set_flow(key, entry))
        };
        answered(both)?;
        // A guessed SYN: the backend's answer shows that it still has the connection.
        both.age_flows(LONG)?;
        run(both, Hook::FromUplink, &there(SYN))?;
        ensure!(both.kernel.conntrack()?[&key].flags & CtEntry::OPENING != 0, "it is to be seen");
        run(both, Hook::FromUplink, &there(SYN))?;
        ensure!(both.kernel.conntrack()?[&key].flags & CtEntry::REPLIED != 0, "not so soon");
        answered(both)?;
        both.age_flows(1)?;
        run(both, Hook::FromUplink, &there(SYN))?;
        ensure!(state(both, &key)? == CtEntry::REPLIED, "it was just answered");
        // The backend no longer answers.
        both.age_flows(LONG)?;
        run(both, Hook::FromUplink, &there(SYN))?;
        both.age_flows(LONG)?;
        run(both, Hook::FromUplink, &there(SYN))?;
        ensure!(state(both, &key)? == CtEntry::OPENING, "a new connection");
        Ok(())
    });
}

#[test]
fn sctp_associations_open_and_close_like_connections() {
    both_families(|both, a, _| {
        let run = |both: &Both, chunk: u8| -> Result<()> {
            let packet = Frame::new(a.outside, a.balancer, Transport::Sctp { sport: 41_008, dport: 80 });
            let mut packet = packet.macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            packet.payload = vec![chunk, 0, 0, 4];
            both.run(Hook::FromUplink, &packet.bytes()).map(drop)
        };
        let key = key((a.outside, 41_008), (a.balancer, 80), Proto::SCTP);
        run(both, 1)?;
        ensure!(state(both, &key)? == CtEntry::OPENING);
        let before = last_seen(both, &key);
        both.age_flows(1)?;
        run(both, 1)?;
        ensure!(last_seen(both, &key) == before.wrapping_sub(1), "the first step again keeps it alive");
        run(both, 6)?;
        ensure!(state(both, &key)? & CtEntry::CLOSED == CtEntry::CLOSED);
        run(both, 1)?;
        ensure!(state(both, &key)? == CtEntry::OPENING);
        Ok(())
    });
}
