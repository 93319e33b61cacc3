//! Endpoints chosen by the traffic policies Cluster and Local: `TestCategorizeEndpoints` of kube-proxy's
//! topology_test.go, and the KEPs.

use proptest::prelude::*;

use super::super::rule::Candidate;
use super::*;
use crate::model::{Condition, Placement};

const SPEC: &str = "{clusterIP: 10.96.0.1, ports: [{port: 80}]}";

/// A row: the source of the case; this node's zone; the endpoints, of which those on `n1` are this node's; the choices
/// of the policies Cluster and Local, as formatted by [`show`].
type Row = (&'static str, Option<&'static str>, &'static [&'static str], &'static str, &'static str);

const ROWS: &[Row] = &[
    // Zone hints (KEP-2433, KEP-4444).
    (
        "hints are followed",
        Some("a"),
        &["10.0.0.3 zone:a", "10.0.0.4 zone:b", "10.0.0.5 zone:c", "10.0.0.6 zone:a"],
        "3 6",
        "-",
    ),
    ("no hints", Some("a"), &["10.0.0.3", "10.0.0.4"], "3 4", "-"),
    (
        "topology ignored for Local endpoints",
        Some("a"),
        &["10.0.0.3 @n1 zone:a", "10.0.0.4 @n1 zone:b", "10.0.0.5 zone:c", "10.0.0.6 zone:a"],
        "3 6",
        "3 4",
    ),
    ("empty node labels", None, &["10.0.0.3 zone:a", "10.0.0.4 zone:b"], "3 4", "-"),
    ("node in different zone, no endpoint filtering", Some("b"), &["10.0.0.3 zone:a"], "3", "-"),
    (
        "unready endpoint",
        Some("a"),
        &["10.0.0.3 zone:a", "10.0.0.4 zone:b", "10.0.0.5 zone:c", "10.0.0.6 zone:a down"],
        "3",
        "-",
    ),
    (
        "only unready endpoints in same zone (should not filter)",
        Some("a"),
        &["10.0.0.3 zone:a down", "10.0.0.4 zone:b", "10.0.0.5 zone:c", "10.0.0.6 zone:a down"],
        "4 5",
        "-",
    ),
    (
        "missing hints, no filtering applied",
        Some("a"),
        &["10.0.0.3 zone:a", "10.0.0.4 zone:b", "10.0.0.5", "10.0.0.6 zone:a"],
        "3 4 5 6",
        "-",
    ),
    (
        "an endpoint that isn't ready needs no hint",
        Some("a"),
        &["10.0.0.3 zone:a", "10.0.0.4 zone:b", "10.0.0.5 down", "10.0.0.6 draining"],
        "3",
        "-",
    ),
    (
        "multiple hints per endpoint, filtering includes any endpoint with zone included",
        Some("c"),
        &["10.0.0.3 zone:a zone:b zone:c", "10.0.0.4 zone:b zone:c", "10.0.0.5 zone:b zone:d", "10.0.0.6 zone:c"],
        "3 4 6",
        "-",
    ),
    (
        "conflicting topology and localness require merging allEndpoints",
        Some("a"),
        &["10.0.0.0 @n1 zone:a", "10.0.0.1 @n1 zone:b", "10.0.0.2 zone:a", "10.0.0.3 zone:b"],
        "0 2",
        "0 1",
    ),
    // Node hints (KEP-3015).
    (
        "PreferSameNode available",
        Some("a"),
        &["10.0.0.3 zone:a node:n1", "10.0.0.4 zone:b node:n2", "10.0.0.5 zone:c node:n3", "10.0.0.6 zone:a node:n4"],
        "3",
        "-",
    ),
    (
        "PreferSameNode ignored if some endpoints unhinted",
        Some("a"),
        &["10.0.0.3 zone:a node:n1", "10.0.0.4", "10.0.0.5 zone:c node:n3", "10.0.0.6 zone:a node:n4"],
        "3 4 5 6",
        "-",
    ),
    (
        "PreferSameNode falls back to PreferSameZone if no endpoint for node",
        Some("a"),
        &["10.0.0.3 zone:a node:n0", "10.0.0.4 zone:b node:n2", "10.0.0.5 zone:c node:n3", "10.0.0.6 zone:a node:n4"],
        "3 6",
        "-",
    ),
    (
        "KEP-3015: some without a node hint, all with a zone hint",
        Some("a"),
        &["10.0.0.3 zone:a", "10.0.0.4 zone:b node:n1", "10.0.0.6 zone:a node:n4"],
        "3 6",
        "-",
    ),
    (
        "KEP-3015: neither node nor zone matches",
        Some("z"),
        &["10.0.0.3 zone:a node:n2", "10.0.0.4 zone:b node:n3"],
        "3 4",
        "-",
    ),
    (
        "KEP-3015: the hint counts, not where the endpoint is",
        None,
        &["10.0.0.3 @n2 node:n1", "10.0.0.4 @n1 node:n2"],
        "3",
        "4",
    ),
    (
        "KEP-3015: the node's endpoint is draining, so another ready one is used",
        None,
        &["10.0.0.3 @n1 node:n1 draining", "10.0.0.4 @n2 node:n2"],
        "4",
        "3",
    ),
    (
        "KEP-1669 with KEP-4444: hints don't narrow the choice of terminating endpoints",
        Some("a"),
        &["10.0.0.3 zone:a draining", "10.0.0.4 zone:b draining"],
        "3 4",
        "-",
    ),
    // Locations of endpoints (KEP-2086).
    ("internalTrafficPolicy: Local, with empty endpoints", None, &[], "", ""),
    ("internalTrafficPolicy: Local, but all endpoints are remote", None, &["10.0.0.0 @n2", "10.0.0.1"], "0 1", "-"),
    ("internalTrafficPolicy: Local, all endpoints are local", None, &["10.0.0.0 @n1", "10.0.0.1 @n1"], "0 1", "0 1"),
    ("internalTrafficPolicy: Local, some endpoints are local", None, &["10.0.0.0 @n1", "10.0.0.1 @n2"], "0 1", "0"),
    // Terminating endpoints (KEP-1669).
    ("Cluster traffic policy, endpoints not Ready", None, &["10.0.0.0 down", "10.0.0.1 @n1 down"], "", ""),
    ("Cluster traffic policy, some endpoints are Ready", None, &["10.0.0.0 down", "10.0.0.1"], "1", "-"),
    (
        "Cluster traffic policy, all endpoints are terminating",
        None,
        &["10.0.0.0 @n1 draining", "10.0.0.1 @n2 draining", "10.0.0.2 @n1 gone"],
        "0 1",
        "0",
    ),
    (
        "iTP: Local, eTP: Local, all endpoints remote and terminating",
        None,
        &["10.0.0.0 @n2 draining", "10.0.0.1 @n2 draining"],
        "0 1",
        "-",
    ),
    (
        "iTP: Cluster, eTP: Local, with terminating endpoints",
        None,
        &["10.0.0.0", "10.0.0.1 @n1 gone", "10.0.0.2 @n1 draining", "10.0.0.3 draining"],
        "0",
        "2",
    ),
    ("only what doesn't serve is here, ready ones elsewhere", None, &["10.0.0.0", "10.0.0.1 @n1 gone"], "0", "-"),
    ("nothing serves anywhere", None, &["10.0.0.0 gone", "10.0.0.1 @n1 down"], "", ""),
];

/// Last parts of the addresses; for an empty list nothing if connections are rejected, `-` if they are dropped.
fn show(backends: &Backends) -> String {
    if backends.if_none == IfNone::Drop {
        assert!(backends.list.is_empty());
        return "-".into();
    }
    let last = |at: &SocketAddr| at.ip().to_string().rsplit('.').next().unwrap().to_owned();
    backends.list.iter().map(last).collect::<Vec<_>>().join(" ")
}

#[test]
fn traffic_policies_and_hints() {
    for (origin, zone, endpoints, cluster, local) in ROWS {
        let manifests = Manifests::parse(&(service(SPEC) + &slice("s", "IPv4", "[{port: 80}]", endpoints)));
        let settings = Settings { zone: zone.map(Into::into), ..manifests.settings(SourceIp::Auto) };
        let guard = Guard::default();
        let view = View::new(
            Targets::new(manifests.slices(), &guard).candidates(&manifests.service.ports[0], true),
            &settings,
        );
        assert_eq!(show(&view.backends(TrafficPolicy::Cluster)), *cluster, "Cluster: {origin}");
        assert_eq!(show(&view.backends(TrafficPolicy::Local)), *local, "Local: {origin}");
    }
}

/// Numbered candidates: condition, location, hints.
fn any_candidates() -> impl Strategy<Value = Vec<(Condition, Placement)>> {
    let names = |names: &'static [&'static str]| {
        prop::sample::subsequence(names, 0..=2).prop_map(|names| names.into_iter().map(Box::from).collect::<Box<[_]>>())
    };
    let condition = prop::sample::select(vec![Condition::Unusable, Condition::ServingTerminating, Condition::Ready]);
    let node = prop::option::of(prop::sample::select(vec!["n1", "n2"]));
    let candidate = (condition, node, names(&["a", "b"]), names(&["n1", "n2"])).prop_map(|(c, node, zones, nodes)| {
        (c, Placement { node: node.map(Into::into), zone: None, for_zones: zones, for_nodes: nodes })
    });
    prop::collection::vec(candidate, 0..6)
}

proptest! {
    /// The rules of the KEPs, one by one.
    #[test]
    fn the_keps_hold(endpoints in any_candidates(), zone in prop::option::of(prop::sample::select(vec!["a", "b"]))) {
        let settings = Settings { node: "n1".into(), zone: zone.map(Into::into), ..Settings::default() };
        let at = |i: usize| SocketAddr::from(([10, 0, 0, 1], 80 + u16::try_from(i).unwrap()));
        let list: Vec<_> = (endpoints.iter().enumerate())
            .map(|(i, (condition, placement))| Candidate { at: at(i), condition: *condition, placement })
            .collect();
        let of = |condition| list.iter().filter(move |c| c.condition == condition).collect::<Vec<_>>();
        let is_here = |c: &&&Candidate<'_>| c.placement.node.as_deref() == Some("n1");
        let sockets = |list: Vec<&Candidate<'_>>| list.iter().map(|c| c.at).collect::<Vec<_>>();
        let (ready, draining) = (of(Condition::Ready), of(Condition::ServingTerminating));
        let view = View::new(list.clone(), &settings);

        // KEP-1669: ready endpoints, else terminating ones that still serve; for Local, among the node's own.
        let local = view.backends(TrafficPolicy::Local);
        let local_ready: Vec<_> = ready.iter().filter(is_here).copied().collect();
        let local_draining = draining.iter().filter(is_here).copied().collect();
        let expected = if local_ready.is_empty() { local_draining } else { local_ready };
        let nowhere = ready.is_empty() && draining.is_empty();
        prop_assert_eq!(local.if_none == IfNone::Drop, expected.is_empty() && !nowhere);
        prop_assert_eq!(local.list, sockets(expected));

        let cluster = view.backends(TrafficPolicy::Cluster);
        prop_assert_eq!(cluster.if_none, IfNone::Reject);
        prop_assert_eq!(cluster.list.is_empty(), nowhere, "an endpoint anywhere is enough");
        // KEP-3015 and KEP-4444: hints apply if each ready endpoint has one and one of them is for here.
        let hinted = |names: fn(&Placement) -> &[Box<str>], own: Option<&str>| {
            let ours = |c: &&&Candidate<'_>| names(c.placement).iter().any(|name| Some(&**name) == own);
            let chosen: Vec<_> = ready.iter().filter(ours).copied().collect();
            (ready.iter().all(|c| !names(c.placement).is_empty()) && !chosen.is_empty()).then_some(chosen)
        };
        let expected = hinted(|p| &p.for_nodes, Some("n1"))
            .or_else(|| hinted(|p| &p.for_zones, zone))
            .unwrap_or_else(|| if ready.is_empty() { draining.clone() } else { ready.clone() });
        prop_assert_eq!(cluster.list, sockets(expected));

        // Direct server return: another node may forward to any endpoint that this node can choose, whatever its hints.
        let any = if ready.is_empty() { &draining } else { &ready };
        prop_assert_eq!(view.here(), sockets(any.iter().filter(is_here).copied().collect()));
    }
}
