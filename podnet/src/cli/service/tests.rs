use std::net::IpAddr;

use podnet_common::addr::{Addr, IfIndex, Proto};
use podnet_common::layout::{Frontend, FrontendKey, Interface, Network, NetworkKind, ServiceClient, SourceRange};

use super::*;
use crate::cli::conntrack::NodeNames;
use crate::cli::endpoint::Pods;
use crate::cli::wanted::{Wanted, WantedError};
use crate::compile::ServiceId;
use crate::config::Config;
use crate::datapath::memory::{MemoryTables, samples::names};
use crate::entry_counts::EntryCounts;
use crate::model::ObjectName;
use crate::status::DaemonStatus;

const ETH0: IfIndex = IfIndex(2);

fn cluster_ips() -> MemoryTables {
    let mut view = MemoryTables::default();
    let backends = ["10.244.1.5:8080", "10.244.2.5:8080", "10.244.1.5:8080", "172.30.0.1:8080"];
    view.config.node_v4 = Addr::from(std::net::Ipv4Addr::new(172, 30, 0, 1));
    view.service(1, "10.96.0.10:80", Proto::TCP, Frontend::SNAT, &backends);
    view.service(2, "10.96.0.53:53", Proto::UDP, 0, &[]);
    view.service(1, "[fd00:96::10]:80", Proto::TCP, 0, &["[fd00:244:1::5]:8080"]);
    view.service(3, "10.96.0.99:1", Proto::SCTP, 0, &[]);
    view.endpoint("10.244.1.5", 9);
    let flow = ["10.244.1.9:40000", "10.96.0.10:80", "10.244.1.9:40000", "10.244.1.5:8080"];
    view.flow(1, Proto::TCP, flow, 0, 0);
    view
}

/// A service with every kind of frontend. Its external traffic policy is Local, except for one address with direct
/// server return.
fn everything() -> MemoryTables {
    let mut view = MemoryTables::default();
    view.config.node_v4 = Addr::from(std::net::Ipv4Addr::new(172, 30, 0, 1));
    view.interfaces.insert(ETH0, Interface { flags: Interface::MAIN, ..Interface::default() });
    view.network("10.244.2.0/24", NetworkKind::RemotePods, "172.30.0.2", 0);
    view.network("10.244.0.0/16", NetworkKind::NonMasquerade, "::", 0);
    view.network("172.30.0.1/32", NetworkKind::LocalNode, "172.30.0.1", Network::NODE_PORTS);
    view.endpoint("10.244.1.5", 9);
    let (here, there) = ("10.244.1.5:8080", "10.244.2.5:8080");
    let web = view.service(1, "10.96.0.10:80", Proto::TCP, 0, &[here, there]);
    view.frontends.entry(web).and_modify(|frontend| frontend.affinity = 10_800);
    let local = Frontend::EXTERNAL | Frontend::OUTSIDE_DIFFERS;
    view.service(1, "0.0.0.0:30080", Proto::TCP, local | Frontend::NODE_PORT, &[here, there]);
    let outside = ServiceId(1).with_affinity(2).0;
    view.frontend(outside, "0.0.0.0:30080", Proto::TCP, FrontendKey::OUTSIDE, local | Frontend::NODE_PORT, &[here]);
    view.service(1, "[::]:30080", Proto::TCP, local | Frontend::NODE_PORT, &[]);
    view.frontend(1, "[::]:30080", Proto::TCP, FrontendKey::OUTSIDE, local | Frontend::DROP, &[]);
    view.service(1, "203.0.113.1:80", Proto::TCP, Frontend::EXTERNAL | Frontend::SOURCE_RANGES, &[here]);
    let direct = Frontend::EXTERNAL | Frontend::DIRECT_RETURN;
    // Distributed over slots as by Maglev.
    view.service(1, "203.0.113.2:80", Proto::TCP, direct, &[here, there, there, here, there, here, there]);
    view.frontend(1, "203.0.113.2:80", Proto::TCP, FrontendKey::PEER, direct, &[here]);
    view.service(4, "0.0.0.0:53", Proto::UDP, Frontend::EXTERNAL, &[here]);
    view.service(4, "172.30.0.1:54", Proto::UDP, Frontend::EXTERNAL, &[here]);

    for (service, range, len) in [(1, "198.51.100.0", 32 + 96 + 24), (1, "fd01::", 32 + 16), (2, "10.0.0.0", 136)] {
        let addr = range.parse::<IpAddr>().unwrap().into();
        view.source_ranges.insert(SourceRange { len, data: ServiceClient::new(service, addr) });
    }
    let client = ["198.51.100.7:5000", "172.30.0.1:30080", "198.51.100.7:5000", here];
    let flow = view.flow(outside, Proto::TCP, client, 0, 0);
    view.entry(&flow).in_ifindex = ETH0;
    view.flow(1, Proto::TCP, ["10.244.1.9:40000", "172.30.0.1:30080", "10.244.1.9:40000", here], 0, 0);
    view.one_way(1, Proto::TCP, ["198.51.100.7:5001", "203.0.113.2:80", "198.51.100.7:5001", "172.30.0.2:80"], 0);
    // A flow of another service, to the same address, which no longer has a frontend.
    view.flow(9, Proto::TCP, ["10.244.1.9:40001", "10.96.0.10:80", "10.244.1.9:40001", here], 0, 0);
    view
}

fn web() -> ObjectName {
    ObjectName { namespace: "default".into(), name: "web".into() }
}

fn nodes() -> NodeNames {
    NodeNames::from([("172.30.0.2".parse().unwrap(), "node2".to_owned())])
}

fn shown(view: &MemoryTables, name: &ObjectName, wanted: Result<Wanted, WantedError>) -> Option<detail::ServiceDetail> {
    let explanation = wanted.map(|wanted| wanted.explain(name, tables(view).unwrap())).map_err(|e| e.to_string());
    show(view, &names(), &Pods::default(), &nodes(), name, explanation).unwrap()
}

/// Manifests of the service whose frontends are in [`everything`], with one endpoint left out for each possible reason.
fn manifests() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let service = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 80, nodePort: 30080}]
  externalIPs: [203.0.113.2]
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node1, conditions: {ready: true}}
- {addresses: [10.244.2.5], nodeName: node2, conditions: {ready: true}}
- {addresses: [10.244.2.6], nodeName: node2, zone: a, conditions: {ready: false}}
";
    std::fs::write(dir.path().join("web.yaml"), service).unwrap();
    dir
}

fn wanted(dir: &tempfile::TempDir) -> Result<Wanted, WantedError> {
    Wanted::read(&Config::parse(&format!("node: node1\nmanifests: {}\n", dir.path().display())).unwrap())
}

fn unknown() -> Result<Wanted, WantedError> {
    Err(WantedError::NoConfiguration)
}

#[test]
fn frontends_are_listed_in_order_and_unnamed_ones_by_id() {
    let all = list(&cluster_ips(), &names()).unwrap();
    assert!(!all.lacks_kinds(), "the tables contain every kind");
    assert_eq!(
        all.text(),
        "\
NAMESPACE  NAME    PORT NAME  KIND       ADDRESS      PORT  PROTOCOL  SOURCE    BACKENDS  EXTERNAL  POLICY
-          (id 3)  -          ClusterIP  10.96.0.99      1  SCTP      preserve         0         -  -
default    dns     -          ClusterIP  10.96.0.53     53  UDP       preserve         0         -  -
default    web     http       ClusterIP  10.96.0.10     80  TCP       snat             3         -  -
default    web     http       ClusterIP  fd00:96::10    80  TCP       preserve         1         -  -
"
    );
}

#[test]
fn every_kind_of_frontend_is_distinguished() {
    let mut all = list(&everything(), &names()).unwrap();
    assert!(all.lacks_kinds());
    assert_eq!(
        all.text(),
        "\
NAMESPACE  NAME          PORT NAME  KIND          ADDRESS       PORT  PROTOCOL  SOURCE    BACKENDS  EXTERNAL  POLICY
default    dns hostPort  -          HostPort      *               53  UDP       auto             1         -  -
default    dns hostPort  -          HostPort      172.30.0.1      54  UDP       auto             1         -  -
default    web           http       external      203.0.113.2     80  TCP       preserve         2         -  -
default    web           http       ClusterIP     10.96.0.10      80  TCP       preserve         2         -  affinity 3h0m
default    web           http       NodePort      *            30080  TCP       auto             2         1  external Local
default    web           http       NodePort      [*]          30080  TCP       auto             0         0  external Local
default    web           http       LoadBalancer  203.0.113.1     80  TCP       auto             1         -  source ranges
"
    );
    all.complete(&wanted(&manifests()).unwrap().addresses().collect());
    assert!(!all.lacks_kinds());
    let kinds: Vec<_> = all.0.iter().map(|row| kind_name(row.kind)).collect();
    assert_eq!(kinds, ["HostPort", "HostPort", "ClusterIP", "NodePort", "NodePort", "LoadBalancer", "ExternalIP"]);
}

#[test]
fn json_has_one_fact_per_field() {
    let json = serde_json::to_value(list(&cluster_ips(), &names()).unwrap()).unwrap();
    assert_eq!(
        json[2],
        serde_json::json!({
            "namespace": "default", "name": "web", "portName": "http", "kind": "ClusterIP", "address": "10.96.0.10",
            "family": "IPv4", "port": 80, "protocol": "TCP", "source": "snat", "affinitySeconds": null, "backends": 3,
            "outsideBackends": null, "flags": ["snat"], "serviceId": 1
        })
    );
    assert_eq!(json[0]["name"], serde_json::Value::Null);
    let json = serde_json::to_value(list(&everything(), &names()).unwrap()).unwrap();
    let node_port = &json[5];
    assert_eq!((&node_port["address"], &node_port["family"]), (&serde_json::Value::Null, &"IPv6".into()));
    assert_eq!(node_port["flags"], serde_json::json!(["external", "outsideDiffers", "nodePort"]));
}

#[test]
fn one_service_is_shown_with_its_backends_and_their_flows() {
    let detail = shown(&cluster_ips(), &web(), unknown()).unwrap();
    assert_eq!(
        detail.text(),
        "\
service    default/web
unknown    why endpoints are excluded: no daemon has published its configuration on this node: pass the file with --config

FRONTEND          PROTOCOL  PORT NAME  KIND       SOURCE    AFFINITY  SOURCE RANGES
10.96.0.10:80     TCP       http       ClusterIP  snat      -         -
[fd00:96::10]:80  TCP       http       ClusterIP  preserve  -         -

FRONTEND          PROTOCOL  CLIENTS  BACKEND               NODE   POD    SHARE  FLOWS
10.96.0.10:80     TCP       all      10.244.1.5:8080       this   -     50.0 %      1
10.96.0.10:80     TCP       all      10.244.2.5:8080       other  -     25.0 %      0
10.96.0.10:80     TCP       all      172.30.0.1:8080       this   -     25.0 %      0
[fd00:96::10]:80  TCP       all      [fd00:244:1::5]:8080  other  -    100.0 %      0
"
    );
    let none = ObjectName { name: "none".into(), ..web() };
    assert!(shown(&cluster_ips(), &none, unknown()).is_none());
    assert!(shown(&cluster_ips(), &none, wanted(&manifests())).is_none());
}

#[test]
fn each_kind_of_client_is_shown_with_backends_and_excluded_endpoints() {
    let mut view = everything();
    // The external IP is Local too, which isn't in the tables yet.
    let detail = shown(&view, &web(), wanted(&manifests())).unwrap();
    assert_eq!(
        detail.text(),
        "\
service    default/web
type       LoadBalancer
policies   internal Cluster, external Local
health     node port 32000, local endpoints: 1
tables     203.0.113.1:80/TCP does not include the backend 10.244.2.5:8080 yet for clients on this node
tables     203.0.113.2:80/TCP still includes the backend 10.244.2.5:8080 for external clients
tables     [*]:30080/TCP is still in the tables

FRONTEND        PROTOCOL  PORT NAME  KIND          SOURCE    AFFINITY  SOURCE RANGES
10.96.0.10:80   TCP       http       ClusterIP     preserve  3h0m      -
*:30080         TCP       http       NodePort      auto      -         -
[*]:30080       TCP       http       NodePort      auto      -         -
203.0.113.1:80  TCP       http       LoadBalancer  auto      -         198.51.100.0/24
203.0.113.2:80  TCP       http       ExternalIP    preserve  -         -

FRONTEND        PROTOCOL  CLIENTS    BACKEND                    NODE   POD    SHARE  FLOWS
10.96.0.10:80   TCP       all        10.244.1.5:8080            this   -     50.0 %      0
10.96.0.10:80   TCP       all        10.244.2.5:8080            node2  -     50.0 %      0
*:30080         TCP       this node  10.244.1.5:8080            this   -     50.0 %      1
*:30080         TCP       this node  10.244.2.5:8080            node2  -     50.0 %      0
*:30080         TCP       external   10.244.1.5:8080            this   -    100.0 %      1
[*]:30080       TCP       this node  (none: rejected)           -      -          -      -
[*]:30080       TCP       external   (none: dropped)            -      -          -      -
203.0.113.1:80  TCP       all        10.244.1.5:8080            this   -    100.0 %      0
203.0.113.2:80  TCP       all        10.244.1.5:8080            this   -     42.9 %      0
203.0.113.2:80  TCP       all        10.244.2.5:8080            node2  -     57.1 %      0
203.0.113.2:80  TCP       forwarded  10.244.1.5:8080            this   -    100.0 %      -
203.0.113.2:80  TCP       external   (forwarded to 172.30.0.2)  node2  -          -      1

EXCLUDED         NODE   ZONE  REASON                                   FRONTEND
10.244.2.5:8080  node2  -     not on this node (traffic policy Local)  203.0.113.1:80/TCP (external), \
203.0.113.2:80/TCP (external), *:30080/TCP (external)
10.244.2.6:8080  node2  a     not ready                                10.96.0.10:80/TCP, \
203.0.113.1:80/TCP (this node), 203.0.113.1:80/TCP (external), 203.0.113.2:80/TCP (this node), \
203.0.113.2:80/TCP (external), *:30080/TCP (this node), *:30080/TCP (external)
"
    );
    let json = serde_json::to_value(&detail).unwrap();
    assert_eq!(json["frontends"][1]["choices"][1]["clients"], "outside");
    assert_eq!(json["frontends"][4]["choices"][0]["slots"], 7);
    assert_eq!(json["frontends"][4]["choices"][0]["targets"][1]["slots"], 4);
    assert_eq!(json["explanation"]["externalTrafficPolicy"], "Local");

    // A frontend that doesn't exist yet.
    view.frontends.retain(|key, _| key.addr != Addr::from(std::net::Ipv4Addr::new(10, 96, 0, 10)));
    let detail = shown(&view, &web(), wanted(&manifests())).unwrap();
    let first = detail.differences.first().map(String::as_str);
    assert_eq!(first, Some("10.96.0.10:80/TCP is not in the tables yet, or belongs to another service"));
}

#[test]
fn a_service_without_frontends_is_explained_from_its_manifest() {
    let dir = manifests();
    let headless = "{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, ports: [{port: 1}]}}";
    std::fs::write(dir.path().join("db.yaml"), headless).unwrap();
    let db = ObjectName { name: "db".into(), ..web() };
    assert_eq!(
        shown(&cluster_ips(), &db, wanted(&dir)).unwrap().text(),
        "\
service    default/db
type       ClusterIP
ignored    headless: clients use its endpoints directly
policies   internal Cluster, external Cluster
"
    );
}

/// Backends beyond the service's share are explained once, with the rule and its number, and not as differences.
#[test]
fn backends_beyond_the_share_are_explained() {
    let dir = manifests();
    let ips: Vec<_> = (1..=40).map(|i| format!("198.51.100.{i}")).collect();
    let ports: Vec<_> = (1..=20).map(|port| format!("{{name: p{port}, port: {port}}}")).collect();
    let (ips, ports) = (ips.join(", "), ports.join(", "));
    let greedy = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: greedy}}, spec: {{externalIPs: [{ips}], ports: [{ports}]}}}}"
    );
    std::fs::write(dir.path().join("greedy.yaml"), greedy).unwrap();
    let run = dir.path().join("run");
    let config = format!("node: node1\nmanifests: {}\nrunDir: {}\n", dir.path().display(), run.display());
    let name = ObjectName { name: "greedy".into(), ..web() };
    let mut view = cluster_ips();
    view.frontends_max = 1000;
    let explained = || {
        let detail = shown(&view, &name, Wanted::read(&Config::parse(&config).unwrap())).unwrap();
        let frontends = detail.explanation.as_ref().unwrap().frontends.iter();
        let (beyond, within): (Vec<_>, Vec<_>) = frontends.partition(|frontend| frontend.beyond_share);
        assert_eq!((beyond.len() + within.len(), detail.differences.len()), (800, within.len()), "none is there yet");
        let text = detail.text();
        (within.len(), text.lines().find(|line| line.contains("exceeds its share")).unwrap_or_default().to_owned())
    };
    let (within, note) = explained();
    assert!(note.contains("`frontends` (256 entries, the limit for every Service)"), "{note}");
    assert_eq!(within, 256 - 40, "each of the addresses takes an entry too");
    let shares = [("default".to_owned(), EntryCounts::MAX.with(0, 30))].into();
    std::fs::create_dir(&run).unwrap();
    DaemonStatus { shares, ..DaemonStatus::default() }.write(&run).unwrap();
    let (within, note) = explained();
    assert!(note.contains("30 entries, the limit for each Service of its namespace"), "{note}");
    assert_eq!(within, 15, "of the first port, with the addresses");
}

#[test]
fn broken_manifest_is_named_where_it_may_be_the_reason() {
    let dir = manifests();
    std::fs::write(dir.path().join("broken.yaml"), "apiVersion: [\n").unwrap();
    let detail = shown(&everything(), &web(), wanted(&dir)).unwrap();
    let broken = dir.path().join("broken.yaml");
    let expected = format!("{} is invalid: its last valid version, if any, stays in effect", broken.display());
    assert_eq!(detail.differences.last(), Some(&expected));
}

#[test]
fn tables_are_shown_if_manifests_cannot_be_read() {
    let config = Config::parse("node: node1\nmanifests: /nowhere/at/all\n").unwrap();
    let detail = shown(&cluster_ips(), &web(), Wanted::read(&config)).unwrap();
    assert!(
        detail.text().contains("\nunknown    why endpoints are excluded: cannot watch the manifest directory /nowhere")
    );
    assert_eq!(detail.frontends.len(), 2);
    let elsewhere = shown(&cluster_ips(), &ObjectName { name: "dns".into(), ..web() }, wanted(&manifests())).unwrap();
    assert_eq!(elsewhere.not_explained.as_deref(), Some("Service default/dns not found"));
    let pods = ObjectName { name: "dns hostPort".into(), ..web() };
    let pods = shown(&everything(), &pods, wanted(&manifests())).unwrap();
    assert_eq!(pods.not_explained.as_deref(), Some("a host port maps to the one pod that requested it"));
}
