//! Building a lab: namespaces, links, addresses, directories, configurations, daemons.

use std::cell::RefCell;
use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use podnet::config::{Config, Kubernetes};
use serde_json::{Map, Value, json};
use socket2::{Protocol, Type};

use super::{Binaries, Far, Lab, NetNs, Node, Offload, Place, Scrap};
use crate::api::{Abilities, Api};
use crate::place::agent::{Agent, Setup};
use crate::place::fd_path;
use crate::traffic::Family;

/// Address families of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both, IPv4 first.
    Dual,
}

impl Families {
    /// The families, IPv4 first.
    pub fn list(self) -> &'static [Family] {
        match self {
            Self::V4 => &[Family::V4],
            Self::V6 => &[Family::V6],
            Self::Dual => &[Family::V4, Family::V6],
        }
    }
}

/// Settings of a machine that routes and sends an ICMP error for every packet that it cannot forward.
const ROUTER: [(&str, &str); 6] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.icmp_ratelimit", "0"),
    ("net.ipv6.icmp.ratelimit", "0"),
];

fn make_router(place: &Place) -> Result<()> {
    for (name, value) in ROUTER {
        // Without IPv6 there is nothing to set.
        if place.sysctl(name).is_ok() {
            place.set_sysctl(name, value)?;
        }
    }
    Ok(())
}

impl Lab {
    /// A builder; by default for two dual-stack nodes.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Adds another external machine, with only `lo`; see [`Place::wire`].
    pub fn add_machine(&self, name: &str) -> Result<Place> {
        machine(&self.scrap, &self.binaries().lab, name)
    }
}

type Change<T> = Box<dyn Fn(usize, &mut T)>;

/// Starts an API server at the fabric's address.
fn serve_api(fabric: &Place, abilities: Abilities) -> Result<Api> {
    let addr: SocketAddr = ([172, 30, 0, 254], 6443).into();
    let socket = fabric.socket_for(addr, Type::STREAM, Protocol::TCP)?;
    socket.bind(&addr.into())?;
    socket.listen(64)?;
    Api::serve(socket.into(), abilities)
}

/// Specification of a lab; see [`Lab::builder`].
pub struct Builder {
    nodes: usize,
    families: Families,
    client: bool,
    far: bool,
    plain_links: bool,
    routed: bool,
    xdp: RefCell<Vec<OwnedFd>>,
    zones: &'static [&'static str],
    mtu: u32,
    daemons: bool,
    api: Option<Abilities>,
    config: Vec<Change<Config>>,
    plugin: Vec<Change<Map<String, Value>>>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            nodes: 2,
            families: Families::Dual,
            client: false,
            far: false,
            plain_links: false,
            routed: false,
            xdp: RefCell::default(),
            zones: &[],
            mtu: 1500,
            daemons: true,
            api: None,
            config: Vec::new(),
            plugin: Vec::new(),
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nodes, {:?}, client {}, mtu {}", self.nodes, self.families, self.client, self.mtu)
    }
}

impl Builder {
    /// Number of nodes, 1 to 99.
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// Address families of nodes and pods.
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// Adds an external machine on the nodes' link.
    pub fn client(mut self, wanted: bool) -> Self {
        self.client = wanted;
        self
    }

    /// Adds an external machine behind two routers.
    pub fn far(mut self, wanted: bool) -> Self {
        self.far = wanted;
        self
    }

    /// Makes the nodes' link behave like physical wires: checksums are complete, no packet exceeds the MTU, and native
    /// XDP programs can transmit.
    pub fn plain_links(mut self, wanted: bool) -> Self {
        self.plain_links = wanted;
        self
    }

    /// Places each node on a link of its own, as far as it can tell: the nodes reach each other through the fabric, a
    /// router.
    pub fn routed(mut self, wanted: bool) -> Self {
        self.routed = wanted;
        self
    }

    /// Zones of the nodes, by index.
    pub fn zones(mut self, zones: &'static [&'static str]) -> Self {
        self.zones = zones;
        self
    }

    /// MTU of the nodes' link in bytes, without the Ethernet header.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Starts the daemons; with `false`, call [`Node::start_daemon`] later.
    pub fn daemons(mut self, wanted: bool) -> Self {
        self.daemons = wanted;
        self
    }

    /// Supplies the daemons' objects from a Kubernetes API server with these abilities instead of manifests.
    pub fn api(mut self, abilities: Abilities) -> Self {
        self.api = Some(abilities);
        self
    }

    /// Changes a node's daemon configuration before its first start.
    pub fn config(mut self, change: impl Fn(usize, &mut Config) + 'static) -> Self {
        self.config.push(Box::new(change));
        self
    }

    /// Changes a node's plugin configuration.
    pub fn plugin(mut self, change: impl Fn(usize, &mut Map<String, Value>) + 'static) -> Self {
        self.plugin.push(Box::new(change));
        self
    }

    /// Builds the cluster and waits until the daemons are ready.
    pub fn build(self) -> Result<Lab> {
        ensure!((1..CLIENT).contains(&self.nodes), "a lab has 1 to 99 nodes");
        ensure!(nix::unistd::geteuid().is_root(), "the lab makes network namespaces: run it as root");
        let binaries = Arc::new(Binaries::find()?);
        let scrap = Scrap::new()?;
        let outside = |name: &str| machine(&scrap, &binaries.lab, name);
        let fabric = outside("fabric")?;
        self.connect_fabric(&fabric).context("cannot set up the bridge between the nodes")?;
        let api = self.api.map(|abilities| serve_api(&fabric, abilities)).transpose()?;
        let client = self.client.then(|| outside("client")).transpose()?;
        if let Some(client) = &client {
            self.connect(&fabric, client, CLIENT, false)?;
        }
        let far = self.far.then(|| self.connect_far(&fabric, outside("far")?, outside("router")?)).transpose()?;
        let nodes = (0..self.nodes)
            .map(|index| self.node(index, &scrap, &fabric, &binaries, api.as_ref()).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        let lab = Lab { nodes, client, far, fabric, api, _xdp: self.xdp.take(), scrap };
        lab.apply_nodes(|_, _| {})?;
        if self.daemons {
            // In parallel: each takes a moment to load its programs.
            std::thread::scope(|scope| {
                let starts: Vec<_> = lab.nodes.iter().map(|node| scope.spawn(|| node.start_daemon())).collect();
                starts.into_iter().try_for_each(|start| start.join().expect("starting a daemon does not panic"))
            })?;
        }
        Ok(lab)
    }

    fn node(
        &self,
        index: usize,
        scrap: &Scrap,
        fabric: &Place,
        binaries: &Arc<Binaries>,
        api: Option<&Api>,
    ) -> Result<Node> {
        let number = index + 1;
        let name = format!("node{number}");
        let dir = scrap.dir.join(&name);
        for part in ["run/podnet", "state", "manifests"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let cgroup = scrap.cgroup.join(&name);
        fs::create_dir(&cgroup)?;
        let place = place(&binaries.lab, &name, Some(&cgroup), &dir.join("run"))?;
        self.connect(fabric, &place, number, self.routed)?;
        let families = self.families.list();
        let addrs = families.iter().map(|family| address(*family, number)).collect();
        let pod_cidrs = families.iter().map(|family| pod_cidr(*family, number)).collect();

        let state = dir.join("state");
        let mut config: Config =
            serde_json::from_value(json!({ "node": name, "manifests": dir.join("manifests"), "stateDir": state }))?;
        if let Some(api) = api {
            let kubeconfig = dir.join("kubeconfig");
            fs::write(&kubeconfig, api.kubeconfig())?;
            config.manifests = None;
            config.kubernetes = Some(Kubernetes { kubeconfig: Some(kubeconfig), ..Kubernetes::default() });
            config.service_cidrs = Some(vec!["10.96.0.0/16".parse()?, "fd00:96::/112".parse()?]);
        }
        self.config.iter().for_each(|change| change(index, &mut config));
        let plugin = json!({ "cniVersion": "1.1.0", "name": "podnet", "type": "podnet-cni", "stateDir": state });
        let Value::Object(mut plugin) = plugin else { unreachable!("is an object") };
        self.plugin.iter().for_each(|change| change(index, &mut plugin));
        let zone = self.zones.get(index).copied();
        let node = Node::new(place, addrs, pod_cidrs, zone, dir, binaries.clone(), plugin.into());
        node.write_config(&config)?;
        Ok(node)
    }

    fn connect_fabric(&self, fabric: &Place) -> Result<()> {
        // The bridge only switches frames; the machine's setting that passes them to iptables must not apply.
        for table in ["arptables", "ip6tables", "iptables"] {
            let name = format!("net.bridge.bridge-nf-call-{table}");
            if fabric.sysctl(&name).is_ok() {
                fabric.set_sysctl(&name, "0")?;
            }
        }
        fabric.ip("link add br0 type bridge\nlink set br0 up\naddr add 172.30.0.254/24 dev br0\n")?;
        if self.families != Families::V4 {
            fabric.ip("addr add fd00:30::fe/64 dev br0 nodad\n")?;
        }
        if self.routed {
            make_router(fabric)?;
            // Redirects would reveal that the nodes share a link.
            for name in ["all", "br0"] {
                fabric.set_sysctl(&format!("net.ipv4.conf.{name}.send_redirects"), "0")?;
            }
        }
        Ok(())
    }

    /// Makes the fabric a router and places another one between it and the far machine.
    fn connect_far(&self, fabric: &Place, machine: Place, router: Place) -> Result<Far> {
        make_router(fabric)?;
        make_router(&router)?;
        fabric.wire("router", &router, "eth0", self.mtu)?;
        router.wire("eth1", &machine, "eth0", self.mtu)?;
        for family in self.families.list() {
            let [upper, lower] = match family {
                Family::V4 => ["172.31.1", "172.31.2"].map(|net| [format!("{net}.1/24"), format!("{net}.2/24")]),
                Family::V6 => ["fd00:31:1", "fd00:31:2"].map(|net| [format!("{net}::1/64"), format!("{net}::2/64")]),
            };
            let bare = |addr: &str| addr.split('/').next().unwrap_or_default().to_owned();
            let beyond = if *family == Family::V4 { "172.31.2.0/24" } else { "fd00:31:2::/64" };
            fabric.ip(&format!("addr add {} dev router\nroute add {beyond} via {}\n", upper[0], bare(&upper[1])))?;
            router.ip(&format!(
                "addr add {} dev eth0\naddr add {} dev eth1\nroute add default via {}\n",
                upper[1],
                lower[0],
                bare(&upper[0])
            ))?;
            machine.ip(&format!("addr add {} dev eth0\nroute add default via {}\n", lower[1], bare(&lower[0])))?;
        }
        Ok(Far { machine, router })
    }

    /// Links a machine to the bridge and assigns the addresses and default routes for its number. `alone`: the machine
    /// sees only the router on its link.
    fn connect(&self, fabric: &Place, machine: &Place, number: usize, alone: bool) -> Result<()> {
        let (mtu, name) = (self.mtu, machine.name());
        let netns = fd_path(machine.netns());
        fabric.ip(&format!(
            "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}\nlink set {name} master br0 up\n"
        ))?;
        if self.plain_links {
            for (place, ifname) in [(fabric, name), (machine, "eth0")] {
                place.set_offload(ifname, Offload::TxChecksum, false)?;
            }
            self.xdp.borrow_mut().push(fabric.pass_in_xdp(name)?);
        }
        let mut lines = "link set eth0 up\n".to_owned();
        for family in self.families.list() {
            let (shared, one, options, gateway) = match family {
                Family::V4 => (24, 32, "", "172.30.0.254"),
                Family::V6 => (64, 128, "nodad", "fd00:30::fe"),
            };
            let length = if alone { one } else { shared };
            write!(
                lines,
                "addr add {}/{length} dev eth0 {options}\nroute replace {gateway} dev eth0\nroute add default via \
                 {gateway}\n",
                address(*family, number)
            )?;
        }
        machine.ip(&lines)
    }
}

/// An external machine with only a loopback interface.
fn machine(scrap: &Scrap, program: &Path, name: &str) -> Result<Place> {
    let run = scrap.dir.join(name);
    fs::create_dir(&run)?;
    place(program, name, None, &run)
}

/// Number of the external client in its addresses; no node has it.
const CLIENT: usize = 100;

/// Address of the external client.
pub fn client_ip(family: Family) -> IpAddr {
    address(family, CLIENT)
}

/// Address of the far machine.
pub fn far_ip(family: Family) -> IpAddr {
    match family {
        Family::V4 => [172, 31, 2, 2].into(),
        Family::V6 => [0xfd00, 0x31, 2, 0, 0, 0, 0, 2].into(),
    }
}

/// Address of machine `number` on the nodes' link.
fn address(family: Family, number: usize) -> IpAddr {
    let text = match family {
        Family::V4 => format!("172.30.0.{number}"),
        // The decimal digits, written as hexadecimal, so that both families look alike.
        Family::V6 => format!("fd00:30::{number}"),
    };
    text.parse().expect("is an address")
}

/// Pod CIDR of node `number`.
fn pod_cidr(family: Family, number: usize) -> String {
    match family {
        Family::V4 => format!("10.244.{number}.0/24"),
        Family::V6 => format!("fd00:244:{number}::/64"),
    }
}

fn place(program: &Path, name: &str, cgroup: Option<&Path>, run: &Path) -> Result<Place> {
    let netns = Arc::new(NetNs::new().context("cannot make a network namespace")?);
    let agent = Agent::start(&Setup { program, name, netns: netns.as_fd(), cgroup, run })?;
    let place = Place::new(name, netns, Arc::new(agent));
    if place.sysctl("net.ipv6.conf.default.accept_dad").is_ok() {
        // Duplicate address detection would delay the first packet by seconds.
        place.set_sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        place.set_sysctl("net.ipv6.conf.default.accept_ra", "0")?;
    }
    place.ip("link set lo up\n")?;
    Ok(place)
}
