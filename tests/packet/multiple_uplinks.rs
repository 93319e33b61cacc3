//! A node with several interfaces that lead out, and host processes that send from ports that also belong to services.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use podnet_common::{
    addr::{Addr, IfIndex, Port, Proto},
    layout::{Config, FrontendKey, Hook, Interface, Out},
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{
    cluster::{Addresses, Both, CLIENT_MAC, CLIENT_OUTSIDE_MAC, HERE, HOST_MAC, NODE_PORT, UPLINK_MAC, addresses},
    expect::{both_families, both_families_with, expect, from_client},
    frame::{ACK, Frame, SYN, Transport},
};

/// Port of a service at the node's address.
const SHARED: u16 = 40_500;

/// The node's address on the other interface.
fn own(a: &Addresses) -> IpAddr {
    if a.node.is_ipv4() { [192, 168, 77, 1].into() } else { [0xfd00, 0x77, 0, 0, 0, 0, 0, 1].into() }
}

/// No main uplink: all routes use another interface, whose address only the daemon knows.
fn by_another_interface(t: &mut HostTables) {
    let [uplink, ..] = t.config.uplinks;
    let [v4, v6] = [false, true].map(|v6| Addr::from(own(&addresses(v6))));
    let interface = Interface { v4, v6, mtu: 1500, flags: 0 };
    t.config.uplinks = Default::default();
    t.config.flags &= !Config::ROUTE_SOURCE;
    t.interfaces = [(uplink, interface), (HERE, interface)].into();
    t.routes.iter_mut().for_each(|(prefix, route)| route.src = if prefix.addr.is_v4() { v4 } else { v6 });
}

/// Source address and port of a frame.
fn source(bytes: &[u8], v4: bool) -> Result<(IpAddr, u16)> {
    let (ip, port) = if v4 { (26..30, 34) } else { (22..38, 54) };
    let ip = bytes.get(ip).context("no address")?;
    let ip = match <[u8; 4]>::try_from(ip) {
        Ok(four) => IpAddr::from(four),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(ip)?),
    };
    Ok((ip, u16::from_be_bytes(bytes.get(port..port + 2).context("no ports")?.try_into()?)))
}

#[test]
fn pods_are_masqueraded_on_every_uplink() {
    both_families_with(by_another_interface, |both, a, uplink| {
        for input in from_client((a.client, 40_400), (a.internet, 443)) {
            let (end, bytes) = both.run(Hook::FromPod, &input.bytes())?;
            ensure!(end == FinalVerdict::Forward(Out::Uplink, uplink), "{end:?}");
            let (ip, port) = source(&bytes, a.node.is_ipv4())?;
            ensure!(ip == own(a), "{ip} instead of {}", own(a));
            let answer = match input.transport {
                Transport::Tcp { .. } => Frame::tcp((a.internet, 443), (ip, port), SYN | ACK),
                _ => Frame::udp((a.internet, 443), (ip, port)),
            };
            let answer = answer.macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            let back = answer.translated((a.internet, 443), (a.client, 40_400)).ttl(63).macs(HOST_MAC, CLIENT_MAC);
            expect(both, Hook::FromUplink, &answer, FinalVerdict::Forward(Out::Pod, HERE), &back)?;
        }
        Ok(())
    });
}

#[test]
fn interfaces_excluded_by_configuration_are_ignored() {
    let left_out = |t: &mut HostTables| {
        by_another_interface(t);
        t.interfaces.clear();
    };
    both_families_with(left_out, |both, a, _| {
        for input in from_client((a.client, 40_401), (a.internet, 443)) {
            expect(both, Hook::FromPod, &input, FinalVerdict::Pass, &input)?;
        }
        Ok(())
    });
}

#[test]
fn icmp_error_has_the_address_of_its_egress_interface() {
    fn check(both: &mut Both, a: &Addresses, expected: IpAddr) -> Result<()> {
        let dying = Frame::udp((a.outside, 41_500), (a.node, NODE_PORT)).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC).ttl(1);
        let (end, bytes) = both.run(Hook::FromUplink, &dying.bytes())?;
        ensure!(end == FinalVerdict::Reject(Reason::TtlExceeded, HERE), "{end:?}");
        let (ip, _) = source(&bytes, a.node.is_ipv4())?;
        ensure!(ip == expected, "{ip} instead of {expected}");
        Ok(())
    }
    both_families_with(by_another_interface, |both, a, _| check(both, a, own(a)));
    // If the interface has no address, the node's is used.
    both_families(|both, a, _| check(both, a, a.node));
}

/// Services at the node's address, with the ports of the load balancer.
fn at_own_address(t: &mut HostTables) {
    for v6 in [false, true] {
        let a = addresses(v6);
        for proto in [Proto::TCP, Proto::UDP, Proto::SCTP] {
            let balancer = FrontendKey { addr: a.balancer.into(), port: Port::new(80), proto, scope: FrontendKey::ANY };
            let frontend = t.frontends[&balancer];
            t.frontends.insert(FrontendKey { addr: a.node.into(), port: Port::new(SHARED), ..balancer }, frontend);
        }
    }
}

#[test]
fn replies_to_host_sockets_are_not_translated() {
    both_families_with(at_own_address, |both, a, _| {
        let there = (a.internet, 53);
        for port in [SHARED, NODE_PORT] {
            let here = (a.node, port);
            // In TCP, the flags identify a reply.
            for flags in [SYN | ACK, ACK] {
                let answer = Frame::tcp(there, here, flags).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
                expect(both, Hook::FromUplink, &answer, FinalVerdict::Pass, &answer)?;
            }
            let sctp = |src: (IpAddr, u16), dst: (IpAddr, u16)| {
                Frame::new(src.0, dst.0, Transport::Sctp { sport: src.1, dport: dst.1 })
            };
            for [asked, answer] in
                [[Frame::udp(here, there), Frame::udp(there, here)], [sctp(here, there), sctp(there, here)]]
            {
                let [asked, answer] =
                    [asked.macs(UPLINK_MAC, CLIENT_OUTSIDE_MAC), answer.macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC)];
                for _ in 0..2 {
                    expect(both, Hook::ToUplink, &asked, FinalVerdict::Pass, &asked)?;
                    expect(both, Hook::FromUplink, &answer, FinalVerdict::Pass, &answer)?;
                }
            }
            // Datagrams of other clients belong to the service.
            let client = Frame::udp((a.outside, 41_501), here).macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
            let (end, bytes) = both.run(Hook::FromUplink, &client.bytes())?;
            ensure!(end == FinalVerdict::Forward(Out::Pod, IfIndex(71)), "{end:?}");
            // So do its replies, although they arrive through another interface of the host.
            let back = Frame::udp(here, (a.outside, 41_501)).macs(UPLINK_MAC, CLIENT_OUTSIDE_MAC);
            let flows = both.kernel.conntrack()?.len();
            expect(both, Hook::ToUplink, &back, FinalVerdict::Pass, &back)?;
            ensure!(both.kernel.conntrack()?.len() == flows, "it is none of a process of the host");
            ensure!(bytes != client.bytes());
        }
        Ok(())
    });
}
