//! Connectivity without translation between pods, nodes and external machines.

use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use podnet_tests::lab::{Families, Lab, Pod, client_ip, eventually};
use podnet_tests::traffic::{Ask, Family, Transport};

/// Waits for the routes between the nodes, which follow from the Node objects.
fn routes_are_there(from: &Pod, to: &Pod, family: Family) -> Result<()> {
    eventually("a route to the other node's pods", || Ok(from.place.ping(to.ip(family))?))
}

fn all_pairs(families: Families) -> Result<()> {
    let lab = Lab::builder().families(families).build()?;
    let mut pods = vec![lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    for pod in &mut pods {
        assert_eq!(pod.ips.len(), families.list().len());
        pod.serve(8080)?;
    }
    let _hosts = [lab.node(0).serve(9090)?, lab.node(1).serve(9090)?];
    for &family in families.list() {
        routes_are_there(&pods[0], &pods[2], family)?;
        for from in &pods {
            for to in &pods {
                from.place.is_seen_as(from.ip(family), to.addr(family, 8080), to.name())?;
            }
            for node in lab.nodes() {
                from.place.is_seen_as(from.ip(family), (node.ip(family), 9090).into(), node.name())?;
            }
        }
        for node in lab.nodes() {
            for to in &pods {
                node.place.is_seen_as(node.ip(family), to.addr(family, 8080), to.name())?;
            }
        }
    }
    Ok(())
}

#[test]
fn pods_and_hosts_reach_each_other_dual_stack() -> Result<()> {
    all_pairs(Families::Dual)
}

#[test]
fn pods_and_hosts_reach_each_other_ipv4() -> Result<()> {
    all_pairs(Families::V4)
}

#[test]
fn pods_and_hosts_reach_each_other_ipv6() -> Result<()> {
    all_pairs(Families::V6)
}

#[test]
fn external_machine_with_a_route_and_pods_reach_each_other() -> Result<()> {
    let lab = Lab::builder().nodes(1).client(true).build()?;
    let mut pod = lab.node(0).add_pod("a")?;
    pod.serve(8080)?;
    let client = lab.client();
    for family in Family::ALL {
        let gateway = lab.node(0).ip(family);
        client.ip(&format!("route add {} via {gateway}\n", lab.node(0).pod_cidrs()[family as usize]))?;
        let own = client_ip(family);
        client.is_seen_as(own, pod.addr(family, 8080), "a")?;
        pod.place.ping(own).context("from the pod")?;
    }
    Ok(())
}

#[test]
fn unused_pod_address_is_unreachable_at_once() -> Result<()> {
    let lab = Lab::builder().client(true).build()?;
    let [near, far] = [lab.node(0).add_pod("near")?, lab.node(1).add_pod("far")?];
    let gone = lab.node(0).add_pod("gone")?;
    let client = lab.client();
    for family in Family::ALL {
        routes_are_there(&far, &gone, family)?;
        // A gateway with routes to the pods: it returns what the node sends to it.
        client.set_sysctl(&format!("net.{}.conf.all.forwarding", family.name().to_lowercase()), "1")?;
        client.ip(&format!(
            "route add {} via {}\n",
            lab.node(0).pod_cidrs()[family as usize],
            lab.node(0).ip(family)
        ))?;
        lab.node(0).place.ip(&format!("route replace default via {}\n", client_ip(family)))?;
    }
    let addresses = Family::ALL.map(|family| gone.addr(family, 8080));
    gone.delete()?;
    for to in addresses {
        for place in [&near.place, &far.place, &lab.node(0).place, &lab.node(1).place, client] {
            let asked = Ask::new(Transport::Tcp, to).from(place);
            // When forwarding, IPv6 sends "no route"; "address unreachable" is for local senders only.
            let told = asked
                .as_ref()
                .is_err_and(|error| matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable));
            ensure!(told, "from {} to {to}: {asked:?}", place.name());
        }
    }
    Ok(())
}

#[test]
fn addresses_of_a_deleted_pod_are_not_reused_at_once() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let observer = lab.node(0).add_pod("observer")?;
    let mut seen = observer.ips.clone();
    for round in 0..5 {
        let pod = lab.node(0).add_pod("again")?;
        ensure!(pod.ips.iter().all(|ip| !seen.contains(ip)), "round {round}: {:?} was used before", pod.ips);
        seen.extend(&pod.ips);
        let (ip, link) = (pod.ip(Family::V4), pod.host_ifname()?);
        observer.place.ping(ip)?;
        pod.delete()?;
        ensure!(observer.place.ping(ip).is_err(), "{ip} still answers");
        ensure!(lab.node(0).place.ifindex(&link).is_err(), "the link {link} is still there");
    }
    Ok(())
}
