//! Tables of a small cluster, identical in memory and in the kernel, and a harness that runs each packet through both.

use std::{fs, process::Command, sync::LazyLock, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use podnet_common::{
    addr::{Addr, IfIndex, Mac, Port, Proto},
    layout::{
        Backend, Config, Endpoint, Frontend, FrontendKey, Hook, Network, NetworkKind, Out, ServiceClient, SourceRange,
        macs,
    },
    pipeline::Route,
    simulator::{self, FinalVerdict, HostPacket, HostTables, prefix},
    time::ticks,
    verdict::{COUNTERS, COUNTERS_BASE, Counter, Reason},
};

use crate::kernel::{Kernel, Seen};

/// Interface on which test runs happen: lo.
pub const HERE: IfIndex = IfIndex(1);
pub const PODNET0: IfIndex = IfIndex(90);
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc];
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
pub const BACKEND_HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0xb];
pub const NODE2_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
/// MAC of the third node, which is in this node's neighbour table.
pub const NODE3_MAC: [u8; 6] = [2, 0, 0, 0, 3, 3];
pub const CLIENT_OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xee];
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
/// NodePort with a backend on this node.
pub const NODE_PORT: u16 = 30_080;
/// NodePort whose backend is on the third node.
pub const NODE_PORT_FAR: u16 = 30_081;
/// Same, with direct server return.
pub const NODE_PORT_DIRECT: u16 = 30_082;

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub client: std::net::IpAddr,
    pub backend: std::net::IpAddr,
    pub remote: std::net::IpAddr,
    pub node: std::net::IpAddr,
    pub node2: std::net::IpAddr,
    pub outside: std::net::IpAddr,
    pub hairpin: std::net::IpAddr,
    /// Service with one backend, on this node.
    pub local: std::net::IpAddr,
    /// Service whose backend is on the other node.
    pub far: std::net::IpAddr,
    /// Service with source NAT, backend on the other node.
    pub snat: std::net::IpAddr,
    /// Service whose backend is the client itself.
    pub itself: std::net::IpAddr,
    /// Service with this node's own address as backend.
    pub host: std::net::IpAddr,
    /// Service without endpoints.
    pub empty: std::net::IpAddr,
    /// Second service with the backend of the first.
    pub twin: std::net::IpAddr,
    /// Unused address in the service range.
    pub nobody: std::net::IpAddr,
    /// The third node, and a pod on it.
    pub node3: std::net::IpAddr,
    pub remote3: std::net::IpAddr,
    /// Address of a load balancer. Port 80 has a backend on this node; 81 only has one for clients in `outside`; 82 is
    /// for clients on this node only; 83 has session affinity.
    pub balancer: std::net::IpAddr,
    /// A host on the internet, reached through `outside`.
    pub internet: std::net::IpAddr,
}

pub fn addresses(v6: bool) -> Addresses {
    let a = |four: &str, six: &str| if v6 { six.parse().unwrap() } else { four.parse().unwrap() };
    Addresses {
        client: a("10.244.1.2", "fd00:244:1::2"),
        backend: a("10.244.1.3", "fd00:244:1::3"),
        remote: a("10.244.2.3", "fd00:244:2::3"),
        node: a("172.30.0.1", "fd00:30::1"),
        node2: a("172.30.0.2", "fd00:30::2"),
        outside: a("172.30.0.100", "fd00:30::100"),
        hairpin: a("10.244.1.1", "fd00:244:1::1"),
        local: a("10.96.0.10", "fd00:96::10"),
        far: a("10.96.0.11", "fd00:96::11"),
        snat: a("10.96.0.12", "fd00:96::12"),
        itself: a("10.96.0.13", "fd00:96::13"),
        host: a("10.96.0.14", "fd00:96::14"),
        empty: a("10.96.0.15", "fd00:96::15"),
        twin: a("10.96.0.16", "fd00:96::16"),
        nobody: a("10.96.0.200", "fd00:96::200"),
        node3: a("172.30.0.3", "fd00:30::3"),
        remote3: a("10.244.3.3", "fd00:244:3::3"),
        balancer: a("192.0.2.80", "2001:db8:80::80"),
        internet: a("198.51.100.7", "2001:db8:7::7"),
    }
}

/// Tables in memory. `uplink`: interface towards the other node.
pub fn host_tables(uplink: IfIndex) -> HostTables {
    let mut t = HostTables::default();
    let mut id = 0;
    for v6 in [false, true] {
        let a = addresses(v6);
        let services = [
            (a.local, vec![a.backend]),
            (a.far, vec![a.remote]),
            (a.snat, vec![a.remote]),
            (a.itself, vec![a.client]),
            (a.host, vec![a.node]),
            (a.empty, vec![]),
            (a.twin, vec![a.backend]),
        ];
        for (vip, backends) in services {
            t.frontends.insert(FrontendKey::address(vip.into()), Frontend::default());
            for proto in [Proto::TCP, Proto::UDP, Proto::SCTP] {
                let key = FrontendKey { addr: vip.into(), port: Port::new(80), proto, scope: FrontendKey::ANY };
                let frontend = Frontend {
                    service: id + 1,
                    slot_base: id,
                    slot_count: backends.len() as u32,
                    flags: if vip == a.snat { Frontend::SNAT } else { 0 },
                    ..Frontend::default()
                };
                t.frontends.insert(key, frontend);
                for backend in &backends {
                    t.slots.insert(id, id);
                    let backend = Backend { addr: (*backend).into(), port: Port::new(8080), proto, _pad: 0 };
                    t.backends.insert(id, backend);
                    id += 1;
                }
            }
        }
        add_external(&mut t, &a, &mut id);
        let pod = |ifindex: u32, mac: [u8; 6], host_mac: [u8; 6]| Endpoint {
            ifindex: IfIndex(ifindex),
            mtu: 1500,
            mac: Mac(mac),
            host_mac: Mac(host_mac),
            ..Endpoint::default()
        };
        t.endpoints.insert(a.client.into(), pod(HERE.0, CLIENT_MAC, HOST_MAC));
        t.endpoints.insert(a.backend.into(), pod(71, BACKEND_MAC, BACKEND_HOST_MAC));
        let (pods, host) = if v6 { (64, 128) } else { (24, 32) };
        let network = |kind: NetworkKind, node: std::net::IpAddr, mac: [u8; 6]| Network {
            kind: kind as u32,
            node: node.into(),
            mac: Mac(mac),
            ..Network::default()
        };
        let base = |ip: std::net::IpAddr, len: u8| ipnetwork::IpNetwork::new(ip, len).unwrap().network();
        t.networks.insert(prefix(base(a.client, pods), pods), network(NetworkKind::LocalPods, a.node, [0; 6]));
        t.networks.insert(prefix(base(a.remote, pods), pods), network(NetworkKind::RemotePods, a.node2, NODE2_MAC));
        t.networks.insert(prefix(base(a.remote3, pods), pods), network(NetworkKind::RemotePods, a.node3, NODE3_MAC));
        let own = Network { flags: Network::NODE_PORTS, ..network(NetworkKind::LocalNode, a.node, [0; 6]) };
        t.networks.insert(prefix(a.node, host), own);
        t.networks.insert(prefix(a.node2, host), network(NetworkKind::RemoteNode, a.node2, NODE2_MAC));
        t.networks.insert(prefix(a.node3, host), network(NetworkKind::RemoteNode, a.node3, NODE3_MAC));
        let balancer = Network { flags: Network::SERVICE_ADDRESS, ..Network::default() };
        t.networks.insert(prefix(a.balancer, host), balancer);
        let services = if v6 { 112 } else { 16 };
        let none = if v6 { "::" } else { "0.0.0.0" };
        t.networks.insert(
            prefix(base(a.local, services), services),
            Network { node: Addr::NONE, ..network(NetworkKind::Services, none.parse().unwrap(), [0; 6]) },
        );
        let link = if v6 { 64 } else { 24 };
        let known = |mac: [u8; 6]| macs(Mac(mac), Mac(UPLINK_MAC));
        let routes = [
            (base(a.remote, pods), pods, [0; 3]),
            (base(a.node, link), link, [0; 3]),
            (base(a.remote3, pods), pods, known(NODE3_MAC)),
            (a.node3, host, known(NODE3_MAC)),
            (a.outside, host, known(CLIENT_OUTSIDE_MAC)),
            (if v6 { "::" } else { "0.0.0.0" }.parse().unwrap(), 0, known(CLIENT_OUTSIDE_MAC)),
        ];
        // The host must not know what the kernel's FIB lookup does not return.
        let src = if look_ups_tell_the_source() { a.node.into() } else { Addr::NONE };
        for (destination, len, macs) in routes {
            t.routes
                .insert(prefix(destination, len), Route { ifindex: uplink, mtu: 1500, macs, src, ..Route::default() });
        }
    }
    let (four, six) = (addresses(false), addresses(true));
    t.config = Config {
        node_v4: four.node.into(),
        node_v6: six.node.into(),
        hairpin_v4: four.hairpin.into(),
        hairpin_v6: six.hairpin.into(),
        podnet0: PODNET0,
        podnet1: IfIndex(91),
        podnet0_mac: Mac([2, 0, 0, 0, 9, 0]),
        podnet1_mac: Mac([2, 0, 0, 0, 9, 1]),
        snat_count: 20_000,
        flags: Config::MASQUERADE | if look_ups_tell_the_source() { Config::ROUTE_SOURCE } else { 0 },
        mtu: 1500,
        uplinks: [uplink, IfIndex(0), IfIndex(0), IfIndex(0), IfIndex(0), IfIndex(0), IfIndex(0), IfIndex(0)],
        ..Config::default()
    };
    t.snat_ports = (10_000..30_000).collect();
    t.peers = [Mac(NODE2_MAC), Mac(NODE3_MAC)].into();
    t
}

/// Whether this kernel's FIB lookup supports the flag that requests the source address. The daemon checks this in the
/// same way: by the flag's name in the kernel's BTF.
fn look_ups_tell_the_source() -> bool {
    const NAME: &[u8] = b"\0BPF_FIB_LOOKUP_SRC\0";
    static KNOWN: LazyLock<bool> = LazyLock::new(|| {
        let types = fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
        types.windows(NAME.len()).any(|window| window == NAME)
    });
    *KNOWN
}

/// Frontends for clients outside the cluster. `id`: next free slot, backend and service id.
fn add_external(t: &mut HostTables, a: &Addresses, id: &mut u32) {
    let v6 = a.node.is_ipv6();
    let any_node = if v6 { FrontendKey::NODE_V6 } else { FrontendKey::NODE_V4 };
    let balancer = Addr::from(a.balancer);
    let echo = Frontend { flags: Frontend::ANSWERS_ECHO, ..Frontend::default() };
    t.frontends.insert(FrontendKey::address(balancer), echo);
    let external = Frontend::EXTERNAL;
    let node_port = external | Frontend::NODE_PORT;
    let direct = node_port | Frontend::DIRECT_RETURN;
    let (any, outside, peer) = (FrontendKey::ANY, FrontendKey::OUTSIDE, FrontendKey::PEER);
    let local_only = external | Frontend::OUTSIDE_DIFFERS;
    let rows = [
        (any_node, NODE_PORT, any, node_port, 0, vec![a.backend]),
        (any_node, NODE_PORT_FAR, any, node_port, 0, vec![a.remote3]),
        (any_node, NODE_PORT_DIRECT, any, direct, 0, vec![a.remote3]),
        (any_node, NODE_PORT_DIRECT, peer, direct, 0, vec![a.backend]),
        (balancer, 80, any, external, 0, vec![a.backend]),
        (balancer, 81, any, external | Frontend::SOURCE_RANGES, 0, vec![a.backend]),
        (balancer, 82, any, local_only, 0, vec![a.remote3]),
        (balancer, 82, outside, local_only | Frontend::DROP, 0, vec![]),
        (balancer, 83, any, external, 3600, vec![a.backend, a.remote, a.remote3]),
    ];
    for proto in [Proto::TCP, Proto::UDP, Proto::SCTP] {
        for (addr, port, scope, flags, affinity, backends) in &rows {
            let frontend = Frontend {
                service: 1000 + u32::from(*port),
                slot_base: *id,
                slot_count: backends.len() as u32,
                flags: *flags,
                affinity: *affinity,
                ..Frontend::default()
            };
            t.frontends.insert(FrontendKey { addr: *addr, port: Port::new(*port), proto, scope: *scope }, frontend);
            for backend in backends {
                t.slots.insert(*id, *id);
                t.backends.insert(*id, Backend { addr: (*backend).into(), port: Port::new(8080), proto, _pad: 0 });
                *id += 1;
            }
        }
    }
    let host = if v6 { 128 } else { 32 };
    let range = prefix(a.outside, host);
    let data = ServiceClient::new(1081, range.addr);
    t.source_ranges.insert(SourceRange { len: 32 + range.len, data });
}

/// Runs a test on a thread in its own network namespace, with a route to the other node's pods.
pub fn in_namespace(test: impl FnOnce(IfIndex) -> Result<()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "packet tests load eBPF programs and so need root: run `cargo xtask test`"
        );
        unshare(CloneFlags::CLONE_NEWNET)?;
        // Programs cache routes per processor.
        let mut one = CpuSet::new();
        one.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        for path in ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"] {
            // These files belong to the network namespace of the opening thread.
            fs::write(format!("/proc/sys/{path}"), "1")?;
        }
        let script = "ip link set lo up; ip link add up0 type veth peer name up1; ip link set up1 up; ip link set up0 up; \
             ip addr add 172.30.0.1/24 dev up0; ip addr add fd00:30::1/64 dev up0 nodad; \
             ip link set up0 address 02:00:00:00:00:10; \
             ip route add 10.244.2.0/24 via 172.30.0.2; ip route add fd00:244:2::/64 via fd00:30::2; \
             ip route add 10.244.3.0/24 via 172.30.0.3; ip route add fd00:244:3::/64 via fd00:30::3; \
             ip route add default via 172.30.0.100; ip route add default via fd00:30::100; \
             for a in 172.30.0.3 fd00:30::3; do ip neigh add $a lladdr 02:00:00:00:03:03 dev up0 nud permanent; done; \
             for a in 172.30.0.100 fd00:30::100; do \
             ip neigh add $a lladdr 02:00:00:00:00:ee dev up0 nud permanent; done";
        ensure!(Command::new("sh").args(["-ec", script]).status()?.success(), "cannot set up the namespace");
        let uplink = IfIndex(nix::net::if_::if_nametoindex("up0")?);
        test(uplink)
    });
    match thread.join() {
        Ok(result) => result.unwrap(),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Time in ticks, far enough from the next tick: a flow that is a tick older may take another path. The time comes from
/// the clock of the programs, which follows real time in steps of some milliseconds.
fn one_tick_for_both() -> Result<u32> {
    /// Length of a tick in nanoseconds, and the part at its end that is skipped.
    const TICK: u64 = 1 << 30;
    const END: u64 = 20_000_000;
    loop {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
        let nanoseconds = time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64;
        let left = TICK - nanoseconds % TICK;
        if left > END {
            return Ok(ticks(nanoseconds));
        }
        std::thread::sleep(Duration::from_nanos(left));
    }
}

/// Host and kernel, side by side.
pub struct Both {
    pub host: HostTables,
    pub kernel: Kernel,
    /// Whether a packet may use a route cached by an earlier one; both paths are tested.
    pub remembers_routes: bool,
}

impl Both {
    pub fn new(uplink: IfIndex, change: impl FnOnce(&mut HostTables)) -> Result<Self> {
        let mut host = host_tables(uplink);
        change(&mut host);
        let kernel = Kernel::with(&host)?;
        Ok(Self { host, kernel, remembers_routes: false })
    }

    /// Time in ticks.
    pub fn tick(&self) -> Result<u32> {
        one_tick_for_both()
    }

    /// Makes the last packet of every flow look `ticks` ticks older.
    pub fn age_flows(&mut self, ticks: u32) -> Result<()> {
        self.kernel.age_flows(ticks)?;
        self.host.conntrack.borrow_mut().values_mut().for_each(|e| e.last_seen = e.last_seen.wrapping_sub(ticks));
        Ok(())
    }

    /// Traces a packet over the kernel's tables, then runs it in the kernel, and requires the traced verdict and bytes.
    pub fn trace(&self, hook: Hook, data: &[u8]) -> Result<FinalVerdict> {
        self.kernel.set_clock(one_tick_for_both()?)?;
        // All hooks share one interface here, so a path cached by one would apply to the others.
        self.kernel.clear_route_caches()?;
        let live = self.kernel.look()?;
        let mut packet = HostPacket { data: data.to_vec(), ifindex: HERE };
        let end = simulator::run(hook, &mut packet, &live);
        live.check()?;
        // If the path is already cached on this processor, the program writes the MACs that the neighbour table would
        // supply.
        let from = if matches!(end, FinalVerdict::Forward(Out::Uplink | Out::Via, _)) { 12 } else { 0 };
        if let Some((seen, bytes)) = self.kernel.run(hook, data)? {
            ensure!(
                seen == end.into() && (bytes.get(from..) == packet.data.get(from..) || seen == Seen::Drop),
                "{hook:?}: traced {end:?}, ended {seen:?}\n  in     {data:02x?}\n  traced {:02x?}\n  kernel {bytes:02x?}",
                packet.data
            );
        }
        Ok(end)
    }

    /// Runs a packet on host and in kernel, requires equal verdicts, bytes and counters, and returns verdict and bytes.
    pub fn run(&self, hook: Hook, data: &[u8]) -> Result<(FinalVerdict, Vec<u8>)> {
        let now = one_tick_for_both()?;
        if self.host.now.replace(now) != now {
            self.kernel.set_clock(now)?;
        }
        if !self.remembers_routes {
            self.host.clear_route_caches();
            self.kernel.clear_route_caches()?;
        }
        let before = self.kernel.counters()?;
        let denied_before = self.host.policy_denials.borrow().clone();
        let mut packet = HostPacket { data: data.to_vec(), ifindex: HERE };
        let end = simulator::run(hook, &mut packet, &self.host);
        let Some((seen, bytes)) = self.kernel.run(hook, data)? else {
            self.host.counters.take();
            self.host.drops.take();
            self.host.policy_denials.replace(denied_before);
            return Ok((end, packet.data));
        };
        ensure!(
            seen == end.into() && (bytes == packet.data || seen == Seen::Drop),
            "{hook:?}: host {end:?}, kernel {seen:?}\n  in     {data:02x?}\n  host   {:02x?}\n  kernel {bytes:02x?}",
            packet.data
        );
        let drop = self.host.drops.borrow().keys().copied().collect::<Vec<_>>();
        ensure!(drop == Vec::from_iter(end.reason()), "{hook:?}: host {end:?}, but it has counted {drop:?}");
        self.same_counts(&before).with_context(|| format!("{hook:?}: {end:?}"))?;
        let denied = self.host.policy_denials.borrow();
        if !denied.is_empty() {
            let (host, kernel) = (&*denied, self.kernel.denials()?);
            ensure!(*host == kernel, "{hook:?}: the host has counted {host:?}, the kernel {kernel:?}");
            let more = denied.values().sum::<u64>() - denied_before.values().sum::<u64>();
            let by_policy = matches!(end.reason(), Some(Reason::PolicyIngress | Reason::PolicyEgress));
            ensure!(more == u64::from(by_policy), "{hook:?}: {end:?}, but {more} denials");
        }
        Ok((end, packet.data))
    }

    /// Requires equal counters: the host's since the last call, the kernel's since `before`.
    pub fn same_counts(&self, before: &[u64]) -> Result<()> {
        let mut host = [0; COUNTERS];
        for (counter, count) in self.host.counters.take() {
            host[counter as usize] = count;
        }
        for (reason, count) in self.host.drops.take() {
            host[COUNTERS_BASE as usize + reason as usize] = count;
        }
        let name = |index: usize| match index.checked_sub(COUNTERS_BASE as usize) {
            Some(reason) => Reason::ALL.get(reason).map(|reason| reason.name()),
            None => Counter::ALL.get(index).map(|counter| counter.name()),
        };
        for (index, (before, after)) in before.iter().zip(self.kernel.counters()?).enumerate() {
            let (host, kernel) = (host[index], after - before);
            ensure!(host == kernel, "{:?} ({index}): the host counts {host}, the kernel {kernel}", name(index));
        }
        Ok(())
    }
}
