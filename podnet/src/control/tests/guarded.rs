//! Services that ask for addresses or ports of others: the refused parts are named and left out, the rest takes effect,
//! and the parts return when the conflict ends.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::*;

fn node(name: &str, ip: &str, cidr: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{podCIDRs: [{cidr}]}}, status: {{addresses: \
         [{{type: InternalIP, address: {ip}}}]}}}}\n"
    )
}

/// A service with these external IPs and one port.
fn external(name: &str, ips: &str, port: u16) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: 10.96.0.9, externalIPs: \
         [{ips}], ports: [{{port: {port}, protocol: UDP}}]}}}}\n"
    )
}

fn cluster() -> Bench {
    let mut bench = Bench::new();
    bench
        .write("nodes.yaml", &(node("n1", "172.30.0.1", "10.244.1.0/24") + &node("n2", "172.30.0.2", "10.244.2.0/24")));
    bench.control.set_host(facts());
    bench
}

fn facts() -> HostFacts {
    HostFacts {
        addresses: ["172.30.0.1".parse().unwrap()].into(),
        gateways: ["172.30.0.254".parse().unwrap()].into(),
        default_gateways: ["172.30.0.254".parse().unwrap()].into(),
        resolvers: ["192.0.2.53".parse().unwrap()].into(),
        api_servers: ["192.0.2.99:6443".parse().unwrap()].into(),
    }
}

/// Addresses and ports in the table `frontends`.
fn frontends(bench: &Bench) -> BTreeSet<String> {
    let ports = bench.tables.frontends.keys().filter(|key| **key != FrontendKey::address(key.addr));
    ports.map(|key| SocketAddr::new(key.addr.into(), key.port.get()).to_string()).collect()
}

fn left_out(bench: &Bench) -> Vec<String> {
    let problems = bench.control.status().problems.into_iter().map(|problem| problem.reason);
    problems.filter(|reason| !reason.contains("is an address of this node: traffic")).collect()
}

#[test]
fn external_ip_of_a_node_or_route_is_refused() {
    let mut bench = cluster();
    let ips = "172.30.0.2, 172.30.0.254, 192.0.2.53, 192.0.2.99, 10.244.2.9, 10.96.0.1, 198.51.100.1";
    bench.write("web.yaml", &external("web", ips, 53));
    bench.round();
    assert_eq!(frontends(&bench), ["10.96.0.9:53", "198.51.100.1:53"].map(String::from).into());
    let named = left_out(&bench);
    for ip in ["172.30.0.2", "172.30.0.254", "192.0.2.53", "192.0.2.99", "10.244.2.9", "10.96.0.1"] {
        assert!(named.iter().any(|reason| reason.starts_with(&format!("{ip} is ignored"))), "{ip}: {named:?}");
    }
    let complaint = bench.control.complaint().unwrap();
    assert!(
        complaint.key.to_string() == "Service default/web" && complaint.reason.contains("node n2"),
        "{complaint:?}"
    );

    // A refused part returns when its conflict ends, and the reverse.
    bench.write("nodes.yaml", &node("n1", "172.30.0.1", "10.244.1.0/24"));
    let (applied, _) = bench.round();
    assert_eq!(applied.services, 1);
    assert!(frontends(&bench).contains("172.30.0.2:53") && frontends(&bench).contains("10.244.2.9:53"));
    let applied = bench.control.set_host(HostFacts { gateways: BTreeSet::new(), ..facts() });
    bench.round();
    assert!(applied.services == 1 && frontends(&bench).contains("172.30.0.254:53"));
    bench.write("new.yaml", &node("n3", "198.51.100.1", "10.244.3.0/24"));
    bench.round();
    assert!(!frontends(&bench).contains("198.51.100.1:53"));
    // Other changes affect no service.
    bench.write("new.yaml", &node("n3", "198.51.100.1", "10.244.4.0/24"));
    assert_eq!(bench.round().0.services, 0);
}

#[test]
fn own_address_serves_except_at_ports_that_the_node_needs() {
    let mut bench = cluster();
    for (port, taken) in [(53, true), (8472, false)] {
        bench.write("web.yaml", &external("web", "172.30.0.1", port));
        bench.round();
        assert_eq!(frontends(&bench).contains(&format!("172.30.0.1:{port}")), taken, "{port}");
    }
    for (port, taken) in [(80, true), (22, false), (6443, false), (10_250, false), (10_256, false)] {
        bench.write("web.yaml", &external("web", "172.30.0.1", port).replace("UDP", "TCP"));
        bench.round();
        assert_eq!(frontends(&bench).contains(&format!("172.30.0.1:{port}")), taken, "{port}");
        assert_eq!(left_out(&bench).is_empty(), taken);
    }
}

#[test]
fn misplaced_cluster_ips_and_node_ports() {
    let mut bench = cluster();
    let text = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, clusterIP: IP, ports: [{name: \
                a, port: 80, nodePort: 30080}, {name: b, port: 81, nodePort: 10250}]}}";
    for ip in ["172.30.0.2", "10.244.2.9", "192.0.2.99", "192.0.2.1", "127.0.0.1", "224.0.0.1"] {
        bench.write("web.yaml", &text.replace("IP,", &format!("{ip},")));
        bench.round();
        assert_eq!(frontends(&bench), ["0.0.0.0:30080".to_owned()].into(), "{ip}");
        assert_eq!(left_out(&bench).iter().filter(|reason| reason.contains(ip)).count(), 1, "{:?}", left_out(&bench));
    }
}

#[test]
fn forbidden_endpoints() {
    let mut bench = cluster();
    let tunnel = |ip: &str| slice("web", &[ip, "10.244.2.7"]).replace("port: 5353", "port: 8472");
    for ip in ["172.30.0.2", "172.30.0.1", "192.0.2.200"] {
        bench.write("web.yaml", &(service("web", "10.96.0.1") + &tunnel(ip)));
        bench.round();
        let dump = bench.dump();
        assert!(!dump.contains(ip) && dump.contains("10.244.2.7:8472"), "{dump}");
        assert!(left_out(&bench)[0].contains(ip), "{:?}", left_out(&bench));
    }
    // The pods of a deleted node are no longer pods.
    bench.write("nodes.yaml", &node("n1", "172.30.0.1", "10.244.1.0/24"));
    bench.round();
    assert!(!bench.dump().contains("8472"), "{}", bench.dump());

    let balanced = "---\n{apiVersion: v1, kind: Service, metadata: {name: lb}, spec: {type: LoadBalancer, clusterIP: \
                    10.96.0.8, ports: [{port: 80}]}, status: {loadBalancer: {ingress: [{ip: 192.0.2.8}]}}}\n";
    bench.write("web.yaml", &(service("web", "10.96.0.1") + &slice("web", &["10.96.0.8", "192.0.2.8", "10.244.1.3"])));
    bench.round();
    assert!(bench.dump().contains("192.0.2.8") && !bench.dump().contains("10.96.0.8:"), "{}", bench.dump());
    bench.write("lb.yaml", balanced);
    bench.round();
    assert!(!bench.dump().contains("192.0.2.8:5353") && bench.dump().contains("10.244.1.3:5353"), "{}", bench.dump());
    bench.write("lb.yaml", "# none\n");
    bench.round();
    assert!(bench.dump().contains("192.0.2.8:5353"));
    // An external IP doesn't take endpoints away from other services.
    bench.write("lb.yaml", &external("thief", "10.244.1.3, 192.0.2.8", 53));
    bench.round();
    assert!(bench.dump().contains("192.0.2.8:5353") && bench.dump().contains("10.244.1.3:5353"));
}

#[test]
fn host_port_lasts_as_long_as_the_node_has_the_address() {
    let mut bench = cluster();
    let ips = ["127.0.0.1", "8.8.8.8", "10.96.0.77", "10.244.1.9", "192.0.2.1"];
    bench.control.set_host_ports(ips.map(|ip| host_port(ip, 53, Protocol::Udp)).into());
    bench.round();
    let ports = |bench: &Bench| -> Vec<_> { frontends(bench).into_iter().filter(|at| at.ends_with(":53")).collect() };
    assert_eq!(ports(&bench), ["127.0.0.1:53"]);
    let left = left_out(&bench);
    assert_eq!(left.len(), 4, "{left:?}");
    let wanted = "host port 8.8.8.8:53/UDP is ignored: its hostIP is not an address of this node";
    assert!(left.iter().any(|reason| reason == wanted), "{left:?}");
    for here in [true, false] {
        let mut facts = bench.control.host().clone();
        if here {
            facts.addresses.insert("192.0.2.1".parse().unwrap())
        } else {
            facts.addresses.remove(&"192.0.2.1".parse().unwrap())
        };
        assert!(bench.control.set_host(facts).host_ports);
        bench.round();
        let expected = if here { vec!["127.0.0.1:53", "192.0.2.1:53"] } else { vec!["127.0.0.1:53"] };
        assert_eq!(ports(&bench), expected);
        assert_eq!(left_out(&bench).len(), if here { 3 } else { 4 });
    }
}

#[test]
fn tunnel_port_is_refused_as_a_host_port() {
    let mut bench = cluster();
    let port = |port: u16| host_port("0.0.0.0", port, Protocol::Udp);
    bench.control.set_host_ports(vec![port(8472), port(8473)]);
    bench.round();
    assert_eq!(frontends(&bench), ["0.0.0.0:8473".to_owned()].into());
    assert!(left_out(&bench)[0].contains("the tunnel"), "{:?}", left_out(&bench));
}

#[test]
fn conflicting_node_is_left_out_and_listed_first() {
    let mut bench = cluster();
    bench.round();
    bench.write("evil.yaml", &node("a-node", "10.244.2.9", "10.244.2.0/25"));
    let (applied, _) = bench.round();
    let counts = &bench.control.nodes()["a-node"];
    assert!(applied.nodes && counts.internal_ips.is_empty() && counts.pod_cidrs.is_empty());
    let alarms: Vec<_> = bench.control.status().alarms.into_iter().map(|alarm| alarm.place.to_string()).collect();
    assert_eq!(alarms, ["Node a-node"; 2]);
    let complaint = bench.control.complaint().unwrap();
    assert!(complaint.reason.contains("its pod CIDR 10.244.2.0/25") && complaint.reason.contains("its InternalIP"));
    // It now claims only what is its own.
    bench.write("evil.yaml", &node("a-node", "172.30.0.3", "10.244.3.0/24"));
    bench.round();
    assert_eq!((bench.control.nodes()["a-node"].pod_cidrs.len(), bench.control.status().alarms.len()), (1, 0));
    // The host's own addresses become known after the objects.
    let applied = bench.control.set_host(HostFacts { addresses: ["10.244.3.1".parse().unwrap()].into(), ..facts() });
    assert!(applied.nodes && bench.control.nodes()["a-node"].pod_cidrs.is_empty());
}
