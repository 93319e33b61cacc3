//! The compared topologies: two nodes of the lab with a server pod on each, client pods and client host processes on
//! both, and an external client. They differ only in the packet path.
//!
//! The peers use the same lab and the same plugin, which sets up plain routed veth pairs with `datapath: none`; no
//! daemon runs, the routes between the nodes are added here, and kube-proxy's rules are loaded with the system's tools.

use std::{
    cell::RefCell,
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use podnet::config::{Routing, SocketLb};
use serde_json::json;

use super::{
    kube_proxy::Mode,
    rounds,
    services::{self, CLUSTER_IP, NodePort, PORTS, SECOND_TARGET_PORT, Servers, TARGET_PORT},
    tables,
    traffic::Metric,
    worker::Worker,
};
use crate::{
    lab::{Families, Lab, Place, Pod, eventually, manifest, policed},
    traffic::Family,
};

/// Port for direct connections to a server.
const DIRECT_PORT: u16 = 8080;

/// Time in which an idle daemon uses less than a twentieth of a processor.
const IDLE: Duration = Duration::from_millis(20);

/// Address of the external client, and a second one, to which the nodes have another route.
const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 100);
const SECOND_CLIENT: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 101);

/// MTU inside VXLAN over IPv4, in bytes (RFC 7348).
const VXLAN_MTU: u32 = 1450;

/// Settings of every namespace with clients, equal in all topologies: capacity for short connections. The port range is
/// the kernel's default, as on most nodes.
const CLIENT_SETTINGS: [(&str, &str); 2] =
    [("net.ipv4.ip_local_port_range", "32768 60999"), ("net.ipv4.tcp_tw_reuse", "1")];

/// Settings of routing nodes. Packets may intentionally leave through the link on which they arrived, so no redirects
/// are sent.
const ROUTER_SETTINGS: [(&str, &str); 3] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.eth0.send_redirects", "0"),
];

/// Implementation of the packet path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// podnet, with this number of services.
    Podnet(usize),
    /// podnet with one service and socket load balancing for pods.
    Socket,
    /// podnet with one service and its tunnel between the nodes.
    Vxlan,
    /// podnet with one service, and with network policies for these pods. One lab serves all of these: the difference
    /// between two labs would exceed the effect of the policies.
    Policed(Policed),
    /// Routing only: no services, no connection tracking.
    Routed,
    /// Same, through a VXLAN device of the kernel, set up as in other systems.
    RoutedVxlan,
    /// kube-proxy's rules for this number of services.
    KubeProxy(Mode, usize),
}

/// Pods that network policies select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policed {
    /// None: there are no policies.
    None,
    /// The clients and servers, in both directions.
    All,
    /// Other pods of their nodes.
    Others,
}

impl fmt::Display for Kind {
    /// As in row names: `podnet-1`, `routed`, `nftables-10000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Podnet(n) => write!(f, "podnet-{n}"),
            Self::Socket => write!(f, "socket"),
            Self::Vxlan => write!(f, "vxlan"),
            Self::Policed(Policed::None) => write!(f, "unpoliced"),
            Self::Policed(Policed::All) => write!(f, "policed"),
            Self::Policed(Policed::Others) => write!(f, "others-policed"),
            Self::Routed => write!(f, "routed"),
            Self::RoutedVxlan => write!(f, "routed-vxlan"),
            Self::KubeProxy(Mode::Iptables, n) => write!(f, "iptables-{n}"),
            Self::KubeProxy(Mode::Nftables, n) => write!(f, "nftables-{n}"),
        }
    }
}

impl Kind {
    /// The kind as which the topology is built.
    const fn built(self) -> Self {
        match self {
            Self::Policed(_) => Self::Policed(Policed::None),
            other => other,
        }
    }
}

/// Location of a client in the cluster, relative to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// On the server's node.
    SameNode,
    /// On the other node.
    CrossNode,
}

impl Distance {
    /// Both.
    pub const ALL: [Self; 2] = [Self::SameNode, Self::CrossNode];

    /// The second part of row names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SameNode => "same_node",
            Self::CrossNode => "cross_node",
        }
    }
}

/// Path of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From a pod to the near server's address.
    Direct(Distance),
    /// From a pod to the ClusterIP.
    ClusterIp(Distance),
    /// From a host process to the near server's address.
    DirectHost(Distance),
    /// From a host process to the ClusterIP.
    ClusterIpHost(Distance),
    /// From the external client to the near server's address.
    ToNear,
    /// From the external client through the first node to the far server's address, and back through it.
    ToFar,
    /// From the external client through the first node to a pod's address on the second, which replies directly.
    ToFarOneWay,
    /// From the external client to a NodePort of the first node.
    ToNodePort(NodePort),
    /// From a pod on the first node to the external client.
    ToOutside,
}

impl Way {
    /// All paths of a topology.
    fn all(kind: Kind) -> Vec<Self> {
        let inside = |ways: &[fn(Distance) -> Self]| -> Vec<Self> {
            Distance::ALL.into_iter().flat_map(|distance| ways.iter().map(move |way| way(distance))).collect()
        };
        let mut ways = inside(&[Self::Direct, Self::DirectHost]);
        match kind {
            Kind::Routed => ways.extend([Self::ToOutside, Self::ToNear, Self::ToFar, Self::ToFarOneWay]),
            Kind::RoutedVxlan => {}
            Kind::Policed(_) => ways.extend(inside(&[Self::ClusterIp, Self::ClusterIpHost])),
            Kind::Podnet(_) | Kind::Socket | Kind::Vxlan | Kind::KubeProxy(..) => {
                ways.extend(inside(&[Self::ClusterIp, Self::ClusterIpHost]));
                ways.extend([NodePort::Snat, NodePort::Local].map(Self::ToNodePort));
                ways.push(Self::ToOutside);
            }
        }
        if matches!(kind, Kind::Podnet(_)) {
            ways.push(Self::ToNodePort(NodePort::Dsr));
        }
        ways
    }
}

/// A running topology. Dropping it ends it.
#[derive(Debug)]
pub struct Topology {
    // Order of fields = order of dropping.
    near: Worker,
    far: Worker,
    pods: [Worker; 2],
    hosts: [Worker; 2],
    outside: Worker,
    servers: Servers,
    node_ip: Ipv4Addr,
    pod_ips: [Ipv4Addr; 2],
    _places: Vec<Pod>,
    policed: Policed,
    lab: Lab,
}

impl Topology {
    /// Builds it and checks that all servers answer from everywhere.
    pub fn new(kind: Kind) -> Result<Self> {
        let builder = Lab::builder().families(Families::V4).client(true);
        let lab = match kind {
            Kind::Podnet(_) | Kind::Policed(_) => builder.build()?,
            Kind::Socket => builder.config(|_, config| config.socket_lb = SocketLb::All).build()?,
            Kind::Vxlan => builder.config(|_, config| config.routing = Routing::Vxlan).build()?,
            Kind::Routed | Kind::RoutedVxlan | Kind::KubeProxy(..) => builder
                .daemons(false)
                .plugin(move |node, plugin| {
                    if kind == Kind::RoutedVxlan {
                        plugin.insert("mtu".into(), json!(VXLAN_MTU));
                    }
                    plugin.insert("datapath".into(), json!("none"));
                    plugin.insert("podCIDRs".into(), json!([format!("10.244.{}.0/24", node + 1)]));
                })
                .build()?,
        };
        let pods = [("server", 0), ("client-1", 0), ("client-2", 1), ("far", 1)];
        let mut pods: Vec<Pod> =
            pods.iter().map(|(name, node)| lab.node(*node).add_pod(name)).collect::<Result<_>>()?;
        let ips: Vec<Ipv4Addr> = pods.iter().map(|pod| ipv4(pod.ip(Family::V4))).collect::<Result<_>>()?;
        let servers = Servers { near: ips[0], far: ips[3] };
        match kind {
            Kind::Podnet(services) => services::load_podnet(&lab, &servers, services)?,
            Kind::Socket | Kind::Vxlan => services::load_podnet(&lab, &servers, 1)?,
            Kind::Policed(_) => {
                services::load_podnet(&lab, &servers, 1)?;
                pods.extend(load_pods(&lab, &pods)?);
            }
            Kind::KubeProxy(mode, services) => {
                route_nodes(&lab)?;
                services::load_rules(&lab, mode, &servers, services)?;
            }
            Kind::Routed => {
                route_nodes(&lab)?;
                route_outside(&lab, ips[2])?;
            }
            Kind::RoutedVxlan => tunnel_nodes(&lab)?,
        }
        let nodes = lab.nodes().iter().map(|node| &node.place);
        for place in nodes.chain(pods.iter().map(|pod| &pod.place)).chain([lab.client()]) {
            CLIENT_SETTINGS.iter().try_for_each(|(name, value)| place.set_sysctl(name, value))?;
        }
        let worker = |place: &Place| {
            let program = std::env::current_exe().context("where is this program?")?;
            Worker::spawn(&format!("{} of {kind}", place.name()), place.command(program)?)
        };
        let mut topology = Self {
            near: worker(&pods[0].place)?,
            far: worker(&pods[3].place)?,
            pods: [worker(&pods[1].place)?, worker(&pods[2].place)?],
            hosts: [worker(&lab.node(0).place)?, worker(&lab.node(1).place)?],
            outside: worker(lab.client())?,
            servers,
            node_ip: ipv4(lab.node(0).ip(Family::V4))?,
            pod_ips: [ips[1], ips[2]],
            _places: pods,
            policed: Policed::None,
            lab,
        };
        topology.start(kind)?;
        Ok(topology)
    }

    fn start(&mut self, kind: Kind) -> Result<()> {
        let clients = self.pods.iter_mut().chain(&mut self.hosts).chain([&mut self.outside]);
        clients.chain([&mut self.near, &mut self.far]).try_for_each(Worker::settle)?;
        self.near.serve(&[DIRECT_PORT, TARGET_PORT, SECOND_TARGET_PORT])?;
        self.far.serve(&[DIRECT_PORT, TARGET_PORT])?;
        self.pods[1].serve(&[DIRECT_PORT])?;
        self.outside.serve(&[DIRECT_PORT])?;
        for way in Way::all(kind) {
            eventually(&format!("{way:?} answers"), || self.measure(Metric::TcpCrr, way, Duration::from_millis(1)))?;
        }
        if kind == Kind::Socket {
            for distance in Distance::ALL {
                let node = self.lab.node(distance as usize).clone();
                let before = tables::socket_connects(&node)?;
                self.measure(Metric::TcpCrr, Way::ClusterIp(distance), Duration::from_millis(1))?;
                let after = tables::socket_connects(&node)?;
                ensure!(after > before, "{} does not translate pods' connections at the socket", node.name());
            }
        }
        Ok(())
    }

    /// Makes this topology the given one of those that its lab serves.
    fn become_kind(&mut self, kind: Kind) -> Result<()> {
        if let Kind::Policed(policed) = kind
            && policed != self.policed
        {
            load_policies(&self.lab, policed)?;
            self.policed = policed;
        }
        Ok(())
    }

    /// One slice of load.
    pub fn measure(&mut self, metric: Metric, way: Way, length: Duration) -> Result<f64> {
        let Servers { near, far } = self.servers;
        let target = match way {
            Way::Direct(_) | Way::DirectHost(_) | Way::ToNear => (near, DIRECT_PORT),
            Way::ClusterIp(_) | Way::ClusterIpHost(_) => (CLUSTER_IP, PORTS[0].number),
            Way::ToFar => (far, DIRECT_PORT),
            Way::ToFarOneWay => (self.pod_ips[1], DIRECT_PORT),
            Way::ToNodePort(node_port) => (self.node_ip, node_port.number()),
            Way::ToOutside => (CLIENT, DIRECT_PORT),
        };
        let client = match way {
            Way::Direct(distance) | Way::ClusterIp(distance) => &mut self.pods[distance as usize],
            Way::DirectHost(distance) | Way::ClusterIpHost(distance) => &mut self.hosts[distance as usize],
            Way::ToNear | Way::ToFar | Way::ToFarOneWay | Way::ToNodePort(_) => &mut self.outside,
            Way::ToOutside => &mut self.pods[0],
        };
        client.measure(metric, target.into(), length)
    }

    /// Packets of many UDP flows from a pod through the service to a pod on the same node; nanoseconds per packet.
    ///
    /// # Errors
    /// More than one in a hundred did not arrive, so the measurement is mostly that of drops.
    pub fn flows(&mut self, flows: u32, packets: u32) -> Result<f64> {
        let targets = PORTS[1..].iter().map(|port| SocketAddrV4::new(CLUSTER_IP, port.number)).collect();
        let before = self.near.arrived()?;
        let plan = super::flows::Plan { source: self.pod_ips[0], targets, flows, packets };
        let ns = self.pods[0].flows(&plan)?;
        let arrived = self.near.arrived()? - before;
        // Packets that still fit into the unread socket's buffer are not counted.
        ensure!(
            arrived > 0.99 * f64::from(packets) - 2000.0,
            "only {arrived} of {packets} packets of {flows} flows arrived"
        );
        Ok(ns)
    }
}

/// Adds a pod to each node and loads the objects of all pods. Returns the added ones.
fn load_pods(lab: &Lab, pods: &[Pod]) -> Result<Vec<Pod>> {
    let nodes = lab.nodes().iter().enumerate();
    let others = nodes.map(|(i, node)| node.add_pod(&format!("other-{i}"))).collect::<Result<Vec<_>>>()?;
    let of = |pods: &[Pod], app: &str| pods.iter().map(|pod| policed::object(pod, app)).collect::<Vec<_>>();
    let objects = [of(pods, "measured"), of(&others, "other")].concat();
    lab.apply("pods", &manifest::yaml(&objects))?;
    Ok(others)
}

/// Loads policies for pods instead of those before, and waits until they are in effect. By them, the pods reach each
/// other at all TCP ports, and the world outside.
fn load_policies(lab: &Lab, policed: Policed) -> Result<()> {
    let app = match policed {
        Policed::None => None,
        Policed::All => Some("measured"),
        Policed::Others => Some("other"),
    };
    let objects = app.map(|app| {
        let rule = |peers: &str| {
            let ports = json!([{"protocol": "TCP", "port": 1, "endPort": 65535}]);
            json!([{peers: [policed::app(app), {"ipBlock": {"cidr": "172.30.0.0/16"}}], "ports": ports}])
        };
        let spec = json!({"policyTypes": ["Ingress", "Egress"], "ingress": rule("from"), "egress": rule("to")});
        policed::policy(app, app, spec)
    });
    lab.apply("network-policies", &manifest::yaml(objects.as_slice()))?;
    for node in lab.nodes() {
        eventually("the policies are in effect", || {
            let list = node.podnet_json(&["policy", "list"])?;
            let policies = list.as_array().context("not a list")?;
            let names: Vec<_> = policies.iter().filter_map(|policy| policy["name"].as_str()).collect();
            let selects = policies.iter().all(|policy| policy["subjects"].as_u64().is_some_and(|pods| pods > 0));
            ensure!(names == app.as_slice() && selects, "{list}");
            Ok(())
        })?;
        // It then evaluates the flows that exist.
        eventually("the daemon is idle", || {
            let before = node.daemon_cpu()?;
            thread::sleep(IDLE);
            ensure!(node.daemon_cpu()? - before < IDLE / 20, "the daemon is busy");
            Ok(())
        })?;
    }
    Ok(())
}

/// Makes the nodes routers, with routes to each other's pods.
fn route_nodes(lab: &Lab) -> Result<()> {
    for (node, other) in [(0, 1), (1, 0)] {
        let (node, other) = (lab.node(node), lab.node(other));
        node.place.ip(&format!("route add {} via {}\n", other.pod_cidrs()[0], other.ip(Family::V4)))?;
        ROUTER_SETTINGS.iter().try_for_each(|(name, value)| node.place.set_sysctl(name, value))?;
    }
    Ok(())
}

/// Makes the nodes routers that reach each other's pods through VXLAN devices with static peers.
fn tunnel_nodes(lab: &Lab) -> Result<()> {
    for (node, other) in [(1, 2), (2, 1)] {
        let [here, there] = [node, other].map(|number| lab.node(number - 1));
        let (local, remote) = (here.ip(Family::V4), there.ip(Family::V4));
        let [mac, peer] = [node, other].map(|number| format!("02:00:00:00:00:{number:02x}"));
        let gateway = format!("10.244.{other}.0");
        here.place.ip(&format!(
            "link add vxlan0 address {mac} mtu {VXLAN_MTU} type vxlan id 1 dstport 8472 local {local} dev eth0 nolearning noudpcsum\n\
             addr add 10.244.{node}.0/32 dev vxlan0\n\
             link set vxlan0 up\n\
             neigh add {gateway} dev vxlan0 lladdr {peer} nud permanent\n\
             route add {} via {gateway} dev vxlan0 onlink\n",
            there.pod_cidrs()[0],
        ))?;
        here.place.run("bridge", &["fdb", "append", &peer, "dev", "vxlan0", "dst", &remote.to_string()])?;
        ROUTER_SETTINGS.iter().try_for_each(|(name, value)| here.place.set_sysctl(name, value))?;
    }
    Ok(())
}

/// Routes the external client's traffic to pods through the first node. Replies from the second node pass the first one
/// as well, except those from the address `one_way`.
fn route_outside(lab: &Lab, one_way: Ipv4Addr) -> Result<()> {
    let first = lab.node(0).ip(Family::V4);
    lab.client().ip(&format!(
        "addr add {SECOND_CLIENT}/24 dev eth0\n\
         route add 10.244.0.0/16 via {first} src {CLIENT}\n\
         route add {one_way}/32 via {first} src {SECOND_CLIENT}\n"
    ))?;
    lab.node(1).place.ip(&format!("route add {CLIENT}/32 via {first}\n"))
}

fn ipv4(ip: IpAddr) -> Result<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => anyhow::bail!("{ip} is no IPv4 address"),
    }
}

/// Topologies, each built on first use and kept for the run.
#[derive(Default)]
pub struct Topologies {
    built: RefCell<BTreeMap<Kind, Topology>>,
}

impl Topologies {
    /// Calls a closure with one of them. After a failure, the topology is rebuilt on the next call.
    pub fn with<T>(&self, kind: Kind, f: impl FnOnce(&mut Topology) -> Result<T>) -> Result<T> {
        let mut built = self.built.borrow_mut();
        let topology = match built.entry(kind.built()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let spinner = rounds::spinner(format!("building the topology {kind}"));
                let topology =
                    Topology::new(kind.built()).with_context(|| format!("cannot build the topology {kind}"))?;
                spinner.finish_and_clear();
                entry.insert(topology)
            }
        };
        let result = topology.become_kind(kind).and_then(|()| f(topology));
        if result.is_err() {
            // Its workers may still be busy.
            built.remove(&kind.built());
        }
        result
    }
}
