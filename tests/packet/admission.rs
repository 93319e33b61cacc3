//! Source checks of pods, and admission of packets from outside.

use std::net::IpAddr;

use anyhow::ensure;
use podnet_common::{
    addr::IfIndex,
    layout::{Config, Hook, Out},
    simulator::FinalVerdict,
    verdict::Reason,
};

use crate::{
    cluster::{BACKEND_HOST_MAC, BACKEND_MAC, Both, CLIENT_MAC, HOST_MAC, NODE2_MAC, UPLINK_MAC, in_namespace},
    expect::{both_families, both_families_with, expect, expect_drop, from_client},
    frame::{Frame, SYN, Transport},
};

#[test]
fn pods_can_send_only_from_their_own_addresses() {
    both_families(|both, a, _| {
        for dst in [(a.backend, 8080), (a.local, 80), (a.outside, 80)] {
            for src in [a.backend, a.remote, a.outside, a.node, a.local, a.hairpin] {
                let forged = Frame::udp((src, 40_013), dst).macs(CLIENT_MAC, HOST_MAC);
                expect_drop(both, Hook::FromPod, &forged, Reason::SpoofedSource)?;
            }
            let [forged, _] = from_client((a.client, 40_013), dst).map(|f| f.macs(BACKEND_MAC, HOST_MAC));
            expect_drop(both, Hook::FromPod, &forged, Reason::SpoofedSource)?;
        }
        Ok(())
    });
}

#[test]
fn pods_can_claim_only_their_own_addresses_in_arp_and_ndp() {
    in_namespace(|uplink| {
        let both = Both::new(uplink, |_| {})?;
        let arp = |mac: [u8; 6], ip: [u8; 4]| {
            let ethernet = [[0xff; 6].as_slice(), &CLIENT_MAC, &[8, 6]].concat();
            [&ethernet[..], &[0, 1, 8, 0, 6, 4, 0, 1], &mac, &ip, &[0; 6], &[169, 254, 1, 1], &[0; 18]].concat()
        };
        ensure!(both.run(Hook::FromPod, &arp(CLIENT_MAC, [10, 244, 1, 2]))?.0 == FinalVerdict::Pass);
        ensure!(both.run(Hook::FromPod, &arp(CLIENT_MAC, [0; 4]))?.0 == FinalVerdict::Pass, "a probe");
        for (mac, ip) in [(CLIENT_MAC, [10, 244, 1, 3]), (BACKEND_MAC, [10, 244, 1, 2]), (CLIENT_MAC, [169, 254, 1, 1])]
        {
            ensure!(both.run(Hook::FromPod, &arp(mac, ip))?.0 == FinalVerdict::Drop(Reason::SpoofedSource));
        }
        let icmp6 = |src: &str, dst: &str| {
            let body = Transport::Raw(58, vec![135, 0, 0, 0, 0, 0, 0, 0]);
            Frame::new(src.parse().unwrap(), dst.parse().unwrap(), body).macs(CLIENT_MAC, HOST_MAC)
        };
        for (src, dst) in [("::", "ff02::1:ff00:2"), ("fd00:244:1::2", "ff02::1:ff00:1"), ("fd00:244:1::2", "fe80::1")]
        {
            let own = icmp6(src, dst);
            expect(&both, Hook::FromPod, &own, FinalVerdict::Pass, &own)?;
        }
        for (src, dst) in [("fe80::c", "ff02::1:ff00:1"), ("fe80::c", "fe80::1")] {
            expect_drop(&both, Hook::FromPod, &icmp6(src, dst), Reason::LinkScope)?;
        }
        for (src, dst) in [("fe80::c", "fd00:244:1::3"), ("::", "fd00:244:1::3"), ("fe80::c", "2001:db8::1")] {
            expect_drop(&both, Hook::FromPod, &icmp6(src, dst), Reason::SpoofedSource)?;
        }
        // Neither IP nor ARP: an LLDP frame.
        let lldp = [&[1, 0x80, 0xc2, 0, 0, 0xe], &CLIENT_MAC[..], &[0x88, 0xcc], &[0; 50]].concat();
        ensure!(both.run(Hook::FromPod, &lldp)?.0 == FinalVerdict::Drop(Reason::NotIp));
        Ok(())
    });
}

#[test]
fn forbidden_packets_from_outside_are_dropped_at_tc_and_xdp() {
    both_families(|both, a, _| {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let (loopback, multicast) =
            if a.client.is_ipv4() { (ip("127.0.0.1"), ip("224.0.0.5")) } else { (ip("::1"), ip("ff0e::5")) };
        let unspecified = ip(if a.client.is_ipv4() { "0.0.0.0" } else { "::" });
        let outside_mac = [2, 0, 0, 0, 7, 7];
        let cases = [
            (a.outside, a.local, outside_mac, Reason::ClusterIpFromOutside),
            (a.outside, a.nobody, outside_mac, Reason::ClusterIpFromOutside),
            (a.remote, a.local, NODE2_MAC, Reason::ClusterIpFromOutside),
            (a.backend, a.client, outside_mac, Reason::LocalPodFromOutside),
            (a.client, a.node, NODE2_MAC, Reason::LocalPodFromOutside),
            (a.remote, a.client, outside_mac, Reason::PodFromWrongNode),
            (a.node, a.client, outside_mac, Reason::Martian),
            (a.local, a.client, outside_mac, Reason::Martian),
            (loopback, a.client, outside_mac, Reason::Martian),
            (multicast, a.client, outside_mac, Reason::Martian),
            (a.outside, loopback, outside_mac, Reason::Martian),
            (unspecified, a.client, outside_mac, Reason::Martian),
        ];
        for hook in [Hook::FromUplink, Hook::UplinkXdp] {
            for (src, dst, mac, reason) in cases {
                for frame in [Frame::tcp((src, 40_014), (dst, 80), SYN), Frame::udp((src, 40_014), (dst, 80))] {
                    expect_drop(both, hook, &frame.macs(mac, UPLINK_MAC), reason)?;
                }
            }
            // Allowed: another node's pod through its node, and any sender to the host.
            let pod = Frame::udp((a.remote, 40_014), (a.outside, 80)).macs(NODE2_MAC, UPLINK_MAC);
            expect(both, hook, &pod, FinalVerdict::Pass, &pod)?;
            let other = Frame::udp((a.outside, 40_014), (a.node, 80)).macs(outside_mac, UPLINK_MAC);
            expect(both, hook, &other, FinalVerdict::Pass, &other)?;
        }
        Ok(())
    });
}

#[test]
fn mapped_addresses_in_ipv6_packets_are_dropped() {
    in_namespace(|uplink| {
        let both = Both::new(uplink, |_| {})?;
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        for (src, dst) in [
            ("::ffff:10.244.1.2", "fd00:244:1::3"),
            ("fd00:244:1::2", "::ffff:10.96.0.10"),
            ("::ffff:10.244.1.2", "::ffff:10.96.0.10"),
        ] {
            for hook in [Hook::FromPod, Hook::FromUplink, Hook::UplinkXdp] {
                let frame = Frame::udp((ip(src), 40_015), (ip(dst), 80)).macs(CLIENT_MAC, HOST_MAC);
                let (verdict, _) = both.run(hook, &frame.bytes())?;
                ensure!(verdict == FinalVerdict::Drop(Reason::MappedAddress), "{hook:?} {src} {dst}: {verdict:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn external_access_to_cluster_ips_can_be_enabled() {
    both_families_with(
        |tables| tables.config.flags = Config::EXTERNAL_CLUSTER_IP,
        |both, a, _| {
            for input in
                [Frame::tcp((a.outside, 40_016), (a.local, 80), SYN), Frame::udp((a.outside, 40_016), (a.local, 80))]
            {
                let there = input
                    .translated((a.outside, 40_016), (a.backend, 8080))
                    .ttl(63)
                    .macs(BACKEND_HOST_MAC, BACKEND_MAC);
                expect(both, Hook::FromUplink, &input, FinalVerdict::Forward(Out::Pod, IfIndex(71)), &there)?;
                expect(both, Hook::UplinkXdp, &input, FinalVerdict::Pass, &input)?;
            }
            Ok(())
        },
    );
}
