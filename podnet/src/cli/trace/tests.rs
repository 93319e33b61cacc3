//! Traces on tables in memory.

use std::net::IpAddr;

use clap::Parser as _;
use podnet_common::addr::{Addr, IfIndex, Mac, Port, Proto};
use podnet_common::layout::{
    Backend, Config, Endpoint, Frontend, FrontendKey, Network, NetworkKind, PolicyDenial, Sandbox, ServiceClient,
    SourceRange, macs,
};
use podnet_common::pipeline::{Route, Tables as _};
use podnet_common::simulator::{HostTables, prefix};

use super::*;
use crate::cli::endpoint::tests::pods;
use crate::cli::output::Show as _;
use crate::datapath::inspect::ViewError;
use crate::datapath::live::NoWay;
use crate::datapath::memory::MemoryTables;
use crate::datapath::memory::samples::names as service_names;

const POD: IfIndex = IfIndex(9);
const UPLINK: IfIndex = IfIndex(2);
const PODNET0: IfIndex = IfIndex(90);
const NODE2_MAC: Mac = Mac([2, 0, 0, 0, 2, 2]);

impl Node for HostTables {
    fn forward(&self, from: IfIndex, src: &Addr, dst: &Addr) -> Result<Route, NoWay> {
        let mut route = Route::default();
        self.route(from, src, dst, &mut route).then_some(route).ok_or(NoWay::NotForwarded)
    }

    fn netns_cookie(&self, addr: &Addr) -> Result<Option<u64>, ViewError> {
        let own = |pod: &Sandbox| pod.v4 == *addr || pod.v6 == *addr;
        Ok(self.sandboxes.iter().find(|(_, pod)| own(pod)).map(|(cookie, _)| *cookie))
    }
}

/// A node with the pod default/web-1, the service default/web with two backends on node2, one with twice the weight of
/// the other, and the service default/dns without backends; `10.96.0.12:80` is restricted to some clients.
fn tables() -> HostTables {
    let mut t = HostTables::default();
    t.now.set(1000);
    t.config = Config {
        node_v4: ip("172.30.0.1"),
        node_v6: ip("fd00:30::1"),
        podnet0: PODNET0,
        podnet1: IfIndex(91),
        flags: Config::MASQUERADE,
        mtu: 1500,
        netns_cookie: 1,
        uplinks: [2, 0, 0, 0, 0, 0, 0, 0].map(IfIndex),
        snat_count: 100,
        ..Config::default()
    };
    t.snat_ports = (2000..2100).collect();
    for (n, (addr, port)) in [("10.244.2.5", 8080), ("10.244.2.6", 8080), ("10.244.2.6", 8080)].into_iter().enumerate()
    {
        t.slots.insert(n as u32, n.min(1) as u32);
        let backend = Backend { addr: ip(addr), port: Port::new(port), proto: Proto::TCP, _pad: 0 };
        t.backends.insert(n.min(1) as u32, backend);
    }
    let mut add = |addr: &str, port: u16, proto: Proto, frontend: Frontend| {
        let addr = ip(addr);
        t.frontends.insert(FrontendKey { addr, port: Port::new(port), proto, scope: FrontendKey::ANY }, frontend);
        t.frontends.insert(FrontendKey::address(addr), Frontend::default());
    };
    let web = Frontend { service: 1, slot_count: 3, ..Frontend::default() };
    add("10.96.0.10", 80, Proto::TCP, web);
    add("10.96.0.11", 53, Proto::TCP, Frontend { service: 2, ..Frontend::default() });
    add("10.96.0.11", 53, Proto::UDP, Frontend { service: 2, ..Frontend::default() });
    add("10.96.0.12", 80, Proto::TCP, Frontend { flags: Frontend::SOURCE_RANGES | Frontend::EXTERNAL, ..web });
    let range = prefix("198.51.100.0".parse().unwrap(), 24);
    t.source_ranges.insert(SourceRange { len: range.len + 32, data: ServiceClient::new(1, range.addr) });
    let endpoint = Endpoint {
        ifindex: POD,
        mtu: 1500,
        mac: Mac([2, 0, 0, 0, 0, 1]),
        host_mac: Mac([2, 0, 0, 0, 0, 2]),
        ..Endpoint::default()
    };
    t.endpoints.insert(ip("10.244.1.5"), endpoint);
    t.sandboxes.insert(7, Sandbox { v4: ip("10.244.1.5"), v6: Addr::NONE });
    let mut network = |addr: &str, len: u8, kind: NetworkKind, node: &str, mac: Mac| {
        let network = Network { kind: kind as u32, node: ip(node), mac, ..Network::default() };
        t.networks.insert(prefix(addr.parse().unwrap(), len), network);
    };
    network("10.244.1.0", 24, NetworkKind::LocalPods, "172.30.0.1", Mac::default());
    network("10.244.2.0", 24, NetworkKind::RemotePods, "172.30.0.2", NODE2_MAC);
    network("10.96.0.0", 16, NetworkKind::Services, "0.0.0.0", Mac::default());
    network("172.30.0.1", 32, NetworkKind::LocalNode, "172.30.0.1", Mac::default());
    let known = macs(NODE2_MAC, Mac([2, 0, 0, 0, 5, 5]));
    let route = Route { ifindex: UPLINK, mtu: 1500, macs: known, src: Addr::NONE, hop: ip("172.30.0.2") };
    t.routes.insert(prefix("10.244.2.0".parse().unwrap(), 24), route);
    t.routes.insert(prefix("0.0.0.0".parse().unwrap(), 0), Route { macs: [0; 3], hop: Addr::NONE, ..route });
    t
}

fn ip(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn interface(ifindex: IfIndex) -> Option<String> {
    let name = match ifindex {
        POD => "podweb1",
        UPLINK => "eth0",
        PODNET0 => "podnet0",
        IfIndex(91) => "podnet1",
        _ => return None,
    };
    Some(name.to_owned())
}

/// The host's routes: everything by eth0, services by podnet0.
fn output(dst: IpAddr, _: Option<IpAddr>) -> Result<Option<OutputRoute>> {
    let service = matches!(dst, IpAddr::V4(dst) if dst.octets()[..2] == [10, 96]);
    let ifindex = if service { PODNET0 } else { UPLINK };
    Ok(Some(OutputRoute { ifindex, gateway: None, source: Some("172.30.0.1".parse()?), local: false }))
}

/// The result of `podnet trace` with these arguments.
fn traced(tables: &HostTables, words: &str) -> Result<Traces> {
    let mut view = MemoryTables::from(tables.clone());
    view.missing = vec![(podnet_common::layout::Hook::UplinkXdp, UPLINK)];
    let names = Names {
        services: service_names(),
        pods: pods(),
        nodes: [("172.30.0.2".parse()?, "node2".to_owned())].into(),
        denials: [(PolicyDenial { set: 3, rule: PolicyDenial::ISOLATION }, vec!["default/web".to_owned()])].into(),
        interface,
    };
    let own_mac = |_| Mac([2, 0, 0, 0, 5, 5]);
    let tracer = Tracer { node: tables, view: &view, names: &names, output: &output, own_mac: &own_mac, bytes: false };
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: TraceArgs,
    }
    let line = Line::try_parse_from(["trace"].into_iter().chain(words.split_whitespace()))?;
    trace(&tracer, &line.args)
}

fn one(tables: &HostTables, words: &str) -> serde_json::Value {
    let traces = traced(tables, words).unwrap_or_else(|error| panic!("{words}: {error:#}"));
    serde_json::to_value(&traces).unwrap()[0].clone()
}

fn error(words: &str) -> String {
    traced(&tables(), words).map(|_| String::new()).unwrap_or_else(|error| format!("{error:#}"))
}

#[test]
fn first_packet_to_a_service_is_traced_step_by_step() {
    let text = traced(&tables(), "--from pod/default/web-1 --to default/web:http --sport 40000").unwrap().text();
    let beginning = "\
packet     TCP SYN 10.244.1.5:40000 → 10.96.0.10:80, ttl 64, 40 bytes
from       pod 10.244.1.5 (default/web-1) on podweb1
";
    assert!(text.starts_with(beginning), "{text}");
    for line in [
        "hook       from_pod on podweb1: enter → classify → begin → send",
        "class      first packet of a flow, to service default/web:http",
        "admission  admitted: source address of the pod on podweb1",
        "shares     10.244.2.6:8080 66.7 %, 10.244.2.5:8080 33.3 %",
        "route      eth0 via 172.30.0.2, lladdr 02:00:00:00:02:02, MTU 1500",
        "verdict    sent to the next hop, MAC from the neighbour table, on eth0",
        "outcome    leaves on eth0 to 172.30.0.2",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("goes to node2, ask there: podnet trace --from 10.244.1.5 --to 10.244.2."), "{text}");
}

#[test]
fn established_flow_keeps_its_backend() {
    let tables = tables();
    let words = "--from pod/default/web-1 --to default/web:80 --sport 40000";
    let first = one(&tables, words);
    let second = one(&tables, &format!("{words} --tcp-flags ack"));
    let backend = |trace: &serde_json::Value| trace["steps"][0]["backend"]["backend"].clone();
    assert_eq!(backend(&first), backend(&second));
    assert_eq!(second["steps"][0]["backend"]["by"], "conntrack entry of the flow");
    assert_eq!(second["steps"][0]["class"], "packet of a known flow, to service default/web:http");
    assert_eq!(first["outcome"], serde_json::json!({"kind": "leaves", "interface": "eth0", "nextHop": "172.30.0.2"}));
}

#[test]
fn refusals_name_their_cause() {
    let tables = tables();
    let refused = one(&tables, "--from pod/default/web-1 --to default/dns --proto udp --sport 1");
    assert_eq!(refused["outcome"]["kind"], "answered");
    assert_eq!(refused["outcome"]["reason"], "no_endpoint");
    let range = one(&tables, "--from 203.0.113.9%lo --to 10.96.0.12:80");
    assert_eq!(range["steps"][0]["at"], "stack", "lo has no hooks: {range}");
    let outside = one(&tables, "--from 203.0.113.9 --to 10.96.0.12:80");
    let admission = outside["steps"][0]["admission"].as_str().unwrap();
    assert_eq!(
        admission,
        "refused: 203.0.113.9 is not in loadBalancerSourceRanges of default/web:http: 198.51.100.0/24"
    );
    let inside = one(&tables, "--from 198.51.100.7 --to 10.96.0.12:80");
    let admission = inside["steps"][0]["admission"].as_str().unwrap();
    assert_eq!(admission, "admitted by loadBalancerSourceRanges 198.51.100.0/24 of default/web:http");
    let cluster_ip = one(&tables, "--from 198.51.100.7 --to 10.96.0.10:80");
    assert_eq!(cluster_ip["outcome"]["reason"], "cluster_ip_from_outside");
}

#[test]
fn socket_hooks_come_first() {
    let mut tables = tables();
    let host = one(&tables, "--from host --to default/web");
    assert_eq!(host["steps"][0]["at"], "socket", "{host}");
    assert_eq!(host["steps"][0]["backend"]["by"], "a random backend per socket");
    assert_eq!(host["steps"][1]["at"], "stack");
    assert_eq!(host["steps"][2]["hook"], "to_uplink");
    let bound = one(&tables, "--from host --to default/web --sport 40000");
    assert_eq!(bound["steps"][1]["hook"], "from_host", "{bound}");
    let pod = "--from pod/default/web-1 --to default/web";
    assert_eq!(one(&tables, pod)["steps"][0]["hook"], "from_pod");
    tables.config.flags |= Config::SOCKET_PODS;
    assert_eq!(one(&tables, pod)["steps"][0]["at"], "socket");
    let none = one(&tables, "--from host --to default/dns --proto udp");
    if crate::datapath::socket_errno() {
        assert_eq!(none["outcome"]["kind"], "refused", "{none}");
    }
}

#[test]
fn destinations_outside_are_masqueraded() {
    let trace = one(&tables(), "--from pod/default/web-1 --to 203.0.113.9:443 --sport 40000");
    let source = trace["steps"][0]["source"].as_str().unwrap();
    assert!(source.starts_with("10.244.1.5:40000 (default/web-1) translated to 172.30.0.1:20"), "{source}");
    assert!(trace["next"].is_null());
    // The stack would forward it, and its sender gets an error.
    let late = one(&tables(), "--from 203.0.113.9 --to 198.51.100.1:9 --ttl 1");
    assert_eq!(late["outcome"]["kind"], "stopped", "{late}");
    assert!(late["becomes"].is_null());
}

#[test]
fn errors_explain_what_cannot_be_traced() {
    for (words, says) in [
        ("--from pod/default/nobody --to 10.96.0.10:80", "no pod default/nobody"),
        ("--from somewhere --to 10.96.0.10:80", "is not a sender"),
        ("--from pod/default/web-1 --to default/nothing:80", "no service default/nothing"),
        ("--from pod/default/web-1 --to default/web:81", "80/TCP http"),
        ("--from pod/default/web-1 --to somewhere", "is not a destination"),
        ("--from pod/default/web-1 --to 10.96.0.10", "needs a port"),
        ("--from fd00::9 --to 10.96.0.10:80", "different families"),
        ("--from pod/default/web-1", "--to"),
        ("--from host --hex 4x", "hexadecimal"),
        ("--from host --pcap /nonexistent/file", "/nonexistent/file"),
    ] {
        let error = error(words);
        assert!(error.contains(says), "{words}: {error}");
    }
}

#[test]
fn captures_are_listed() {
    let frame = Description {
        src: "10.244.1.5".parse().unwrap(),
        dst: "10.96.0.10".parse().unwrap(),
        proto: Proto::TCP,
        sport: 40_000,
        dport: 80,
        tcp_flags: 2,
        icmp: IcmpType { kind: 8, code: 0, identifier: 1 },
        ttl: 64,
        size: None,
        dont_fragment: false,
        fragment: None,
    }
    .frame([Mac::default(); 2]);
    let digits: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    // MACs of zeros are replaced by the sender's own.
    let trace = one(&tables(), &format!("--from pod/default/web-1 --hex {digits}"));
    assert_eq!(trace["outcome"]["kind"], "leaves", "{trace}");
    let many = Traces(vec![
        traced(&tables(), "--from pod/default/web-1 --to default/web --sport 1").unwrap().0.remove(0),
        traced(&tables(), "--from 198.51.100.7 --to 10.96.0.10:80").unwrap().0.remove(0),
    ]);
    let text = many.text();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("dropped: packet to a ClusterIP from outside the cluster"), "{text}");
}
