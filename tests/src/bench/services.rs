//! Services of a topology: those under test, among others that only fill the tables.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    kube_proxy::{self, Cluster, Mode, ServicePort},
    tables::Tables,
};
use crate::{
    lab::{self, Lab, Service, manifest, wait_until},
    traffic::Family,
};

/// Target port of the services. It differs from the port for direct connections, so that a connection through a service
/// never meets leftovers of a direct one from the same client port on the server.
pub const TARGET_PORT: u16 = 8081;
/// Target port of the second UDP port: with a common target, every flow of the second port would need another source
/// port.
pub const SECOND_TARGET_PORT: u16 = 8082;
/// The ClusterIP service under test: TCP and UDP on port 80, and UDP on 81, to allow more flows than a client has
/// ports.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 128, 10);
/// Its ports.
pub const PORTS: [manifest::Port<'static>; 3] = [
    manifest::Port { name: "tcp", protocol: "TCP", number: 80 },
    manifest::Port { name: "udp", protocol: "UDP", number: 80 },
    manifest::Port { name: "udp-2", protocol: "UDP", number: 81 },
];
/// Number of services in a topology with many.
pub const MANY: usize = 10_000;

/// Timeout of operations on many services.
pub const SYNC: Duration = Duration::from_secs(120);

/// A service under test for external clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePort {
    /// Backend on another node, which sees the addressed node.
    Snat,
    /// Backend on another node, which sees the client and replies directly.
    Dsr,
    /// Backend on the addressed node, with externalTrafficPolicy Local.
    Local,
}

impl NodePort {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Snat, Self::Dsr, Self::Local];

    /// Its NodePort.
    pub const fn number(self) -> u16 {
        30_080 + self as u16
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Snat => "bench-snat",
            Self::Dsr => "bench-dsr",
            Self::Local => "bench-local",
        }
    }

    /// The service for podnet, with its annotation.
    fn service(self) -> (Service, Option<&'static str>) {
        let service =
            Service::new(self.name(), self.last_byte(), PORTS[0].number, TARGET_PORT).node_port(self.number());
        match self {
            Self::Snat => (service, None),
            Self::Dsr => (service, Some("preserve")),
            Self::Local => (service.external_local(), None),
        }
    }

    /// The service for kube-proxy, which has no direct server return.
    fn service_port(self, servers: &Servers) -> Option<ServicePort> {
        let local = match self {
            Self::Snat => false,
            Self::Dsr => return None,
            Self::Local => true,
        };
        Some(ServicePort {
            name: format!("default/{}:tcp", self.name()),
            protocol: "tcp",
            frontend: SocketAddrV4::new([10, 96, 0, self.last_byte()].into(), PORTS[0].number),
            endpoints: vec![SocketAddrV4::new(self.backend(servers), TARGET_PORT)],
            node_port: Some(kube_proxy::NodePort { number: self.number(), local }),
        })
    }

    /// Last byte of its ClusterIP.
    const fn last_byte(self) -> u8 {
        20 + self as u8
    }

    const fn backend(self, servers: &Servers) -> Ipv4Addr {
        match self {
            Self::Snat | Self::Dsr => servers.far,
            Self::Local => servers.near,
        }
    }
}

/// Pods behind the services.
#[derive(Clone, Copy, Debug)]
pub struct Servers {
    /// On the first node.
    pub near: Ipv4Addr,
    /// On the second node.
    pub far: Ipv4Addr,
}

/// Loads kube-proxy's rules for this number of services on the nodes.
pub fn load_rules(lab: &Lab, mode: Mode, servers: &Servers, services: usize) -> Result<()> {
    let ports = services_amid(servers, services);
    for node in lab.nodes() {
        let cluster = Cluster {
            pods: "10.244.0.0/16",
            services: "10.96.0.0/16",
            node: node.ip(Family::V4).to_string(),
            local_pods: node.pod_cidrs()[0].parse()?,
        };
        let (program, args, rules) = match mode {
            Mode::Iptables => ("iptables-restore", &[][..], kube_proxy::iptables(&cluster, &ports)),
            Mode::Nftables => ("nft", &["-f", "-"][..], kube_proxy::nftables(&cluster, &ports)),
        };
        let mut command = node.place.command(program)?;
        command.args(args);
        let output = lab::output(command, rules.as_bytes(), SYNC)?;
        let message = String::from_utf8_lossy(&output.stderr);
        let first: Vec<&str> = message.lines().take(5).collect();
        ensure!(output.status.success(), "{program} refuses kube-proxy's rules: {}", first.join("; "));
    }
    Ok(())
}

/// Applies this number of services to podnet, and waits until they are in the tables.
pub fn load_podnet(lab: &Lab, servers: &Servers, services: usize) -> Result<()> {
    for i in 0..services.saturating_sub(1) {
        let Other { name, ip, endpoints } = other(i);
        let text = manifest::service(&name, &[ip.into()], &PORTS[..1], TARGET_PORT, None)
            + "---\n"
            + &manifest::endpoint_slices(&name, &targets(&PORTS[..1]), &endpoints.map(IpAddr::from));
        lab.apply(&name, &text)?;
    }
    let text = manifest::service("bench", &[CLUSTER_IP.into()], &PORTS, TARGET_PORT, None)
        + "---\n"
        + &manifest::endpoint_slices("bench", &targets(&PORTS), &[servers.near.into()]);
    lab.apply("bench", &text)?;
    for node_port in NodePort::ALL {
        let (service, source_ip) = node_port.service();
        service.apply(lab, source_ip)?;
        service.set_endpoints(lab, &[IpAddr::from(node_port.backend(servers))])?;
    }
    // A NodePort service also has a ClusterIP, for TCP and UDP.
    let frontends = services - 1 + PORTS.len() + 2 * NodePort::ALL.len();
    for node in lab.nodes() {
        wait_until(&format!("{} has {services} services", node.name()), || {
            Ok(Tables::open(node)?.served(1)? == frontends)
        })
        .with_context(|| format!("the log:\n{}", node.log()))?;
    }
    Ok(())
}

/// The pods' ports, as in EndpointSlices.
fn targets(ports: &[manifest::Port<'static>]) -> Vec<manifest::Port<'static>> {
    ports.iter().map(|port| manifest::Port { number: target(port), ..*port }).collect()
}

fn target(port: &manifest::Port<'_>) -> u16 {
    if *port == PORTS[2] { SECOND_TARGET_PORT } else { TARGET_PORT }
}

/// Ports of the services under test among those of `services - 1` unused ones. They are in the middle, so that a linear
/// search has its average cost.
fn services_amid(servers: &Servers, services: usize) -> Vec<ServicePort> {
    let cluster_ip = PORTS.map(|port| ServicePort {
        name: format!("default/bench:{}", port.name),
        protocol: if port.protocol == "TCP" { "tcp" } else { "udp" },
        frontend: SocketAddrV4::new(CLUSTER_IP, port.number),
        endpoints: vec![SocketAddrV4::new(servers.near, target(&port))],
        node_port: None,
    });
    let node_ports = NodePort::ALL.iter().filter_map(|node_port| node_port.service_port(servers));
    let mut ports: Vec<ServicePort> = (0..services.saturating_sub(1))
        .map(|i| {
            let Other { name, ip, endpoints } = other(i);
            ServicePort {
                name: format!("default/{name}:tcp"),
                protocol: "tcp",
                frontend: SocketAddrV4::new(ip, PORTS[0].number),
                endpoints: endpoints.map(|ip| SocketAddrV4::new(ip, TARGET_PORT)).to_vec(),
                node_port: None,
            }
        })
        .collect();
    let middle = ports.len() / 2;
    ports.splice(middle..middle, cluster_ip.into_iter().chain(node_ports));
    ports
}

/// A service that only fills the tables: its endpoints are addresses without pods.
struct Other {
    name: String,
    ip: Ipv4Addr,
    endpoints: [Ipv4Addr; 2],
}

fn other(i: usize) -> Other {
    let [high, low] = (i as u16).to_be_bytes();
    let endpoint = |net: u8| Ipv4Addr::new(10, 244, net + high, low);
    // The first subnet is for NodePort services.
    let ip = [10, 96, 1 + high, low].into();
    Other { name: format!("other-{i}"), ip, endpoints: [endpoint(100), endpoint(150)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_are_unique_with_those_under_test_in_the_middle() {
        let servers = Servers { near: [10, 244, 1, 2].into(), far: [10, 244, 2, 2].into() };
        let ports = services_amid(&servers, MANY);
        let unique: std::collections::BTreeSet<_> = ports.iter().map(|p| (p.protocol, p.frontend)).collect();
        assert_eq!(unique.len(), ports.len());
        assert_eq!(ports.len(), MANY - 1 + 3 + 2, "a ClusterIP service with three ports, and two NodePort services");
        assert_eq!(ports[MANY / 2].name, "default/bench:udp");
    }
}
