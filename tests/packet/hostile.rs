//! Packets of a hostile pod or neighbour: each is dropped for the right reason, in both families where applicable.

use std::net::IpAddr;

use anyhow::Result;
use podnet_common::{
    layout::{Config, Hook, TUNNEL_PORT},
    simulator::FinalVerdict,
    verdict::Reason,
};

use crate::{
    cluster::{CLIENT_MAC, CLIENT_OUTSIDE_MAC, HOST_MAC, UPLINK_MAC},
    expect::{both_families, both_families_with, expect, expect_drop},
    frame::{Frame, Transport},
};

/// Extension headers beyond the limit hide the protocol: the pipeline would miss the tunnel's port, while the kernel,
/// which has no limit, would decapsulate the packet.
#[test]
fn packets_with_too_many_extension_headers_are_dropped() {
    both_families_with(
        |tables| tables.config = Config { tunnel: podnet_common::addr::IfIndex(95), ..tables.config },
        |both, a, _| {
            if a.node.is_ipv4() {
                return Ok(());
            }
            for count in [7, 8, 20] {
                let mut of_pod = Frame::udp((a.client, 40_000), (a.node, TUNNEL_PORT)).macs(CLIENT_MAC, HOST_MAC);
                of_pod.extra = count;
                expect_drop(both, Hook::FromPod, &of_pod, Reason::Malformed)?;
                let outside = Frame::udp((a.outside, 40_000), (a.node, TUNNEL_PORT));
                let mut outside = outside.macs(CLIENT_OUTSIDE_MAC, UPLINK_MAC);
                outside.extra = count;
                for hook in [Hook::FromUplink, Hook::UplinkXdp] {
                    expect_drop(both, hook, &outside, Reason::Malformed)?;
                }
            }
            // Within the limit, the protocol is recognised.
            let mut of_pod = Frame::udp((a.client, 40_000), (a.node, TUNNEL_PORT)).macs(CLIENT_MAC, HOST_MAC);
            of_pod.extra = 6;
            expect_drop(both, Hook::FromPod, &of_pod, Reason::TunnelFromOutside)
        },
    );
}

/// ICMPv6 of the link: type, then the bytes behind the checksum.
fn of_link(src: &str, dst: &str, kind: u8) -> Result<Frame> {
    let message = [vec![kind, 0, 0, 0], vec![0; 28]].concat();
    let (src, dst): (IpAddr, IpAddr) = (src.parse()?, dst.parse()?);
    Ok(Frame::new(src, dst, Transport::Raw(58, message)).macs(CLIENT_MAC, HOST_MAC).ttl(255))
}

#[test]
fn pods_may_send_link_messages_for_duplicate_address_detection_only() {
    both_families(|both, _, _| {
        let (all_nodes, router, own) = ("ff02::1", "fe80::1", "fe80::5eff:fe10:1");
        // Router and neighbour solicitations and advertisements, redirects, listener queries and reports.
        for kind in [133, 134, 135, 136, 137, 130, 131, 132, 143, 128] {
            for dst in [all_nodes, router] {
                expect_drop(both, Hook::FromPod, &of_link(own, dst, kind)?, Reason::LinkScope)?;
            }
        }
        expect_drop(both, Hook::FromPod, &of_link("::", all_nodes, 134)?, Reason::LinkScope)?;
        let dhcp = Frame::udp((own.parse()?, 547), ("ff02::1:2".parse()?, 546)).macs(CLIENT_MAC, HOST_MAC);
        expect_drop(both, Hook::FromPod, &dhcp, Reason::LinkScope)?;
        let detection = of_link("::", "ff02::1:ff10:1", 135)?;
        expect(both, Hook::FromPod, &detection, FinalVerdict::Pass, &detection)?;
        // Link messages of others on the node's links belong to the host.
        let solicitation = of_link(own, "ff02::1:ff00:1", 135)?;
        expect(both, Hook::FromUplink, &solicitation, FinalVerdict::Pass, &solicitation)
    });
}

#[test]
fn packets_that_cannot_be_masqueraded_do_not_leave_the_cluster() {
    both_families(|both, a, _| {
        // GRE, ESP, IP in IP; an unsolicited echo reply; an unknown ICMP type.
        let reply = Transport::Echo { id: 9, reply: true };
        let other = Transport::Raw(if a.node.is_ipv4() { 1 } else { 58 }, vec![200, 0, 0, 0, 0, 0, 0, 0]);
        let raw = |protocol| Transport::Raw(protocol, vec![8; 24]);
        for transport in [raw(47), raw(50), raw(4), raw(41), reply, other] {
            let input = Frame::new(a.client, a.internet, transport).macs(CLIENT_MAC, HOST_MAC);
            expect_drop(both, Hook::FromPod, &input, Reason::NotMasqueraded)?;
        }
        Ok(())
    });
    both_families_with(
        |tables| tables.config.flags &= !Config::MASQUERADE,
        |both, a, _| {
            let input = Frame::new(a.client, a.internet, Transport::Raw(47, vec![8; 24])).macs(CLIENT_MAC, HOST_MAC);
            expect(both, Hook::FromPod, &input, FinalVerdict::Pass, &input)
        },
    );
}
