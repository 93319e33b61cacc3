//! Tables of a node, with arbitrary contents that a daemon might have written, and some that it should not have.
//!
//! The addresses are those of one small cluster, so that packets match table entries: this node with four pods, a
//! second node on the same link, a third one elsewhere that may be behind a tunnel, clients outside, and services of
//! every kind.

use std::{collections::BTreeMap, net::IpAddr, sync::LazyLock};

use podnet_common::{
    addr::{Addr, IfIndex, Mac, Port, Proto},
    layout::{
        Backend, Config, Endpoint, Frontend, FrontendKey, Interface, Network, NetworkKind, PolicyPod, PolicyRule,
        PolicyVerdict, ProtoPort, ServiceClient, SourceRange, Subject, TUNNEL_PORT, holders, macs,
    },
    pipeline::Route,
    simulator::{HostTables, prefix},
};

use crate::choices::Choices;

/// Addresses of one family.
pub struct Addresses {
    /// Pods of this node.
    pub pods: [IpAddr; 4],
    /// Unused address in this node's pod CIDR.
    pub no_pod: IpAddr,
    /// Pods of the second node, and one of the third.
    pub remote: [IpAddr; 3],
    /// Addresses of this node.
    pub node: [IpAddr; 2],
    /// Addresses of the second and third node.
    pub peers: [IpAddr; 2],
    pub outside: [IpAddr; 3],
    pub hairpin: IpAddr,
    pub cluster_ips: [IpAddr; 4],
    /// Unused address in the service range.
    pub no_service: IpAddr,
    /// Service addresses outside the service range.
    pub external: [IpAddr; 2],
    /// Outside the cluster, reached without masquerade.
    pub plain: IpAddr,
    /// Addresses that no packet should have: unspecified, loopback, multicast, broadcast, link-local; for IPv6 also
    /// IPv4-mapped ones.
    pub odd: Vec<IpAddr>,
}

impl Addresses {
    /// Addresses of a family.
    pub fn of(v6: bool) -> &'static Self {
        static BOTH: LazyLock<[Addresses; 2]> = LazyLock::new(|| [Addresses::new(false), Addresses::new(true)]);
        &BOTH[usize::from(v6)]
    }

    fn new(v6: bool) -> Self {
        let a = |four: &str, six: &str| -> IpAddr { if v6 { six } else { four }.parse().expect("an address") };
        let pod = |n: u32| a(&format!("10.244.1.{n}"), &format!("fd00:244:1::{n}"));
        let service = |n: u32| a(&format!("10.96.0.{n}"), &format!("fd00:96::{n}"));
        let odd = if v6 {
            ["::", "::1", "ff02::1", "ff0e::5", "fe80::c", "::ffff:10.244.1.2", "::ffff:10.96.0.11"].as_slice()
        } else {
            &["0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255", "169.254.1.9", "240.0.0.1", "0.0.0.1"]
        };
        Self {
            pods: [pod(2), pod(3), pod(4), pod(5)],
            no_pod: pod(99),
            remote: [
                a("10.244.2.3", "fd00:244:2::3"),
                a("10.244.2.4", "fd00:244:2::4"),
                a("10.244.3.3", "fd00:244:3::3"),
            ],
            node: [a("172.30.0.1", "fd00:30::1"), a("172.31.0.1", "fd00:31::1")],
            peers: [a("172.30.0.2", "fd00:30::2"), a("172.40.0.3", "fd00:40::3")],
            outside: [
                a("198.51.100.7", "2001:db8::7"),
                a("203.0.113.9", "2001:db8:1::9"),
                a("172.30.0.100", "fd00:30::100"),
            ],
            hairpin: pod(1),
            cluster_ips: [service(11), service(12), service(13), service(14)],
            no_service: service(99),
            external: [a("192.0.2.10", "2001:db8:2::10"), a("172.30.0.50", "fd00:30::50")],
            plain: a("192.168.7.7", "fd00:168::7"),
            odd: odd.iter().map(|text| text.parse().expect("an address")).collect(),
        }
    }

    /// Any address.
    pub fn any(&self, c: &mut Choices<'_>) -> IpAddr {
        match c.below(12) {
            0 | 1 => c.of(&self.cluster_ips),
            2 => c.of(&self.external),
            3 => c.of(&self.node),
            4 | 5 => c.of(&self.pods),
            6 => c.of(&self.remote),
            7 => c.of(&self.outside),
            8 => c.of(&self.peers),
            9 => c.of(&[self.hairpin, self.no_pod, self.no_service, self.plain]),
            10 => c.of(&self.odd),
            _ => self.cluster_ips[0],
        }
    }
}

/// Ports that services may have.
pub const SERVICE_PORTS: [u16; 4] = [80, 443, 53, 30_080];
pub const TARGET_PORTS: [u16; 3] = [8080, TUNNEL_PORT, 80];
pub const CLIENT_PORTS: [u16; 4] = [40_000, 40_001, 40_002, 10_003];
/// First port for source NAT.
pub const SNAT_BASE: u16 = 10_000;

pub const UPLINKS: [IfIndex; 2] = [IfIndex(5), IfIndex(6)];
/// Foreign interface that leads out of the node.
pub const BRIDGE: IfIndex = IfIndex(40);
pub const PODNET0: IfIndex = IfIndex(90);
pub const PODNET1: IfIndex = IfIndex(91);
pub const LOOPBACK: IfIndex = IfIndex(1);
pub const TUNNEL: IfIndex = IfIndex(60);
/// This node's MAC on its uplinks.
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 5, 5];
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 7, 7];
pub const NODE2_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
pub const NODE3_MAC: [u8; 6] = [2, 0, 0, 0, 3, 3];

/// The interface of a pod's host end.
pub fn pod_interface(n: usize) -> IfIndex {
    IfIndex(11 + n as u32)
}

pub fn pod_mac(n: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0x10, n as u8]
}

pub fn host_end_mac(n: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0x11, n as u8]
}

/// The node, and facts about it that are not in its tables.
#[derive(Clone)]
pub struct World {
    pub tables: HostTables,
    /// The tables are inconsistent, as no daemon would leave them; only the pipeline's own consistency is checked.
    pub broken: bool,
}

impl World {
    pub fn new(c: &mut Choices<'_>) -> Self {
        let mut world = Self { tables: HostTables::default(), broken: c.once_in(8) };
        world.tables.now.set(c.of(&[1000, 0, u32::MAX - 1]));
        world.configure(c);
        for v6 in [false, true] {
            world.add_networks(c, Addresses::of(v6));
        }
        for service in 1..=(2 + c.below(8) as u32) {
            world.add_service(c, service);
        }
        if world.broken {
            world.damage(c);
        }
        world
    }

    fn configure(&mut self, c: &mut Choices<'_>) {
        let t = &mut self.tables;
        let (four, six) = (Addresses::of(false), Addresses::of(true));
        let mut flags = c.of(&[Config::MASQUERADE, 0, Config::ROUTE_SOURCE | Config::MASQUERADE]);
        if c.once_in(4) {
            flags |= Config::EXTERNAL_CLUSTER_IP;
        }
        let ports = c.of(&[16, 1, 2, 400, 0]);
        t.snat_ports = (SNAT_BASE..SNAT_BASE + ports).collect();
        let mut uplinks = [IfIndex(0); podnet_common::layout::UPLINKS];
        uplinks[..2].copy_from_slice(&UPLINKS);
        t.config = Config {
            node_v4: four.node[0].into(),
            node_v6: six.node[0].into(),
            hairpin_v4: four.hairpin.into(),
            hairpin_v6: six.hairpin.into(),
            podnet0: PODNET0,
            podnet1: PODNET1,
            podnet0_mac: Mac([2, 0, 0, 0, 9, 0]),
            podnet1_mac: Mac([2, 0, 0, 0, 9, 1]),
            snat_count: u32::from(ports),
            flags,
            mtu: 1500,
            uplinks,
            ..Config::default()
        };
        // Derived from an existing choice, so that inputs of the corpus keep their meaning.
        if ports == 16 || ports == 400 {
            (t.config.tunnel, t.config.tunnel_mac) = (TUNNEL, Mac([2, 0, 0, 0, 9, 2]));
            t.config.tunnel_mtu = if ports == 16 { 1450 } else { 1280 };
        }
        // Foreign interfaces are uplinks as well, unless the configuration names uplinks.
        if ports == 16 {
            let [v4, v6] = [four, six].map(|a| a.node[1].into());
            t.interfaces.insert(BRIDGE, Interface { v4, v6, mtu: 1500, flags: 0 });
        }
        if ports == 2 {
            police(t);
            open(c, t);
            enter_pods(c, t);
        }
        t.conntrack_max = c.of(&[None, None, None, Some(2), Some(5), Some(9)]);
        t.holders.borrow_mut().insert(holders::CAPACITY, t.conntrack_max.unwrap_or_default() as u32);
        t.peers = [Mac(NODE2_MAC), Mac(NODE3_MAC)].into();
    }

    fn add_networks(&mut self, c: &mut Choices<'_>, a: &Addresses) {
        let v6 = a.hairpin.is_ipv6();
        let t = &mut self.tables;
        let one = if v6 { 128 } else { 32 };
        let tunnel = t.config.tunnel.0 != 0;
        let (node3_mac, through) = if tunnel { (NODE3_MAC, Network::TUNNEL) } else { ([0; 6], 0) };
        let mut add = |addr: IpAddr, len: u8, kind: NetworkKind, node: Option<(IpAddr, [u8; 6])>, flags: u16| {
            let (node, mac) = node.map_or((Addr::NONE, [0; 6]), |(node, mac)| (node.into(), mac));
            t.networks.insert(base(addr, len), Network { kind: kind as u32, mac: Mac(mac), flags, node });
        };
        let (pods, services, plain) = if v6 { (64, 112, 48) } else { (24, 16, 16) };
        let node2_mac = c.of(&[NODE2_MAC, NODE2_MAC, [0; 6]]);
        add(a.pods[0], pods, NetworkKind::LocalPods, Some((a.node[0], [0; 6])), 0);
        add(a.remote[0], pods, NetworkKind::RemotePods, Some((a.peers[0], node2_mac)), 0);
        add(a.remote[2], pods, NetworkKind::RemotePods, Some((a.peers[1], node3_mac)), through);
        add(a.cluster_ips[0], services, NetworkKind::Services, None, 0);
        add(a.plain, plain, NetworkKind::NonMasquerade, None, 0);
        let link = if v6 { ("fe80::", 10) } else { ("169.254.0.0", 16) };
        add(link.0.parse().expect("an address"), link.1, NetworkKind::NonMasquerade, None, 0);
        for (n, node) in a.node.iter().enumerate() {
            let flags = if n == 0 || c.once_in(2) { Network::NODE_PORTS } else { 0 };
            add(*node, one, NetworkKind::LocalNode, Some((*node, [0; 6])), flags);
        }
        for (node, (mac, through)) in a.peers.iter().zip([(node2_mac, 0), (node3_mac, through)]) {
            let flags = c.of(&[Network::NODE_PORTS, 0]) | through;
            add(*node, one, NetworkKind::RemoteNode, Some((*node, mac)), flags);
        }
        for external in &a.external {
            add(*external, one, NetworkKind::Nothing, None, Network::SERVICE_ADDRESS);
        }
        for (n, pod) in a.pods.iter().enumerate() {
            let endpoint = Endpoint {
                ifindex: pod_interface(n),
                mtu: c.of(&[1500, 1500, 1280]),
                mac: Mac(pod_mac(n)),
                host_mac: Mac(host_end_mac(n)),
                flags: if c.once_in(6) { Endpoint::NO_PEER } else { 0 },
                ..Endpoint::default()
            };
            t.endpoints.insert((*pod).into(), endpoint);
        }
        let tells_source = t.config.flags & Config::ROUTE_SOURCE != 0;
        let mut route = |c: &mut Choices<'_>, addr: IpAddr, len: u8, hop: [u8; 6], ifindex: IfIndex, source: IpAddr| {
            let hop = if c.once_in(3) { [0; 6] } else { hop };
            let known = if hop == [0; 6] { [0; 3] } else { macs(Mac(hop), Mac(OWN_MAC)) };
            let mtu = c.of(&[1500, 1500, 1400, 1280]);
            let src = if tells_source { source.into() } else { Addr::NONE };
            t.routes.insert(base(addr, len), Route { ifindex, mtu, macs: known, src, ..Route::default() });
        };
        let link = if v6 { 64 } else { 24 };
        route(c, a.remote[0], pods, NODE2_MAC, UPLINKS[0], a.node[0]);
        route(c, a.remote[2], pods, ROUTER_MAC, UPLINKS[0], a.node[0]);
        route(c, a.node[0], link, NODE2_MAC, UPLINKS[0], a.node[0]);
        route(c, a.outside[1], link, ROUTER_MAC, UPLINKS[1], a.node[1]);
        route(c, a.plain, plain, ROUTER_MAC, BRIDGE, a.node[1]);
        if !c.once_in(8) {
            // All IPv6 addresses would include the IPv4-mapped ones.
            let (all, len) = if v6 { ("2000::", 3) } else { ("0.0.0.0", 0) };
            let way = c.of(&[UPLINKS[0], UPLINKS[0], UPLINKS[0], BRIDGE]);
            route(c, all.parse().expect("an address"), len, ROUTER_MAC, way, a.node[0]);
        }
    }

    /// A service port, with the frontends that follow from its kind and policies.
    fn add_service(&mut self, c: &mut Choices<'_>, service: u32) {
        let a = Addresses::of(c.once_in(2));
        let v6 = a.hairpin.is_ipv6();
        let proto = c.of(&[Proto::TCP, Proto::UDP, Proto::SCTP]);
        let (mut flags, addr) = match c.below(5) {
            0 | 1 => (0, c.of(&a.cluster_ips).into()),
            2 => (Frontend::EXTERNAL, c.of(&a.external).into()),
            3 => {
                let flags = c.of(&[Frontend::NODE_PORT, Frontend::NODE_PORT, 0]) | Frontend::EXTERNAL;
                (flags, if v6 { FrontendKey::NODE_V6 } else { FrontendKey::NODE_V4 })
            }
            _ => (Frontend::EXTERNAL, c.of(&a.node).into()),
        };
        let external = flags & Frontend::EXTERNAL != 0;
        for (flag, for_any) in [
            (Frontend::SNAT, true),
            (Frontend::DROP, true),
            (Frontend::OUTSIDE_DIFFERS, false),
            (Frontend::DIRECT_RETURN, false),
            (Frontend::SOURCE_RANGES, false),
        ] {
            if (for_any || external) && c.once_in(4) {
                flags |= flag;
            }
        }
        let affinity = c.of(&[0, 0, 10, 10_800]);
        let key = FrontendKey { addr, port: Port::new(c.of(&SERVICE_PORTS)), proto, scope: FrontendKey::ANY };
        let backends: Vec<_> = (0..c.below(4)).map(|_| (backend(c, a), Port::new(c.of(&TARGET_PORTS)))).collect();
        let mut put = |scope: u8, flags: u16, backends: &[(IpAddr, Port)]| {
            let slot_base = self.tables.slots.len() as u32;
            for (n, (addr, port)) in backends.iter().enumerate() {
                let id = slot_base + n as u32;
                self.tables.slots.insert(id, id);
                self.tables.backends.insert(id, Backend { addr: (*addr).into(), port: *port, proto, _pad: 0 });
            }
            let slot_count = backends.len() as u32;
            let frontend = Frontend { service, slot_base, slot_count, flags, _pad: 0, affinity };
            self.tables.frontends.insert(FrontendKey { scope, ..key }, frontend);
        };
        put(FrontendKey::ANY, flags, &backends);
        let here: Vec<_> =
            backends.iter().filter(|(addr, _)| a.pods.contains(addr) || a.node.contains(addr)).copied().collect();
        if flags & Frontend::OUTSIDE_DIFFERS != 0 {
            put(FrontendKey::OUTSIDE, (flags | c.of(&[Frontend::DROP, 0])) & !Frontend::DIRECT_RETURN, &here);
        }
        if flags & Frontend::DIRECT_RETURN != 0 {
            put(FrontendKey::PEER, flags, &here);
        }
        if !addr.is_none() && addr != FrontendKey::NODE_V4 && !a.node.iter().any(|node| addr == (*node).into()) {
            let entry = self.tables.frontends.entry(FrontendKey::address(addr)).or_default();
            entry.flags |= if backends.is_empty() { 0 } else { Frontend::ANSWERS_ECHO };
        }
        if flags & Frontend::SOURCE_RANGES != 0 {
            for _ in 0..c.below(3) {
                let range = base(c.of(&a.outside), c.of(if v6 { &[128, 48, 32] } else { &[32, 24, 8] }));
                let data = ServiceClient::new(service, range.addr);
                self.tables.source_ranges.insert(SourceRange { len: range.len + 32, data });
            }
        }
    }

    /// Removes referenced entries, or writes invalid values.
    fn damage(&mut self, c: &mut Choices<'_>) {
        let t = &mut self.tables;
        for _ in 0..=c.below(4) {
            match c.below(10) {
                0 => t.backends.retain(|id, _| id % 2 == 0),
                1 => t.slots.retain(|index, _| index % 2 == 0),
                2 => t.frontends.retain(|key, _| key.scope != FrontendKey::OUTSIDE),
                3 => t.frontends.retain(|key, _| key.scope != FrontendKey::PEER),
                4 => t.config.snat_count = c.of(&[u32::MAX, 17, 1]),
                5 => t.config.hairpin_v6 = Addr::NONE,
                6 => (t.config.node_v4, t.config.node_v6) = (Addr::NONE, Addr::NONE),
                7 => t.routes.values_mut().for_each(|route| route.mtu = c.of(&[68, u32::MAX])),
                8 => t.frontends.values_mut().for_each(|f| f.slot_base = c.of(&[1 << 30, f.slot_base])),
                _ => t.frontends.values_mut().for_each(|f| f.flags ^= c.number() as u16),
            }
        }
    }

    /// Changes by daemon or plugin between two packets.
    pub fn change(&mut self, c: &mut Choices<'_>) {
        let t = &mut self.tables;
        let a = Addresses::of(c.once_in(2));
        match c.below(6) {
            0 => {
                // Other backends for all frontends.
                for backend in t.backends.values_mut() {
                    let v6 = !backend.addr.is_v4();
                    (backend.addr, backend.port) =
                        (c.of(&Addresses::of(v6).pods).into(), Port::new(c.of(&TARGET_PORTS)));
                }
                t.affinity.borrow_mut().clear();
            }
            1 => t.frontends.values_mut().for_each(|f| f.flags ^= Frontend::SNAT),
            2 => t.endpoints.values_mut().for_each(|e| e.flags ^= Endpoint::NO_PEER),
            3 => {
                t.endpoints.remove(&c.of(&a.pods).into());
            }
            4 => t.routes.values_mut().for_each(|route| {
                route.macs = if c.once_in(2) { [0; 3] } else { macs(Mac(ROUTER_MAC), Mac(OWN_MAC)) };
                route.mtu = c.of(&[1500, 1280]);
            }),
            _ => t.config.flags ^= c.of(&[Config::MASQUERADE, Config::EXTERNAL_CLUSTER_IP]),
        }
        // Cached forwarding decisions are valid for a tick.
        t.now.set(t.now.get().wrapping_add(1));
    }

    /// Whether an address is that of a pod behind the tunnel.
    pub fn through_tunnel(&self, addr: &Addr) -> bool {
        use podnet_common::pipeline::Tables as _;
        let network = self.tables.network(addr);
        network.is_some_and(|n| n.flags & Network::TUNNEL != 0 && n.kind == NetworkKind::RemotePods as u32)
    }

    /// Kind of network to which the tables assign an address.
    pub fn kind(&self, addr: &Addr) -> Option<NetworkKind> {
        use podnet_common::pipeline::Tables as _;
        let kind = self.tables.network(addr)?.kind;
        [
            NetworkKind::LocalPods,
            NetworkKind::RemotePods,
            NetworkKind::Services,
            NetworkKind::LocalNode,
            NetworkKind::RemoteNode,
            NetworkKind::NonMasquerade,
        ]
        .into_iter()
        .find(|k| *k as u32 == kind)
    }
}

/// Isolates the first pods by network policy: for what they receive, for what they send, and one whose policies are not
/// known yet.
fn police(t: &mut HostTables) {
    const RECEIVES: u32 = 1;
    const SENDS: u32 = 2;
    const BY_TIERS: u32 = 3;
    let with = |set, class, ports, verdict| (PolicyRule { set, class, ports }, verdict);
    let rule = |set, class, ports| with(set, class, ports, PolicyVerdict { network: 1, ..PolicyVerdict::default() });
    let tiers = |admin, network, baseline| PolicyVerdict { admin, network, baseline };
    let number = PolicyVerdict::rule;
    t.config.flags |= Config::POLICY;
    t.policy_rules = BTreeMap::from([
        rule(RECEIVES, 1, 1),
        rule(RECEIVES, 2, PolicyRule::ALL),
        rule(SENDS, 1, PolicyRule::ALL),
        rule(SENDS, PolicyRule::ANY, PolicyRule::protocol(Proto::UDP)),
        with(BY_TIERS, 1, 1, tiers(number(2, PolicyVerdict::ACCEPT), 0, 0)),
        with(BY_TIERS, 1, PolicyRule::ALL, tiers(number(3, PolicyVerdict::DENY), 0, number(8, PolicyVerdict::DENY))),
        with(BY_TIERS, 2, PolicyRule::ALL, tiers(number(1, PolicyVerdict::PASS), 5, 0)),
        with(BY_TIERS, PolicyRule::ANY, PolicyRule::protocol(Proto::UDP), tiers(number(4, PolicyVerdict::DENY), 0, 0)),
        with(BY_TIERS, PolicyRule::ANY, PolicyRule::ALL, tiers(0, 0, number(9, PolicyVerdict::DENY))),
    ]);
    let ports = CLIENT_PORTS.into_iter().chain(SERVICE_PORTS).chain(TARGET_PORTS).filter(|port| *port < 1 << 15);
    t.policy_ports = ports.map(|port| (ProtoPort::new(Proto::TCP, Port::new(port)), 1)).collect();
    for a in [false, true].map(Addresses::of) {
        let ingress = RECEIVES | Subject::CLASS_PORTS | Subject::CLASS_ALL;
        let egress = SENDS | Subject::CLASS_ALL | Subject::ANY_PROTOCOL;
        t.subjects.insert(a.pods[0].into(), Subject { ingress, ..Subject::default() });
        t.subjects.insert(a.pods[1].into(), Subject { egress, ..Subject::default() });
        t.subjects.insert(a.pods[2].into(), Subject::PENDING);
        let kinds = Subject::CLASS_PORTS | Subject::CLASS_ALL | Subject::ANY_PROTOCOL | Subject::ANY_ALL;
        let by_tiers = BY_TIERS | kinds | Subject::CLUSTER;
        let subject = Subject { ingress: by_tiers | Subject::ISOLATED, egress: by_tiers };
        t.subjects.insert(a.pods[3].into(), subject);
        for (peer, class) in [(a.pods[3], 1), (a.remote[0], 1), (a.remote[1], 3)] {
            t.policy_peers.insert(peer.into(), class);
        }
        t.policy_blocks.insert(prefix(a.outside[0], if a.pods[0].is_ipv4() { 32 } else { 128 }), 2);
    }
}

/// Frees some pods from network policy.
fn open(c: &mut Choices<'_>, t: &mut HostTables) {
    for n in 0..Addresses::of(false).pods.len() {
        if c.below(3) == 0 {
            for v6 in [false, true] {
                t.subjects.remove(&Addresses::of(v6).pods[n].into());
            }
        }
    }
}

/// Enters some pods in `policy_pods`, as the daemon does.
fn enter_pods(c: &mut Choices<'_>, t: &mut HostTables) {
    for n in 0..Addresses::of(false).pods.len() {
        if c.below(3) != 0 {
            let (link, addrs) = (pod_interface(n), [false, true].map(|v6| Addr::from(Addresses::of(v6).pods[n])));
            let sets = |addr: &Addr| t.subjects.get(addr).copied().unwrap_or_default();
            let pod = PolicyPod::of(link, addrs.into_iter(), sets, |addr| t.policy_peers.get(addr).copied());
            t.policy_pods.extend(pod.map(|pod| (PolicyPod::slot(link), pod)));
        }
    }
}

/// Where an endpoint may be: on this node, on other nodes, in this host's network, outside.
fn backend(c: &mut Choices<'_>, a: &Addresses) -> IpAddr {
    match c.below(8) {
        0..=2 => c.of(&a.pods),
        3 | 4 => c.of(&a.remote),
        5 => c.of(&a.node),
        6 => c.of(&a.peers),
        _ => c.of(&a.outside),
    }
}

/// Network with a prefix of this length that contains an address.
fn base(addr: IpAddr, len: u8) -> podnet_common::layout::Prefix {
    let whole = prefix(addr, len);
    let bits = u128::from_be_bytes(bytemuck::cast(whole.addr.0));
    let kept = if whole.len == 0 { 0 } else { bits & (u128::MAX << (128 - whole.len)) };
    podnet_common::layout::Prefix { addr: Addr(bytemuck::cast(kept.to_be_bytes())), ..whole }
}
