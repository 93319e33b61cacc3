use std::sync::Arc;

use serde_json::{Value, json};

use super::super::output::Show;
use super::*;
use crate::config::Config;
use crate::control::Control;
use crate::datapath::memory::MemoryTables;
use crate::model::{
    Batch, Change, Kind, LabelCondition, LeftOut, NetworkPolicy, Object, ObjectKey, Pod, PolicyPeer, PolicyPort,
    PolicyRule, PortMatch, Protocol, Requirement, Selector,
};
use crate::socket::{DeniedPackets, PodFacts, PolicyFacts};

fn with(key: &str, value: &str) -> Selector {
    Selector(vec![Requirement { key: key.into(), condition: LabelCondition::In(vec![value.into()]) }])
}

fn pod(node: &str, app: &str, ip: &str) -> Object {
    let labels = [("app", app)].into_iter().collect();
    Object::Pod(Arc::new(Pod { node: node.into(), labels, ips: vec![ip.parse().unwrap()], ..Pod::default() }))
}

/// Policies `deny` and `web` of this node's pod `web`, which `client` and others of another node may connect to; and
/// `away`, which selects no pod here.
fn control() -> Control {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let config = format!("{{node: n1, manifests: {path}/m, runDir: {path}/run, stateDir: {path}/state}}");
    let mut control = Control::adopt(&Config::parse(&config).unwrap(), &MemoryTables::new(100, 100, 100)).unwrap();
    let port = |protocol, ports| PolicyPort { protocol, ports };
    let peers = vec![
        PolicyPeer::Pods { namespaces: None, pods: with("app", "client") },
        PolicyPeer::Pods { namespaces: Some(Selector::default()), pods: Selector::default() },
        PolicyPeer::Pods { namespaces: Some(with("env", "prod")), pods: with("app", "client") },
        PolicyPeer::Block {
            cidr: "192.0.2.0/24".parse().unwrap(),
            except: vec!["192.0.2.8/29".parse().unwrap(), "192.0.2.1/32".parse().unwrap()],
        },
        PolicyPeer::Block { cidr: "2001:db8::/32".parse().unwrap(), except: Vec::new() },
    ];
    let ports = vec![
        port(Protocol::Tcp, PortMatch::Range(80, 80)),
        port(Protocol::Udp, PortMatch::Range(5000, 5010)),
        port(Protocol::Tcp, PortMatch::Name("https".into())),
        port(Protocol::Sctp, PortMatch::All),
    ];
    let mut left_out = LeftOut::default();
    left_out.add(|| "spec.ingress[1]: unknown field `fromm`".into());
    let nothing = PolicyRule { peers: Some(Vec::new()), ports: Some(Vec::new()) };
    let web = NetworkPolicy {
        pods: with("app", "web"),
        ingress: Some(vec![PolicyRule { peers: Some(peers), ports: Some(ports) }, nothing]),
        left_out,
        ..NetworkPolicy::default()
    };
    // More than have a line each.
    let mut many = LeftOut::default();
    (0..20).for_each(|number| many.add(|| format!("element {number}")));
    let deny = NetworkPolicy {
        ingress: Some(Vec::new()),
        egress: Some(vec![PolicyRule::default()]),
        left_out: many,
        ..NetworkPolicy::default()
    };
    let away = NetworkPolicy { pods: with("app", "none"), egress: Some(Vec::new()), ..Default::default() };
    let policy = |name: &str, policy: NetworkPolicy| {
        Change::new(ObjectKey::new(Kind::NetworkPolicy, "default", name), Some(Object::NetworkPolicy(policy.into())))
    };
    let pod =
        |namespace: &str, name: &str, pod: Object| Change::new(ObjectKey::new(Kind::Pod, namespace, name), Some(pod));
    let changes = vec![
        policy("web", web),
        policy("deny", deny),
        policy("away", away),
        pod("default", "web", self::pod("n1", "web", "10.244.1.5")),
        pod("default", "client", self::pod("n2", "client", "10.244.2.5")),
        pod("other", "free", self::pod("n1", "web", "10.244.1.6")),
    ];
    control.apply(Batch { changes, synced: true, policies_synced: true });
    control
}

fn shown(control: &Control, name: &str) -> Result<PolicyDetail> {
    let name = object_name(name);
    let facts = PolicyFacts::of(control.policies().policies(), &name);
    found(&name.to_string(), facts.map(PolicyFacts::detail))
}

fn pod_shown(control: &Control, name: &str) -> Result<PodPolicies> {
    let name = object_name(name);
    explained(&name, PodFacts::of(control.policies().policies(), &name).answer())
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

#[test]
fn all_policies_are_listed() {
    let control = control();
    let policies = control.policies().policies();
    let denied = DeniedPackets { ingress: 3, egress: 4 };
    let summary = |(name, policy)| PolicySummary::of(policies, name, policy, denied);
    let list = PolicyList(policies.all().map(summary).collect());
    let expected = "\
NAMESPACE  NAME  TIER  DIRECTIONS       SUBJECTS  PEERS  DENIED  PROBLEMS
default    away  -     egress                  0      0       7         0
default    deny  -     ingress, egress         1      0       7        20
default    web   -     ingress                 1      3       7         1
";
    assert_eq!(list.text(), expected);
    let web = json!({
        "namespace": "default", "name": "web", "ingress": true, "egress": false, "subjects": 1, "peers": 3,
        "denied": {"ingress": 3, "egress": 4}, "problems": 1,
    });
    assert_eq!(json(&list)[2], web);
}

#[test]
fn a_policy_is_shown_with_rules_subjects_and_problems() {
    let control = control();
    let web = shown(&control, "web").unwrap();
    let expected = "\
policy     default/web
pods       app=web
isolates   ingress
subject    default/web
peers      selectors find 3 pods on all nodes
problem    spec.ingress[1]: unknown field `fromm`

";
    let text = web.text().to_string();
    let (head, rows) = text.split_once("DIRECTION  ACTION").unwrap();
    assert_eq!(head, expected);
    let rows: Vec<Vec<&str>> = rows
        .lines()
        .skip(1)
        .map(|row| row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let peers = "pods app=client; all pods of all namespaces; pods app=client of namespaces env=prod; \
                 192.0.2.0/24 except 192.0.2.8/29, 192.0.2.1/32; 2001:db8::/32";
    let ports = "TCP 80, UDP 5000-5010, TCP https, SCTP";
    assert_eq!(rows, [["ingress", "Accept", peers, ports], ["ingress", "Accept", "(none)", "(none)"]]);

    let value = json(&web);
    assert_eq!(value["egress"], Value::Null);
    assert_eq!(value["subjects"], json!(["default/web"]));
    let rule = &value["ingress"][0];
    assert_eq!(rule["peers"][0], json!({"pods": {"namespaces": null, "pods": "app=client"}}));
    assert_eq!(rule["peers"][4], json!({"block": {"cidr": "2001:db8::/32", "except": []}}));
    assert_eq!(rule["ports"][1], json!({"protocol": "UDP", "first": 5000, "last": 5010, "name": null}));
    assert_eq!(serde_json::from_value::<PolicyDetail>(value).unwrap(), web);

    let expected = "\
policy     default/away
pods       app=none
isolates   egress
subject    none on this node
peers      selectors find 0 pods on all nodes

DIRECTION  ACTION  PEERS   PORTS
egress     Accept  (none)  (none)
";
    assert_eq!(shown(&control, "default/away").unwrap().text(), expected);
    let error = shown(&control, "other/web").unwrap_err().to_string();
    assert_eq!(error, "the daemon knows no policy other/web; see `podnet policy list`");
}

#[test]
fn a_pod_is_explained_by_its_policies() {
    let mut control = control();
    let web = pod_shown(&control, "web").unwrap();
    let text = web.text().to_string();
    let expected = "\
pod        default/web
node       this
ingress    isolated by default/deny, default/web
egress     isolated by default/deny
problem    default/deny has 20 invalid elements: see `podnet policy show default/deny`
problem    default/web has 1 invalid element: see `podnet policy show default/web`
";
    assert!(text.starts_with(expected), "{text}");
    let rows: Vec<_> = text.lines().skip(8).collect();
    let starts = [
        "ingress    default/deny  Accept  (none) ",
        "ingress    default/web ",
        "ingress    default/web ",
        "egress     default/deny",
    ];
    assert!(rows.len() == 4 && rows.iter().zip(starts).all(|(row, start)| row.starts_with(start)), "{text}");
    assert!(rows[3].contains("all addresses") && rows[3].ends_with(" all"), "{text}");
    let value = json(&web);
    assert_eq!(
        (&value["local"], &value["ingress"]["policies"]),
        (&json!(true), &json!(["default/deny", "default/web"]))
    );
    assert_eq!(value["egress"]["rules"], json!([{"policy": "default/deny", "peers": null, "ports": null}]));
    assert_eq!(
        value["problems"],
        json!([{"policy": "default/deny", "count": 20}, {"policy": "default/web", "count": 1}])
    );
    assert_eq!(serde_json::from_value::<PodPolicies>(value).unwrap(), web);

    let expected = "\
pod        other/free
node       this
ingress    not isolated
egress     not isolated
policies   none applies to it
";
    assert_eq!(pod_shown(&control, "other/free").unwrap().text(), expected);
    let client = pod_shown(&control, "client").unwrap();
    assert!(
        client
            .text()
            .contains("node       other: its policies are enforced there\ningress    isolated by default/deny\n")
    );

    let error = pod_shown(&control, "none").unwrap_err().to_string();
    assert!(error.starts_with("the daemon does not know the pod default/none: check its name with"), "{error}");
    let gone = |name: &str| Change::new(ObjectKey::new(Kind::NetworkPolicy, "default", name), None);
    control.apply(Batch { changes: ["web", "deny", "away"].map(gone).into(), synced: true, policies_synced: true });
    let error = pod_shown(&control, "none").unwrap_err().to_string();
    assert!(error.contains("the cluster has no network policies, so no pod is isolated"), "{error}");
}

#[test]
fn without_the_daemon_nothing_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let error = run(directory.path(), PolicyVerb::List, Format::Json).unwrap_err().to_string();
    assert!(error.starts_with("no daemon answers at "), "{error}");
    assert!(
        error.ends_with(": network policies are known to the daemon only; start it, or check --run-dir"),
        "{error}"
    );
}
