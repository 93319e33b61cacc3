//! The node's view of the network, in the tables `nodes`, `peers` and `interfaces`: the kind of each address range, the
//! MACs of other nodes, and the uplinks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use podnet_common::{
    addr::{Addr, IfIndex, Mac},
    layout::{Interface, Network, NetworkKind, Prefix},
    tables::{INTERFACES, NODES},
};

use crate::{
    config::Config,
    host::routes::{NodeAddress, NodeRoutes, RemoteNode},
    mirror::{Entries, First, Mirror, TableError},
    model::Node,
    prefixes::Prefixes,
};

/// The first IPv4-mapped IPv6 address.
const MAPPED: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);

/// Maximum number of entries of `nodes`: before Linux 6.13, entries of a full trie can't be replaced.
const ROOM: usize = NODES.capacity() - 1;

/// Input for the tables.
pub struct Cluster<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// This node's Node object.
    pub own: &'a Node,
    /// Addresses of this node's interfaces.
    pub addresses: &'a BTreeSet<IpAddr>,
    /// The other nodes.
    pub remote: &'a [RemoteNode],
    /// The ranges of service addresses.
    pub service_cidrs: &'a BTreeSet<IpNetwork>,
}

impl Cluster<'_> {
    /// The service addresses that get an entry in `nodes`. Left out are external IPs that are also the address of a
    /// node or pod, which lead to the service at its ports only, and addresses in the service ranges, whose entries
    /// cover them.
    pub fn service_addresses(&self, all: impl Iterator<Item = IpAddr>) -> BTreeSet<IpAddr> {
        let nodes: BTreeSet<&IpAddr> = self.remote.iter().flat_map(|node| &node.addresses).collect();
        let pods = self.remote.iter().flat_map(|node| &node.pod_cidrs).chain(&self.own.pod_cidrs);
        let ranges: Prefixes<()> = pods.chain(self.service_cidrs).copied().collect();
        all.filter(|addr| !self.addresses.contains(addr) && !nodes.contains(addr))
            .filter(|addr| ranges.get(*addr).is_none())
            .collect()
    }

    /// The table `nodes`. If two entries have the same range, the later one wins.
    fn networks(&self, routes: &NodeRoutes, services: &BTreeSet<IpAddr>) -> BTreeMap<Prefix, Network> {
        let mut networks = BTreeMap::new();
        let mapped = IpAddr::from(MAPPED);
        if self.config.non_masquerade_cidrs.iter().any(|cidr| cidr.contains(mapped)) {
            networks.insert(Prefix::new(mapped, 96), Network::default());
        }
        let mut put = |cidr: IpNetwork, kind: NetworkKind, node: Option<IpAddr>, mac: Option<Mac>, flags: u16| {
            let node = node.map_or(Addr::NONE, Addr::from);
            let network = Network { kind: kind as u32, node, mac: mac.unwrap_or_default(), flags };
            networks.insert(Prefix::new(cidr.network(), cidr.prefix()), network);
        };
        for cidr in &self.config.non_masquerade_cidrs {
            put(*cidr, NetworkKind::NonMasquerade, None, None, 0);
        }
        for cidr in self.service_cidrs {
            put(*cidr, NetworkKind::Services, None, None, 0);
        }
        let ranges: Prefixes<()> = self.config.non_masquerade_cidrs.iter().copied().collect();
        for address in services {
            let kind = ranges.get(*address).map_or(NetworkKind::Nothing, |()| NetworkKind::NonMasquerade);
            put(IpNetwork::from(*address), kind, None, None, Network::SERVICE_ADDRESS);
        }
        let hops: BTreeMap<_, _> = routes.hops.iter().map(|hop| (hop.cidr, hop)).collect();
        for node in self.remote {
            for cidr in &node.pod_cidrs {
                let hop = hops.get(cidr);
                let flags = hop.map_or(0, |hop| tunnel_flag(hop.tunnel));
                put(*cidr, NetworkKind::RemotePods, hop.map(|hop| hop.via), hop.and_then(|hop| hop.mac), flags);
            }
        }
        for NodeAddress { addr, mac, tunnel, .. } in &routes.addresses {
            put(IpNetwork::from(*addr), NetworkKind::RemoteNode, Some(*addr), *mac, tunnel_flag(*tunnel));
        }
        for cidr in &self.own.pod_cidrs {
            let node = self.own.internal_ips.iter().copied().find(|address| address.is_ipv4() == cidr.is_ipv4());
            put(*cidr, NetworkKind::LocalPods, node, None, 0);
        }
        for address in self.addresses {
            let flags = if self.serves_node_ports(*address) { Network::NODE_PORTS } else { 0 };
            put(IpNetwork::from(*address), NetworkKind::LocalNode, Some(*address), None, flags);
        }
        networks
    }

    fn serves_node_ports(&self, address: IpAddr) -> bool {
        let ranges = &self.config.node_port_addresses;
        ranges.is_empty() || ranges.iter().any(|range| range.contains(address))
    }
}

fn tunnel_flag(tunnel: bool) -> u16 {
    if tunnel { Network::TUNNEL } else { 0 }
}

/// Leaves out service addresses until the entries fit. Returns how many.
fn leave_out_services(networks: &mut BTreeMap<Prefix, Network>) -> usize {
    let excess = networks.len().saturating_sub(ROOM);
    let of_services = networks.iter().rev().filter(|(_, network)| network.flags & Network::SERVICE_ADDRESS != 0);
    let left_out: Vec<_> = of_services.map(|(prefix, _)| *prefix).take(excess).collect();
    left_out.iter().for_each(|prefix| _ = networks.remove(prefix));
    left_out.len()
}

/// The table `peers`: the MACs of nodes on the same link or in the tunnel.
fn peers(routes: &NodeRoutes) -> BTreeSet<Mac> {
    routes.addresses.iter().filter_map(|address| address.mac).collect()
}

/// The tables have been written.
#[derive(Debug)]
pub struct Written {
    left_out: usize,
}

impl Written {
    /// Number of service addresses for which `nodes` has no room: they come last, since nodes and pods can't do without
    /// their entries, and anyone who may create Services can have many.
    pub fn left_out(&self) -> usize {
        self.left_out
    }
}

/// The tables as written so far.
#[derive(Debug, Default)]
pub struct Networks {
    networks: Mirror<Prefix, Network>,
    peers: Mirror<Mac, ()>,
    interfaces: Mirror<IfIndex, Interface>,
    macs: KnownMacs,
}

impl Networks {
    /// Fills in MACs of other nodes that have expired from the kernel's neighbour table.
    pub fn complete(&mut self, routes: &mut NodeRoutes) {
        self.macs.complete(routes);
    }

    /// Makes the tables match the cluster, the routes to its nodes, and these interfaces, of which as many as the table
    /// has room for.
    ///
    /// # Errors
    /// The first operation that fails; the next call continues from there.
    pub fn sync<T>(
        &mut self,
        cluster: &Cluster<'_>,
        routes: &NodeRoutes,
        services: &BTreeSet<IpAddr>,
        interfaces: BTreeMap<IfIndex, Interface>,
        tables: &mut T,
    ) -> Result<Written, TableError>
    where
        T: Entries<Prefix, Network> + Entries<Mac, ()> + Entries<IfIndex, Interface>,
    {
        let mut networks = cluster.networks(routes, services);
        let left_out = leave_out_services(&mut networks);
        // Puts first: no range is unknown in between, unless there is no room for both.
        match self.networks.sync(&networks, First::Put, tables) {
            Err(TableError::Full { .. }) => self.networks.sync(&networks, First::Delete, tables)?,
            result => result?,
        }
        self.peers.sync(&peers(routes).into_iter().map(|mac| (mac, ())).collect(), First::Put, tables)?;
        let interfaces = interfaces.into_iter().take(INTERFACES.capacity()).collect();
        self.interfaces.sync(&interfaces, First::Delete, tables)?;
        Ok(Written { left_out })
    }

    /// Entries of `nodes`.
    pub fn held(&self) -> impl Iterator<Item = (&Prefix, &Network)> + Clone {
        self.networks.iter()
    }

    /// Number of entries of `nodes`.
    pub fn len(&self) -> usize {
        self.networks.len()
    }

    /// Whether `nodes` is empty.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }
}

/// Last known MACs of other nodes. The kernel drops the neighbour entry of a silent node after a while, and restores it
/// as soon as it is used; in between the node's MAC is assumed to be unchanged.
#[derive(Debug, Default)]
struct KnownMacs(BTreeMap<IpAddr, Mac>);

impl KnownMacs {
    /// Remembers the MACs that are known now, and fills in those known before. Forgets addresses that belong to no
    /// node, or are no longer on a link.
    fn complete(&mut self, routes: &mut NodeRoutes) {
        let before = std::mem::take(&mut self.0);
        // In the tunnel the MAC is always known.
        for address in routes.addresses.iter_mut().filter(|address| address.dev.is_some() && !address.tunnel) {
            address.mac = address.mac.or_else(|| before.get(&address.addr).copied());
            self.0.extend(address.mac.map(|mac| (address.addr, mac)));
        }
        for hop in &mut routes.hops {
            hop.mac = hop.mac.or_else(|| self.0.get(&hop.via).copied());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{datapath::memory::MemoryTables, host::routes::NodeHop};

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn cidr(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn config(rest: &str) -> Config {
        Config::parse(&format!("node: n1\nmanifests: /m\n{rest}")).unwrap()
    }

    /// What a [`Cluster`] refers to.
    struct Site {
        config: Config,
        own: Node,
        addresses: BTreeSet<IpAddr>,
        remote: Vec<RemoteNode>,
        service_cidrs: BTreeSet<IpNetwork>,
    }

    impl Site {
        /// A site with these additional lines of configuration, and these addresses of this node's interfaces.
        fn new(rest: &str, addresses: &[&str], remote: Vec<RemoteNode>) -> Self {
            let config = config(rest);
            let service_cidrs = config.service_cidrs().into_iter().collect();
            Self { config, own: own(), addresses: addresses.iter().map(|a| ip(a)).collect(), remote, service_cidrs }
        }

        fn cluster(&self) -> Cluster<'_> {
            let Self { config, own, addresses, remote, service_cidrs } = self;
            Cluster { config, own, addresses, remote, service_cidrs }
        }
    }

    fn own() -> Node {
        Node {
            internal_ips: vec![ip("172.30.0.1"), ip("fd00:30::1")],
            pod_cidrs: vec![cidr("10.244.1.0/24"), cidr("fd00:244:1::/64")],
            ..Node::default()
        }
    }

    fn remote() -> Vec<RemoteNode> {
        let node = |name: &str, addresses: &[&str], cidrs: &[&str]| RemoteNode {
            name: name.into(),
            addresses: addresses.iter().map(|a| ip(a)).collect(),
            pod_cidrs: cidrs.iter().map(|c| cidr(c)).collect(),
        };
        vec![node("n2", &["172.30.0.2", "fd00:30::2"], &["10.244.2.0/24"]), node("n3", &["10.9.0.3"], &[])]
    }

    fn address(addr: &str, dev: Option<u32>, mac: Option<Mac>) -> NodeAddress {
        NodeAddress { node: "n2".into(), addr: ip(addr), dev: dev.map(IfIndex), mac, tunnel: false }
    }

    fn routes(mac: Option<Mac>) -> NodeRoutes {
        let hop = NodeHop {
            node: "n2".into(),
            cidr: cidr("10.244.2.0/24"),
            via: ip("172.30.0.2"),
            dev: IfIndex(2),
            mac,
            tunnel: false,
        };
        let addresses = vec![
            address("172.30.0.2", Some(2), mac),
            address("fd00:30::2", Some(2), mac),
            address("10.9.0.3", None, None),
        ];
        NodeRoutes { hops: vec![hop], addresses, ..NodeRoutes::default() }
    }

    /// The table in readable form.
    fn shown(networks: &BTreeMap<Prefix, Network>) -> Vec<String> {
        let kind = |kind: u32| {
            ["Nothing", "LocalPods", "RemotePods", "Services", "LocalNode", "RemoteNode", "", "NonMasquerade"]
                [kind as usize]
        };
        let show = |(prefix, network): (&Prefix, &Network)| {
            let node =
                if network.node == Addr::NONE { String::new() } else { format!(" {}", IpAddr::from(network.node)) };
            let mac = if network.mac == MAC { " mac" } else { "" };
            let flags = ["", " node-ports", " tunnel", "", " service"][network.flags as usize];
            format!("{prefix} {}{node}{mac}{flags}", kind(network.kind))
        };
        networks.iter().map(show).collect()
    }

    #[test]
    fn table_contains_every_kind_of_range() {
        let addresses = ["172.30.0.1", "fd00:30::1", "192.168.7.1"];
        let site = Site::new("nodePortAddresses: [172.30.0.0/24]", &addresses, remote());
        let cluster = site.cluster();
        let services = BTreeSet::from([ip("198.51.100.7"), ip("2001:db8::7"), ip("169.254.7.7")]);
        let mut table = shown(&cluster.networks(&routes(Some(MAC)), &services));
        table.sort();
        let mut expected = [
            "10.244.1.0/24 LocalPods 172.30.0.1",
            "10.244.2.0/24 RemotePods 172.30.0.2 mac",
            "10.9.0.3/32 RemoteNode 10.9.0.3",
            "10.96.0.0/16 Services",
            "169.254.0.0/16 NonMasquerade",
            "172.30.0.1/32 LocalNode 172.30.0.1 node-ports",
            "172.30.0.2/32 RemoteNode 172.30.0.2 mac",
            "192.168.7.1/32 LocalNode 192.168.7.1",
            "169.254.7.7/32 NonMasquerade service",
            "198.51.100.7/32 Nothing service",
            "2001:db8::7/128 Nothing service",
            "fd00:244:1::/64 LocalPods fd00:30::1",
            "fd00:30::1/128 LocalNode fd00:30::1",
            "fd00:30::2/128 RemoteNode fd00:30::2 mac",
            "fd00:96::/112 Services",
            "fe80::/10 NonMasquerade",
        ];
        expected.sort_unstable();
        assert_eq!(table, expected);
        assert_eq!(peers(&routes(Some(MAC))), BTreeSet::from([MAC]));
        assert!(peers(&routes(None)).is_empty());

        let mut tunnelled = routes(Some(MAC));
        tunnelled.hops[0].tunnel = true;
        tunnelled.addresses[1].tunnel = true;
        let table = shown(&cluster.networks(&tunnelled, &services));
        let through: Vec<_> = table.iter().filter(|row| row.ends_with("mac tunnel")).collect();
        assert_eq!(
            through,
            ["10.244.2.0/24 RemotePods 172.30.0.2 mac tunnel", "fd00:30::2/128 RemoteNode fd00:30::2 mac tunnel"]
        );
    }

    #[test]
    fn without_node_port_ranges_every_own_address_serves_node_ports() {
        let site = Site::new("", &["172.30.0.1", "2001:db8::1"], Vec::new());
        let networks = site.cluster().networks(&NodeRoutes::default(), &BTreeSet::new());
        for address in &site.addresses {
            assert_eq!(networks[&Prefix::new(*address, IpNetwork::from(*address).prefix())].flags, Network::NODE_PORTS);
        }
    }

    #[test]
    fn range_of_all_ipv6_addresses_excludes_ipv4() {
        let mapped = Prefix::new(IpAddr::from(MAPPED), 96);
        let kind = |ranges: &str| {
            let site = Site::new(&format!("nonMasqueradeCIDRs: [{ranges}]"), &[], Vec::new());
            let networks = site.cluster().networks(&NodeRoutes::default(), &BTreeSet::new());
            networks.get(&mapped).map(|network| network.kind)
        };
        assert_eq!(kind("10.0.0.0/8, \"fd00::/8\""), None);
        assert_eq!(kind("\"::/0\""), Some(NetworkKind::Nothing as u32));
        assert_eq!(kind("\"::/0\", 0.0.0.0/0"), Some(NetworkKind::NonMasquerade as u32));
    }

    #[test]
    fn external_ip_that_is_also_a_node_or_pod_keeps_its_kind() {
        let site = Site::new("", &["172.30.0.1", "192.168.7.1"], remote());
        let all = ["198.51.100.7", "192.168.7.1", "172.30.0.2", "10.244.1.9", "10.244.2.9", "10.96.0.1", "2001:db8::7"];
        let taken: Vec<_> =
            site.cluster().service_addresses(all.into_iter().map(ip)).iter().map(ToString::to_string).collect();
        assert_eq!(taken, ["198.51.100.7", "2001:db8::7"]);
    }

    #[test]
    fn nodes_and_pods_have_entries_however_many_addresses_services_have() {
        let site = Site::new("", &["172.30.0.1"], remote());
        let of_site = site.cluster().networks(&routes(Some(MAC)), &BTreeSet::new());
        let (mut tables, mut networks) = (MemoryTables::default(), Networks::default());
        let mut sync = |first: u32, count: usize| {
            let benchmarking = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + first;
            let services = (benchmarking..).take(count).map(|addr| IpAddr::from(Ipv4Addr::from(addr))).collect();
            let cluster = site.cluster();
            let written = networks.sync(&cluster, &routes(Some(MAC)), &services, BTreeMap::new(), &mut tables).unwrap();
            assert!(of_site.iter().all(|(prefix, network)| networks.networks.get(prefix) == Some(network)));
            (written.left_out, networks.len())
        };
        let room = ROOM - of_site.len();
        assert_eq!(sync(0, room), (0, ROOM));
        assert_eq!(sync(0, room + 7), (7, ROOM));
        assert_eq!(sync(room as u32, room), (0, ROOM), "all addresses are replaced while there is no room for both");
        assert_eq!(sync(0, 1), (0, of_site.len() + 1));
    }

    #[test]
    fn mac_is_kept_when_the_neighbour_entry_expires() {
        let mut known = KnownMacs::default();
        let mut first = routes(Some(MAC));
        known.complete(&mut first);
        let mut silent = routes(None);
        known.complete(&mut silent);
        assert_eq!((silent.hops[0].mac, peers(&silent)), (Some(MAC), BTreeSet::from([MAC])));

        let other = Mac([2, 0, 0, 0, 0, 3]);
        let mut replaced = routes(Some(other));
        known.complete(&mut replaced);
        assert_eq!(peers(&replaced), BTreeSet::from([other]), "another card");

        let mut tunnelled = routes(Some(MAC));
        tunnelled.addresses.iter_mut().for_each(|address| address.tunnel = true);
        let mut on_link = routes(None);
        KnownMacs::default().complete(&mut on_link);
        known.complete(&mut tunnelled);
        known.complete(&mut on_link);
        assert!(peers(&on_link).is_empty(), "a card's MAC is another one");

        let mut moved = routes(None);
        moved.addresses.iter_mut().for_each(|address| address.dev = None);
        known.complete(&mut moved);
        assert!(peers(&moved).is_empty(), "it is behind a router now");
        let mut back = routes(None);
        known.complete(&mut back);
        assert!(peers(&back).is_empty());
    }
}
