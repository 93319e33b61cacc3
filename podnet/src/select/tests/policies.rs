//! Traffic policies by frontend and client, source addresses, affinity, health checks.

use super::*;

const PORT: &str = "[{port: 8080}]";
const HERE_AND_THERE: &[&str] = &["10.0.0.1 @n1", "10.0.0.2 @n2"];

/// A service with a frontend of each kind, and further fields of its spec.
fn all_kinds(spec: &str, endpoints: &[&str]) -> String {
    let spec = format!("{spec}clusterIP: 10.96.0.1, externalIPs: [192.0.2.9], ports: [{{port: 80, nodePort: 30080}}]");
    load_balancer(&spec, "{ip: 192.0.2.1}") + &slice("a", "IPv4", PORT, endpoints)
}

/// The frontend of the ClusterIP, and those of all other kinds, which must be the same.
#[track_caller]
fn inside_and_external(manifests: &str, source_ip: SourceIp) -> (String, String) {
    let lines = select(manifests, source_ip);
    let rest = |kind: &str, at: &str| {
        let line = lines.iter().find(|line| line.starts_with(kind)).unwrap();
        line.strip_prefix(&format!("{kind} {at}/TCP")).unwrap().to_owned()
    };
    let external = rest("LoadBalancer", "192.0.2.1:80");
    assert_eq!(rest("ExternalIp", "192.0.2.9:80"), external);
    assert_eq!(rest("NodePort", "0.0.0.0:30080"), external);
    assert_eq!(lines.len(), 4);
    (rest("ClusterIp", "10.96.0.1:80"), external)
}

#[test]
fn policies_by_frontend_and_client() {
    /// The source of the case, iTP, eTP, the endpoints, the result for the ClusterIP, the result for the others.
    type Row = (&'static str, &'static str, &'static str, &'static [&'static str], String, String);
    let (here, there, both) = ("10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.1:8080 10.0.0.2:8080");
    let rows: Vec<Row> = vec![
        ("iTP: Cluster, eTP: Cluster", "Cluster", "Cluster", HERE_AND_THERE, format!(": {both}"), format!(": {both}")),
        (
            "iTP: Local, eTP: Cluster, some endpoints local; e2e: should respect internalTrafficPolicy=Local",
            "Local",
            "Cluster",
            HERE_AND_THERE,
            format!(": {here}"),
            format!(": {both}"),
        ),
        (
            "iTP: Cluster, eTP: Local, some endpoints local: who is on the node gets any endpoint",
            "Cluster",
            "Local",
            HERE_AND_THERE,
            format!(": {both}"),
            format!(": {both}; outside: {here}"),
        ),
        (
            "iTP: Local, eTP: Local, some endpoints local",
            "Local",
            "Local",
            HERE_AND_THERE,
            format!(": {here}"),
            format!(": {both}; outside: {here}"),
        ),
        (
            "iTP: Local, eTP: Local, all endpoints remote; nftables/proxier_test.go: dropped",
            "Local",
            "Local",
            &["10.0.0.2 @n2"],
            ": drop".into(),
            format!(": {there}; outside: drop"),
        ),
        (
            "e2e service.go: should be rejected when no endpoints exist",
            "Local",
            "Local",
            &[],
            ": reject".into(),
            ": reject; outside: reject".into(),
        ),
        (
            "e2e service.go: should be rejected for evicted pods",
            "Cluster",
            "Cluster",
            &["10.0.0.1 @n1 gone"],
            ": reject".into(),
            ": reject".into(),
        ),
        (
            "e2e: should fallback to local terminating endpoints with externalTrafficPolicy=Local (KEP-1669)",
            "Cluster",
            "Local",
            &["10.0.0.1 @n1 draining", "10.0.0.2 @n2"],
            format!(": {there}"),
            format!(": {there}; outside: {here}"),
        ),
        (
            "e2e: should fallback to local terminating endpoints with internalTrafficPolicy=Local (KEP-1669)",
            "Local",
            "Cluster",
            &["10.0.0.1 @n1 draining", "10.0.0.2 @n2"],
            format!(": {here}"),
            format!(": {there}"),
        ),
        (
            "KEP-1669: what terminates elsewhere is something elsewhere",
            "Local",
            "Local",
            &["10.0.0.1 @n1 gone", "10.0.0.2 @n2 draining"],
            ": drop".into(),
            format!(": {there}; outside: drop"),
        ),
        (
            "KEP-3015: Local policies ignore hints, local clients of an external frontend don't",
            "Local",
            "Local",
            &["10.0.0.1 @n1 node:n2", "10.0.0.2 @n2 node:n1"],
            format!(": {here}"),
            format!(": {there}; outside: {here}"),
        ),
    ];
    for (origin, internal, external, endpoints, cluster_ip, others) in rows {
        let spec = format!("internalTrafficPolicy: {internal}, externalTrafficPolicy: {external}, ");
        assert_eq!(inside_and_external(&all_kinds(&spec, endpoints), SourceIp::Auto), (cluster_ip, others), "{origin}");
    }
}

#[test]
fn policies_without_matching_frontends() {
    let spec = "{clusterIP: 10.96.0.1, externalTrafficPolicy: Local, ports: [{port: 80}]}";
    assert_eq!(
        select(&(service(spec) + &slice("a", "IPv4", PORT, HERE_AND_THERE)), SourceIp::Auto),
        ["ClusterIp 10.96.0.1:80/TCP: 10.0.0.1:8080 10.0.0.2:8080"],
        "topology_test.go: externalTrafficPolicy ignored if not externally accessible"
    );
}

/// Source address that a backend sees by mode, kind of frontend and policy. `here` is set exactly if other nodes may
/// forward connections.
#[test]
fn source_modes() {
    use SourceIp::{Auto, Preserve, Snat};
    let both = "10.0.0.1:8080 10.0.0.2:8080";
    for (mode, policy, cluster_ip, others) in [
        (Auto, "Cluster", format!(": {both}"), format!(": {both}")),
        (Preserve, "Cluster", format!(" Preserve: {both}"), format!(" Preserve: {both}; here: 10.0.0.1:8080")),
        (Snat, "Cluster", format!(" Snat: {both}"), format!(" Snat: {both}")),
        (Auto, "Local", format!(": {both}"), format!(": {both}; outside: 10.0.0.1:8080")),
        (Preserve, "Local", format!(" Preserve: {both}"), format!(" Preserve: {both}; outside: 10.0.0.1:8080")),
        (Snat, "Local", format!(" Snat: {both}"), format!(" Snat: {both}; outside: 10.0.0.1:8080")),
    ] {
        let manifests = all_kinds(&format!("externalTrafficPolicy: {policy}, "), HERE_AND_THERE);
        assert_eq!(inside_and_external(&manifests, mode), (cluster_ip, others), "{mode:?} {policy}");
    }
}

#[test]
fn the_service_decides_the_source_before_the_cluster() {
    use SourceIp::{Auto, Preserve, Snat};
    for (cluster, annotation, expected) in [
        (Auto, None, ""),
        (Preserve, None, " Preserve"),
        (Snat, None, " Snat"),
        (Snat, Some("auto"), ""),
        (Snat, Some("preserve"), " Preserve"),
        (Auto, Some("snat"), " Snat"),
    ] {
        let annotations = annotation.map_or(String::new(), |a| format!(", annotations: {{podnet.io/source-ip: {a}}}"));
        let metadata = format!("{{name: web{annotations}}}");
        let manifest = service_with(&metadata, "{clusterIP: 10.96.0.1, ports: [{port: 80}]}");
        let expected = format!("ClusterIp 10.96.0.1:80/TCP{expected}: reject");
        assert_eq!(select(&manifest, cluster), [expected], "{cluster:?} {annotation:?}");
    }
}

/// For forwarded connections the hints of the sending node apply, and the receiving node uses all endpoints that it
/// has.
#[test]
fn hints_of_the_sending_node_apply() {
    let endpoints = ["10.0.0.1 @n1 node:n2", "10.0.0.2 @n2 node:n1", "10.0.0.3 @n1 node:n3 draining"];
    let (_, others) = inside_and_external(&all_kinds("", &endpoints), SourceIp::Preserve);
    assert_eq!(others, " Preserve: 10.0.0.2:8080; here: 10.0.0.1:8080");
}

#[test]
fn affinity_is_for_all_frontends() {
    for (spec, seconds) in [
        ("", ""),
        ("sessionAffinity: None, ", ""),
        ("sessionAffinity: ClientIP, ", " affinity 10800s"),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 2}}, ", " affinity 2s"),
    ] {
        let expected = format!("{seconds}: reject");
        assert_eq!(inside_and_external(&all_kinds(spec, &[]), SourceIp::Auto), (expected.clone(), expected), "{spec}");
    }
}

/// A row: the source of the case, type and policy, the endpoints by family, the count.
#[test]
fn health_checks_count_ready_endpoints_of_this_node() {
    type Row = (&'static str, &'static str, &'static [&'static str], &'static [&'static str], Option<usize>);
    let local = "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 32000";
    let rows: &[Row] = &[
        ("e2e loadbalancer.go: only nodes with endpoints", local, &["10.0.0.1 @n2", "10.0.0.2"], &[], Some(0)),
        ("proxier.go: each endpoint once", local, &["10.0.0.1 @n1", "10.0.0.2 @n1", "10.0.0.3 @n2"], &[], Some(2)),
        (
            "e2e service.go: should fail health check node port if there are only terminating endpoints",
            local,
            &["10.0.0.1 @n1 draining", "10.0.0.2 @n1 gone", "10.0.0.3 @n1 down"],
            &[],
            Some(0),
        ),
        ("KEP-563: a pod is one endpoint in two families", local, &["10.0.0.1 @n1"], &["fd00::1 @n1"], Some(1)),
        ("endpoints of a family that the service doesn't have", local, &[], &["fd00::1 @n1"], Some(0)),
        (
            "apiservice.NeedsHealthCheck: not with externalTrafficPolicy Cluster",
            "type: LoadBalancer, healthCheckNodePort: 32000",
            &["10.0.0.1 @n1"],
            &[],
            None,
        ),
        (
            "NeedsHealthCheck: not for type NodePort",
            "type: NodePort, externalTrafficPolicy: Local, healthCheckNodePort: 32000",
            &[],
            &[],
            None,
        ),
        ("no port given", "type: LoadBalancer, externalTrafficPolicy: Local", &["10.0.0.1 @n1"], &[], None),
    ];
    for (origin, spec, v4, v6, expected) in rows {
        let ips = if v6.is_empty() || v4.is_empty() { "10.96.0.1" } else { "10.96.0.1, 'fd00:96::1'" };
        let spec = format!("{{{spec}, clusterIPs: [{ips}], ports: [{{name: a, port: 80}}, {{name: b, port: 81}}]}}");
        let ports = "[{name: a, port: 80}, {name: b, port: 81}]";
        let manifests =
            Manifests::parse(&(service(&spec) + &slice("v4", "IPv4", ports, v4) + &slice("v6", "IPv6", ports, v6)));
        let settings = manifests.settings(SourceIp::Auto);
        let check = health(&manifests.name, &manifests.service, manifests.slices(), &settings, &Guard::default());
        assert!(check.as_ref().is_none_or(|check| check.port == 32_000 && check.service == manifests.name));
        assert_eq!(check.map(|check| check.local_endpoints), *expected, "{origin}");
    }
}
