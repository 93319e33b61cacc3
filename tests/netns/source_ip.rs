//! Source addresses that backends see: the rows for ClusterIP of the table that defines them.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use podnet::model::SourceIp;
use podnet_tests::lab::{Lab, Node, Place, Pod, Service, eventually};
use podnet_tests::traffic::{Family, Transport};

/// Pods of the table: a backend and another pod on one node, a third pod on the other.
struct Pods {
    backend: Pod,
    near: Pod,
    far: Pod,
}

impl Pods {
    fn on(lab: &Lab) -> Result<Self> {
        let mut backend = lab.node(0).add_pod("backend")?;
        backend.serve(8080)?;
        Ok(Self { backend, near: lab.node(0).add_pod("near")?, far: lab.node(1).add_pod("far")? })
    }

    /// Every kind of client, with the source address that the backend must see.
    fn cases<'a>(&'a self, lab: &'a Lab, snat: bool, family: Family) -> Vec<(&'a Place, IpAddr)> {
        let source = |pod: &Pod| if snat { pod.node().ip(family) } else { pod.ip(family) };
        vec![
            (&self.near.place, source(&self.near)),
            (&self.far.place, source(&self.far)),
            (&self.backend.place, hairpin_address(lab.node(0), family)),
            (&lab.node(0).place, lab.node(0).ip(family)),
            (&lab.node(1).place, lab.node(1).ip(family)),
        ]
    }
}

/// The reserved first address of the node's pod CIDR.
fn hairpin_address(node: &Node, family: Family) -> IpAddr {
    let range: ipnetwork::IpNetwork = node.pod_cidrs()[family as usize].parse().expect("is a CIDR");
    range.iter().nth(1).expect("has a first address")
}

/// Sends requests from all places, several times: the first packet of a flow takes another path than the others.
fn check(lab: &Lab, pods: &Pods, service: &Service, snat: bool, what: &str) -> Result<()> {
    for family in Family::ALL {
        for transport in Transport::ALL {
            for (place, expected) in pods.cases(lab, snat, family) {
                let what = format!("{what}: {transport}/{family} from {}", place.name());
                eventually(&what, || Ok(place.ask(transport, service.addr(family))?))?;
                for _ in 0..3 {
                    let answer = place.ask(transport, service.addr(family))?;
                    ensure!(answer.server == "backend", "{what}: {} answered", answer.server);
                    let seen = answer.seen.ip();
                    ensure!(seen == expected, "{what}: the backend sees {seen} instead of {expected}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn annotation_sets_the_mode_of_a_service() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pods = Pods::on(&lab)?;
    for (number, mode) in (20..).zip(["auto", "preserve", "snat"]) {
        let service = Service::new(mode, number, 80, 8080);
        service.apply(&lab, Some(mode))?;
        service.set_endpoints(&lab, &pods.backend.ips)?;
        check(&lab, &pods, &service, mode == "snat", mode)?;
    }
    Ok(())
}

#[test]
fn configuration_sets_the_default_mode() -> Result<()> {
    let lab = Lab::builder().config(|_, config| config.source_ip = SourceIp::Snat).build()?;
    let pods = Pods::on(&lab)?;
    for (number, annotation) in (20..).zip([None, Some("preserve")]) {
        let name = annotation.unwrap_or("default");
        let service = Service::new(name, number, 80, 8080);
        service.apply(&lab, annotation)?;
        service.set_endpoints(&lab, &pods.backend.ips)?;
        check(&lab, &pods, &service, annotation.is_none(), name)?;
    }
    Ok(())
}

#[test]
fn mode_can_be_changed_on_a_live_service() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pods = Pods::on(&lab)?;
    let service = Service::new("web", 20, 80, 8080);
    service.set_endpoints(&lab, &pods.backend.ips)?;
    for mode in ["auto", "snat", "auto"] {
        service.apply(&lab, Some(mode))?;
        let family = Family::V4;
        let expected = if mode == "snat" { lab.node(1).ip(family) } else { pods.far.ip(family) };
        eventually(mode, || {
            let seen = pods.far.place.ask(Transport::Tcp, service.addr(family))?.seen.ip();
            ensure!(seen == expected, "the backend sees {seen} instead of {expected}");
            Ok(())
        })?;
    }
    Ok(())
}
