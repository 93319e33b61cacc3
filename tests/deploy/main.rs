//! The manifests in `deploy/` match the schemas of Kubernetes and podnet: no key is misspelt or misplaced.

use std::fs;
use std::path::Path;

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use podnet::config::Config;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// YAML documents of a file.
fn documents(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The object as its type, which drops fields unknown to the API.
fn typed<T: Serialize + DeserializeOwned>(object: &Value) -> T {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error} in {object:#}"));
    assert_eq!(serde_json::to_value(&typed).unwrap(), *object, "a key is unknown or in the wrong place");
    typed
}

fn check(object: &Value) {
    match (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default()) {
        ("v1", "ServiceAccount") => drop(typed::<ServiceAccount>(object)),
        ("v1", "ConfigMap") => drop(typed::<ConfigMap>(object)),
        ("apps/v1", "DaemonSet") => drop(typed::<DaemonSet>(object)),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => drop(typed::<ClusterRole>(object)),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => drop(typed::<ClusterRoleBinding>(object)),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            drop(typed::<ValidatingAdmissionPolicy>(object));
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            drop(typed::<ValidatingAdmissionPolicyBinding>(object));
        }
        // A type of the Prometheus Operator; the tests of the metrics check its rules.
        ("monitoring.coreos.com/v1", "PrometheusRule") => {}
        // kind's configuration format, which is not part of the API.
        ("kind.x-k8s.io/v1alpha4", "Cluster") => {}
        (version, kind) => panic!("{version} {kind} isn't checked by this test: add it"),
    }
}

#[test]
fn documents_name_the_oldest_supported_kernel() {
    let floor = format!("Linux {} or later", podnet_common::OLDEST_KERNEL);
    for file in ["README.md", "docs/configuration.md", "docs/kubernetes.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(&floor), "{file} doesn't say {floor:?}");
    }
}

#[test]
fn every_object_matches_the_api() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: Vec<_> = names.filter(|name| name.ends_with(".yaml")).collect();
    assert!(files.iter().any(|name| name == "podnet.yaml"), "{files:?}");
    for file in files {
        let objects = documents(&file);
        assert!(!objects.is_empty(), "{file} is empty");
        objects.iter().for_each(check);
    }
}

/// Container runtimes that predate a capability (Docker 20.10 and kind nodes in it: BPF, PERFMON and
/// CHECKPOINT_RESTORE) refuse containers that request it.
#[test]
fn daemon_set_requests_only_capabilities_known_to_all_runtimes() {
    let objects = documents("podnet.yaml");
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let pod = &set["spec"]["template"]["spec"];
    let containers =
        ["containers", "initContainers"].iter().flat_map(|list| pod[*list].as_array().into_iter().flatten());
    let asked: Vec<_> = containers
        .flat_map(|container| container["securityContext"]["capabilities"]["add"].as_array().into_iter().flatten())
        .map(|capability| capability.as_str().unwrap())
        .collect();
    for new in ["BPF", "PERFMON", "CHECKPOINT_RESTORE"] {
        assert!(!asked.contains(&new), "{asked:?}");
    }
    assert!(["NET_ADMIN", "SYS_ADMIN"].iter().all(|needed| asked.contains(needed)), "{asked:?}");
}

#[test]
#[should_panic(expected = "unknown or in the wrong place")]
fn unknown_fields_are_detected() {
    let mut objects = documents("podnet.yaml");
    let set = objects.iter_mut().find(|object| object["kind"] == "DaemonSet").unwrap();
    set["spec"]["template"]["spec"]["hostNetwrok"] = true.into();
    check(set);
}

/// The only object of a kind in `podnet.yaml`.
fn object<T: Serialize + DeserializeOwned>(kind: &str) -> T {
    let objects = documents("podnet.yaml");
    let mut of_kind = objects.iter().filter(|object| object["kind"] == kind);
    let found = typed(of_kind.next().unwrap_or_else(|| panic!("there is no {kind}")));
    assert!(of_kind.next().is_none(), "there is a second {kind}");
    found
}

#[test]
fn daemon_has_only_the_rights_it_needs() {
    let rules = object::<ClusterRole>("ClusterRole").rules.unwrap();
    let shown = rules.iter().map(|rule| {
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default().join(",");
        assert!(rule.non_resource_urls.is_none());
        let only = rule.resource_names.iter().map(|names| format!(" {}", names.join(","))).collect::<String>();
        format!("{}/{}{only}: {}", list(&rule.api_groups), list(&rule.resources), rule.verbs.join(","))
    });
    assert_eq!(
        shown.collect::<Vec<_>>(),
        [
            "/services,nodes,namespaces: list,watch",
            "/pods: list,watch",
            "discovery.k8s.io/endpointslices: list,watch",
            "networking.k8s.io/servicecidrs: list,watch",
            "networking.k8s.io/networkpolicies: list,watch",
            "policy.networking.k8s.io/clusternetworkpolicies: list,watch",
            "apiextensions.k8s.io/customresourcedefinitions clusternetworkpolicies.policy.networking.k8s.io: list,watch",
            "/nodes/status: patch",
            "events.k8s.io/events: create",
        ]
    );
}

/// The policy applies to the pods' account, and to all writes to Nodes that its role permits.
#[test]
fn daemon_may_write_its_own_node_only() {
    let account = object::<ServiceAccount>("ServiceAccount").metadata;
    let pods = object::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap();
    assert_eq!(pods.service_account_name, account.name);
    let policy = object::<ValidatingAdmissionPolicy>("ValidatingAdmissionPolicy");
    let spec = policy.spec.unwrap();
    let user = format!("system:serviceaccount:{}:{}", account.namespace.unwrap(), account.name.unwrap());
    let conditions = spec.match_conditions.unwrap();
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0].expression, format!("request.userInfo.username == '{user}'"));
    assert_eq!(spec.failure_policy.as_deref(), Some("Fail"));
    let rules = spec.match_constraints.unwrap().resource_rules.unwrap();
    assert!(rules[0].resources.iter().flatten().any(|resource| resource == "nodes/status"), "{rules:?}");
    let validations = spec.validations.unwrap();
    let expressions: Vec<_> = validations.iter().map(|validation| validation.expression.as_str()).collect();
    assert!(expressions[0].ends_with("extra['authentication.kubernetes.io/node-name'] == [object.metadata.name]"));
    assert!(expressions[1].contains("object.status.?addresses == oldObject.status.?addresses"));
    for expression in expressions {
        let pairs = [('(', ')'), ('[', ']')]
            .map(|(open, close)| expression.matches(open).count() == expression.matches(close).count());
        assert!(pairs.iter().all(|balanced| *balanced) && expression.matches('\'').count() % 2 == 0, "{expression}");
    }
    let binding = object::<ValidatingAdmissionPolicyBinding>("ValidatingAdmissionPolicyBinding").spec.unwrap();
    assert_eq!(binding.policy_name, policy.metadata.name);
    assert_eq!(binding.validation_actions, Some(vec!["Deny".to_owned()]));
}

/// The configuration with every optional key enabled, given as `# key: value`.
fn with_all_keys(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let key = line.trim_start().strip_prefix("# ").and_then(|rest| rest.split_once(": "));
        let wanted = key.is_some_and(|(key, _)| key.chars().all(char::is_alphanumeric));
        if wanted { line.replacen("# ", "", 1) } else { line.to_owned() }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn configuration_is_valid_and_shows_the_defaults() {
    let objects = documents("podnet.yaml");
    let map = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    let text = map["data"]["podnet.yaml"].as_str().unwrap();
    let parse = |text: &str| {
        let config = Config::parse(&format!("node: node1\n{text}"));
        config.unwrap_or_else(|error| panic!("{error} in\n{text}"))
    };
    let config = parse(text);
    let mut all = parse(&with_all_keys(text));
    // These two have no default.
    let server = all.kubernetes.as_mut().and_then(|kubernetes| kubernetes.server.take());
    assert!(server.is_some() && all.service_cidrs.take().is_some(), "{}", with_all_keys(text));
    assert_eq!(all, config);
}
