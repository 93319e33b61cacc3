use super::super::tests::parse;
use super::*;
use crate::model::{Invalid, LabelCondition, Object, Requirement};

fn parsed(spec: &str) -> Result<ClusterNetworkPolicy, Invalid> {
    let kind = "apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy";
    let (key, object) = parse(&format!("{{{kind}, metadata: {{name: cnp, uid: u}}, spec: {spec}}}"))?;
    assert_eq!(key.to_string(), "ClusterNetworkPolicy cnp");
    let Object::ClusterNetworkPolicy(policy) = object else { panic!() };
    Ok(ClusterNetworkPolicy::clone(&policy))
}

/// A policy of all pods with these rules.
fn policy(rules: &str) -> ClusterNetworkPolicy {
    parsed(&format!("{{tier: Admin, priority: 10, subject: {{namespaces: {{}}}}, {rules}}}")).unwrap()
}

fn with(key: &str, value: &str) -> Selector {
    Selector(vec![Requirement { key: key.into(), condition: LabelCondition::In(vec![value.into()]) }])
}

#[test]
fn a_policy_with_everything() {
    let subject = "{pods: {namespaceSelector: {matchLabels: {env: prod}}, podSelector: {matchLabels: {app: web}}}}";
    let ingress = "[{name: one, action: Accept, from: [{namespaces: {matchLabels: {env: a}}}, \
                   {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: b}}}}], \
                   protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}, \
                   {destinationNamedPort: http}]}]";
    let egress = "[{action: Pass, to: [{nodes: {matchLabels: {zone: a}}}, {networks: [10.0.0.0/8, 'fd00::/8']}]}]";
    let spec = format!("{{tier: Baseline, priority: 1000, subject: {subject}, ingress: {ingress}, egress: {egress}}}");
    let policy = parsed(&spec).unwrap();
    assert!(policy.left_out.is_empty(), "{:?}", policy.left_out);
    assert_eq!((&*policy.uid, policy.tier, policy.priority), ("u", Tier::Baseline, 1000));
    assert_eq!((&policy.namespaces, &policy.pods), (&with("env", "prod"), &with("app", "web")));
    let port = |protocol, ports| PolicyPort { protocol, ports };
    let named = |protocol| port(protocol, PortMatch::Name("http".into()));
    let matches = PolicyRule {
        peers: Some(vec![
            PolicyPeer::Pods { namespaces: Some(with("env", "a")), pods: Selector::default() },
            PolicyPeer::Pods { namespaces: Some(Selector::default()), pods: with("app", "b") },
        ]),
        ports: Some(vec![
            port(Protocol::Tcp, PortMatch::Range(80, 80)),
            port(Protocol::Udp, PortMatch::Range(1, 9)),
            named(Protocol::Tcp),
            named(Protocol::Udp),
            named(Protocol::Sctp),
        ]),
    };
    assert_eq!(policy.ingress, [ClusterRule { name: "one".into(), action: Action::Accept, matches }]);
    let block = |cidr: &str| PolicyPeer::Block { cidr: cidr.parse().unwrap(), except: Vec::new() };
    let peers = vec![PolicyPeer::Nodes(with("zone", "a")), block("10.0.0.0/8"), block("fd00::/8")];
    let matches = PolicyRule { peers: Some(peers), ports: None };
    assert_eq!(policy.egress, [ClusterRule { name: "".into(), action: Action::Pass, matches }]);
}

#[test]
fn without_tier_priority_or_subject_a_policy_is_invalid() {
    let subject = "subject: {namespaces: {}}";
    for (spec, field) in [
        (format!("{{priority: 1, {subject}}}"), "spec.tier"),
        (format!("{{tier: Middle, priority: 1, {subject}}}"), "spec.tier"),
        (format!("{{tier: Admin, {subject}}}"), "spec.priority"),
        (format!("{{tier: Admin, priority: 1001, {subject}}}"), "spec.priority"),
        (format!("{{tier: Admin, priority: -1, {subject}}}"), "spec.priority"),
        ("{tier: Admin, priority: 1}".into(), "spec.subject"),
        ("{tier: Admin, priority: 1, subject: {}}".into(), "spec.subject"),
        ("{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {}}}".into(), "spec.subject"),
        ("{tier: Admin, priority: 1, subject: {services: {}}}".into(), "spec.subject.services"),
        (
            "{tier: Admin, priority: 1, subject: {pods: {podSelector: {}}}}".into(),
            "spec.subject.pods.namespaceSelector",
        ),
        (format!("{{tier: Admin, priority: 1, {subject}, ingress: {{}}}}"), "spec.ingress"),
    ] {
        assert_eq!(parsed(&spec).unwrap_err().field, field, "{spec}");
    }
}

/// As `ClusterNetworkPolicyIngressPeer` of the API demands.
#[test]
fn rules_that_cannot_be_understood_fail_closed() {
    let denies_all =
        |name: &str| ClusterRule { name: name.into(), action: Action::Deny, matches: PolicyRule::default() };
    for rest in [
        "to: []",
        "to: [{}]",
        "to: [{namespaces: {}, nodes: {}}]",
        "to: [{domainNames: [example.com]}]",
        "to: [{networks: [x]}]",
        "to: [{networks: []}]",
        "to: [{fridays: true}]",
        "to: [{pods: {podSelector: {}}}]",
        "to: [{namespaces: {matchLabels: 7}}]",
        "to: [{nodes: {}}], fridays: true",
        "to: [{nodes: {}}], protocols: [{}]",
        "to: [{nodes: {}}], protocols: [{tcp: {}}]",
        "to: [{nodes: {}}], protocols: [{icmp: {}}]",
        "to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {}}}]",
        "to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]",
        "to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 1}}}}]",
        "to: [{nodes: {}}], protocols: [{destinationNamedPort: '-'}]",
    ] {
        let policy = policy(&format!("egress: [{{action: Accept, {rest}}}, {{name: x, action: Pass, {rest}}}]"));
        assert_eq!(policy.egress, [denies_all("x")], "{rest}");
        assert_eq!(policy.left_out.count(), 2, "{rest}: {:?}", policy.left_out);
    }
    let policy = policy("ingress: [{name: x, action: Allow, from: [{namespaces: {}}]}]");
    assert_eq!((policy.ingress, policy.left_out.count()), (vec![denies_all("x")], 1));
    // Nodes send nothing that ingress rules could name.
    let policy = self::policy("ingress: [{action: Accept, from: [{nodes: {}}]}], podSelector: {}");
    assert_eq!((policy.ingress, policy.left_out.count()), (vec![], 2));
    let other = self::policy("fridays: true, ingress: [{action: Accept, from: [{namespaces: {}}]}]");
    assert!(other.ingress.is_empty() && other.left_out.count() == 1);
}
