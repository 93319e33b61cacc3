//! Addresses, ports, families and slices.

use super::*;

const PORT: &str = "[{port: 8080}]";

/// A row: the source of the case, the manifests, the frontends.
type Row = (&'static str, String, Vec<&'static str>);

#[track_caller]
fn check(rows: Vec<Row>) {
    for (origin, manifests, expected) in rows {
        assert_eq!(select(&manifests, SourceIp::Auto), expected, "{origin}");
    }
}

#[test]
fn services_that_have_no_frontends() {
    let web = slice("a", "IPv4", PORT, &["10.0.0.1"]);
    let spec = "{clusterIP: 10.96.0.1, externalIPs: [192.0.2.1], ports: [{port: 80}]}";
    let label = |name: &str| service_with(&format!("{{name: web, labels: {{{name}: ''}}}}"), spec);
    check(vec![
        ("util ShouldSkipService: headless", service("{clusterIP: None, ports: [{port: 80}]}") + &web, vec![]),
        ("ShouldSkipService: ExternalName", service("{type: ExternalName, externalName: a.example}"), vec![]),
        (
            "e2e service.go: service.kubernetes.io/service-proxy-name (KEP-2447)",
            label("service.kubernetes.io/service-proxy-name") + &web,
            vec![],
        ),
        ("e2e service.go: service.kubernetes.io/headless", label("service.kubernetes.io/headless") + &web, vec![]),
    ]);
}

#[test]
fn slices_and_ports() {
    check(vec![
        (
            "endpointslicecache_test.go TestEndpointInfoByServicePort: several slices, an address in two of them",
            service("{clusterIP: 10.96.0.1, ports: [{port: 80}]}")
                + &slice("a", "IPv4", PORT, &["10.0.0.1", "10.0.0.2 down"])
                + &slice("b", "IPv4", PORT, &["10.0.0.2", "10.0.0.3"]),
            vec!["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080"],
        ),
        (
            "e2e service.go: publishNotReadyAddresses makes endpoints ready that don't serve (KEP-1672)",
            service("{clusterIP: 10.96.0.1, publishNotReadyAddresses: true, ports: [{port: 80}]}")
                + &slice("a", "IPv4", PORT, &["10.0.0.1 gone"]).replace("ready: false", "ready: true"),
            vec!["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080"],
        ),
        (
            "e2e endpointslice.go: named target ports that differ from slice to slice",
            service("{clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: web}]}")
                + &slice("a", "IPv4", "[{name: http, port: 3000}]", &["10.0.0.1"])
                + &slice("b", "IPv4", "[{name: http, port: 3001}]", &["10.0.0.2"]),
            vec!["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:3000 10.0.0.2:3001"],
        ),
        (
            "e2e service.go: should serve multiport endpoints from pods",
            service("{clusterIP: 10.96.0.1, ports: [{name: a, port: 80}, {name: b, port: 81}]}")
                + &slice("a", "IPv4", "[{name: a, port: 100}]", &["10.0.0.1"])
                + &slice("b", "IPv4", "[{name: b, port: 101}]", &["10.0.0.2"]),
            vec!["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:100", "ClusterIp 10.96.0.1:81/TCP: 10.0.0.2:101"],
        ),
        (
            "e2e service.go: the same port with several protocols, also as a NodePort",
            service(
                "{type: NodePort, clusterIP: 10.96.0.1, ports: [{name: t, port: 53, nodePort: 30053}, {name: u, port: \
                 53, nodePort: 30053, protocol: UDP}, {name: s, port: 53, protocol: SCTP}]}",
            ) + &slice(
                "a",
                "IPv4",
                "[{name: t, port: 5353}, {name: u, port: 5353, protocol: UDP}, {name: s, port: 1, protocol: SCTP}]",
                &["10.0.0.1"],
            ),
            vec![
                "ClusterIp 10.96.0.1:53/TCP: 10.0.0.1:5353",
                "NodePort 0.0.0.0:30053/TCP: 10.0.0.1:5353",
                "ClusterIp 10.96.0.1:53/UDP: 10.0.0.1:5353",
                "NodePort 0.0.0.0:30053/UDP: 10.0.0.1:5353",
                "ClusterIp 10.96.0.1:53/SCTP: 10.0.0.1:1",
            ],
        ),
        (
            "types.go ServicePortName: a slice's port of another protocol is another port",
            service("{clusterIP: 10.96.0.1, ports: [{name: a, port: 53, protocol: UDP}]}")
                + &slice("a", "IPv4", "[{name: a, port: 53}]", &["10.0.0.1"]),
            vec!["ClusterIp 10.96.0.1:53/UDP: reject"],
        ),
        (
            "KEP-563: each family has the slices of its addressType",
            service("{type: NodePort, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80, nodePort: 30080}]}")
                + &slice("a", "IPv4", PORT, &["10.0.0.1"])
                + &slice("b", "IPv6", "[{port: 8081}]", &["fd00::1 draining"])
                + &slice("c", "FQDN", PORT, &["a.example"]),
            vec![
                "ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080",
                "ClusterIp [fd00:96::1]:80/TCP: [fd00::1]:8081",
                "NodePort 0.0.0.0:30080/TCP: 10.0.0.1:8080",
                "NodePort [::]:30080/TCP: [fd00::1]:8081",
            ],
        ),
    ]);
}

#[test]
fn addresses_of_every_kind() {
    let (v4, v6) = (slice("a", "IPv4", PORT, &["10.0.0.1"]), slice("b", "IPv6", PORT, &["fd00::1"]));
    let node_port = "clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]";
    check(vec![
        (
            "a service has the frontends of the simpler types too",
            load_balancer(node_port, "{ip: 192.0.2.1}") + &v4,
            vec![
                "ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080",
                "LoadBalancer 192.0.2.1:80/TCP: 10.0.0.1:8080",
                "NodePort 0.0.0.0:30080/TCP: 10.0.0.1:8080",
            ],
        ),
        (
            "KEP-1860, nftables/proxier_test.go: ipMode Proxy is left to the load balancer, VIP isn't",
            load_balancer(
                "clusterIP: 10.96.0.1, ports: [{port: 80}]",
                "{ip: 192.0.2.1, ipMode: Proxy}, {ip: 192.0.2.2, ipMode: VIP}, {hostname: lb.example}",
            ) + &v4,
            vec!["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080", "LoadBalancer 192.0.2.2:80/TCP: 10.0.0.1:8080"],
        ),
        (
            "KEP-1864: allocateLoadBalancerNodePorts false",
            load_balancer("allocateLoadBalancerNodePorts: false, clusterIP: 10.96.0.1, ports: [{port: 80}]", "") + &v4,
            vec!["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080"],
        ),
        (
            "e2e service.go: ExternalIPs, of a service of any type",
            service("{clusterIP: 10.96.0.1, externalIPs: [192.0.2.9], ports: [{port: 80}]}") + &v4,
            vec!["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080", "ExternalIp 192.0.2.9:80/TCP: 10.0.0.1:8080"],
        ),
        (
            "serviceport.go: addresses of a family that the service doesn't have",
            load_balancer(
                "clusterIP: 10.96.0.1, externalIPs: ['2001:db8::9', 192.0.2.9], ports: [{port: 80}]",
                "{ip: '2001:db8::1'}",
            ) + &v4
                + &v6,
            vec!["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080", "ExternalIp 192.0.2.9:80/TCP: 10.0.0.1:8080"],
        ),
        (
            "a load balancer's address that is also an external IP is one frontend, with the source ranges",
            load_balancer(
                "clusterIP: 10.96.0.1, externalIPs: [192.0.2.1], loadBalancerSourceRanges: [198.51.100.0/24], \
                 ports: [{port: 80}]",
                "{ip: 192.0.2.1}",
            ) + &v4,
            vec![
                "ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080",
                "LoadBalancer 192.0.2.1:80/TCP from [198.51.100.0/24]: 10.0.0.1:8080",
            ],
        ),
        (
            "a manifest without ClusterIPs, which are not allocated for files, in the families that it names",
            service("{type: NodePort, ipFamilies: [IPv6], ports: [{port: 80, nodePort: 30080}]}") + &v4 + &v6,
            vec!["NodePort [::]:30080/TCP: [fd00::1]:8080"],
        ),
        (
            "and in both, if it names none",
            service("{type: NodePort, ports: [{port: 80, nodePort: 30080}]}") + &v4 + &v6,
            vec!["NodePort 0.0.0.0:30080/TCP: 10.0.0.1:8080", "NodePort [::]:30080/TCP: [fd00::1]:8080"],
        ),
        (
            "e2e service.go: change the type from NodePort to ClusterIP",
            service("{type: ClusterIP, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}") + &v4,
            vec!["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080"],
        ),
    ]);
}

#[test]
fn source_ranges_are_about_load_balancers_addresses() {
    let spec = |ranges: &str| {
        format!(
            "clusterIPs: [10.96.0.1, 'fd00:96::1'], loadBalancerSourceRanges: [{ranges}], ports: [{{port: 80, \
             nodePort: 30080}}], externalIPs: [192.0.2.9]"
        )
    };
    let ingress = "{ip: 192.0.2.1}, {ip: '2001:db8::1'}";
    let ranges = |text: &str| -> Vec<String> {
        let frontends = select(&load_balancer(&spec(text), ingress), SourceIp::Auto);
        frontends.into_iter().filter(|line| line.contains("LoadBalancer") || line.contains("from")).collect()
    };
    assert_eq!(
        ranges("' 198.51.100.0/24 ', 203.0.113.7/32, '2001:db8:1::/48'"),
        [
            "LoadBalancer 192.0.2.1:80/TCP from [198.51.100.0/24 203.0.113.7/32]: reject",
            "LoadBalancer [2001:db8::1]:80/TCP from [2001:db8:1::/48]: reject",
        ],
        "nftables/proxier_test.go TestLoadBalancer: the NodePort and external IPs stay open",
    );
    assert_eq!(
        ranges("198.51.100.0/24")[1],
        "LoadBalancer [2001:db8::1]:80/TCP from []: reject",
        "who isn't in a range stays out, whatever the family"
    );
    assert_eq!(ranges("")[0], "LoadBalancer 192.0.2.1:80/TCP: reject");
}

/// The maximum number of ports of a service and of endpoints of a slice; each port alone would be ordinary.
#[test]
fn many_ports_and_endpoints_are_not_multiplied() {
    let ports: Vec<_> = (1..=4096).map(|port| format!("{{name: p{port}, port: {port}}}")).collect();
    let endpoints: Vec<_> = (0..1000)
        .map(|i| format!("{{addresses: [10.{}.{}.1], conditions: {{ready: false}}}}", i / 250, i % 250))
        .collect();
    let ports = ports.join(", ");
    let stream = service(&format!("{{clusterIP: 10.96.0.1, ports: [{ports}]}}"))
        + &format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: web-1, \
             labels: {{kubernetes.io/service-name: web}}}}, ports: [{ports}], endpoints: [{}]}}\n",
            endpoints.join(", ")
        );
    let manifests = Manifests::parse(&stream);
    let all = EntryCounts::of_tables(65_536, 2_097_152, 262_144, 65_536);
    let selection = select_within(&manifests, &manifests.settings(SourceIp::Auto), all);
    assert_eq!((selection.frontends.len(), selection.takes.backends), (262, 0));
    let beyond = selection.beyond.unwrap();
    assert_eq!((beyond.bound.table, beyond.count), ("backends", 4096 - 262));
    // With ready endpoints, the share of one service.
    let ready = Manifests::parse(&stream.replace("ready: false", "ready: true"));
    let selection = select_within(&ready, &ready.settings(SourceIp::Auto), all.of_service());
    assert_eq!((selection.frontends.len(), selection.takes.backends), (16, 16_000));
    assert_eq!(selection.beyond.unwrap().first.to_string(), "10.96.0.1:17/TCP");
}

/// A Maglev table takes as much room as thousands of endpoints: a service has room for some, and for plain lists
/// beyond.
#[test]
fn a_service_has_room_for_some_maglev_tables() {
    let ports: Vec<_> =
        (1..=20).map(|port| format!("{{name: p{port}, port: {port}, nodePort: {}}}", 30_000 + port)).collect();
    let ports = ports.join(", ");
    let stream = service(&format!("{{type: NodePort, clusterIP: 10.96.0.1, ports: [{ports}]}}"))
        + &format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: web-1, \
             labels: {{kubernetes.io/service-name: web}}}}, ports: [{ports}], endpoints: [{{addresses: [10.0.0.1]}}]}}\n",
        );
    let manifests = Manifests::parse(&stream);
    let settings = Settings { spread: 16_381, ..manifests.settings(SourceIp::Preserve) };
    let selection =
        select_within(&manifests, &settings, EntryCounts::of_tables(65_536, 2_097_152, 262_144, 65_536).of_service());
    let spread = selection.frontends.iter().filter(|frontend| frontend.here.is_some() && frontend.spread).count();
    assert_eq!((selection.frontends.len(), spread, selection.unspread, selection.beyond), (40, 6, 14, None));
}
