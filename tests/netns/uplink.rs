//! Checks at the uplink of packets from outside, in TC and in XDP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podnet::config::Xdp;
use podnet_tests::lab::{Lab, Pod, Service, client_ip, eventually};
use podnet_tests::traffic::{Ask, Family, Frames, Transport, udp_frame};

const ARRIVES: Duration = Duration::from_secs(2);
const STRAYS: Duration = Duration::from_millis(50);

struct Outside<'a> {
    lab: &'a Lab,
    pod: &'a Pod,
    out: Frames,
    into: Frames,
    macs: ([u8; 6], [u8; 6]),
}

impl<'a> Outside<'a> {
    fn new(lab: &'a Lab, pod: &'a Pod) -> Result<Self> {
        let macs = (lab.client().mac("eth0")?, lab.node(0).place.mac("eth0")?);
        Ok(Self { lab, pod, out: Frames::on(lab.client(), "eth0")?, into: Frames::on(&pod.place, "eth0")?, macs })
    }

    fn send(&self, source: IpAddr, to: SocketAddr, payload: &str) -> Result<()> {
        Ok(self.out.send(&udp_frame(self.macs, SocketAddr::new(source, 9), to, payload.as_bytes()))?)
    }

    /// Sends a bad frame, then a good one. The good one must arrive; the bad one must be dropped and counted for this
    /// reason.
    fn is_stopped(&self, what: &str, source: IpAddr, to: SocketAddr, reason: &str) -> Result<()> {
        let node = self.lab.node(0);
        let before = node.drops()?;
        self.send(source, to, "bad")?;
        self.stays_out(what, Family::of(to.ip()))?;
        let after = node.drops()?;
        let counted = after.get(reason).copied().unwrap_or(0) - before.get(reason).copied().unwrap_or(0);
        ensure!(counted == 1, "{what}: {reason} went up by {counted}: {before:?} → {after:?}");
        Ok(())
    }

    /// Sends a good frame, which must arrive, while the bad one sent before must not.
    fn stays_out(&self, what: &str, family: Family) -> Result<()> {
        self.send(client_ip(family), self.pod.addr(family, 9), "good")?;
        let mut bad = false;
        let good = self.into.expect(ARRIVES, |frame| {
            bad |= frame.ends_with(b"bad");
            frame.ends_with(b"good")
        })?;
        ensure!(good.is_some(), "{what}: the good frame behind it did not arrive");
        bad |= self.into.expect(STRAYS, |frame| frame.ends_with(b"bad"))?.is_some();
        ensure!(!bad, "{what}: it arrived");
        Ok(())
    }
}

fn checks(xdp: Xdp) -> Result<()> {
    let lab = Lab::builder().client(true).config(move |_, config| config.xdp = xdp).build()?;
    let mut pod = lab.node(0).add_pod("web-0")?;
    pod.serve(8080)?;
    let far = lab.node(1).add_pod("far")?;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &pod.ips)?;
    for family in Family::ALL {
        for transport in Transport::ALL {
            let what = format!("{transport}/{family} between nodes");
            eventually(&what, || Ok(far.place.ask(transport, service.addr(family))?))?;
        }
    }
    let outside = Outside::new(&lab, &pod)?;
    for family in Family::ALL {
        let (to, client) = (pod.addr(family, 9), client_ip(family));
        outside.is_stopped("a ClusterIP", client, service.addr(family), "cluster_ip_from_outside")?;
        outside.is_stopped("a pod of this node as source", pod.ip(family), to, "local_pod_from_outside")?;
        outside.is_stopped("a pod of node2 as source", far.ip(family), to, "pod_from_wrong_node")?;
        let martians: &[&str] = match family {
            Family::V4 => &["127.0.0.1", "224.0.0.1", "255.255.255.255"],
            Family::V6 => &["::1", "ff02::1"],
        };
        for source in martians {
            outside.is_stopped(&format!("{source} as source"), source.parse()?, to, "martian")?;
        }
        let loopback = if family == Family::V4 { "127.0.0.1:9" } else { "[::1]:9" };
        outside.is_stopped("loopback as destination", client, loopback.parse()?, "martian")?;
        // The bridge floods frames for an unknown MAC.
        let macs = (outside.macs.0, [2, 0, 0, 0, 0, 0x77]);
        outside.out.send(&udp_frame(macs, SocketAddr::new(client, 9), to, b"bad"))?;
        outside.stays_out("a frame for another machine", family)?;
    }
    let mapped = "::ffff:172.30.0.100".parse()?;
    outside.is_stopped("a mapped source", mapped, pod.addr(Family::V6, 9), "mapped_address")?;
    let mapped = "[::ffff:10.244.1.2]:9".parse()?;
    outside.is_stopped("a mapped destination", client_ip(Family::V6), mapped, "mapped_address")?;

    // Sockets show the same, and permitted traffic still works.
    for family in Family::ALL {
        let node = lab.node(0).ip(family);
        lab.client().ip(&format!("route add {} via {node}\n", service.ip(family)))?;
        for transport in Transport::ALL {
            let ask = Ask::new(transport, service.addr(family)).timeout(Duration::from_millis(300));
            if let Ok(answer) = ask.from(lab.client()) {
                bail!("{transport}/{family}: {} answered from outside", answer.server);
            }
            far.place.ask(transport, service.addr(family)).context("after all that, from a pod of the other node")?;
        }
        lab.client().ping(node).context("the node itself")?;
    }
    Ok(())
}

#[test]
fn forbidden_packets_from_outside_are_dropped_in_tc() -> Result<()> {
    checks(Xdp::Off)
}

#[test]
fn forbidden_packets_from_outside_are_dropped_in_generic_xdp() -> Result<()> {
    checks(Xdp::Generic)
}

#[test]
fn forbidden_packets_from_outside_are_dropped_in_native_xdp() -> Result<()> {
    checks(Xdp::Native)
}

#[test]
fn external_access_to_cluster_ips_can_be_enabled() -> Result<()> {
    let lab = Lab::builder().client(true).config(|_, config| config.external_cluster_ip = true).build()?;
    let mut web = [lab.node(0).add_pod("web-0")?, lab.node(0).add_pod("web-1")?];
    web.iter_mut().try_for_each(|pod| pod.serve(8080))?;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &[&web[0].ips[..], &web[1].ips[..]].concat())?;
    for family in Family::ALL {
        lab.client().ip(&format!("route add {} via {}\n", service.ip(family), lab.node(0).ip(family)))?;
        for transport in Transport::ALL {
            let what = format!("{transport}/{family} from outside");
            eventually(&what, || Ok(lab.client().ask(transport, service.addr(family))?))?;
        }
    }
    Ok(())
}
