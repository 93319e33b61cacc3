//! From YAML to the command line, on one set of tables: the control plane writes services and policies, packets pass
//! through, and commands show what has become of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use podnet_common::addr::{IfIndex, Mac, Proto};
use podnet_common::layout::{Config as Programs, Endpoint, Hook, Out};
use podnet_common::packet::Tcp;
use podnet_common::simulator::{FinalVerdict, HostPacket, run};
use podnet_common::verdict::Reason;

use super::fields::IcmpType;
use super::packet::Description;
use crate::cli::conntrack::{self, NodeNames};
use crate::cli::drops;
use crate::cli::flow::Filter;
use crate::cli::output::Show as _;
use crate::cli::service;
use crate::config::Config;
use crate::control::Control;
use crate::control::networks::{Cluster, Networks};
use crate::datapath::memory::MemoryTables;
use crate::host::routes::NodeRoutes;
use crate::source::manifest::ManifestSource;

const MANIFESTS: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.244.1.0/24}, status: {addresses: [
  {type: InternalIP, address: 172.30.0.1}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: web-1, labels: {
  kubernetes.io/service-name: web}}, ports: [{port: 8080}], endpoints: [{addresses: [10.244.1.6]}]}
";

/// Isolates the service's endpoint.
const POLICY: &str = "
---
{apiVersion: v1, kind: Pod, metadata: {name: web-0, labels: {app: web}}, spec: {nodeName: n1}, status: {
  phase: Running, podIPs: [{ip: 10.244.1.6}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed}, spec: {podSelector: {matchLabels: {
  app: web}}}}
";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_service_from_yaml_to_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    std::fs::create_dir(directory.path().join("m")).unwrap();
    std::fs::write(directory.path().join("m/all.yaml"), MANIFESTS).unwrap();
    let config = format!("{{node: n1, manifests: {path}/m, runDir: {path}/run, stateDir: {path}/state}}");
    let config = Config::parse(&config).unwrap();
    let mut tables = MemoryTables::default();

    // The control plane: services, and the node's network.
    let mut control = Control::adopt(&config, &tables).unwrap();
    let mut source = ManifestSource::open(&directory.path().join("m")).unwrap();
    control.apply(source.poll(Instant::now()));
    assert_eq!(control.reconcile(&mut tables, Instant::now()).pending, 0);
    let cluster = Cluster {
        config: &config,
        own: &control.nodes()["n1"],
        addresses: &BTreeSet::from([ip("172.30.0.1")]),
        remote: &[],
        service_cidrs: control.service_cidrs(),
    };
    let (routes, none) = (NodeRoutes::default(), BTreeSet::new());
    Networks::default().sync(&cluster, &routes, &none, Default::default(), &mut tables).unwrap();

    // Entries written by the plugin and by the node's set-up.
    let pod = |last| Endpoint {
        ifindex: IfIndex(u32::from(last)),
        mtu: 1500,
        mac: Mac([2, 0, 0, 0, 1, last]),
        host_mac: Mac([2, 0, 0, 0, 2, last]),
        ..Endpoint::default()
    };
    tables.endpoints.extend([5, 6].map(|last| (ip(&format!("10.244.1.{last}")).into(), pod(last))));
    tables.config = Programs { node_v4: ip("172.30.0.1").into(), mtu: 1500, ..Programs::default() };
    tables.now.set(1000);

    // A packet from a pod to the service, whose endpoint is the other pod.
    let syn = Description {
        src: ip("10.244.1.5"),
        dst: ip("10.96.0.10"),
        proto: Proto::TCP,
        sport: 40_000,
        dport: 80,
        tcp_flags: Tcp::SYN,
        icmp: IcmpType { kind: 8, code: 0, identifier: 0 },
        ttl: 64,
        size: None,
        dont_fragment: false,
        fragment: None,
    };
    let client = pod(5);
    let mut packet = HostPacket { data: syn.frame([client.host_mac, client.mac]), ifindex: client.ifindex };
    assert_eq!(run(Hook::FromPod, &mut packet, &*tables), FinalVerdict::Forward(Out::Pod, IfIndex(6)));

    // Output of commands.
    let services = service::list(&tables, control.names()).unwrap();
    let line = services.text().lines().find(|line| line.contains("10.96.0.10")).map(ToOwned::to_owned).unwrap();
    assert!(line.contains("default") && line.contains("web") && line.contains("ClusterIP"), "{line}");
    let flows = conntrack::list(&tables, control.names(), &NodeNames::new(), &Filter::default(), 1000).unwrap();
    let flows = flows.text();
    let line = flows.lines().find(|line| line.contains("10.244.1.5:40000")).unwrap();
    assert!(["10.96.0.10:80", "10.244.1.6:8080", "default/web"].iter().all(|part| line.contains(part)), "{line}");

    // A policy isolates the endpoint.
    std::fs::write(directory.path().join("m/all.yaml"), MANIFESTS.to_owned() + POLICY).unwrap();
    control.apply(source.poll(Instant::now()));
    control.policies_mut().sync(&mut tables).unwrap();
    tables.config.flags |= Programs::POLICY;
    let data = Description { sport: 40_001, ..syn.clone() }.frame([client.host_mac, client.mac]);
    let mut packet = HostPacket { data, ifindex: client.ifindex };
    assert_eq!(run(Hook::FromPod, &mut packet, &*tables), FinalVerdict::Drop(Reason::PolicyIngress));
    let drops = drops::read(&tables).unwrap();
    let reasons: Vec<_> = drops.occurred().into_iter().map(|row| row.reason).collect();
    assert_eq!((drops.total(), reasons), (1, vec!["policy_ingress"]));
    control.policies_mut().count(&tables).unwrap();
    let denied: Vec<_> =
        control.policies().denials().totals().map(|(policy, _, packets)| (policy.to_string(), packets)).collect();
    assert_eq!(denied, [("default/closed".to_owned(), 1)]);

    // The endpoint is removed, and with it everything that leads to it.
    std::fs::write(directory.path().join("m/all.yaml"), MANIFESTS.replace("10.244.1.6", "10.244.1.7")).unwrap();
    control.apply(source.poll(Instant::now()));
    assert_eq!(control.reconcile(&mut tables, Instant::now()).changed, 1);
    let mut packet =
        HostPacket { data: Description { sport: 40_002, ..syn }.frame([client.host_mac, client.mac]), ..packet };
    let end = run(Hook::FromPod, &mut packet, &*tables);
    assert!(
        end != FinalVerdict::Forward(Out::Pod, IfIndex(6)),
        "{}",
        end.reason().map_or("no reason", |reason| reason.name())
    );
}
