//! Explanations agree with the selection.

use super::*;
use crate::model::Ignored;

/// Checks that an explanation chooses exactly the endpoints of the frontends.
pub(super) fn agrees(manifests: &Manifests, settings: &Settings) {
    let explained = explain(
        &manifests.name,
        &manifests.service,
        manifests.slices().map(|slice| ("web", slice)),
        settings,
        &Guard::default(),
        Share::new(EntryCounts::MAX),
    );
    let frontends = manifests.frontends(settings);
    assert_eq!(explained.frontends.len(), frontends.len());
    for (told, frontend) in explained.frontends.iter().zip(&frontends) {
        assert_eq!(
            (told.kind, SocketAddr::new(told.address, told.port), told.protocol, &told.port_name),
            (frontend.kind, frontend.key.socket, frontend.key.protocol, &frontend.service.port)
        );
        assert_eq!(told.source_ranges, frontend.source_ranges);
        let expected = std::iter::once(&frontend.backends).chain(&frontend.outside);
        assert_eq!(told.choices.len(), expected.clone().count());
        for (choice, backends) in told.choices.iter().zip(expected) {
            let chosen = choice.endpoints.iter().filter(|endpoint| endpoint.fate == Fate::Chosen);
            let chosen: Vec<_> = chosen.map(|e| SocketAddr::new(e.address, e.port.unwrap())).collect();
            assert_eq!(chosen, backends.list);
            assert_eq!(choice.if_none, backends.list.is_empty().then_some(backends.if_none));
        }
    }
    let json = serde_json::to_string(&explained).unwrap();
    assert_eq!(serde_json::from_str::<Explained>(&json).unwrap(), explained);
}

fn explained(stream: &str) -> Explained {
    let manifests = Manifests::parse(stream);
    let settings = manifests.settings(SourceIp::Auto);
    agrees(&manifests, &settings);
    explain(
        &manifests.name,
        &manifests.service,
        manifests.slices().map(|slice| ("web", slice)),
        &settings,
        &Guard::default(),
        Share::new(EntryCounts::MAX),
    )
}

/// Fates of the endpoints in the choices of the first frontend.
fn fates(stream: &str) -> Vec<Vec<(String, Fate)>> {
    let explained = explained(stream);
    let of = |choice: &Choice| choice.endpoints.iter().map(|e| (e.address.to_string(), e.fate)).collect();
    explained.frontends[0].choices.iter().map(of).collect()
}

const NODE: &str =
    "---\n{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}}\n";

#[test]
fn every_endpoint_has_a_fate() {
    use Fate::*;
    let cluster_ip = service("{clusterIP: 10.96.0.1, ports: [{port: 80}]}");
    let local = service("{clusterIP: 10.96.0.1, internalTrafficPolicy: Local, ports: [{port: 80}]}");
    let port = "[{port: 8080}]";
    let rows = [
        (
            cluster_ip.clone() + &slice("a", "IPv4", port, &["10.0.0.1", "10.0.0.2 down", "10.0.0.3 draining"]),
            vec![Chosen, NotReady, Terminating],
        ),
        (
            cluster_ip.clone() + &slice("a", "IPv4", port, &["10.0.0.1 node:n1", "10.0.0.2 node:n2"]),
            vec![Chosen, HintedForOtherNodes],
        ),
        (
            cluster_ip.clone() + &slice("a", "IPv4", port, &["10.0.0.1 zone:a", "10.0.0.2 zone:b"]) + NODE,
            vec![Chosen, HintedForOtherZones],
        ),
        (
            local + &slice("a", "IPv4", port, &["10.0.0.1 @n1", "10.0.0.2 @n2", "10.0.0.3 @n1 gone", "10.0.0.4"]),
            vec![Chosen, NotOnThisNode, NotReady, NotOnThisNode],
        ),
        (
            cluster_ip
                + &slice("a", "IPv4", port, &["10.0.0.9"])
                + &slice("b", "IPv4", "[{name: other, port: 1}]", &["10.0.0.1"])
                + &slice("c", "IPv6", port, &["fd00::1"]),
            vec![Chosen, NoSuchPort, OtherFamily],
        ),
    ];
    for (stream, expected) in rows {
        let found: Vec<_> = fates(&stream).remove(0).into_iter().map(|(_, fate)| fate).collect();
        assert_eq!(found, expected, "{stream}");
    }
}

#[test]
fn clients_on_the_node_and_outside() {
    let spec = "clusterIP: 10.96.0.1, externalTrafficPolicy: Local, healthCheckNodePort: 32000, ports: [{port: 80}]";
    let stream = load_balancer(spec, "{ip: 192.0.2.1}")
        + &slice("a", "IPv4", "[{port: 8080}]", &["10.0.0.1 @n2", "10.0.0.2 @n1 draining"]);
    let explained = explained(&stream);
    assert_eq!((explained.health_check_node_port, explained.health_check_endpoints), (Some(32_000), Some(0)));
    let of_kind = |kind| explained.frontends.iter().find(|frontend| frontend.kind == kind).unwrap();
    assert_eq!(of_kind(FrontendKind::ClusterIp).choices[0].clients, Clients::All);
    let choices = of_kind(FrontendKind::LoadBalancer).choices.iter().map(|choice| {
        let fates: Vec<_> = choice.endpoints.iter().map(|endpoint| endpoint.fate).collect();
        (choice.clients, choice.traffic_policy, fates)
    });
    assert_eq!(
        choices.collect::<Vec<_>>(),
        [
            (Clients::ThisNode, TrafficPolicy::Cluster, vec![Fate::Chosen, Fate::Terminating]),
            (Clients::Outside, TrafficPolicy::Local, vec![Fate::NotOnThisNode, Fate::Chosen]),
        ]
    );
}

#[test]
fn why_there_are_no_frontends() {
    let label = |name: &str| {
        service_with(&format!("{{name: web, labels: {{{name}: x}}}}"), "{clusterIP: 10.96.0.1, ports: [{port: 80}]}")
    };
    for (stream, expected) in [
        (service("{type: ExternalName, externalName: a.example}"), Ignored::ExternalName),
        (service("{clusterIP: None}"), Ignored::Headless),
        (label("service.kubernetes.io/headless"), Ignored::Headless),
        (label("service.kubernetes.io/service-proxy-name"), Ignored::OtherProxy),
    ] {
        let explained = explained(&stream);
        assert_eq!((explained.ignored, explained.frontends.len()), (Some(expected), 0), "{stream}");
    }
}
