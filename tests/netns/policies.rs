//! Traffic policies: which endpoints a client gets, and what happens if there is none for it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Endpoint, Lab, Place, Pod, Service, client_ip, eventually, manifest, vips, wait_until};
use podnet_tests::traffic::{Family, Outcome, Stream, Transport};
use serde_json::json;

/// Port of the pods.
const TARGET: u16 = 8080;
/// Number of requests after which each endpoint has answered, except in one case in a million: 20 for two endpoints.
const ENOUGH: usize = 20;

/// Two nodes in two zones, two server pods and a client pod on each, and an external client.
struct Site {
    web: Vec<Pod>,
    clients: [Pod; 2],
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).zones(&["a", "b"]).build()?;
        let pods = [("a-0", 0), ("a-1", 0), ("b-0", 1), ("b-1", 1)];
        let web =
            pods.map(|(name, node)| lab.node(node).add_server(name, TARGET)).into_iter().collect::<Result<_>>()?;
        let clients = [lab.node(0).add_pod("client-1")?, lab.node(1).add_pod("client-2")?];
        lab.route_vips(lab.client(), lab.node(0))?;
        Ok(Self { web, clients, lab })
    }

    fn pod(&self, name: &str) -> &Pod {
        self.web.iter().find(|pod| pod.name() == name).expect("is one of the pods")
    }

    fn endpoint(&self, name: &str) -> Endpoint {
        Endpoint::of(self.pod(name))
    }

    fn endpoints(&self, names: &[&str]) -> Vec<Endpoint> {
        names.iter().map(|name| self.endpoint(name)).collect()
    }
}

/// Waits until exactly these servers answer, over all families and protocols.
fn served(place: &Place, to: impl Fn(Family) -> SocketAddr, servers: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = servers.iter().map(|&name| name.to_owned()).collect();
    for (family, transport) in Transport::over_all() {
        let to = to(family);
        let what = || format!("{transport} from {} to {to}", place.name());
        eventually("these servers and no others", || {
            let ask = |_| Ok(place.ask(transport, to)?.server);
            let met = (0..ENOUGH).map(ask).collect::<Result<BTreeSet<_>>>()?;
            ensure!(met == wanted, "{met:?} instead of {wanted:?}");
            Ok(())
        })
        .with_context(what)?;
    }
    Ok(())
}

/// Waits until all requests have this outcome.
fn meets(place: &Place, to: impl Fn(Family) -> SocketAddr, expected: &Outcome) -> Result<()> {
    Transport::over_all().try_for_each(|(family, transport)| place.expect(transport, to(family), expected))
}

#[test]
fn policies() -> Result<()> {
    cases!(
        Site::new()?,
        external_local_uses_endpoints_of_the_addressed_node,
        internal_local_applies_to_cluster_ips_only,
        terminating_endpoints_serve_if_there_are_no_others,
        slices_are_merged_by_port_and_label,
        topology_hints_apply_while_all_endpoints_have_them
    )
}

fn external_local_uses_endpoints_of_the_addressed_node(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let ips = vips(1);
    let service = Service::new("web", 20, 80, TARGET).load_balancer(&ips, 30_080).external_local().health_check(31_000);
    let at_vip = |family: Family| (ips[family as usize], 80).into();
    let at_node = |index: usize| move |family| (lab.node(index).ip(family), 30_080).into();

    // Endpoints on node1 only; the mode doesn't matter.
    service.set_endpoints(lab, &site.endpoints(&["a-0"]))?;
    for mode in ["auto", "preserve", "snat"] {
        service.apply(lab, Some(mode))?;
        for (family, transport) in Transport::over_all() {
            let expected = Outcome::answer("a-0", client_ip(family));
            lab.client().expect(transport, at_node(0)(family), &expected).context(mode)?;
            lab.client().expect(transport, at_vip(family), &expected).context(mode)?;
        }
    }
    service.apply(lab, None)?;
    let before = lab.node(1).drops()?.get("no_local_endpoint").copied().unwrap_or(0);
    meets(lab.client(), at_node(1), &Outcome::Silence).context("the node without an endpoint")?;
    let after = lab.node(1).drops()?.get("no_local_endpoint").copied().unwrap_or(0);
    ensure!(after > before, "what was dropped is not counted");

    // Local clients are short-circuited to any endpoint, with the pod's own address if the client is a pod.
    for (client, node) in site.clients.iter().zip([0, 1]) {
        for (family, transport) in Transport::over_all() {
            let expected = Outcome::answer("a-0", client.ip(family));
            client.place.expect(transport, at_node(node)(family), &expected).context("own node's NodePort")?;
            client.place.expect(transport, at_vip(family), &expected).context("the balancer's address")?;
        }
        served(&lab.node(node).place, at_node(node), &["a-0"])?;
        served(&lab.node(node).place, at_vip, &["a-0"])?;
    }
    // For another node they are external clients.
    meets(&site.clients[0].place, at_node(1), &Outcome::Silence)?;
    meets(&lab.node(0).place, at_node(1), &Outcome::Silence)?;
    served(&site.clients[1].place, at_node(0), &["a-0"])?;
    served(&lab.node(1).place, at_node(0), &["a-0"])?;

    service.set_endpoints(lab, &site.endpoints(&["a-0", "a-1", "b-0"]))?;
    served(lab.client(), at_node(0), &["a-0", "a-1"])?;
    served(lab.client(), at_node(1), &["b-0"])?;
    served(&site.clients[1].place, at_node(1), &["a-0", "a-1", "b-0"])?;
    service.set_endpoints(lab, &[] as &[Endpoint])?;
    for place in [lab.client(), &site.clients[0].place, &lab.node(0).place] {
        meets(place, at_node(0), &Outcome::Refused).context("no endpoint anywhere")?;
        meets(place, at_vip, &Outcome::Refused).context("no endpoint anywhere")?;
    }
    Ok(())
}

fn internal_local_applies_to_cluster_ips_only(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let service = Service::new("internal", 41, 80, TARGET).node_port(30_041).internal_local();
    let cluster_ip = |family| service.addr(family);
    let at_node = |index: usize| move |family| (lab.node(index).ip(family), 30_041).into();
    service.apply(lab, None)?;
    service.set_endpoints(lab, &site.endpoints(&["a-0", "a-1"]))?;
    for place in [&site.clients[0].place, &lab.node(0).place, &site.pod("a-0").place] {
        served(place, cluster_ip, &["a-0", "a-1"])?;
    }
    for place in [&site.clients[1].place, &lab.node(1).place] {
        meets(place, cluster_ip, &Outcome::Silence).context("endpoints elsewhere only")?;
        served(place, at_node(1), &["a-0", "a-1"])?;
    }
    served(lab.client(), at_node(1), &["a-0", "a-1"])?;
    service.set_endpoints(lab, &site.endpoints(&["a-0", "b-0"]))?;
    served(&site.clients[0].place, cluster_ip, &["a-0"])?;
    served(&site.clients[1].place, cluster_ip, &["b-0"])?;
    served(&lab.node(1).place, cluster_ip, &["b-0"])?;
    served(lab.client(), at_node(1), &["a-0", "b-0"])?;
    service.set_endpoints(lab, &[] as &[Endpoint])?;
    for place in [&site.clients[0].place, &site.clients[1].place, &lab.node(1).place] {
        meets(place, cluster_ip, &Outcome::Refused).context("no endpoint anywhere")?;
    }
    Ok(())
}

/// Number of streams to one of two endpoints by chance: all are at the same one in no more than one of 500,000 runs.
const STREAMS: usize = 20;

fn terminating_endpoints_serve_if_there_are_no_others(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let service = Service::new("terminating", 42, 80, TARGET).node_port(30_042).external_local();
    let client = &site.clients[0].place;
    let cluster_ip = |family| service.addr(family);
    let at_node = |index: usize| move |family| (lab.node(index).ip(family), 30_042).into();
    let set = |list: &[Endpoint]| service.set_endpoints(lab, list);
    service.apply(lab, None)?;

    set(&site.endpoints(&["a-0", "b-0"]))?;
    served(client, cluster_ip, &["a-0", "b-0"])?;
    // Established connections stay, even at an endpoint that gets no new connections.
    let to = service.addr(Family::V4);
    let start = |transport| -> Result<Vec<Stream>> {
        (0..STREAMS).map(|_| Ok(Stream::start(client, transport, to, Duration::from_millis(10))?)).collect()
    };
    let streams = [start(Transport::Tcp)?, start(Transport::Udp)?];
    let established = || streams.iter().flatten().all(|stream| stream.answered() > 0);
    wait_until("all streams are established", || Ok(established()))?;
    set(&[site.endpoint("a-0").terminating(), site.endpoint("b-0")])?;
    served(client, cluster_ip, &["b-0"]).context("a terminating endpoint beside a ready one")?;
    // The fallback to terminating endpoints applies to all endpoints and to local endpoints separately.
    served(lab.client(), at_node(0), &["a-0"]).context("a local endpoint that is terminating")?;
    served(lab.client(), at_node(1), &["b-0"])?;
    set(&[site.endpoint("a-0").terminating(), site.endpoint("a-1").not_ready(), site.endpoint("b-0").terminating()])?;
    served(client, cluster_ip, &["a-0", "b-0"]).context("terminating endpoints only")?;
    for streams in streams {
        let mut met = BTreeSet::new();
        for stream in streams {
            let report = stream.stop();
            ensure!(report.is_clean() && report.answers.len() == 1, "an established flow: {report:?}");
            met.extend(report.answers.into_keys());
        }
        ensure!(met.len() == 2, "{STREAMS} streams met {met:?} only");
    }
    let datagrams = start(Transport::Udp)?;
    wait_until("all streams are answered", || Ok(datagrams.iter().all(|stream| stream.answered() > 10)))?;
    // New flows first go elsewhere, then the endpoint stops serving.
    set(&[site.endpoint("a-0").terminating(), site.endpoint("b-0")])?;
    served(client, cluster_ip, &["b-0"]).context("a terminating endpoint beside a ready one, again")?;
    set(&[site.endpoint("a-0").ending(), site.endpoint("b-0").terminating()])?;
    served(client, cluster_ip, &["b-0"]).context("one that no longer serves")?;
    meets(lab.client(), at_node(0), &Outcome::Silence).context("no local endpoint serves")?;
    let moved: Vec<u32> = datagrams.iter().map(|stream| stream.answered() + 200).collect();
    wait_until("all streams go on", || {
        Ok(datagrams.iter().zip(&moved).all(|(stream, far)| stream.answered() >= *far))
    })?;
    let mut moved = 0;
    for report in datagrams.into_iter().map(Stream::stop) {
        ensure!(report.is_clean() && report.answers.contains_key("b-0"), "datagrams follow: {report:?}");
        moved += usize::from(report.answers.len() == 2);
    }
    ensure!(moved > 0, "none of {STREAMS} streams was at the endpoint that ended");
    set(&[site.endpoint("a-0").ending(), site.endpoint("b-0").not_ready()])?;
    meets(client, cluster_ip, &Outcome::Refused).context("none serves")?;
    meets(lab.client(), at_node(0), &Outcome::Refused).context("none serves")
}

fn slices_are_merged_by_port_and_label(site: &Site) -> Result<()> {
    let all = ["a-0", "a-1", "b-0", "b-1"];
    let service = Service::new("sliced", 60, 80, TARGET).slices_of(1);
    service.apply(&site.lab, None)?;
    service.set_endpoints(&site.lab, &site.endpoints(&all))?;
    let at = |family| service.addr(family);
    for client in &site.clients {
        served(&client.place, at, &all)?;
    }
    // First the label of another proxy, then podnet's again.
    let others = Service::new("sliced", 60, 80, TARGET).label("service.kubernetes.io/service-proxy-name", "other");
    others.apply(&site.lab, None)?;
    meets(&site.clients[0].place, at, &Outcome::Silence)?;
    service.apply(&site.lab, None)?;
    served(&site.clients[0].place, at, &all)?;

    // Each port has the slices that contain its name.
    let named = |name: &str| [("TCP", name.to_owned()), ("UDP", format!("{name}-udp"))];
    let [v4, v6] = [Family::V4, Family::V6].map(|family| Service::new("ported", 61, 81, TARGET).ip(family));
    let port = |number: u16| move |(protocol, name)| json!({"name": name, "protocol": protocol, "port": number});
    let ports: Vec<_> = named("first").map(port(81)).into_iter().chain(named("second").map(port(82))).collect();
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "ported", "namespace": "default"},
        "spec": {"clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"], "ports": ports},
    })];
    for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        for (name, pod) in [("first", "a-0"), ("second", "b-0")] {
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("ported-{name}-{}", kind.to_lowercase()), "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "ported"},
                },
                "addressType": kind, "ports": named(name).map(port(TARGET)),
                "endpoints": [{"addresses": [site.pod(pod).ip(family)]}],
            }));
        }
    }
    site.lab.apply("ported", &manifest::yaml(&objects))?;
    for client in &site.clients {
        for (number, server) in [(81, "a-0"), (82, "b-0")] {
            let to = |family| SocketAddr::new(if family == Family::V4 { v4 } else { v6 }, number);
            served(&client.place, to, &[server])?;
        }
    }
    Ok(())
}

fn topology_hints_apply_while_all_endpoints_have_them(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let zone = |name: &str| {
        let zone = &name[..1];
        site.endpoint(name).zone(zone).for_zones(&[zone])
    };
    let node = |name: &str| zone(name).for_nodes(&[site.pod(name).node().name()]);
    let set = |service: &Service, list: &[Endpoint]| service.set_endpoints(lab, list);
    let all = ["a-0", "a-1", "b-0", "b-1"];
    let cluster = ["a-0", "b-0"];
    let from = [&site.clients[0].place, &site.clients[1].place];
    for (number, distribution) in (43..).zip(["PreferClose", "PreferSameZone"]) {
        let service = Service::new(&distribution.to_lowercase(), number, 80, TARGET).distribution(distribution);
        let to = |family| service.addr(family);
        service.apply(lab, None)?;
        set(&service, &all.map(zone))?;
        served(from[0], to, &["a-0", "a-1"]).context(distribution)?;
        served(from[1], to, &["b-0", "b-1"]).context(distribution)?;
        served(&lab.node(0).place, to, &["a-0", "a-1"]).context(distribution)?;
        set(&service, &[zone("a-0"), site.endpoint("b-0").zone("b")])?;
        served(from[0], to, &cluster).context("an endpoint has no hint")?;
        set(&service, &["a-0", "a-1"].map(zone))?;
        served(from[1], to, &["a-0", "a-1"]).context("none for this zone")?;
    }
    let service = Service::new("same-node", 46, 80, TARGET).distribution("PreferSameNode");
    let to = |family| service.addr(family);
    service.apply(lab, None)?;
    set(&service, &cluster.map(node))?;
    served(from[0], to, &["a-0"])?;
    served(from[1], to, &["b-0"])?;
    set(&service, &[node("a-0"), node("a-1")])?;
    served(from[1], to, &["a-0", "a-1"]).context("none for this node")?;
    // Traffic policies take precedence over hints.
    let local = service.clone().internal_local();
    local.apply(lab, None)?;
    set(&local, &cluster.map(|name| zone(name).for_nodes(&["node1"])))?;
    served(from[1], to, &["b-0"]).context("internalTrafficPolicy Local with hints for another node")
}
