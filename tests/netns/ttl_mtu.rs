//! Redirected packets skip the host's stack, which would decrement TTLs and check sizes; the datapath does both.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use podnet_tests::lab::{Lab, Node, Pod, Service, eventually};
use podnet_tests::traffic::{Ask, Family, Ping, PingAnswer, Transport};

/// ICMP type of "time exceeded".
fn time_exceeded(family: Family) -> u8 {
    if family == Family::V4 { 11 } else { 3 }
}

/// ICMP type and code of "packet too big".
fn too_big(family: Family) -> (u8, u8) {
    if family == Family::V4 { (3, 4) } else { (2, 0) }
}

/// Length of IP and ICMP headers.
fn headers(family: Family) -> usize {
    if family == Family::V4 { 28 } else { 48 }
}

fn dies_at(from: &Pod, to: &Pod, family: Family, ttl: u32, node: &Node) -> Result<()> {
    match Ping::new(to.ip(family)).ttl(ttl).from(&from.place)? {
        PingAnswer::Error { from, kind, .. } if kind == time_exceeded(family) => {
            ensure!(node.owns(from)?, "TTL {ttl}: {from} reports, which is not {}", node.name());
            Ok(())
        }
        other => bail!("TTL {ttl}: {other:?}"),
    }
}

#[test]
fn every_node_on_the_way_counts_as_a_hop() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pods = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    for family in Family::ALL {
        let reply = |to: &Pod, ttl| -> Result<()> {
            let answer = Ping::new(to.ip(family)).ttl(ttl).from(&pods[0].place)?;
            ensure!(answer == PingAnswer::Reply(to.ip(family)), "{family}, TTL {ttl}: {answer:?}");
            Ok(())
        };
        eventually("a route", || reply(&pods[2], 64))?;
        dies_at(&pods[0], &pods[1], family, 1, lab.node(0)).with_context(|| format!("{family} on one node"))?;
        reply(&pods[1], 2)?;
        dies_at(&pods[0], &pods[2], family, 1, lab.node(0)).with_context(|| format!("{family} across nodes"))?;
        dies_at(&pods[0], &pods[2], family, 2, lab.node(1)).with_context(|| format!("{family} across nodes"))?;
        reply(&pods[2], 3)?;
    }
    Ok(())
}

#[test]
fn pods_get_the_mtu_of_the_uplink() -> Result<()> {
    let lab = Lab::builder().nodes(1).mtu(1450).build()?;
    let pod = lab.node(0).add_pod("a")?;
    let link: serde_json::Value = serde_json::from_str(&pod.place.run("ip", &["-json", "link", "show", "eth0"])?)?;
    assert_eq!(link[0]["mtu"], 1450);
    Ok(())
}

/// MTU of the narrow link between the nodes.
const SMALL: usize = 1400;

/// A server pod on the other node, behind a service, and a link between the nodes with a smaller MTU than the pods'.
fn narrow() -> Result<(Lab, Pod, Service)> {
    let lab = Lab::builder().build()?;
    let mut far = lab.node(1).add_pod("far")?;
    far.serve(8080)?;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &far.ips)?;
    let client = lab.node(0).add_pod("client")?;
    for family in Family::ALL {
        for addr in [service.addr(family), far.addr(family, 8080)] {
            exchange(&client, addr).with_context(|| format!("{family}: at the full MTU"))?;
        }
    }
    lab.node(0).place.ip(&format!("link set eth0 mtu {SMALL}\n"))?;
    Ok((lab, far, service))
}

/// A request and a reply of many segments.
fn exchange(from: &Pod, to: SocketAddr) -> Result<()> {
    let large = "x".repeat(60_000);
    let ask = Ask::new(Transport::Tcp, to).payload(&large);
    eventually("a large exchange", || {
        let answer = ask.from(&from.place).with_context(|| format!("with {to}"))?;
        ensure!(answer.payload == large, "the answer is not what was sent");
        Ok(())
    })
}

#[test]
fn oversized_packets_are_reported_to_their_sender() -> Result<()> {
    let (lab, far, _) = narrow()?;
    let pod = lab.node(0).add_pod("pod")?;
    for family in Family::ALL {
        let fits = Ping::new(far.ip(family)).payload(SMALL - headers(family));
        let over = Ping::new(far.ip(family)).payload(SMALL - headers(family) + 1);
        match over.from(&pod.place)? {
            PingAnswer::Error { kind, code, info, .. } if (kind, code) == too_big(family) => {
                ensure!(info as usize == SMALL, "{family}: the reported MTU is {info}");
            }
            other => bail!("{family}: {other:?}"),
        }
        ensure!(fits.from(&pod.place)? == PingAnswer::Reply(far.ip(family)), "{family}: what fits does not arrive");
        // A new pod has no cached path MTU.
        let fresh = lab.node(0).add_pod("fresh")?;
        exchange(&fresh, far.addr(family, 8080)).with_context(|| family.name())?;
    }
    Ok(())
}

#[test]
fn path_mtu_discovery_works_through_services() -> Result<()> {
    let (lab, _far, service) = narrow()?;
    for family in Family::ALL {
        // The error quotes a packet to the backend; the pod must see it as an error about its packet to the service.
        let fresh = lab.node(0).add_pod("fresh")?;
        exchange(&fresh, service.addr(family)).with_context(|| family.name())?;
    }
    Ok(())
}

#[test]
fn datagrams_larger_than_the_mtu_arrive_complete() -> Result<()> {
    let lab = Lab::builder().build()?;
    let client = lab.node(0).add_pod("client")?;
    let mut servers = [lab.node(0).add_pod("near")?, lab.node(1).add_pod("far")?];
    let large = "y".repeat(5000);
    for server in &mut servers {
        server.serve(8080)?;
        for family in Family::ALL {
            let what = format!("{family} to {}", server.name());
            eventually(&what, || {
                let ask = Ask::new(Transport::Udp, server.addr(family, 8080)).payload(&large);
                let answer = ask.from(&client.place)?;
                ensure!(answer.payload == large, "the answer is not what was sent");
                Ok(())
            })?;
        }
    }
    Ok(())
}
