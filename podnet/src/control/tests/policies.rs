//! Network policies from manifests.

use super::*;

const POLICY: &str = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np, namespace: x, uid: \
                      u}, spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {hosts: [a]}]}}\n";

fn pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: x}}, spec: {{nodeName: {node}}}, status: \
         {{phase: Running, podIP: {ip}}}}}\n"
    )
}

#[test]
fn policies_are_compiled_and_what_is_not_understood_is_named() {
    let mut bench = Bench::new();
    bench.write("policy.yaml", POLICY);
    bench.write("pods.yaml", &(pod("a", "n1", "10.244.1.2") + &pod("b", "n2", "10.244.2.2")));
    bench.write("namespace.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: x}}");
    assert!(bench.round().0.policies);
    let desired = bench.control.policies().policies().desired();
    assert_eq!((desired.subjects.len(), desired.peers.len(), desired.rules.len()), (1, 2, 1));
    let problems: Vec<_> = bench.control.status().problems.iter().map(ToString::to_string).collect();
    let named = "NetworkPolicy x/np: spec.ingress[1].hosts: is unknown to podnet: this rule allows nothing";
    assert_eq!(problems, [named]);
    assert_eq!(bench.control.complaint().map(|complaint| complaint.uid), Some("u".into()));
    assert!(!bench.round().0.policies);
    bench.write("policy.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: y}}");
    assert!(bench.round().0.policies);
    assert!(bench.control.policies().policies().is_empty() && bench.control.status().problems.is_empty());
}

#[test]
fn a_denial_at_a_service_is_that_of_its_backends_here() {
    let mut bench = Bench::new();
    bench.write("policy.yaml", POLICY);
    bench.write("pods.yaml", &(pod("a", "n1", "10.244.1.2") + &pod("b", "n2", "10.244.2.2")));
    bench.write("service.yaml", &(service("dns", "10.96.0.10") + &slice("dns", &["10.244.1.2", "10.244.2.2"])));
    bench.write("far.yaml", &(service("far", "10.96.0.11") + &slice("far", &["10.244.2.2"])));
    bench.round();
    let denying = |destination: &str| {
        let (source, destination) = ("192.0.2.1".parse().unwrap(), destination.parse().unwrap());
        let protocol = podnet_common::addr::Proto::UDP;
        let denial = Denial { egress: false, source, destination, protocol, port: Some(53) };
        bench.control.denying(&denial).iter().map(ObjectName::to_string).collect::<Vec<_>>()
    };
    let np = ["x/np".to_owned()];
    assert_eq!((denying("10.244.1.2"), denying("10.96.0.10")), (np.to_vec(), np.to_vec()));
    assert_eq!((denying("10.96.0.11"), denying("10.96.0.12")), (Vec::new(), Vec::new()));
}
