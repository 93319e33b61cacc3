use super::*;
use crate::host::snapshot::{Address, Framing, Hop, Link, Neighbour};

fn route(dst: &str, protocol: u8, via: Option<&str>, dev: u32) -> Route {
    let hops = vec![Hop { via: via.map(|v| v.parse().unwrap()), dev: IfIndex(dev) }];
    Route { dst: dst.parse().unwrap(), protocol, metric: 0, source: None, mtu: None, hops }
}

fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> RemoteNode {
    RemoteNode {
        name: name.into(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        links: vec![Link { name: NEAR.into(), ifindex: IfIndex(9), ..Link::default() }],
        addresses: vec![Address { ifindex: IfIndex(2), addr: "172.30.0.1".parse().unwrap(), tentative: false }],
        routes: vec![
            route("0.0.0.0/0", 4, Some("172.30.0.254"), 2),
            route("172.30.0.0/24", 2, None, 2),
            route("fd00:30::/64", 2, None, 2),
        ],
        neighbours: vec![Neighbour {
            fresh: false,
            ifindex: IfIndex(2),
            addr: "172.30.0.2".parse().unwrap(),
            mac: Some(Mac([2, 0, 0, 0, 0, 2])),
            permanent: false,
        }],
        ..Snapshot::default()
    }
}

fn network<'a>(routing: Routing, nodes: &'a [RemoteNode], addresses: &'a [IpAddr]) -> NodeNetwork<'a> {
    NodeNetwork { name: "a", addresses, mtu: 1500, routing, pod_cidrs: &[], nodes }
}

/// The plan for nodes on one link.
fn planned(snapshot: &Snapshot, nodes: &[RemoteNode], addresses: &[IpAddr]) -> Plan {
    plan(snapshot, &network(Routing::Direct, nodes, addresses), None)
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

#[test]
fn both_families_go_through_the_address_of_their_own() {
    let nodes = [node("b", &["172.30.0.2", "fd00:30::2"], &["10.244.2.0/24", "fd00:244:2::/64"])];
    let plan = planned(&snapshot(), &nodes, &["172.30.0.1".parse().unwrap()]);
    assert_eq!(
        steps(&plan),
        ["add the route to 10.244.2.0/24 via 172.30.0.2", "add the route to fd00:244:2::/64 via fd00:30::2"]
    );
    let macs: Vec<_> = plan.result.hops.iter().map(|h| h.mac).collect();
    assert_eq!(macs, [Some(Mac([2, 0, 0, 0, 0, 2])), None]);
    assert!(plan.result.unreachable.is_empty());
}

#[test]
fn existing_routes_stay_and_outdated_ones_are_removed() {
    let mut snapshot = snapshot();
    snapshot.routes.extend([
        route("10.244.2.0/24", ROUTE_PROTOCOL, Some("172.30.0.2"), 2),
        route("10.244.3.0/24", ROUTE_PROTOCOL, Some("172.30.0.3"), 2),
        route("10.244.4.0/24", ROUTE_PROTOCOL, Some("172.30.0.4"), 2),
        // Routes of others: a pod's, podnet0's, an operator's.
        route("10.244.1.5/32", ROUTE_PROTOCOL, None, 12),
        route("10.96.0.0/16", ROUTE_PROTOCOL, Some("169.254.1.2"), 9),
        route("10.244.7.0/24", 4, Some("172.30.0.7"), 2),
    ]);
    let nodes = [node("b", &["172.30.0.2"], &["10.244.2.0/24"]), node("c", &["172.30.0.33"], &["10.244.3.0/24"])];
    assert_eq!(
        steps(&planned(&snapshot, &nodes, &[])),
        ["replace the route to 10.244.3.0/24 via 172.30.0.33", "remove the route to 10.244.4.0/24 via 172.30.0.4"]
    );
}

#[test]
fn this_nodes_own_cidrs_are_unreachable() {
    let mut snapshot = snapshot();
    let nowhere = |dst: &str| Route { hops: vec![], ..route(dst, ROUTE_PROTOCOL, None, 0) };
    snapshot.routes.extend([
        nowhere("10.244.9.0/24"),
        // Until now another node's.
        route("10.244.1.0/24", ROUTE_PROTOCOL, Some("172.30.0.2"), 2),
        // An operator's.
        Route { protocol: 4, ..nowhere("10.7.0.0/16") },
    ]);
    let cidrs: Vec<IpNetwork> = ["10.244.1.0/24", "fd00:244:1::/64"].map(|c| c.parse().unwrap()).into();
    let own = ["172.30.0.1", "fd00:30::1"].map(|ip| ip.parse().unwrap());
    let network = NodeNetwork { pod_cidrs: &cidrs, ..network(Routing::Direct, &[], &own) };
    assert_eq!(
        steps(&plan(&snapshot, &network, None)),
        [
            "add the unreachable route to 10.244.1.0/24",
            "add the unreachable route to fd00:244:1::/64",
            "remove the route to 10.244.1.0/24 via 172.30.0.2",
            "remove the unreachable route to 10.244.9.0/24",
        ]
    );
    let far = [node("far", &["10.7.0.2"], &["10.244.2.0/24"])];
    let own = ["172.30.0.1".parse().unwrap()];
    for routing in [Routing::Direct, Routing::Auto, Routing::Vxlan] {
        let network = super::tests::network(routing, &far, &own);
        let plan = plan(&snapshot, &network, Some(TUNNEL));
        assert!(plan.result.unreachable[0].reason.contains("10.7.0.2 is in 10.7.0.0/16"), "{plan:?}");
        assert!(tunnel_peers(&snapshot, &network).0.is_empty());
    }
}

#[test]
fn unreachable_cidrs_are_reported_with_a_reason() {
    let nodes = [
        node("far", &["10.7.0.2"], &["10.244.2.0/24"]),
        node("v4only", &["172.30.0.3"], &["fd00:244:3::/64"]),
        node("self", &["172.30.0.1"], &["10.244.4.0/24"]),
        node("thief", &["172.30.0.5"], &["10.244.2.0/24"]),
    ];
    let plan = planned(&snapshot(), &nodes, &[]);
    assert!(plan.steps.is_empty() && plan.result.hops.is_empty());
    let reasons: Vec<_> = plan.result.unreachable.iter().map(|u| (u.node.as_str(), u.reason.as_str())).collect();
    let expected = [("far", "router 172.30.0.254"), ("v4only", "no IPv6"), ("self", "own"), ("thief", "another node")];
    for ((node, reason), (expected_node, part)) in reasons.iter().zip(expected) {
        assert_eq!(*node, expected_node);
        assert!(reason.contains(part), "{node}: {reason}");
    }
    assert_eq!(reasons.len(), expected.len());
}

#[test]
fn several_paths_are_no_shared_link() {
    let mut snapshot = snapshot();
    snapshot.routes[1].hops.push(Hop { via: None, dev: IfIndex(3) });
    let plan = planned(&snapshot, &[node("b", &["172.30.0.2"], &["10.244.2.0/24"])], &[]);
    assert!(plan.result.unreachable[0].reason.contains("several next hops"));
}

const TUNNEL: Tunnel = Tunnel { ifindex: IfIndex(7), mac: Mac([2; 6]), mtu: 1450 };

#[test]
fn nodes_on_no_shared_link_are_reached_through_the_tunnel() {
    let own = ["172.30.0.1".parse().unwrap(), "fd00:30::1".parse().unwrap()];
    let nodes = [
        node("near", &["172.30.0.2", "fd00:30::2"], &["10.244.2.0/24"]),
        node("far", &["10.7.0.3", "fd00:7::3"], &["10.244.3.0/24", "fd00:244:3::/64"]),
        node("v6only", &["fd00:7::4"], &["fd00:244:4::/64"]),
    ];
    let auto = network(Routing::Auto, &nodes, &own);
    let far = tunnel::mac_of("far");
    let (peers, errors) = tunnel_peers(&snapshot(), &auto);
    let gateways = vec!["10.7.0.3".parse().unwrap(), tunnel::gateway("fd00:7::3".parse().unwrap(), far)];
    assert_eq!(peers, [(far, Peer { remote: "10.7.0.3".parse().unwrap(), gateways })].into());
    assert!(errors.is_empty());

    let planned = plan(&snapshot(), &auto, Some(TUNNEL));
    let via = |plan: &Plan| -> Vec<(String, bool)> {
        plan.result.hops.iter().map(|hop| (format!("{} {}", hop.via, hop.dev.0), hop.tunnel)).collect()
    };
    let expected = [("172.30.0.2 2", false), ("10.7.0.3 7", true), ("fd00:7::3 7", true)];
    assert_eq!(via(&planned), expected.map(|(hop, tunnel)| (hop.to_owned(), tunnel)));
    assert_eq!(planned.result.hops[2].mac, Some(far));
    assert!(steps(&planned)[2].starts_with("add the route to fd00:244:3::/64 via fe80::"));
    let reached: Vec<_> = planned.result.addresses.iter().map(|a| (a.tunnel, a.dev.map(|dev| dev.0))).collect();
    let expected = [(false, Some(2)), (false, Some(2)), (true, Some(7)), (true, Some(7)), (false, None)];
    assert_eq!(reached, expected);
    assert!(planned.result.unreachable[0].reason.contains("is not an IPv4 address like this node's"));

    let all = plan(&snapshot(), &network(Routing::Vxlan, &nodes, &own), Some(TUNNEL));
    assert!(all.result.hops.iter().all(|hop| hop.tunnel) && all.result.hops.len() == 3);
    // The device could not be created.
    let none = plan(&snapshot(), &auto, None);
    assert_eq!((none.result.hops.len(), none.result.unreachable.len()), (1, 3));
}

#[test]
fn nothing_needs_a_tunnel_on_one_link() {
    let own = ["172.30.0.1".parse().unwrap()];
    let nodes = [node("near", &["172.30.0.2", "fd00:30::2"], &["10.244.2.0/24"])];
    assert!(tunnel_peers(&snapshot(), &network(Routing::Auto, &nodes, &own)).0.is_empty());
    let twin = [nodes[0].clone(), node("a", &["10.7.0.3"], &[])];
    let (peers, errors) = tunnel_peers(&snapshot(), &network(Routing::Auto, &twin, &own));
    assert!(peers.is_empty() && matches!(&errors[..], [HostError::SameMac { node }] if node == "a"));
}

#[test]
fn an_interface_without_ethernet_is_no_shared_link() {
    let own = ["172.30.0.1".parse().unwrap()];
    let nodes = [node("b", &["172.30.0.2"], &["10.244.2.0/24"])];
    let mut snapshot = snapshot();
    let wireguard = Link { name: "wg0".into(), ifindex: IfIndex(2), framing: Framing::Raw, ..Link::default() };
    snapshot.links.push(wireguard);
    let peers = |routing| tunnel_peers(&snapshot, &network(routing, &nodes, &own)).0.len();
    assert_eq!((peers(Routing::Auto), peers(Routing::Direct)), (1, 0));
    assert_eq!(steps(&planned(&snapshot, &nodes, &own)), ["add the route to 10.244.2.0/24 via 172.30.0.2"]);
}
