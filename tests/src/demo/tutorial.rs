//! The Kubernetes tutorial "Using Source IP" from end to end, with the Services of `examples/source-ip.yaml`.
//!
//! A pod on node1 reports the source address of requests. A pod sends requests to the ClusterIP, and the external
//! client to a NodePort of each node and to the load balancer's address. The load balancer is the client's own route to
//! one of the nodes; with `externalTrafficPolicy: Local`, to the node whose health check reports the pod.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::cluster::{Cluster, SOURCE_IP_APP};
use super::report::SourceRow;
use crate::lab::{Node, Place, client_ip, eventually};
use crate::traffic::{Family, Outcome, Transport, http_get};

/// Value in the table for packets that must be dropped.
const DROPPED: &str = "dropped";
/// The healthCheckNodePort that Kubernetes would allocate.
const HEALTH_CHECK: u16 = 32_122;

/// The tutorial in progress.
pub(super) struct Tutorial<'a> {
    cluster: &'a Cluster,
    rows: Vec<SourceRow>,
}

impl<'a> Tutorial<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, rows: Vec::new() }
    }

    /// Rows so far.
    pub(super) fn rows(self) -> Vec<SourceRow> {
        self.rows
    }

    fn node(&self, index: usize) -> &'a Node {
        self.cluster.lab.node(index)
    }

    /// Sends requests and adds a row; `expected` is the source address that the pod must see, or `None` if packets must
    /// be dropped.
    fn ask(&mut self, client: &str, place: &Place, frontend: SocketAddr, mode: &str, expected: Option<IpAddr>) {
        let wanted = expected.map_or(Outcome::Silence, |ip| Outcome::answer(SOURCE_IP_APP, ip));
        let mut last = Outcome::Silence;
        let pass = eventually("as expected", || {
            last = place.outcome(Transport::Tcp, frontend);
            ensure!(last == wanted, "{last}");
            Ok(())
        });
        let (backend, seen) = match last {
            Outcome::Answer { server, seen } => (server, seen.to_string()),
            Outcome::Silence => ("none".to_owned(), DROPPED.to_owned()),
            other => ("none".to_owned(), other.to_string()),
        };
        self.rows.push(SourceRow {
            client: client.to_owned(),
            frontend: frontend.to_string(),
            mode: mode.to_owned(),
            family: Family::of(frontend.ip()).name().to_owned(),
            protocol: Transport::Tcp.name().to_owned(),
            backend,
            expected: expected.map_or(DROPPED.to_owned(), |ip| ip.to_string()),
            seen,
            pass: pass.is_ok(),
        });
    }

    /// Requires that all rows since `start` are as expected.
    fn passed(&self, start: usize, what: String) -> Result<String> {
        let wrong = self.rows[start..].iter().filter(|row| !row.pass).count();
        ensure!(wrong == 0, "{wrong} of {} rows of the table differ", self.rows.len() - start);
        Ok(what)
    }

    /// Source IP for Services of type ClusterIP.
    pub(super) fn cluster_ip(&mut self) -> Result<String> {
        let start = self.rows.len();
        let service = &self.cluster.services.tutorial[0];
        for family in Family::ALL {
            for (name, what) in [("client-1", "pod, same node"), ("client-2", "pod, other node")] {
                let pod = self.cluster.pod(name)?;
                self.ask(&format!("{name} ({what})"), &pod.place, service.addr(family), "auto", Some(pod.ip(family)));
            }
        }
        self.passed(start, "the pod sees the addresses of the client pods".to_owned())
    }

    /// Source IP for Services of type NodePort: as created, and with the client's address preserved by podnet.
    pub(super) fn node_port(&mut self) -> Result<String> {
        let start = self.rows.len();
        let service = &self.cluster.services.tutorial[1];
        for mode in ["auto", "preserve"] {
            service.apply(&self.cluster.lab, (mode == "preserve").then_some(mode))?;
            for family in Family::ALL {
                for (index, what) in [(0, "the pod's node"), (1, "the other node")] {
                    let node = self.node(index);
                    let kept = mode == "preserve" || index == 0;
                    let expected = if kept { client_ip(family) } else { node.ip(family) };
                    let frontend = service.at(node, family);
                    self.ask(
                        &format!("client (outside), asks {what}"),
                        self.cluster.lab.client(),
                        frontend,
                        mode,
                        Some(expected),
                    );
                }
            }
        }
        self.passed(
            start,
            "via the pod's node the client, via the other one that node, or by a setting the client too".to_owned(),
        )
    }

    /// Same, with `externalTrafficPolicy: Local`, on the nodes with and without the pod.
    pub(super) fn node_port_local(&mut self) -> Result<String> {
        let start = self.rows.len();
        let service = self.cluster.services.tutorial[1].clone().external_local();
        service.apply(&self.cluster.lab, None)?;
        for family in Family::ALL {
            for (index, what) in [(0, "the pod's node"), (1, "the other node")] {
                let expected = if index == 0 { Some(client_ip(family)) } else { None };
                let frontend = service.at(self.node(index), family);
                self.ask(
                    &format!("client (outside), asks {what}"),
                    self.cluster.lab.client(),
                    frontend,
                    "auto, Local",
                    expected,
                );
            }
        }
        self.passed(start, "via the pod's node the client, via the other one no answer".to_owned())
    }

    /// Source IP for Services of type LoadBalancer.
    pub(super) fn load_balancer(&mut self) -> Result<String> {
        let start = self.rows.len();
        for family in Family::ALL {
            for index in [0, 1] {
                let node = self.node(index);
                let expected = if index == 0 { client_ip(family) } else { node.ip(family) };
                self.balanced(node, family, "auto", Some(expected))?;
            }
        }
        self.passed(start, "as at a NodePort of the node that the load balancer chooses".to_owned())
    }

    /// Same, with `externalTrafficPolicy: Local`: the load balancer first queries the nodes' health checks.
    pub(super) fn load_balancer_local(&mut self) -> Result<String> {
        let start = self.rows.len();
        let service = self.cluster.services.tutorial[2].clone().external_local().health_check(HEALTH_CHECK);
        service.apply(&self.cluster.lab, None)?;
        let mut said = Vec::new();
        for family in Family::ALL {
            let mut healthy = Vec::new();
            for (index, wanted) in [(0, 200), (1, 503)] {
                let node = self.node(index);
                let check = (node.ip(family), HEALTH_CHECK).into();
                eventually(&format!("the health check of {}", node.name()), || {
                    let response = http_get(self.cluster.lab.client(), check, "/healthz")?;
                    ensure!(response.status == wanted, "it says {}: {}", response.status, response.body.trim());
                    Ok(())
                })?;
                said.push(format!("{} {wanted}", node.name()));
                if wanted == 200 {
                    healthy.push(node);
                }
            }
            let expected = client_ip(family);
            healthy.into_iter().try_for_each(|node| self.balanced(node, family, "auto, Local", Some(expected)))?;
        }
        said.truncate(2);
        self.passed(start, format!("health check on port {HEALTH_CHECK}: {}; the pod sees the client", said.join(", ")))
    }

    /// A request of the client to the load balancer's address, which leads to this node.
    fn balanced(&mut self, node: &Node, family: Family, mode: &str, expected: Option<IpAddr>) -> Result<()> {
        let service = &self.cluster.services.tutorial[2];
        let ip = service.ingress(family).context("the load balancer has no address")?;
        let client = self.cluster.lab.client();
        client.ip(&format!("route replace {ip} via {}\n", node.ip(family)))?;
        let what = format!("client (outside), sent to {}", node.name());
        self.ask(&what, client, (ip, service.port()).into(), mode, expected);
        Ok(())
    }
}
