//! Which clients may reach which destinations, and with which source address: an independent implementation of what
//! `docs/datapath.md` and the documentation of the tables specify.

use std::net::IpAddr;

use podnet_common::{
    addr::{Addr, IfIndex, Mac, Port, Proto},
    layout::{
        AffinityKey, Config, CtEntry, Frontend, FrontendKey, Hook, Network, NetworkKind, Out, ServiceClient, Tuple,
    },
    pipeline::Tables as _,
    simulator::{FinalVerdict, HostTables},
    time,
};

use super::{Outcome, State, flow, leaves_for_another_pod, network_policy};
use crate::{
    frame::{ACK, SYN},
    view::View,
    world::{Addresses, World},
};

/// No packet passes with a source address that is not its sender's.
pub fn check_source(world: &World, o: &Outcome<'_>, packet: &View<'_>) {
    if o.entry.hook != Hook::ToPod && o.entry.hook != Hook::ToUplink && o.entry.hook != Hook::FromLoopback {
        assert!(!packet.mapped(), "{o}an IPv6 packet with an IPv4 address");
    }
    let link = |a: IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local() || a.is_unspecified());
    match o.entry.hook {
        Hook::FromPod if !link(packet.src) => {
            let own = world.tables.endpoint(&packet.src.into()).is_some_and(|e| e.ifindex == o.entry.ifindex);
            assert!(own, "{o}a pod has sent with another's address");
        }
        Hook::FromUplink | Hook::UplinkXdp if !link(packet.src) => {
            let forged = [NetworkKind::LocalPods, NetworkKind::Services, NetworkKind::LocalNode];
            let kind = world.kind(&packet.src.into());
            assert!(kind.is_none_or(|kind| !forged.contains(&kind)), "{o}from outside, as if from here");
            assert!(!martian(packet.src), "{o}that can't be on a link");
        }
        _ => {}
    }
}

fn martian(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => a.is_loopback() || a.octets()[0] >= 224,
        IpAddr::V6(a) => a.is_loopback() || a.is_multicast(),
    }
}

/// Whether an interface is an uplink.
fn leads_out(t: &HostTables, ifindex: IfIndex) -> bool {
    ifindex != IfIndex(0) && (t.config.uplinks.contains(&ifindex) || t.interfaces.contains_key(&ifindex))
}

/// The service entries that apply to a packet.
struct Service {
    key: FrontendKey,
    /// The entry common to all clients.
    any: Frontend,
    /// The packet was forwarded by another node.
    sent_on: bool,
}

/// The service to which a packet is addressed.
fn service(t: &HostTables, o: &Outcome<'_>, packet: &View<'_>, key: &Tuple) -> Option<Service> {
    if packet.echo().is_some() || packet.dst.is_unspecified() {
        return None;
    }
    let network = t.network(&key.dst).copied();
    let kind = |kind: NetworkKind| network.is_some_and(|n: Network| n.kind == kind as u32);
    let (own, other) = (kind(NetworkKind::LocalNode), kind(NetworkKind::RemoteNode));
    let from_peer = |any: &Frontend| {
        let mac = Mac(o.input[6..12].try_into().expect("6 bytes"));
        let direct = any.flags & Frontend::DIRECT_RETURN != 0;
        o.entry.hook == Hook::FromUplink && direct && !own && t.peers.contains(&mac)
    };
    let exact = FrontendKey { addr: key.dst, port: key.dport, proto: key.proto, scope: FrontendKey::ANY };
    let opens = packet.tcp_flags().is_none_or(|flags| flags == 0 || flags & (SYN | ACK) == SYN);
    if own && !opens {
        return None;
    }
    if let Some(any) = t.frontends.get(&exact).copied() {
        return Some(Service { key: exact, any, sent_on: from_peer(&any) });
    }
    let addr = if packet.v6() { FrontendKey::NODE_V6 } else { FrontendKey::NODE_V4 };
    let of_node = FrontendKey { addr, ..exact };
    let any = t.frontends.get(&of_node).copied()?;
    let node_ports = network.is_some_and(|n| n.flags & Network::NODE_PORTS != 0);
    let served = own && opens && (node_ports || any.flags & Frontend::NODE_PORT == 0);
    let sent_on = other && from_peer(&any);
    (served || sent_on).then_some(Service { key: of_node, any, sent_on })
}

/// Checks the flow that a packet has begun, and that no packet to a service was refused without reason.
pub fn check(world: &World, o: &Outcome<'_>, state: &State) {
    let Some(packet) = View::of(o.input) else { return };
    let ingress = matches!(o.entry.hook, Hook::FromPod | Hook::FromUplink | Hook::FromHost);
    let hairpin = Addresses::of(packet.v6()).hairpin;
    if ingress && o.end == FinalVerdict::Pass {
        let dst = packet.dst.into();
        // A packet whose TTL expires cannot come back.
        let external = packet.ttl > 1 && world.tables.is_service_address(&dst);
        let back = match o.entry.hook {
            _ if world.kind(&dst) == Some(NetworkKind::Services) => true,
            // Of packets to external addresses, only those of the host's own sockets are routed to podnet0.
            Hook::FromHost => {
                let own = world.kind(&packet.src.into()) == Some(NetworkKind::LocalNode);
                packet.dst == hairpin || (external && own)
            }
            // If the route to it leads out of the node again, the router would send the packet back.
            Hook::FromUplink if external => {
                let route = world.tables.route_to(&dst);
                route.is_some_and(|route| leads_out(&world.tables, route.ifindex))
            }
            _ => false,
        };
        assert!(!back || o.output != o.input, "{o}the packet would come here again");
    }
    if let FinalVerdict::Forward(Out::Via, _) = o.end {
        let peer = world.tables.is_peer(&Mac(o.input[6..12].try_into().expect("6 bytes")));
        let own = world.kind(&packet.dst.into()) == Some(NetworkKind::LocalNode);
        assert!(!peer || own, "{o}what another node has sent on is sent on again");
    }
    let Some((key, entry)) = flow(&world.tables, &packet) else { return };
    if entry.flags & CtEntry::REPLY != 0 || packet.error() {
        return;
    }
    if let Some((_, was)) = flow(&o.before, &packet) {
        // A flow keeps its decision until its ports begin a new connection.
        let begins = packet.tcp_flags().is_some_and(|flags| flags & (SYN | ACK) == SYN);
        let one_way = was.flags & CtEntry::ONE_WAY != 0;
        let own = matches!(o.entry.hook, Hook::FromPod | Hook::FromHost) && !was.opening();
        let over = (was.closed() && !was.doubtful()) || one_way || own || unanswered(&was, o.before.now());
        let over = over || is_servers(&was);
        let same = (was.src, was.dst, was.sport, was.dport) == (entry.src, entry.dst, entry.sport, entry.dport);
        // The other node has chosen this one for the flow.
        let chosen = one_way && world.tables.is_peer(&Mac(o.input[6..12].try_into().expect("6 bytes")));
        let again = (begins && over) || leaves_for_another_pod(&o.before, &was);
        assert!(same || chosen || again, "{o}a flow has changed: {was:?}, {entry:?}");
        if same || chosen {
            return;
        }
    }
    // The entry was rebuilt from its other half.
    if o.before.conntrack.borrow().contains_key(&entry.reply_key(key.proto)) && !state.widowed.is_empty() {
        return;
    }
    network_policy::check_flow(world, o, &key, &entry);
    let t = &o.before;
    if !ingress {
        return from_stack(world, o, &key, &entry);
    }
    match service(t, o, &packet, &key) {
        Some(service) => to_service(world, o, &key, &entry, &service),
        None => beside_services(o, &packet, &key, &entry),
    }
}

/// Whether the backend has had at least a tick to answer the opening packet, and has not.
pub fn unanswered(entry: &CtEntry, now: u32) -> bool {
    entry.opening() && now.wrapping_sub(entry.last_seen) >= 3
}

/// Flow begun by the stack's packet: to a pod whose policies ask for it, or from a port of a host process that also
/// belongs to a service, over a protocol without flags that identify replies.
fn from_stack(world: &World, o: &Outcome<'_>, key: &Tuple, entry: &CtEntry) {
    let node = if key.src.is_v4() { FrontendKey::NODE_V4 } else { FrontendKey::NODE_V6 };
    let at = |addr| FrontendKey { addr, port: key.sport, proto: key.proto, scope: FrontendKey::ANY };
    let service = [key.src, node].iter().any(|addr| o.before.frontends.contains_key(&at(*addr)));
    let egress = matches!(o.entry.hook, Hook::ToPod | Hook::ToUplink | Hook::ToRaw);
    let silent = key.proto == Proto::UDP || key.proto == Proto::SCTP;
    let own = world.kind(&key.src) == Some(NetworkKind::LocalNode);
    let answers = o.before.conntrack.borrow().contains_key(&key.reversed());
    let evaluated = network_policy::begins_at_pod(world, o, key);
    assert!(egress && (service && silent && own || evaluated) && !answers, "{o}no flow begins there: {entry:?}");
    assert!((entry.dst, entry.dport) == (key.dst, key.dport), "{o}nothing of it is to be translated: {entry:?}");
    port(o, key, entry);
}

/// Flow to a service: whether it is allowed, its backend and its source.
fn to_service(world: &World, o: &Outcome<'_>, key: &Tuple, entry: &CtEntry, service: &Service) {
    let t = &o.before;
    let from_uplink = o.entry.hook == Hook::FromUplink;
    let any = &service.any;
    let has = |frontend: &Frontend, flag: u16| frontend.flags & flag != 0;
    if from_uplink {
        let open = t.config.flags & Config::EXTERNAL_CLUSTER_IP != 0;
        assert!(has(any, Frontend::EXTERNAL) || open, "{o}a ClusterIP from outside");
    }
    if has(any, Frontend::SOURCE_RANGES) {
        // A host process that connects to an address of its own node is checked with the node's address.
        let itself = o.entry.hook == Hook::FromHost && key.src == key.dst;
        let node = if key.src.is_v4() { t.config.node_v4 } else { t.config.node_v6 };
        let client = ServiceClient::new(any.service, if itself { node } else { key.src });
        assert!(t.in_source_ranges(&client), "{o}the client is not in the source ranges");
    }
    let scope = match () {
        () if service.sent_on => FrontendKey::PEER,
        () if from_uplink && has(any, Frontend::OUTSIDE_DIFFERS) => FrontendKey::OUTSIDE,
        () => FrontendKey::ANY,
    };
    let frontend = t.frontends[&FrontendKey { scope, ..service.key }];
    let mut backends: Vec<(Addr, Port)> = (frontend.slot_base..frontend.slot_base + frontend.slot_count)
        .map(|index| t.backends[&t.slots[&index]])
        .map(|backend| (backend.addr, backend.port))
        .collect();
    if frontend.affinity != 0 {
        let affinity_key = AffinityKey { client: key.src, service: frontend.service };
        let limit = time::ticks_of_seconds(u64::from(frontend.affinity)) as i32;
        let fresh = |last: u32| t.now().wrapping_sub(last) as i32 <= limit;
        if let Some(last) = t.affinity(&affinity_key).filter(|last| fresh(last.last_used)) {
            backends = vec![(last.addr, last.port)];
        }
        let now = world.tables.affinity(&affinity_key);
        assert!(now.is_some_and(|last| last.last_used == t.now()), "{o}the client's choice was not noted");
    }
    if entry.flags & CtEntry::ONE_WAY != 0 {
        assert!(from_uplink && has(&frontend, Frontend::DIRECT_RETURN) && !service.sent_on, "{o}it was sent on");
        let own = |n: &Network| n.kind != NetworkKind::NonMasquerade as u32;
        assert!(!t.network(&key.src).is_some_and(own), "{o}the cluster's own packets are not sent on");
        let leads = backends.iter().any(|(addr, _)| t.network(addr).is_some_and(|n| n.node == entry.dst));
        return assert!(leads, "{o}that node has no backend");
    }
    assert!(backends.contains(&(entry.dst, entry.dport)), "{o}the backend is none of {backends:?}");
    source(o, key, entry, &frontend);
}

/// The source address and port that a backend sees.
fn source(o: &Outcome<'_>, key: &Tuple, entry: &CtEntry, frontend: &Frontend) {
    let t = &o.before;
    let a = Addresses::of(!key.src.is_v4());
    let own_node = t.network(&entry.dst).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
    let here = own_node || t.endpoint(&entry.dst).is_some();
    let from_uplink = o.entry.hook == Hook::FromUplink;
    let snat = frontend.flags & Frontend::SNAT != 0;
    let masquerade = t.config.flags & Config::MASQUERADE != 0;
    let outside = t.network(&entry.dst).is_none() && t.endpoint(&entry.dst).is_none();
    let uplink = leads_out(t, entry.out_ifindex);
    let nodes: Vec<Addr> = a.node.iter().map(|node| (*node).into()).collect();
    let hairpin = Addr::from(a.hairpin);
    let own_ip = [t.config.node_v4, t.config.node_v6].contains(&key.src);
    match o.entry.hook {
        _ if entry.dst == key.src && here => assert!(entry.src == hairpin, "{o}a pod sees its own address"),
        _ if entry.dst == key.src => {}
        Hook::FromHost if own_node => assert!(entry.src == hairpin, "{o}a host process sees its own address"),
        Hook::FromHost if own_ip || t.endpoint(&entry.dst).is_some() => {
            assert!(entry.src == key.src, "{o}the host's address is right for pods");
        }
        Hook::FromHost => assert!(nodes.contains(&entry.src), "{o}others know no way to that address"),
        _ if snat && own_node => assert!(entry.src == hairpin, "{o}the host would answer past the hooks"),
        _ if snat || (from_uplink && !here) => {
            assert!(nodes.contains(&entry.src), "{o}the answer would not come back here: {entry:?}");
        }
        Hook::FromPod if masquerade && outside && uplink => {
            assert!(nodes.contains(&entry.src), "{o}a pod's address is shown outside: {entry:?}");
        }
        _ => assert!(entry.src == key.src, "{o}the client's address is lost"),
    }
    port(o, key, entry);
}

/// The source port is either the client's or one for source NAT.
fn port(o: &Outcome<'_>, key: &Tuple, entry: &CtEntry) {
    let own = entry.sport == key.sport;
    assert!(own || o.before.snat_ports.contains(&entry.sport.get()), "{o}a port of others: {entry:?}");
}

/// Whether an entry is that of an untranslated flow's server, which may also open a connection from its port.
pub fn is_servers(entry: &CtEntry) -> bool {
    entry.flags & (CtEntry::REPLY | CtEntry::REWRITE_SRC | CtEntry::REWRITE_DST) == CtEntry::REPLY
}

/// A flow that is not to a service: masqueraded, or tracked to keep it apart from one to a service.
fn beside_services(o: &Outcome<'_>, packet: &View<'_>, key: &Tuple, entry: &CtEntry) {
    let t = &o.before;
    assert!(entry.dst == key.dst && entry.dport == key.dport, "{o}there is no such service: {entry:?}");
    // Flows from outside to pods, tracked so that the replies are not masqueraded.
    if o.entry.hook == Hook::FromUplink {
        let masquerade = t.config.flags & Config::MASQUERADE != 0 && t.network(&key.src).is_none();
        let isolated = network_policy::concerns(t, &key.dst);
        assert!(isolated || masquerade && t.endpoint(&key.dst).is_some(), "{o}that needs no flow: {entry:?}");
        assert!(entry.src == key.src, "{o}nothing is to be translated: {entry:?}");
        return port(o, key, entry);
    }
    assert!(o.entry.hook == Hook::FromPod, "{o}only pods' packets are masqueraded: {entry:?}");
    port(o, key, entry);
    if entry.src == key.src {
        // Connections are kept apart from later ones too.
        let twin = t.conntrack.borrow().get(&key.reversed()).is_some_and(|e| e.flags & CtEntry::REPLY != 0);
        let opens = packet.tcp_flags().is_some_and(|flags| flags & (SYN | ACK) == SYN);
        let isolated = network_policy::concerns(t, &key.src) || network_policy::concerns(t, &key.dst);
        return assert!(twin || opens || isolated, "{o}there is nothing to be kept apart from: {entry:?}");
    }
    assert!(t.config.flags & Config::MASQUERADE != 0, "{o}masquerade is off");
    assert!(t.network(&key.dst).is_none() && t.endpoint(&key.dst).is_none(), "{o}that is the cluster's");
    assert!(!packet.dst.is_multicast() && !packet.dst.is_unspecified(), "{o}it is no single receiver");
    // Without identifier, an echo reply has the same tuple as a request.
    assert!(packet.echo() != Some(false) || key.dport == Port::new(0), "{o}an answer begins nothing");
    let route = t.route_to(&key.dst).copied().unwrap_or_default();
    let node = if packet.v6() { t.config.node_v6 } else { t.config.node_v4 };
    let expected = if route.src.is_none() { node } else { route.src };
    assert!(entry.src == expected, "{o}another address would be right: {expected:?}");
    assert!(leads_out(t, route.ifindex), "{o}no answer would come back through a hook");
}
