//! The tunnel: one VXLAN device (RFC 7348) to all nodes that are on no shared link, or to all nodes.
//!
//! A node's MAC in the tunnel is derived from its name, so that nodes need not exchange MACs: the device's forwarding
//! table, built from Node objects, maps each MAC to the address of its node. The programs send pods' packets into the
//! device with that MAC; the host's own packets take routes through gateways that belong to no host but have permanent
//! neighbour entries. Nothing is learnt from packets, and packets without an entry are dropped.
//!
//! Packets that the host itself sends to other nodes' addresses don't use the tunnel.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podnet_cni::id::Fnv;
use podnet_common::addr::{IfIndex, Mac};
use podnet_common::layout::TUNNEL_PORT;

use super::error::HostError;
use super::families::IPV6_MTU_MIN;
pub use super::names::TUNNEL as NAME;
use super::snapshot::{Forwarding, Link, Snapshot, Vxlan};

/// Network identifier, which separates it from other VXLAN networks on the same port.
pub const VNI: u32 = 112;
/// Its address, with link scope, so that no packet gets it as source: loose reverse path filtering accepts other nodes'
/// packets only on an interface that has an address (Linux, `__fib_validate_source`).
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 4);

/// MTU of the device for this MTU of the uplinks. Both in bytes. Outer packets that are too long for an uplink are
/// fragmented.
pub fn mtu(uplinks: u32, outer: IpAddr) -> u32 {
    uplinks.saturating_sub(overhead(outer)).max(IPV6_MTU_MIN)
}

/// Bytes that encapsulation adds to a packet, by the family of the outer addresses: Ethernet, VXLAN, UDP and IP.
fn overhead(outer: IpAddr) -> u32 {
    14 + 8 + 8 + if outer.is_ipv4() { 20 } else { 40 }
}

/// MAC in the tunnel of the node with this name: locally administered, and the same wherever it is computed.
pub fn mac_of(node: &str) -> Mac {
    let mut hash = Fnv::default();
    hash.write(node.as_bytes());
    let [_, _, a, b, c, d, e, f] = hash.finish().to_be_bytes();
    Mac([a & 0xfc | 0x02, b, c, d, e, f])
}

/// Next hop of routes to the pods of the node with this MAC and this address.
pub fn gateway(node: IpAddr, mac: Mac) -> IpAddr {
    match node {
        IpAddr::V4(_) => node,
        // The kernel rejects a gateway that has a route over another interface, even with `onlink`.
        IpAddr::V6(_) => {
            let [a, b, c, d, e, f] = mac.0.map(u16::from);
            IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f))
        }
    }
}

/// Usual cause of the kernel's refusal to create the device, by error number.
pub fn why_not_created(errno: Option<i32>) -> String {
    match errno {
        Some(libc::EOPNOTSUPP) => " (the kernel does not support VXLAN: load the module `vxlan`)".to_owned(),
        Some(libc::EEXIST) => format!(
            " (a device of this name, or with VNI {VNI} on UDP port {TUNNEL_PORT}, already exists: see `ip -d link \
             show type vxlan`)"
        ),
        Some(libc::EADDRINUSE) => format!(" (UDP port {TUNNEL_PORT} is already in use: see `ss -lunp`)"),
        _ => String::new(),
    }
}

/// Desired state of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// This node's MAC there.
    pub mac: Mac,
    /// The address at which this node receives the tunnel's packets.
    pub local: IpAddr,
    /// MTU in bytes, without the inner Ethernet header.
    pub mtu: u32,
    /// The nodes that it reaches.
    pub peers: BTreeMap<Mac, Peer>,
}

/// A remote node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address at which it receives the tunnel's packets.
    pub remote: IpAddr,
    /// Next hops of routes to its pods.
    pub gateways: Vec<IpAddr>,
}

/// The device as it is after [`super::Host::prepare_tunnel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its index.
    pub ifindex: IfIndex,
    /// This node's MAC there.
    pub mac: Mac,
    /// MTU in bytes, without the inner Ethernet header.
    pub mtu: u32,
}

/// State of the device before it is up: see [`super::Host::prepare_tunnel`].
#[derive(Debug, Default)]
pub struct Prepared {
    /// The device, if it is needed and exists.
    pub tunnel: Option<Tunnel>,
    /// Desired state; `None`: the device isn't needed.
    pub(super) wanted: Option<Wanted>,
    /// Changes that the kernel rejected.
    pub(super) errors: Vec<HostError>,
}

/// Device found under the tunnel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// None.
    Missing,
    /// The desired one.
    Right,
    /// podnet's, but with other parameters: to be deleted and created again.
    Outdated(IfIndex),
}

/// Looks for the device. Fails if another kind of interface has its name.
pub(super) fn examine(snapshot: &Snapshot, wanted: &Wanted) -> Result<Device, HostError> {
    Ok(match own(snapshot)? {
        None => Device::Missing,
        Some((link, made)) => {
            let as_wanted = Vxlan { vni: VNI, port: TUNNEL_PORT, local: Some(wanted.local) };
            let right = made == as_wanted && link.mac == Some(wanted.mac);
            if right { Device::Right } else { Device::Outdated(link.ifindex) }
        }
    })
}

/// podnet's device, if there is one.
pub(super) fn own(snapshot: &Snapshot) -> Result<Option<(&Link, Vxlan)>, HostError> {
    let Some(link) = snapshot.link(NAME) else { return Ok(None) };
    match link.vxlan {
        Some(made) if made.vni == VNI => Ok(Some((link, made))),
        _ => Err(HostError::ForeignLink { name: NAME.to_owned() }),
    }
}

/// One change to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Take it out of a bridge, bond or VRF, which would receive its packets.
    NoController,
    /// Set the MTU.
    Mtu(u32),
    /// Add [`ADDRESS`].
    Address,
    /// Set it up.
    Up,
    /// Add a forwarding entry: the address of a node.
    Forward { mac: Mac, remote: IpAddr },
    /// Add a permanent neighbour.
    Neighbour { addr: IpAddr, mac: Mac },
    /// Remove a neighbour.
    ForgetNeighbour { addr: IpAddr },
    /// Remove a forwarding entry.
    ForgetForward(Forwarding),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoController => write!(f, "take {NAME} out of its bridge or VRF"),
            Self::Mtu(mtu) => write!(f, "set the MTU of {NAME} to {mtu}"),
            Self::Address => write!(f, "add the address {ADDRESS} to {NAME}"),
            Self::Up => write!(f, "set {NAME} up"),
            Self::Forward { mac, remote } => write!(f, "add the forwarding entry {mac} dst {remote} on {NAME}"),
            Self::Neighbour { addr, mac } => {
                write!(f, "add the permanent neighbour {addr} lladdr {mac} on {NAME}")
            }
            Self::ForgetNeighbour { addr } => write!(f, "remove the neighbour {addr} on {NAME}"),
            Self::ForgetForward(entry) => write!(f, "remove the forwarding entry {} on {NAME}", entry.mac),
        }
    }
}

/// Steps that bring the device into line, in order. `table` is its forwarding table.
pub(super) fn plan(snapshot: &Snapshot, link: &Link, table: &[Forwarding], wanted: &Wanted) -> Vec<Step> {
    let mut steps = Vec::new();
    if link.controller.is_some() {
        steps.push(Step::NoController);
    }
    if link.mtu != wanted.mtu {
        steps.push(Step::Mtu(wanted.mtu));
    }
    if !snapshot.addresses.iter().any(|a| a.ifindex == link.ifindex && a.addr == ADDRESS) {
        steps.push(Step::Address);
    }
    if !link.up {
        steps.push(Step::Up);
    }
    let here = |ifindex: IfIndex| ifindex == link.ifindex;
    let known: BTreeMap<Mac, IpAddr> = table.iter().filter(|e| here(e.ifindex)).map(|e| (e.mac, e.remote)).collect();
    let neighbours: BTreeMap<IpAddr, Option<Mac>> =
        snapshot.neighbours.iter().filter(|n| here(n.ifindex) && n.permanent).map(|n| (n.addr, n.mac)).collect();
    let mut gateways = BTreeMap::new();
    for (mac, peer) in &wanted.peers {
        if known.get(mac) != Some(&peer.remote) {
            steps.push(Step::Forward { mac: *mac, remote: peer.remote });
        }
        gateways.extend(peer.gateways.iter().map(|gateway| (*gateway, *mac)));
    }
    for (addr, mac) in &gateways {
        if neighbours.get(addr) != Some(&Some(*mac)) {
            steps.push(Step::Neighbour { addr: *addr, mac: *mac });
        }
    }
    let forgotten = neighbours.keys().filter(|addr| !gateways.contains_key(addr));
    steps.extend(forgotten.map(|addr| Step::ForgetNeighbour { addr: *addr }));
    let gone = table.iter().filter(|e| here(e.ifindex) && !wanted.peers.contains_key(&e.mac));
    steps.extend(gone.map(|entry| Step::ForgetForward(*entry)));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::snapshot::{Address, Neighbour};
    use std::collections::BTreeSet;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_refusal_to_make_the_device_is_explained_by_its_reason() {
        for (errno, part) in [
            (libc::EOPNOTSUPP, "module `vxlan`"),
            (libc::EEXIST, "already exists"),
            (libc::EADDRINUSE, "UDP port 8472"),
        ] {
            assert!(why_not_created(Some(errno)).contains(part), "{errno}");
        }
        assert_eq!((why_not_created(Some(libc::EPERM)), why_not_created(None)), (String::new(), String::new()));
    }

    fn wanted() -> Wanted {
        let peer = |n: u8| {
            let (name, v4, v6) = (format!("n{n}"), ip(&format!("172.30.0.{n}")), ip(&format!("fd00:30::{n}")));
            let mac = mac_of(&name);
            (mac, Peer { remote: v4, gateways: vec![gateway(v4, mac), gateway(v6, mac)] })
        };
        Wanted { mac: mac_of("n1"), local: ip("172.30.0.1"), mtu: 1450, peers: [peer(2), peer(3)].into() }
    }

    fn device() -> Link {
        let made = Vxlan { vni: VNI, port: TUNNEL_PORT, local: Some(ip("172.30.0.1")) };
        let link = Link { name: NAME.into(), ifindex: IfIndex(5), mac: Some(mac_of("n1")), ..Link::default() };
        Link { mtu: 1450, up: true, vxlan: Some(made), ..link }
    }

    fn shown(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_new_device_gets_everything_and_then_nothing() {
        let link = Link { mtu: 1500, up: false, ..device() };
        let snapshot = Snapshot { links: vec![link.clone()], ..Snapshot::default() };
        let steps = plan(&snapshot, &link, &[], &wanted());
        assert_eq!(steps[..3], [Step::Mtu(1450), Step::Address, Step::Up]);
        assert_eq!(steps.len(), 3 + 2 + 4, "{:?}", shown(&steps));

        let (mut neighbours, mut table) = (Vec::new(), Vec::new());
        for (mac, peer) in &wanted().peers {
            table.push(Forwarding { ifindex: IfIndex(5), mac: *mac, remote: peer.remote });
            let neighbour = |addr: &IpAddr| Neighbour {
                ifindex: IfIndex(5),
                addr: *addr,
                mac: Some(*mac),
                permanent: true,
                fresh: false,
            };
            neighbours.extend(peer.gateways.iter().map(neighbour));
        }
        let addresses = vec![Address { ifindex: IfIndex(5), addr: ADDRESS.into(), tentative: false }];
        let mut snapshot = Snapshot { links: vec![device()], addresses, neighbours, ..Snapshot::default() };
        assert_eq!(shown(&plan(&snapshot, &device(), &table, &wanted())), [""; 0]);

        // Entries of another interface, of a node that moved, and of one that left.
        table.push(Forwarding { ifindex: IfIndex(6), mac: Mac([2; 6]), remote: ip("10.0.0.1") });
        let mut changed = wanted();
        changed.peers.remove(&mac_of("n3"));
        changed.peers.get_mut(&mac_of("n2")).unwrap().remote = ip("172.30.0.22");
        let steps = plan(&snapshot, &device(), &table, &changed);
        assert_eq!(steps[0], Step::Forward { mac: mac_of("n2"), remote: ip("172.30.0.22") });
        assert!(matches!(steps[1..3], [Step::ForgetNeighbour { .. }, Step::ForgetNeighbour { .. }]), "{steps:?}");
        assert!(matches!(steps[3..], [Step::ForgetForward(entry)] if entry.mac == mac_of("n3")), "{steps:?}");

        // Another program has made it a port of a bridge.
        let port = Link { controller: Some(IfIndex(9)), ..device() };
        assert_eq!(plan(&snapshot, &port, &table, &changed)[0], Step::NoController);

        // Entries that aren't permanent are the kernel's own.
        snapshot.neighbours.iter_mut().for_each(|n| n.permanent = false);
        assert_eq!(plan(&snapshot, &device(), &table, &wanted()).len(), 4);
    }

    #[test]
    fn an_outdated_device_is_recreated_and_a_foreign_one_left_alone() {
        let seen = |link: Link| examine(&Snapshot { links: vec![link], ..Snapshot::default() }, &wanted());
        assert_eq!(examine(&Snapshot::default(), &wanted()).unwrap(), Device::Missing);
        assert_eq!(seen(device()).unwrap(), Device::Right);
        let moved = Vxlan { local: Some(ip("172.30.0.9")), ..device().vxlan.unwrap() };
        assert_eq!(seen(Link { vxlan: Some(moved), ..device() }).unwrap(), Device::Outdated(IfIndex(5)));
        assert_eq!(seen(Link { mac: Some(Mac([2; 6])), ..device() }).unwrap(), Device::Outdated(IfIndex(5)));
        let others = Vxlan { vni: 1, ..device().vxlan.unwrap() };
        for vxlan in [None, Some(others)] {
            assert!(matches!(seen(Link { vxlan, ..device() }), Err(HostError::ForeignLink { .. })));
        }
    }

    #[test]
    fn nodes_have_macs_of_their_own() {
        let macs: BTreeSet<Mac> = (0..5000).map(|n| mac_of(&format!("node-{n}"))).collect();
        assert_eq!(macs.len(), 5000);
        assert!(macs.iter().all(|mac| podnet_cni::mac::is_unicast(*mac) && mac.0[0] & 2 == 2));
        assert_eq!(mac_of("n1"), mac_of("n1"));
        assert_eq!(gateway(ip("fd00::1"), Mac([2, 1, 2, 3, 4, 5])), ip("fe80::1:2ff:fe03:405"));
        let (v4, v6) = (ip("10.0.0.1"), ip("fd00::1"));
        assert_eq!((mtu(1500, v4), mtu(1500, v6), mtu(1300, v4)), (1450, 1430, 1280));
    }
}
