//! Packets from processes of the host to the host's own addresses. Those for a service are redirected to podnet0, where
//! packets of host processes to services are translated.

use crate::{
    addr::Addr,
    layout::{NetworkKind, Out, macs},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Packet},
    verdict::Reason,
};

use super::{
    Egress, HookPoint, Tables, Verdict,
    enter::HEADERS,
    family::{Family, V4, V6, parse},
    frontend,
};

/// Handles a packet sent out of the loopback interface.
#[inline(always)]
pub fn loopback<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::PASS };
    let verdict = match ethernet.ethertype {
        ETHERTYPE_IPV4 => family::<At, V4, P, T>(p, t, &ethernet),
        ETHERTYPE_IPV6 => family::<At, V6, P, T>(p, t, &ethernet),
        _ => Verdict::PASS,
    };
    verdict.counted::<At, T>(t)
}

#[inline(always)]
fn family<At: HookPoint, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet) -> Verdict {
    // Malformed packets are left to the host's stack.
    let Some(v) = parse::<F, P>(p) else { return Verdict::PASS };
    let Some(network) = t.network(&v.tuple.dst) else { return Verdict::PASS };
    if network.kind != NetworkKind::LocalNode as u32 || !v.ports || !frontend::is_service_protocol(&v.tuple) {
        return Verdict::PASS;
    }
    let to_service =
        t.flow(&v.tuple, |_| ()).is_some() || frontend::find::<At, T>(t, ethernet, &v.tuple, v.tcp_flags).is_some();
    let Some(config) = t.config() else { return Verdict::PASS };
    if !to_service {
        return Verdict::PASS;
    }
    if p.store(0, &macs(config.podnet1_mac, config.podnet0_mac)).is_none() {
        return Verdict::drop(Reason::PacketWriteFailed);
    }
    Verdict::forward(Egress { out: Out::Link, ifindex: config.podnet0, hop: Addr::NONE })
}
