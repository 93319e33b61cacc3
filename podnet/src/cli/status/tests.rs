use std::collections::BTreeMap;

use podnet_common::addr::Proto;
use podnet_common::layout::{Interface, NetworkKind};
use podnet_common::verdict::Reason;

use super::warnings::REPAIR_IS_NEWS;
use super::*;
use crate::cli::output::Show as _;
use crate::datapath::memory::MemoryTables;
use crate::host::firewall::Finding;
use crate::host::settings::SetBy;
use crate::status::{
    DropStatus, HealthStatus, HookStatus, NodeStatus, PendingStatus, RepairStatus, SourceError, SourceStatus,
    TablesStatus, UplinkStatus,
};

const NOW: UnixTime = UnixTime(10_000);
/// Not an interface of the machine that runs the tests.
const ETH0: IfIndex = IfIndex(4_000_002);

fn view() -> MemoryTables {
    let mut view = MemoryTables::new(1000, 1000, 1000);
    view.conntrack_max = Some(100);
    view.service(1, "10.96.0.10:80", Proto::TCP, 0, &["10.244.1.5:8080", "10.244.2.5:8080"]);
    view.service(2, "10.96.0.53:53", Proto::UDP, 0, &["10.244.1.5:8080"]);
    view.endpoint("10.244.1.5", 9);
    view.service(1, "0.0.0.0:30080", Proto::TCP, Frontend::EXTERNAL | Frontend::NODE_PORT, &["10.244.1.5:8080"]);
    view.frontend(1, "0.0.0.0:30080", Proto::TCP, FrontendKey::PEER, Frontend::EXTERNAL, &[]);
    view.service(3, "0.0.0.0:8080", Proto::TCP, Frontend::EXTERNAL, &["10.244.1.5:8080"]);
    view.service(3, "[::]:8080", Proto::TCP, Frontend::EXTERNAL, &[]);
    let flow = ["10.244.1.9:40000", "203.0.113.9:443", "172.30.0.1:2000", "203.0.113.9:443"];
    view.flow(0, Proto::TCP, flow, 0, 0);
    view.network("172.30.0.1/32", NetworkKind::LocalNode, "172.30.0.1", Network::NODE_PORTS);
    view.network("10.244.1.1/32", NetworkKind::LocalNode, "172.30.0.1", 0);
    view.snat_ports = (2000..2010).collect();
    view.config.snat_count = 10;
    view.config.flags = Config::MASQUERADE;
    view.interfaces.insert(ETH0, Interface { flags: Interface::MAIN, ..Interface::default() });
    view.config.podnet1 = IfIndex(5);
    view
}

fn report() -> DaemonStatus {
    DaemonStatus {
        shares: BTreeMap::new(),
        drops: BTreeMap::new(),
        host: Default::default(),
        version: "0.1.0".into(),
        node: "node1".into(),
        started: UnixTime(6_000),
        ready: Some(UnixTime(6_001)),
        adopted: true,
        state_dir: None,
        config: Some(serde_json::json!({"socketLB": "host"})),
        sources: vec![SourceStatus {
            name: "/etc/podnet/manifests".into(),
            synced: true,
            services: 2,
            endpoint_slices: 2,
            nodes: 2,
            errors: vec![],
        }],
        tables: TablesStatus::default(),
        uplinks: vec![UplinkStatus {
            name: "eth0".into(),
            ifindex: ETH0.0,
            mtu: 1500,
            hooks: [("from_uplink", "tc"), ("to_uplink", "tc"), ("uplink_xdp", "xdp native")]
                .map(|(hook, how)| HookStatus { hook: hook.into(), attached: Some(how.into()), error: None })
                .to_vec(),
        }],
        tunnel: None,
        socket_hooks_refused: false,
        nodes: vec![NodeStatus { name: "node2".into(), cidr: "10.244.2.0/24".into(), ..NodeStatus::default() }],
        health: HealthStatus { address: Some("0.0.0.0:10256".into()), error: None, node_ports: 2 },
        repairs: vec![],
        warnings: vec![],
    }
}

fn healthy() -> Witnesses {
    Witnesses {
        daemon: Daemon { running: true, pid: Some(42), report: Some(report()) },
        datapath: datapath(&view()),
        settings: vec![],
        firewall: Report::default(),
        problems: vec![],
        now: NOW,
    }
}

#[test]
fn a_healthy_node_fits_a_screen() {
    assert_eq!(
        assemble(healthy()).text(),
        "\
health     no problems found

daemon     running as process 42 for 1h6m, version 0.1.0, adopted the existing datapath
node       node1
source     /etc/podnet/manifests: 2 services, 2 endpoint slices, 2 nodes
uplink     eth0 (mtu 1500): from_uplink tc, to_uplink tc, xdp native
routes     to 1 of 1 pod CIDRs of other nodes
health     at 0.0.0.0:10256, 2 healthCheckNodePorts of services
datapath   program generation 1
host       from_host tc, from_loopback tc, socket load balancing for host processes
services   5 frontends, 1 host port among them; NodePorts at 172.30.0.1
nat        masquerade on, 10 source ports per destination, at most 10 % in use (TCP to 203.0.113.9:443)
endpoints  1 address of this node's pods
settings   all as required
dropped    no packets

TABLE      ENTRIES  CAPACITY  FULL
frontends       10      1000   1 %
slots            5      1000   0 %
backends         3      1000   0 %
conntrack        2       100   2 %
endpoints        1      4096   0 %
nodes            2     65536   0 %
"
    );
}

#[test]
fn recent_drops_are_warned_of() {
    let warned = |seen: Option<(u64, Option<u64>)>, running| {
        let mut witnesses = healthy();
        let mut report = report();
        report.drops = seen
            .map(|(packets, last)| ("conntrack_full".to_owned(), DropStatus { packets, last: last.map(UnixTime) }))
            .into_iter()
            .collect();
        witnesses.daemon.report = Some(report);
        witnesses.daemon.running = running;
        let mut view = view();
        view.drops.get_mut().insert(Reason::ConntrackFull, 5);
        witnesses.datapath = datapath(&view);
        let warnings = assemble(witnesses).warnings;
        warnings
            .into_iter()
            .find_map(|w| w.strip_prefix("5 packets dropped so far")?.split(": ").next().map(str::to_owned))
    };
    let now = NOW.0;
    assert_eq!(warned(Some((5, Some(now - 599))), true).as_deref(), Some(", the last 9m59s ago"));
    assert_eq!(warned(Some((5, Some(now - 600))), true), None, "its cause has gone");
    assert_eq!(warned(Some((5, None)), true), None, "they are from before");
    assert_eq!(warned(Some((4, None)), true).as_deref(), Some(", the last just now"));
    assert_eq!(warned(None, true).as_deref(), Some(", the last just now"));
    assert_eq!(warned(Some((4, None)), false).as_deref(), Some(""), "the time is unknown");
}

#[test]
fn everything_that_needs_attention_is_a_warning() {
    let mut witnesses = healthy();
    let mut report = report();
    report.sources[0].errors.push(SourceError {
        place: "/etc/podnet/manifests/web.yaml".into(),
        line: Some(7),
        reason: "unknown key".into(),
        kept: true,
    });
    report.sources[0].errors.push(SourceError { place: "Service x/a".into(), ..SourceError::default() });
    report.tables.pending.push(PendingStatus { frontend: "10.96.0.1:80/6".into(), failures: 3, reason: "full".into() });
    report.uplinks[0].hooks[1] =
        HookStatus { hook: "to_uplink".into(), attached: None, error: Some("no permission".into()) };
    report.warnings.extend(["no way to node2: a router".into(), "FORWARD drops: accept pods".into()]);
    witnesses.daemon.report = Some(report);
    let mut full = view();
    full.conntrack_max = Some(2);
    full.drops.get_mut().insert(Reason::ConntrackFull, 5);
    full.drops.get_mut().insert(Reason::SpoofedSource, 6);
    witnesses.datapath = datapath(&full);
    witnesses.settings.push(Deviation {
        path: "net/ipv4/ip_forward".into(),
        actual: Some("0".into()),
        wanted: "1".into(),
        why: "nothing is forwarded".into(),
        set_by: SetBy::Daemon,
    });
    witnesses.firewall.findings.push(Finding { what: "FORWARD drops".into(), advice: "accept pods".into() });
    witnesses.problems.push("nobody knows".into());
    let status = assemble(witnesses);
    assert_eq!(
        status.warnings,
        [
            "/etc/podnet/manifests/web.yaml:7: unknown key (its last valid version stays in effect)",
            "Service x/a:  (no valid version since the daemon's start)",
            "the frontend 10.96.0.1:80/6 could not be written to the tables (attempts: 3), retrying: full",
            "to_uplink is not attached to eth0: no permission",
            "no way to node2: a router",
            "FORWARD drops: accept pods",
            "the table conntrack is nearly full (2 of 2): raise conntrackMax in the daemon's configuration, then run \
             `podnet cleanup` or reboot",
            "5 packets dropped so far, the last just now: connection table full; raise conntrackMax, then \
             `podnet cleanup` or reboot",
            "net.ipv4.ip_forward is 0 instead of 1: nothing is forwarded; the daemon restores it; find the program \
             that changes it",
            "nobody knows",
        ]
    );
    let text = status.text();
    assert!(text.starts_with("warning    /etc/podnet/manifests/web.yaml:7"), "warnings come first: {text}");
    assert!(text.contains("dropped    11 packets (6 spoofed_source, 5 conntrack_full)"), "{text}");
}

#[test]
fn missing_hooks_are_reported_once() {
    let hook = |hook: &str, attached: Option<&str>| HookStatus {
        hook: hook.into(),
        attached: attached.map(Into::into),
        error: attached.is_none().then(|| "no permission".to_owned()),
    };
    let mut detached = view();
    detached.missing =
        [Hook::FromUplink, Hook::ToUplink, Hook::UplinkXdp].map(|hook| (hook, ETH0)).into_iter().collect();
    detached.missing.push((Hook::FromLoopback, LOOPBACK));
    let told = |running, hooks: Vec<HookStatus>| {
        let mut witnesses = healthy();
        let mut report = report();
        report.uplinks[0].hooks = hooks;
        witnesses.daemon = Daemon { running, pid: None, report: Some(report) };
        witnesses.datapath = datapath(&detached);
        assemble(witnesses)
    };
    // One that the daemon has reported, one that it hasn't, and XDP attached or left out.
    let failed = || vec![hook("from_uplink", None), hook("to_uplink", Some("tc"))];
    let again = "the daemon attaches what is missing within half a minute; find the program that detaches it";
    let first = "from_uplink is not attached to eth0: no permission".to_owned();
    let egress = format!("to_uplink is not attached to interface {}: {again}", ETH0.0);
    let xdp = format!("uplink_xdp is not attached to interface {}: {again}", ETH0.0);
    let loopback = format!("from_loopback is not attached to lo: {again}");
    for (how, expected) in [
        ("xdp off (by configuration)", vec![&first, &egress, &loopback]),
        ("xdp generic", vec![&first, &egress, &xdp, &loopback]),
    ] {
        let status = told(true, [failed(), vec![hook("uplink_xdp", Some(how))]].concat());
        assert_eq!(status.warnings.iter().collect::<Vec<_>>(), expected, "{how}");
    }
    let status = told(false, [failed(), vec![hook("uplink_xdp", Some("xdp native"))]].concat());
    assert!(status.warnings[2].ends_with("start the daemon, which attaches what is missing"), "{:?}", status.warnings);
    let text = status.text();
    let line = "eth0 (mtu 1500): from_uplink not attached, to_uplink not attached, uplink_xdp not attached\n";
    assert!(text.contains(line) && text.contains("from_loopback not attached, socket load balancing for"), "{text}");
}

#[test]
fn missing_parts_are_reported() {
    let mut witnesses = healthy();
    let mut report = report();
    report.health.error = Some("Address already in use".into());
    witnesses.daemon.report = Some(report);
    let mut view = view();
    view.sockets_missing = true;
    view.snat_ports = vec![2000];
    witnesses.datapath = datapath(&view);
    let warnings = assemble(witnesses).warnings;
    let [health, sockets, ports] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(health.contains("0.0.0.0:10256: Address already in use"), "{health}");
    assert!(sockets.starts_with("the socket hooks are not attached"), "{sockets}");
    assert!(
        ports.starts_with("SNAT source ports for 203.0.113.9:443 (TCP) are nearly exhausted (1 of 1 in use)"),
        "{ports}"
    );
}

#[test]
fn refused_socket_hooks_are_not_blamed_on_another_program() {
    let reason = "cannot load or attach connect4: unknown func bpf_set_retval#187";
    let mut witnesses = healthy();
    let mut report = report();
    report.socket_hooks_refused = true;
    report.warnings = vec![reason.into()];
    witnesses.daemon.report = Some(report);
    let mut view = view();
    view.sockets_missing = true;
    witnesses.datapath = datapath(&view);
    assert_eq!(assemble(witnesses).warnings, [reason]);
}

#[test]
fn repaired_link_is_reported_for_a_while() {
    let repair = |of: &str, times: u64, last: u64| RepairStatus {
        of: of.into(),
        parts: "route to 10.244.1.5".into(),
        times,
        last: UnixTime(last),
    };
    let mut witnesses = healthy();
    let mut told = report();
    let now = witnesses.now.0;
    told.repairs = vec![repair("pod shop/web", 3, now - 60), repair("pod shop/old", 1, now - REPAIR_IS_NEWS)];
    witnesses.daemon.report = Some(told);
    let status = assemble(witnesses);
    let [warning] = &status.warnings[..] else { panic!("{:?}", status.warnings) };
    let expected = "the link of pod shop/web: restored route to 10.244.1.5 1m0s ago, 3 times so far";
    assert!(warning.contains(expected), "{warning}");
    assert!(status.text().contains("4 repairs of the links of 2 pods"), "{}", status.text());

    let mut witnesses = healthy();
    let mut told = report();
    told.repairs = (0..20).map(|i| repair(&format!("pod shop/{i}"), 1, now)).collect();
    witnesses.daemon.report = Some(told);
    let warnings = assemble(witnesses).warnings;
    assert!(warnings.len() == 6 && warnings[5].starts_with("the links of 15 more"), "{warnings:?}");
}

#[test]
fn tables_are_shown_without_the_daemon() {
    let mut witnesses = healthy();
    witnesses.daemon = Daemon { running: false, pid: None, report: Some(report()) };
    let status = assemble(witnesses);
    assert!(
        status.warnings[0].starts_with("the daemon is not running: existing traffic and pods keep working"),
        "{status:?}"
    );
    assert!(status.text().contains("its last report"), "{}", status.text());
    assert_eq!(status.datapath.unwrap().endpoints, 1);
}

#[test]
fn without_pins_the_first_warning_says_what_to_do() {
    let mut witnesses = healthy();
    witnesses.daemon = Daemon::default();
    witnesses.datapath = Err(ViewError::NotPinned { directory: "/sys/fs/bpf/podnet".into() });
    let status = assemble(witnesses);
    assert!(status.datapath.is_none());
    let [warning] = &status.warnings[..] else { panic!("{:?}", status.warnings) };
    assert!(warning.contains("/sys/fs/bpf/podnet") && warning.contains("podnet daemon --config"), "{warning}");
    assert_eq!(status.no_datapath(), Some(warning.as_str()));
    assert_eq!(status.text(), "daemon     not running\n", "the rest is for standard error");
}

#[test]
fn sysctl_command_works_for_an_interface_with_a_dot() {
    let deviation = Deviation {
        path: "net/ipv4/conf/eth0.100/forwarding".into(),
        actual: None,
        wanted: "1".into(),
        why: "it stands still".into(),
        set_by: SetBy::Daemon,
    };
    let warning = setting_warning(&deviation, false);
    assert!(warning.contains("`sysctl -w net/ipv4/conf/eth0.100/forwarding=1`"), "{warning}");
}
