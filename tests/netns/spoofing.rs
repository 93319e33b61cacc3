//! Pods may send only from their own addresses and MAC; other packets are dropped and counted.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet_tests::lab::{Lab, Pod};
use podnet_tests::traffic::{Family, Frames, udp_frame};

/// Timeout for a frame that may arrive.
const ARRIVES: Duration = Duration::from_secs(2);
/// Additional time for a frame that must not arrive, after a later one has.
const STRAYS: Duration = Duration::from_millis(50);

struct Attack<'a> {
    attacker: &'a Pod,
    victim: &'a Pod,
    out: Frames,
    into: Frames,
    macs: ([u8; 6], [u8; 6]),
}

impl<'a> Attack<'a> {
    fn new(attacker: &'a Pod, victim: &'a Pod) -> Result<Self> {
        let own = attacker.place.mac("eth0")?;
        let gateway = attacker.node().place.mac(&attacker.host_ifname()?)?;
        let (out, into) = (Frames::on(&attacker.place, "eth0")?, Frames::on(&victim.place, "eth0")?);
        Ok(Self { attacker, victim, out, into, macs: (own, gateway) })
    }

    fn send(&self, macs: ([u8; 6], [u8; 6]), source: IpAddr, payload: &str) -> Result<()> {
        let to = SocketAddr::new(self.victim.ip(Family::of(source)), 9);
        Ok(self.out.send(&udp_frame(macs, SocketAddr::new(source, 9), to, payload.as_bytes()))?)
    }

    fn arrives(&self, payload: &str, within: Duration) -> Result<bool> {
        let wanted = |frame: &[u8]| frame.windows(payload.len()).any(|part| part == payload.as_bytes());
        Ok(self.into.expect(within, wanted)?.is_some())
    }

    /// Sends a forged frame, then a valid one. The valid one must arrive; the forged one must be dropped and counted.
    fn is_stopped(&self, what: &str, macs: ([u8; 6], [u8; 6]), source: IpAddr, reason: &str) -> Result<()> {
        let node = self.attacker.node();
        let before = node.drops()?;
        self.send(macs, source, "forged")?;
        let mut forged = false;
        self.send(self.macs, self.attacker.ip(Family::of(source)), "honest")?;
        let honest = self.into.expect(ARRIVES, |frame| {
            forged |= frame.ends_with(b"forged");
            frame.ends_with(b"honest")
        })?;
        ensure!(honest.is_some(), "{what}: the honest frame behind it did not arrive");
        ensure!(!forged && !self.arrives("forged", STRAYS)?, "{what}: the forged frame arrived");
        let after = node.drops()?;
        let counted = after.get(reason).copied().unwrap_or(0) - before.get(reason).copied().unwrap_or(0);
        ensure!(counted == 1, "{what}: {reason} went up by {counted}: {before:?} → {after:?}");
        Ok(())
    }
}

#[test]
fn forged_sources_are_dropped_and_counted() -> Result<()> {
    let lab = Lab::builder().build()?;
    let attacker = lab.node(0).add_pod("attacker")?;
    let victims = [lab.node(0).add_pod("near")?, lab.node(1).add_pod("far")?];
    let bystander = lab.node(0).add_pod("bystander")?;
    for victim in &victims {
        let attack = Attack::new(&attacker, victim)?;
        for family in Family::ALL {
            let unused: IpAddr = match family {
                Family::V4 => "10.244.1.200".parse()?,
                Family::V6 => "fd00:244:1::200".parse()?,
            };
            let elsewhere: IpAddr = match family {
                Family::V4 => "192.0.2.1".parse()?,
                Family::V6 => "2001:db8::1".parse()?,
            };
            for (what, source) in [
                ("an unused address of the node", unused),
                ("an address from elsewhere", elsewhere),
                ("another pod's address", bystander.ip(family)),
                ("the victim's own address", victim.ip(family)),
                ("the node's address", lab.node(0).ip(family)),
            ] {
                let what = format!("{family} to {}: {what}", victim.name());
                attack.is_stopped(&what, attack.macs, source, "spoofed_source").with_context(|| what.clone())?;
            }
            let foreign = ([2, 0, 0, 0, 0, 1], attack.macs.1);
            let what = format!("{family} to {}: a foreign MAC", victim.name());
            attack.is_stopped(&what, foreign, attacker.ip(family), "spoofed_source").with_context(|| what.clone())?;
        }
    }
    Ok(())
}

#[test]
fn address_and_mac_of_another_pod_are_dropped() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let (attacker, victim) = (lab.node(0).add_pod("attacker")?, lab.node(0).add_pod("victim")?);
    let bystander = lab.node(0).add_pod("bystander")?;
    let attack = Attack::new(&attacker, &victim)?;
    let macs = (bystander.place.mac("eth0")?, attack.macs.1);
    for family in Family::ALL {
        attack.is_stopped(&format!("{family}"), macs, bystander.ip(family), "spoofed_source")?;
    }
    Ok(())
}

#[test]
fn non_ip_frames_are_dropped() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let (attacker, victim) = (lab.node(0).add_pod("attacker")?, lab.node(0).add_pod("victim")?);
    let attack = Attack::new(&attacker, &victim)?;
    let before = lab.node(0).drops()?;
    // Experimental EtherType, assigned by IEEE 802 for such uses.
    let frame = [&attack.macs.1[..], &attack.macs.0[..], &[0x88, 0xb5], &[0; 46][..]].concat();
    attack.out.send(&frame)?;
    attack.send(attack.macs, attacker.ip(Family::V4), "honest")?;
    ensure!(attack.arrives("honest", ARRIVES)?, "the honest frame did not arrive");
    let after = lab.node(0).drops()?;
    ensure!(after.get("not_ip") == Some(&(before.get("not_ip").unwrap_or(&0) + 1)), "{before:?} → {after:?}");
    Ok(())
}

#[test]
fn pods_have_link_local_addresses() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let pod = lab.node(0).add_pod("pod")?;
    // The gateway owns its addresses, so that workloads can resolve it.
    pod.place.run("ip", &["neigh", "flush", "all"])?;
    for gateway in ["169.254.1.1", "fe80::1"] {
        let scoped = if gateway.contains(':') { "%eth0" } else { "" };
        let output = pod.place.run("ip", &["-json", "route", "get", gateway, "oif", "eth0"]);
        output.with_context(|| format!("no route to {gateway}{scoped}"))?;
    }
    // Other link-local messages of the pod's kernel, about groups and routers, are not needed.
    let drops = || -> Result<_> {
        let mut drops = lab.node(0).drops()?;
        drops.remove("link_scope");
        Ok(drops)
    };
    let before = drops()?;
    ensure!(pod.place.ping("169.254.1.1".parse()?).is_ok(), "the IPv4 gateway does not answer");
    // The flushed neighbour is resolved again, with the pod's own address as source.
    pod.place.ping(lab.node(0).ip(Family::V6)).context("the node by way of the IPv6 gateway")?;
    let after = drops()?;
    ensure!(before == after, "{before:?} → {after:?}");
    Ok(())
}
