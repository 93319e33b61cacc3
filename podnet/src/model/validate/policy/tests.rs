use super::super::tests::parse;
use super::*;
use crate::model::{LabelCondition, Object, Protocol, Requirement, Selector};

fn policy(spec: &str) -> NetworkPolicy {
    let yaml = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: np, uid: u}}, spec: {spec}}}"
    );
    let (key, object) = parse(&yaml).unwrap();
    assert_eq!(key.to_string(), "NetworkPolicy default/np");
    let Object::NetworkPolicy(policy) = object else { panic!() };
    NetworkPolicy::clone(&policy)
}

fn with(key: &str, values: &[&str]) -> Selector {
    let values = values.iter().map(|value| (*value).into()).collect();
    Selector(vec![Requirement { key: key.into(), condition: LabelCondition::In(values) }])
}

#[test]
fn a_policy_with_everything() {
    let policy = policy(
        "{podSelector: {matchLabels: {app: db}, matchExpressions: [{key: tier, operator: NotIn, values: [b, a]}]}, \
         policyTypes: [Ingress, Egress], \
         ingress: [{from: [{ipBlock: {cidr: 172.17.1.1/16, except: [172.17.1.0/24]}}, \
         {namespaceSelector: {matchLabels: {env: prod}}, podSelector: {}}, {podSelector: {matchLabels: {app: web}}}], \
         ports: [{protocol: UDP, port: 53}, {port: 80, endPort: 90}, {port: http}, {protocol: SCTP}]}], egress: [{}]}",
    );
    assert!(policy.left_out.is_empty(), "{:?}", policy.left_out);
    assert_eq!((&*policy.uid, policy.pods.0.len()), ("u", 2));
    let port = |protocol, ports| PolicyPort { protocol, ports };
    let rule = PolicyRule {
        peers: Some(vec![
            PolicyPeer::Block {
                cidr: "172.17.0.0/16".parse().unwrap(),
                except: vec!["172.17.1.0/24".parse().unwrap()],
            },
            PolicyPeer::Pods { namespaces: Some(with("env", &["prod"])), pods: Selector::default() },
            PolicyPeer::Pods { namespaces: None, pods: with("app", &["web"]) },
        ]),
        ports: Some(vec![
            port(Protocol::Udp, PortMatch::Range(53, 53)),
            port(Protocol::Tcp, PortMatch::Range(80, 90)),
            port(Protocol::Tcp, PortMatch::Name("http".into())),
            port(Protocol::Sctp, PortMatch::All),
        ]),
    };
    assert_eq!(policy.ingress, Some(vec![rule]));
    assert_eq!(policy.egress, Some(vec![PolicyRule::default()]));
}

/// pkg/apis/networking/v1, SetDefaults_NetworkPolicy.
#[test]
fn directions() {
    for (spec, ingress, egress) in [
        ("null", true, false),
        ("{podSelector: {}}", true, false),
        ("{egress: []}", true, false),
        ("{egress: [{}]}", true, true),
        ("{policyTypes: [], egress: null}", true, false),
        ("{policyTypes: [Egress]}", false, true),
        ("{policyTypes: [Egress], ingress: [{}]}", false, true),
        ("{policyTypes: [Ingress], egress: [{}]}", true, false),
    ] {
        let policy = policy(spec);
        assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), (ingress, egress), "{spec}");
        assert!(policy.left_out.is_empty(), "{spec}");
    }
    for (rule, peers, ports) in [("{from: null, ports: []}", None, None), ("{ports: null}", None, None)] {
        assert_eq!(
            policy(&format!("{{ingress: [{rule}]}}")).ingress,
            Some(vec![PolicyRule { peers, ports }]),
            "{rule}"
        );
    }
}

#[test]
fn a_rule_that_is_not_understood_allows_nothing() {
    for (rule, field) in [
        ("{from: [], hosts: [x]}", "hosts"),
        ("{to: [{podSelector: {}}]}", "to"),
        ("null", ""),
        ("{from: x}", "from"),
        ("{from: [{}]}", "from[0]"),
        ("{from: [{podSelector: {}}, {serviceAccounts: {}}]}", "from[1].serviceAccounts"),
        ("{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}", "from[0]"),
        ("{from: [{ipBlock: {cidr: 10.0.0.0}}]}", "from[0].ipBlock.cidr"),
        ("{from: [{ipBlock: {}}]}", "from[0].ipBlock.cidr"),
        ("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}", "from[0].ipBlock.except[0]"),
        ("{from: [{ipBlock: {cidr: 10.0.0.0/8, exclude: []}}]}", "from[0].ipBlock.exclude"),
        ("{from: [{podSelector: {matchFields: {}}}]}", "from[0].podSelector.matchFields"),
        ("{from: [{podSelector: {matchLabels: {a: 1}}}]}", "from[0].podSelector.matchLabels.a"),
        (
            "{from: [{podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}]}",
            "from[0].podSelector.matchExpressions[0].operator",
        ),
        (
            "{from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}",
            "from[0].podSelector.matchExpressions[0].values",
        ),
        (
            "{from: [{namespaceSelector: {matchExpressions: [{operator: Exists}]}}]}",
            "from[0].namespaceSelector.matchExpressions[0].key",
        ),
        ("{ports: [{protocol: ICMP}]}", "ports[0].protocol"),
        ("{ports: [{port: 80}, {port: 70000}]}", "ports[1].port"),
        ("{ports: [{port: 0}]}", "ports[0].port"),
        ("{ports: [{port: '80'}]}", "ports[0].port"),
        ("{ports: [{port: 80, endPort: 79}]}", "ports[0].endPort"),
        ("{ports: [{port: http, endPort: 79}]}", "ports[0].endPort"),
        ("{ports: [{endPort: 79}]}", "ports[0].endPort"),
        ("{ports: [{port: 80, range: 9}]}", "ports[0].range"),
    ] {
        let policy = policy(&format!("{{ingress: [{rule}, {{ports: [{{port: 1}}]}}]}}"));
        assert_eq!(policy.ingress.as_ref().map(Vec::len), Some(1), "the other rule stays: {rule}");
        let named: Vec<_> = policy.left_out.lines().collect();
        let start = format!("spec.ingress[0]{}{field}: ", if field.is_empty() { "" } else { "." });
        assert!(named.len() == 1 && named[0].starts_with(&start), "{rule}: {named:?}");
        assert!(named[0].ends_with(": this rule allows nothing"), "{named:?}");
    }
}

#[test]
fn what_is_not_understood_of_the_policy_itself_isolates() {
    let allowing = "ingress: [{}], egress: [{}]";
    for (spec, pods, ingress, egress, named) in [
        ("priority: 1", 0, Some(0), Some(0), "spec.priority: "),
        ("priority: 1, policyTypes: [Egress]", 0, None, Some(0), "spec.priority: "),
        (
            "podSelector: {matchExpressions: [{key: a, operator: Gt}, {key: b, operator: Exists}]}",
            1,
            Some(0),
            Some(0),
            "spec.podSelector.matchExpressions[0].operator: ",
        ),
        ("podSelector: [], policyTypes: [Ingress]", 0, Some(0), None, "spec.podSelector: "),
        ("policyTypes: [ingress]", 0, Some(1), Some(1), "spec.policyTypes[0]: "),
        ("policyTypes: Ingress", 0, Some(1), Some(1), "spec.policyTypes: "),
    ] {
        let policy = policy(&format!("{{{spec}, {allowing}}}"));
        assert_eq!(policy.pods.0.len(), pods, "{spec}");
        let rules = |rules: &Option<Vec<_>>| rules.as_ref().map(Vec::len);
        assert_eq!((rules(&policy.ingress), rules(&policy.egress)), (ingress, egress), "{spec}");
        let lines: Vec<_> = policy.left_out.lines().collect();
        assert!(lines.len() == 1 && lines[0].starts_with(named), "{spec}: {lines:?}");
    }
    let policy = policy("{ingress: {}, egress: 5}");
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
    assert_eq!(policy.left_out.lines().count(), 2);
}
