//! The cluster of demonstration and shell: two nodes, an external client, three replicas of a server, a client pod on
//! each node, the tutorial's pod, the Services of `examples/`, and three more for measurements.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};

use super::report::PodRow;
use crate::lab::{Lab, Pod, Service};

/// Manifests of `examples/` that the demonstration applies. Their EndpointSlices contain addresses of no pods here, so
/// only their Services are used.
const EXAMPLES: [(&str, &str); 2] =
    [("web", include_str!("../../../examples/web.yaml")), ("dns", include_str!("../../../examples/dns.yaml"))];

/// The tutorial's Services, one of each type.
const SOURCE_IP: &str = include_str!("../../../examples/source-ip.yaml");

/// Pods: name, index of the node.
const PODS: [(&str, usize); 6] =
    [("client-1", 0), ("client-2", 1), ("web-0", 0), ("web-1", 1), ("web-2", 0), (SOURCE_IP_APP, 0)];

/// Name of the tutorial's pod.
pub(super) const SOURCE_IP_APP: &str = "source-ip-app";

/// Replicas of the services.
pub(super) const REPLICAS: [&str; 3] = ["web-0", "web-1", "web-2"];

/// Port of the servers in the pods, for Services defined by the demonstration.
pub(super) const SERVER_PORT: u16 = 7000;
/// iperf3's port, in pods and Services.
pub(super) const IPERF_PORT: u16 = 5201;

/// Services that receive requests.
#[derive(Debug)]
pub(super) struct Services {
    /// TCP, from the examples.
    pub(super) web: Service,
    /// UDP, from the examples.
    pub(super) dns: Service,
    /// For the source-IP table, one for each mode.
    pub(super) modes: [(&'static str, Service); 2],
    /// The tutorial's: ClusterIP, NodePort, LoadBalancer.
    pub(super) tutorial: [Service; 3],
    /// For throughput.
    pub(super) iperf: Service,
}

impl Services {
    fn new() -> Result<Self> {
        let [web, dns] = EXAMPLES.map(|(name, manifest)| example(name, manifest));
        let tutorial = examples("source-ip", SOURCE_IP)?;
        let tutorial = tutorial.try_into().ok().context("examples/source-ip.yaml has not three Services")?;
        let mode = |mode, number| (mode, Service::new(&format!("source-{mode}"), number, 80, SERVER_PORT));
        Ok(Self {
            web: web?,
            dns: dns?,
            modes: [mode("auto", 201), mode("snat", 202)],
            tutorial,
            iperf: Service::new("iperf3", 203, IPERF_PORT, IPERF_PORT),
        })
    }
}

/// The running cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    // Before the lab: servers stop before their namespaces are destroyed.
    pub(super) pods: BTreeMap<String, Pod>,
    pub(super) services: Services,
    pub(super) lab: Lab,
}

impl Cluster {
    /// Builds the lab and waits for the daemons.
    pub(super) fn start() -> Result<Self> {
        let services = Services::new()?;
        let lab = Lab::builder().nodes(2).client(true).build()?;
        Ok(Self { pods: BTreeMap::new(), services, lab })
    }

    /// Creates the pods through the plugin and starts their servers.
    pub(super) fn add_pods(&mut self) -> Result<()> {
        PODS.iter().try_for_each(|(name, node)| self.add_pod(name, *node))
    }

    /// Creates one pod.
    pub(super) fn add_pod(&mut self, name: &str, node: usize) -> Result<()> {
        let mut pod = self.lab.node(node).add_pod(name)?;
        for port in [SERVER_PORT, self.services.web.target(), self.services.dns.target()] {
            pod.serve(port)?;
        }
        self.pods.insert(name.to_owned(), pod);
        Ok(())
    }

    /// An existing pod.
    pub(super) fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("there is no pod {name}"))
    }

    /// Applies the Services of the example and of the demonstration, with three replicas.
    pub(super) fn apply_services(&self) -> Result<()> {
        let Services { web, dns, tutorial, .. } = &self.services;
        for service in [web, dns].into_iter().chain(tutorial) {
            service.apply(&self.lab, None)?;
        }
        for service in tutorial {
            service.set_endpoints(&self.lab, &[self.pod(SOURCE_IP_APP)?])?;
        }
        for (mode, service) in &self.services.modes {
            service.apply(&self.lab, Some(mode))?;
            service.set_endpoints(&self.lab, &self.pod("web-0")?.ips)?;
        }
        self.services.iperf.apply(&self.lab, None)?;
        self.services.iperf.set_endpoints(&self.lab, &self.pod("web-0")?.ips)?;
        self.scale(3)
    }

    /// Makes the first `replicas` web pods the endpoints of the example's Services.
    pub(super) fn scale(&self, replicas: usize) -> Result<()> {
        let mut ips: Vec<IpAddr> = Vec::new();
        for name in &REPLICAS[..replicas] {
            ips.extend(&self.pod(name)?.ips);
        }
        let services = [&self.services.web, &self.services.dns];
        services.into_iter().try_for_each(|service| service.set_endpoints(&self.lab, &ips))
    }

    /// The pods as rows of the report.
    pub(super) fn rows(&self) -> Vec<PodRow> {
        let row = |pod: &Pod| PodRow { name: pod.name().into(), node: pod.node().name().into(), ips: pod.ips.clone() };
        self.pods.values().map(row).collect()
    }
}

fn is_service(document: &str) -> bool {
    document.lines().any(|line| line.trim_end() == "kind: Service")
}

/// The Services of an example.
fn examples(name: &str, manifest: &str) -> Result<Vec<Service>> {
    let documents = manifest.split("\n---").filter(|document| is_service(document));
    let services: Result<_> =
        documents.map(|document| Service::from_object(serde_saphyr::from_str(document)?)).collect();
    services.with_context(|| format!("examples/{name}.yaml is not usable in the demonstration"))
}

/// The only Service of an example.
fn example(name: &str, manifest: &str) -> Result<Service> {
    examples(name, manifest)?.pop().with_context(|| format!("examples/{name}.yaml has no Service"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Family;

    #[test]
    fn examples_are_dual_stack_and_distinct() {
        let services = Services::new().unwrap();
        for family in Family::ALL {
            let addrs = [services.web.addr(family), services.dns.addr(family)];
            assert!(addrs.iter().all(|addr| Family::of(addr.ip()) == family), "{addrs:?}");
            assert_ne!(addrs[0], addrs[1]);
        }
    }
}
