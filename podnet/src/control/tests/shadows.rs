//! Allowed but reported: services at addresses and ports that also belong to something else.

use podnet_common::addr::Mac;

use super::*;

fn told(bench: &Bench, service: &str) -> Vec<String> {
    let problems = bench.control.status().problems.into_iter();
    problems
        .filter(|problem| problem.place.to_string().ends_with(&format!("/{service}")))
        .map(|problem| problem.reason)
        .collect()
}

#[test]
fn services_at_foreign_addresses_are_reported() {
    let mut bench = Bench::new();
    bench.write(
        "a.yaml",
        "---\n{apiVersion: v1, kind: Service, metadata: {name: shadow}, spec: {clusterIPs: [10.96.0.1, 'fd00:96::1'], \
         externalIPs: [172.30.0.1, 203.0.113.2, 198.51.100.7, '2001:db8::7', 198.51.100.8], ports: [{name: a, port: 80}, \
         {name: b, port: 53, protocol: UDP}]}}\n---\n{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: \
         [{type: ExternalIP, address: 203.0.113.2}]}}\n",
    );
    bench.control.set_host(HostFacts { addresses: ["172.30.0.1".parse().unwrap()].into(), ..HostFacts::default() });
    bench.round();
    let machines = ["198.51.100.7", "2001:db8::7"].map(|ip| (ip.parse().unwrap(), Mac([2, 0, 0, 0, 0, 9])));
    bench.control.set_in_use(machines.into());
    let expected = [
        "172.30.0.1 is an address of this node: traffic through this node to 172.30.0.1:53/UDP, 172.30.0.1:80/TCP goes",
        "198.51.100.7 is in use by the machine with the MAC 02:00:00:00:00:09 on a link of this node: traffic through \
         this node to 198.51.100.7:53/UDP, 198.51.100.7:80/TCP goes",
        "2001:db8::7 is in use by the machine",
        "203.0.113.2 is an ExternalIP of node n2: traffic through this node to 203.0.113.2:53/UDP",
    ];
    let found = told(&bench, "shadow");
    assert_eq!(found.len(), expected.len(), "{found:?}");
    assert!(found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected)), "{found:?}");
    bench.control.set_in_use(BTreeMap::new());
    bench.control.set_host(HostFacts::default());
    assert_eq!(told(&bench, "shadow").len(), 1, "the others belong to no Service any more");
}

#[test]
fn health_check_port_of_another_service_is_reported() {
    let mut bench = Bench::new();
    bench.write(
        "a.yaml",
        "{apiVersion: v1, kind: Service, metadata: {name: checked}, spec: {type: LoadBalancer, clusterIP: 10.96.0.1, \
         externalTrafficPolicy: Local, healthCheckNodePort: 30080, ports: [{port: 80}]}}\n",
    );
    let other = |protocol: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: other}}, spec: {{type: NodePort, clusterIP: 10.96.0.2, ports: \
             [{{name: p, port: 80, nodePort: 30080, protocol: {protocol}}}]}}}}\n"
        )
    };
    bench.write("b.yaml", &other("UDP"));
    bench.round();
    assert_eq!(told(&bench, "checked"), [""; 0]);
    bench.write("b.yaml", &other("TCP"));
    bench.round();
    let found = told(&bench, "checked");
    assert!(
        found.len() == 1
            && found[0]
                .starts_with("its healthCheckNodePort 30080 conflicts with the same node port of default/other:p"),
        "{found:?}"
    );
    assert_eq!(bench.control.health().checks.len(), 1, "it is served, although it is not reachable there");
}
