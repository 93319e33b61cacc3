//! Endpoints from pods, nodes and addresses of a lab.

use std::net::IpAddr;

use super::{Endpoint, Lab, Node, Pod};

impl Endpoint {
    /// A pod on its node.
    pub fn of(pod: &Pod) -> Self {
        Self::on(pod.node().name(), &pod.ips)
    }

    /// A pod in the host network of this node.
    pub fn host(node: &Node) -> Self {
        Self::on(node.name(), &node.addrs)
    }
}

/// Types accepted in a list of endpoints.
pub trait AsEndpoint {
    /// The endpoint.
    fn endpoint(&self, lab: &Lab) -> Endpoint;
}

impl AsEndpoint for Endpoint {
    fn endpoint(&self, _lab: &Lab) -> Endpoint {
        self.clone()
    }
}

impl AsEndpoint for &Pod {
    fn endpoint(&self, _lab: &Lab) -> Endpoint {
        Endpoint::of(self)
    }
}

impl AsEndpoint for IpAddr {
    fn endpoint(&self, lab: &Lab) -> Endpoint {
        let ips = [*self];
        let node = lab.nodes().iter().find(|node| node.holds(*self));
        node.map_or_else(|| Endpoint::at(&ips), |node| Endpoint::on(node.name(), &ips))
    }
}
