//! Addresses and ports that no object may take: this node's path to its API server, gateways, DNS servers and other
//! nodes, ranges of pods and services, and the ports needed to operate a node.
//!
//! Pure: the rules follow from Node objects, the service ranges, the configuration and [`HostFacts`]. A refused element
//! of an object is left out and named, and the rest of the object is in effect; the element is admitted as soon as no
//! rule refuses it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use foldhash::HashMap;
use ipnetwork::IpNetwork;
use podnet_common::layout::TUNNEL_PORT;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::frontend::FrontendKind;
use crate::model::{Node, Protocol};
use crate::prefixes::Prefixes;

/// Ports of a node's own addresses that are needed to operate it, with their use: those in Kubernetes' documentation
/// (Ports and Protocols), SSH, and the tunnel.
const NEEDED: [(u16, Protocol, &str); 8] = [
    (22, Protocol::Tcp, "SSH"),
    (2379, Protocol::Tcp, "etcd"),
    (2380, Protocol::Tcp, "etcd"),
    (6443, Protocol::Tcp, "the API server"),
    (10_250, Protocol::Tcp, "the kubelet"),
    (10_257, Protocol::Tcp, "the controller manager"),
    (10_259, Protocol::Tcp, "the scheduler"),
    (TUNNEL_PORT, Protocol::Udp, "the tunnel"),
];

/// Facts that only the host knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostFacts {
    /// Its interfaces' addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Gateways of its routes.
    pub gateways: BTreeSet<IpAddr>,
    /// Gateways of its default routes.
    pub default_gateways: BTreeSet<IpAddr>,
    /// Its DNS servers.
    pub resolvers: BTreeSet<IpAddr>,
    /// The daemon's API server.
    pub api_servers: BTreeSet<SocketAddr>,
}

/// Why an element of an object is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// An address of the node with this name.
    Node(String),
    /// A gateway of this node.
    Gateway,
    /// A DNS server of this node.
    Resolver,
    /// The API server's address.
    ApiServer,
    /// A pod's address.
    Pods(IpNetwork),
    /// An address reserved for services.
    Services(IpNetwork),
    /// One of `protectedAddresses`.
    Configured(IpNetwork),
    /// Outside the service ranges, though some are known.
    OutsideServices,
    /// A ClusterIP, or a load balancer's address.
    Virtual,
    /// A port that the node needs, for this use.
    Needed(&'static str),
    /// The port at which nodes receive the tunnel's packets, at an address that isn't a pod's.
    Tunnel,
    /// External IPs are disabled in the configuration.
    NoExternalIps,
    /// Not an address of this node, for a host port.
    NotHere,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "it is an address of node {name}"),
            Self::Gateway => f.write_str("it is a gateway of this node"),
            Self::Resolver => f.write_str("it is a DNS server of this node"),
            Self::ApiServer => f.write_str("it is the API server's address"),
            Self::Pods(range) => write!(f, "it is in the pod CIDR {range}"),
            Self::Services(range) => write!(f, "it is in the ClusterIP range {range}"),
            Self::Configured(range) => write!(f, "it is in the range {range} of protectedAddresses"),
            Self::OutsideServices => f.write_str("it is outside the ClusterIP ranges (serviceCIDRs)"),
            Self::Virtual => f.write_str("it is an address of a service"),
            Self::Needed(what) => write!(f, "the node needs this port for {what}"),
            Self::NotHere => f.write_str("its hostIP is not an address of this node"),
            Self::Tunnel => f.write_str("it is the tunnel's UDP port, at an address outside the pod CIDRs"),
            Self::NoExternalIps => f.write_str("the daemon's configuration has `externalIPs: false`"),
        }
    }
}

/// The guarded addresses and ports.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// This node's name.
    node: String,
    /// Addresses that are guarded at all ports.
    whole: HashMap<IpAddr, Why>,
    /// Addresses of this node, at which services may have ports.
    own: BTreeSet<IpAddr>,
    /// Addresses of this host.
    here: BTreeSet<IpAddr>,
    /// External addresses of nodes, at which services may have ports too.
    external: BTreeSet<IpAddr>,
    pods: Prefixes<IpNetwork>,
    services: Prefixes<IpNetwork>,
    /// Whether there are IPv4 and IPv6 service ranges.
    known: [bool; 2],
    configured: Prefixes<IpNetwork>,
    needed: HashMap<(u16, Protocol), &'static str>,
    /// Whether external IPs are disabled.
    no_external_ips: bool,
    /// ClusterIPs outside all service ranges, and load balancers' addresses, with the number of services of each.
    virtual_ips: HashMap<IpAddr, u32>,
}

impl Guard {
    /// The guard on the configured node. Services' own addresses must be added by [`Self::take`].
    pub fn new<'a>(
        config: &Config,
        nodes: impl Iterator<Item = (&'a str, &'a Node)> + Clone,
        services: impl Iterator<Item = &'a IpNetwork>,
        host: &HostFacts,
    ) -> Self {
        let mut guard = Self {
            node: config.node.clone(),
            own: host.addresses.clone(),
            no_external_ips: !config.external_ips,
            ..Self::default()
        };
        guard.here.clone_from(&host.addresses);
        for range in services {
            guard.known[usize::from(range.is_ipv4())] = true;
            guard.services.insert(*range, *range, |_, _| false);
        }
        for range in &config.protected_addresses {
            guard.configured.insert(*range, *range, |_, _| false);
        }
        for (name, node) in nodes {
            node.pod_cidrs.iter().for_each(|range| guard.pods.insert(*range, *range, |_, _| false));
            guard.external.extend(&node.external_ips);
            if name == config.node {
                guard.own.extend(&node.internal_ips);
            } else {
                guard.whole.extend(node.internal_ips.iter().map(|ip| (*ip, Why::Node(name.to_owned()))));
            }
        }
        // A DNS server on an interface of its own that serves a ClusterIP has that ClusterIP as its address.
        guard.own.retain(|ip| guard.services.get(*ip).is_none());
        let api = host.api_servers.iter();
        guard.whole.extend(host.resolvers.iter().map(|ip| (*ip, Why::Resolver)));
        guard.whole.extend(host.gateways.iter().map(|ip| (*ip, Why::Gateway)));
        guard.whole.extend(api.clone().map(|server| (server.ip(), Why::ApiServer)));
        guard.needed = NEEDED.iter().map(|(port, protocol, what)| ((*port, *protocol), *what)).collect();
        let health =
            [(config.healthz_bind_address, "podnet's health check"), (config.metrics_bind_address, "podnet's metrics")];
        let health =
            health.into_iter().filter_map(|(bind, what)| Some((bind.0.filter(|at| !at.ip().is_loopback())?, what)));
        guard.needed.extend(health.map(|(at, what)| ((at.port(), Protocol::Tcp), what)));
        let own = api.filter(|server| guard.own.contains(&server.ip()));
        guard.needed.extend(own.map(|server| ((server.port(), Protocol::Tcp), "the API server")));
        if host.resolvers.iter().any(|resolver| guard.own.contains(resolver)) {
            guard.needed.extend([Protocol::Tcp, Protocol::Udp].map(|protocol| ((53, protocol), "the DNS server")));
        }
        guard
    }

    /// Takes over the services' addresses of an earlier guard.
    pub fn take(&mut self, before: &mut Self) {
        self.virtual_ips = std::mem::take(&mut before.virtual_ips);
    }

    /// Counts these addresses, which are [`Self::virtual_ips`] of a service, once more or once less. Returns those
    /// added or removed.
    pub fn count(&mut self, ips: &[IpAddr], more: bool) -> Vec<IpAddr> {
        let mut changed = Vec::new();
        for ip in ips {
            let services = self.virtual_ips.entry(*ip).or_default();
            *services = if more { *services + 1 } else { services.saturating_sub(1) };
            if *services == u32::from(more) {
                changed.push(*ip);
            }
            if *services == 0 {
                self.virtual_ips.remove(ip);
            }
        }
        changed
    }

    /// Why a service can't have an address of a kind, at any port.
    pub fn address(&self, kind: FrontendKind, ip: IpAddr) -> Option<Why> {
        match kind {
            FrontendKind::ClusterIp => match self.services.get(ip) {
                Some(_) => None,
                None if self.known[usize::from(ip.is_ipv4())] => Some(Why::OutsideServices),
                None if self.own.contains(&ip) => Some(Why::Node(self.node.clone())),
                None => self.others(ip),
            },
            FrontendKind::ExternalIp if self.no_external_ips => Some(Why::NoExternalIps),
            FrontendKind::LoadBalancer | FrontendKind::ExternalIp if self.own.contains(&ip) => None,
            FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
                self.services.get(ip).map(|range| Why::Services(*range)).or_else(|| self.others(ip))
            }
            FrontendKind::NodePort | FrontendKind::HostPort => None,
        }
    }

    fn others(&self, ip: IpAddr) -> Option<Why> {
        let whole = self.whole.get(&ip).cloned();
        let pods = || self.pods.get(ip).map(|range| Why::Pods(*range));
        whole.or_else(pods).or_else(|| self.configured.get(ip).map(|range| Why::Configured(*range)))
    }

    /// Why a service, or a pod, can't have a port of a node's own address; the unspecified address stands for all of
    /// these.
    pub fn port(&self, kind: FrontendKind, at: SocketAddr, protocol: Protocol) -> Option<Why> {
        let needed = self.needed.get(&(at.port(), protocol)).map(|what| Why::Needed(what));
        match kind {
            FrontendKind::ClusterIp => None,
            FrontendKind::NodePort => needed,
            // Users who may start pods with host ports may bind these as well. Other nodes are affected by the tunnel's
            // port only.
            FrontendKind::HostPort if self.is_here(at.ip()) => needed.filter(|_| Self::is_tunnel(at.port(), protocol)),
            // Such a host port would take over the traffic of all pods and processes of this node to that address.
            FrontendKind::HostPort => Some(Why::NotHere),
            FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
                needed.filter(|_| self.own.contains(&at.ip()) || self.external.contains(&at.ip()))
            }
        }
    }

    /// Whether a socket of this host could be bound to an address.
    fn is_here(&self, ip: IpAddr) -> bool {
        ip.is_unspecified() || ip.is_loopback() || self.here.contains(&ip)
    }

    /// Whether the node's own addresses or ports differ from those of another guard.
    pub fn differs_in_ports(&self, other: &Self) -> bool {
        (&self.own, &self.external, &self.needed) != (&other.own, &other.external, &other.needed)
    }

    /// Why a service can't have an endpoint.
    pub fn endpoint(&self, at: SocketAddr, protocol: Protocol) -> Option<Why> {
        if self.services.get(at.ip()).is_some() || self.virtual_ips.contains_key(&at.ip()) {
            return Some(Why::Virtual);
        }
        (Self::is_tunnel(at.port(), protocol) && self.pods.get(at.ip()).is_none()).then_some(Why::Tunnel)
    }

    /// Whether nodes receive the tunnel's packets at this port.
    pub fn is_tunnel(port: u16, protocol: Protocol) -> bool {
        (port, protocol) == (TUNNEL_PORT, Protocol::Udp)
    }

    /// A service's addresses that can't be an endpoint and are in no service range. Addresses of a node remain the
    /// node's. External IPs are excluded: otherwise anyone who may write one could disable others' endpoints.
    pub fn virtual_ips(&self, cluster_ips: &[IpAddr], load_balancer_ips: &[IpAddr]) -> Box<[IpAddr]> {
        let cluster = cluster_ips.iter().map(|ip| (FrontendKind::ClusterIp, ip));
        let all = cluster.chain(load_balancer_ips.iter().map(|ip| (FrontendKind::LoadBalancer, ip)));
        let admitted = all.filter(|(kind, ip)| self.address(*kind, **ip).is_none() && !self.own.contains(*ip));
        let mut ips: Vec<_> = admitted.map(|(_, ip)| *ip).filter(|ip| self.services.get(*ip).is_none()).collect();
        ips.sort_unstable();
        ips.dedup();
        ips.into()
    }
}

/// DNS servers of a `resolv.conf` (resolv.conf(5)), except loopback addresses, which no object can take.
pub fn resolvers(text: &str) -> BTreeSet<IpAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let server = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        server.split('%').next()?.parse().ok()
    });
    servers.filter(|ip: &IpAddr| !ip.is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use FrontendKind::{ClusterIp, ExternalIp, HostPort, LoadBalancer, NodePort};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(ips: &[&str], external: &[&str], cidrs: &[&str]) -> Node {
        Node {
            internal_ips: ips.iter().map(|text| ip(text)).collect(),
            external_ips: external.iter().map(|text| ip(text)).collect(),
            pod_cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
            ..Node::default()
        }
    }

    fn facts() -> HostFacts {
        HostFacts {
            addresses: ["172.30.0.1", "fd00:30::1", "192.168.7.1", "10.96.0.10"].map(ip).into(),
            gateways: ["172.30.0.254", "fd00:30::fe"].map(ip).into(),
            default_gateways: BTreeSet::new(),
            resolvers: ["192.0.2.53", "2001:db8::53"].map(ip).into(),
            api_servers: ["192.0.2.99:6443", "[2001:db8::99]:443"].map(|at| at.parse().unwrap()).into(),
        }
    }

    fn guard_of(rest: &str, services: &[&str], facts: &HostFacts) -> Guard {
        let config = Config::parse(&format!("node: n1\nmanifests: /m\n{rest}")).unwrap();
        let nodes = [
            ("n1", node(&["172.30.0.1", "fd00:30::1"], &["203.0.113.1"], &["10.244.1.0/24", "fd00:244:1::/64"])),
            ("n2", node(&["172.30.0.2", "fd00:30::2"], &["203.0.113.2"], &["10.244.2.0/24", "fd00:244:2::/64"])),
        ];
        let services: Vec<IpNetwork> = services.iter().map(|range| range.parse().unwrap()).collect();
        Guard::new(&config, nodes.iter().map(|(name, node)| (*name, node)), services.iter(), facts)
    }

    fn guard() -> Guard {
        guard_of(
            "protectedAddresses: [198.51.100.0/24, '2001:db8:5::/48']\n",
            &["10.96.0.0/16", "fd00:96::/112"],
            &facts(),
        )
    }

    #[test]
    fn no_external_ip_takes_what_the_node_needs() {
        let guard = guard();
        for kind in [ExternalIp, LoadBalancer] {
            for (address, why) in [
                ("172.30.0.2", "address of node n2"),
                ("fd00:30::2", "address of node n2"),
                ("172.30.0.254", "gateway"),
                ("fd00:30::fe", "gateway"),
                ("192.0.2.53", "DNS server"),
                ("2001:db8::53", "DNS server"),
                ("192.0.2.99", "API server"),
                ("2001:db8::99", "API server"),
                ("10.244.1.7", "pod CIDR 10.244.1.0/24"),
                ("fd00:244:2::7", "pod CIDR fd00:244:2::/64"),
                ("10.96.3.3", "ClusterIP range"),
                ("fd00:96::33", "ClusterIP range"),
                ("198.51.100.9", "protectedAddresses"),
                ("2001:db8:5::9", "protectedAddresses"),
            ] {
                let refused = guard.address(kind, ip(address)).map(|why| why.to_string()).unwrap_or_default();
                assert!(refused.contains(why), "{address}: {refused}");
            }
            for address in
                ["172.30.0.1", "fd00:30::1", "192.168.7.1", "203.0.113.1", "203.0.113.2", "192.0.2.1", "2001:db8::1"]
            {
                assert_eq!(guard.address(kind, ip(address)), None, "{address}");
            }
        }
    }

    #[test]
    fn external_ips_may_be_switched_off() {
        let guard = guard_of("externalIPs: false\n", &["10.96.0.0/16"], &facts());
        for address in ["192.0.2.1", "2001:db8::1", "172.30.0.1", "203.0.113.2"] {
            assert_eq!(guard.address(ExternalIp, ip(address)), Some(Why::NoExternalIps), "{address}");
            assert_eq!(guard.address(LoadBalancer, ip(address)), None, "{address}");
        }
    }

    #[test]
    fn ports_needed_to_operate_nodes() {
        let guard = guard_of("metricsBindAddress: 0.0.0.0:10249\n", &["10.96.0.0/16"], &facts());
        let refused = |kind, at: &str, protocol| guard.port(kind, at.parse().unwrap(), protocol).is_some();
        for kind in [ExternalIp, LoadBalancer] {
            for at in ["172.30.0.1", "192.168.7.1", "[fd00:30::1]", "203.0.113.1", "203.0.113.2"] {
                for port in [22, 2379, 2380, 6443, 10_249, 10_250, 10_256, 10_257, 10_259] {
                    assert!(refused(kind, &format!("{at}:{port}"), Protocol::Tcp), "{at}:{port}");
                }
                assert!(refused(kind, &format!("{at}:8472"), Protocol::Udp));
                assert!(
                    !refused(kind, &format!("{at}:8472"), Protocol::Tcp)
                        && !refused(kind, &format!("{at}:80"), Protocol::Tcp)
                );
            }
            assert!(!refused(kind, "192.0.2.1:22", Protocol::Tcp), "an address of no node");
        }
        assert!(refused(NodePort, "0.0.0.0:10250", Protocol::Tcp) && refused(NodePort, "[::]:8472", Protocol::Udp));
        assert!(
            !refused(NodePort, "0.0.0.0:30080", Protocol::Tcp) && !refused(ClusterIp, "10.96.0.1:22", Protocol::Tcp)
        );
        assert!(refused(HostPort, "0.0.0.0:8472", Protocol::Udp) && !refused(HostPort, "0.0.0.0:22", Protocol::Tcp));
    }

    #[test]
    fn servers_on_this_node_keep_their_ports() {
        let facts = HostFacts {
            api_servers: ["172.30.0.1:7443".parse().unwrap()].into(),
            resolvers: [ip("172.30.0.1")].into(),
            ..facts()
        };
        let guard = guard_of("", &["10.96.0.0/16"], &facts);
        assert_eq!(guard.address(ExternalIp, ip("172.30.0.1")), None);
        let refused = |port: u16, protocol| guard.port(ExternalIp, ([172, 30, 0, 1], port).into(), protocol).is_some();
        assert!(refused(7443, Protocol::Tcp) && refused(53, Protocol::Udp) && refused(53, Protocol::Tcp));
        assert!(!refused(80, Protocol::Tcp));
    }

    #[test]
    fn cluster_ips_are_in_the_ranges_where_these_are_known() {
        let guard = guard();
        for inside in ["10.96.0.1", "10.96.0.10", "fd00:96::1"] {
            assert_eq!(guard.address(ClusterIp, ip(inside)), None, "{inside}");
        }
        for outside in ["192.0.2.1", "172.30.0.2", "10.244.1.1", "2001:db8::1", "192.0.2.99"] {
            assert_eq!(guard.address(ClusterIp, ip(outside)), Some(Why::OutsideServices), "{outside}");
        }
        let unknown = guard_of("", &["10.96.0.0/16"], &facts());
        assert_eq!(unknown.address(ClusterIp, ip("fd00:77::1")), None);
        for taken in ["fd00:30::1", "fd00:30::2", "fd00:244:1::5", "fd00:30::fe", "2001:db8::53", "2001:db8::99"] {
            assert!(unknown.address(ClusterIp, ip(taken)).is_some(), "{taken}");
        }
    }

    #[test]
    fn endpoints_forge_no_tunnel_and_make_no_loop() {
        let mut guard = guard();
        let refused = |guard: &Guard, at: &str, protocol| guard.endpoint(at.parse().unwrap(), protocol);
        for address in ["172.30.0.1", "172.30.0.2", "192.168.7.1", "198.18.0.1", "[fd00:30::2]"] {
            let at = format!("{address}:8472");
            assert_eq!(refused(&guard, &at, Protocol::Udp), Some(Why::Tunnel), "{at}");
            assert_eq!(refused(&guard, &at, Protocol::Tcp), None);
        }
        assert_eq!(refused(&guard, "10.244.2.9:8472", Protocol::Udp), None, "a pod may listen there");
        assert_eq!(refused(&guard, "10.96.0.1:80", Protocol::Tcp), Some(Why::Virtual));
        assert_eq!(refused(&guard, "[fd00:96::1]:80", Protocol::Tcp), Some(Why::Virtual));
        // The node's own addresses and those in a range are known without counting.
        let ips = guard.virtual_ips(&[ip("10.96.0.1")], &["192.0.2.1", "172.30.0.1", "172.30.0.2"].map(ip));
        assert_eq!(*ips, [ip("192.0.2.1")]);
        assert_eq!(refused(&guard, "192.0.2.1:80", Protocol::Tcp), None);
        assert_eq!((guard.count(&ips, true), guard.count(&ips, true)), (vec![ip("192.0.2.1")], vec![]));
        assert_eq!(refused(&guard, "192.0.2.1:80", Protocol::Tcp), Some(Why::Virtual));
        assert_eq!((guard.count(&ips, false), guard.count(&ips, false)), (vec![], vec![ip("192.0.2.1")]));
        assert_eq!(refused(&guard, "192.0.2.1:80", Protocol::Tcp), None);
    }

    #[test]
    fn resolv_conf() {
        let text = "# x\nsearch a.b\nnameserver 192.0.2.53\n  nameserver\t2001:db8::53%eth0 # c\nnameserver 127.0.0.53\n\
                    nameserver x\nnameservers 192.0.2.1\noptions edns0\n";
        assert_eq!(resolvers(text), ["192.0.2.53", "2001:db8::53"].map(ip).into());
    }
}
