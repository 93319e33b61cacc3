//! What it costs a node to know all Pods of the large cluster, which it watches while there is a network policy.

use std::{
    net::{IpAddr, Ipv4Addr},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    cluster::{self, ENDPOINTS, NODES},
    subject::Subject,
};

/// Number of Pods: half of those that the Services have as endpoints.
pub const PODS: usize = ENDPOINTS / 2;
const NAMESPACE: &str = "production";
/// Number of apps to which the Pods belong in turn.
const APPS: usize = 50;
/// Address of the Pod of this node.
const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 9);
/// Number of updates of Pods, and the interval between them.
const UPDATES: (usize, Duration) = (2_000, Duration::from_millis(2));

/// What the daemon spends.
pub struct Cost {
    /// From the first policy's arrival at the API server until all Pods that it selects are in the tables, in seconds.
    pub read: f64,
    /// CPU time in seconds until everything is read.
    pub read_cpu: f64,
    /// Additional memory in MiB, at rest.
    pub memory: f64,
    /// Maximum of the daemon's memory since its start, in MiB.
    pub peak: f64,
    /// CPU time in milliseconds for an update of a Pod's status that changes nothing for podnet.
    pub update_cpu: f64,
}

/// Creates the Pods and then a policy; removes them in the end. `look`: how often to look whether everything is read;
/// `rest`: after which time the daemon has nothing more to do.
pub fn cost(subject: &Subject, look: Duration, rest: Duration) -> Result<Cost> {
    let api = subject.api();
    api.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}));
    api.apply(local(subject.node_name()));
    (0..PODS).for_each(|number| api.apply(pod(number, 0)));
    let tables = subject.policy_tables()?;
    let selected = (0..PODS).filter(|number| number % APPS == 1).map(cluster::address_of);
    let selected: Vec<IpAddr> = selected.collect();
    let all_known = || -> Result<bool> {
        let mut known = true;
        for ip in &selected {
            known = known && tables.peer(*ip)?.is_some();
        }
        Ok(known)
    };
    thread::sleep(rest);
    api.bookmark();
    let resident = subject.memory_mib("VmRSS:")?;
    let (start, before) = (Instant::now(), subject.cpu()?);
    api.apply(policy());
    subject.wait("all Pods are known", look, all_known)?;
    let read = start.elapsed().as_secs_f64();
    thread::sleep(rest);
    let read_cpu = (subject.cpu()? - before).as_secs_f64();
    let memory = subject.memory_mib("VmRSS:")? - resident;
    let peak = subject.memory_mib("VmHWM:")?;
    let before = subject.cpu()?;
    let (updates, interval) = UPDATES;
    for number in 0..updates {
        api.apply(pod(number, 1));
        thread::sleep(interval);
    }
    let last = &selected[0];
    api.delete(&pod(1, 1));
    subject.wait("the last change is known", look, || Ok(tables.peer(*last)?.is_none()))?;
    let update_cpu = (subject.cpu()? - before).as_secs_f64() * 1e3 / updates as f64;
    api.delete(&policy());
    subject.wait("the policy has ended", look, || Ok(tables.subject(LOCAL.into())?.is_none()))?;
    (0..PODS).for_each(|number| api.delete(&pod(number, 1)));
    api.delete(&local(subject.node_name()));
    thread::sleep(rest);
    Ok(Cost { read, read_cpu, memory, peak, update_cpu })
}

/// The Pod of this node, which the policy isolates.
fn local(node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "local", "namespace": NAMESPACE, "uid": cluster::uid(8, PODS), "labels": {"app": app(0)}},
        "spec": {"nodeName": node, "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIP": LOCAL, "podIPs": [{"ip": LOCAL}]},
    })
}

fn policy() -> Value {
    let peers = json!([{"podSelector": {"matchLabels": {"app": app(1)}}}]);
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "first", "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": app(0)}}, "ingress": [{"from": peers}]},
    })
}

fn app(number: usize) -> String {
    format!("checkout-{number:02}")
}

/// A Pod of another node as an API server sends it. `restarts`: of its container, in its status.
fn pod(number: usize, restarts: usize) -> Value {
    let (app, ip, node) = (app(number % APPS), cluster::address_of(number), number % NODES);
    let name = format!("{app}-6f7d9c8b54-{number:05x}");
    let time = "2026-11-21T12:00:00Z";
    let image = format!("registry.example.com/shop/{app}:v1.17.3");
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "observedGeneration": 1, "lastProbeTime": null,
            "lastTransitionTime": time})
    };
    let conditions =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    let probe = |path: &str| {
        json!({"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, "initialDelaySeconds": 5,
            "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
    };
    let env = |(name, key): (&str, &str)| json!({"name": name, "valueFrom": {"secretKeyRef": {"name": format!("{app}-credentials"), "key": key}}});
    let env: Vec<Value> = [("DATABASE_URL", "url"), ("DATABASE_USER", "user"), ("DATABASE_PASSWORD", "password")]
        .into_iter()
        .map(env)
        .collect();
    let field = |path: &str| json!({"path": path, "fieldRef": {"apiVersion": "v1", "fieldPath": path}});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "generateName": format!("{app}-6f7d9c8b54-"),
            "namespace": NAMESPACE,
            "generation": 1,
            "uid": cluster::uid(5, number),
            "creationTimestamp": time,
            "labels": {
                "app": app, "app.kubernetes.io/instance": app, "app.kubernetes.io/name": "checkout",
                "app.kubernetes.io/version": "1.17.3", "pod-template-hash": "6f7d9c8b54",
            },
            "annotations": {
                "checksum/config": format!("{number:064x}"), "prometheus.io/port": "9090",
                "prometheus.io/scrape": "true",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-6f7d9c8b54"),
                "uid": cluster::uid(9, number % APPS), "controller": true, "blockOwnerDeletion": true,
            }],
            "managedFields": [
                cluster::managed("kube-controller-manager", &[
                    "f:metadata", "f:annotations", "f:checksum/config", "f:prometheus.io/port", "f:generateName",
                    "f:labels", "f:app", "f:app.kubernetes.io/instance", "f:app.kubernetes.io/name",
                    "f:pod-template-hash", "f:ownerReferences", "k:{\"uid\":\"…\"}", "f:spec", "f:containers",
                    "k:{\"name\":\"main\"}", "f:env", "k:{\"name\":\"DATABASE_URL\"}", "f:image", "f:imagePullPolicy",
                    "f:livenessProbe", "f:failureThreshold", "f:httpGet", "f:path", "f:port", "f:scheme", "f:ports",
                    "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}", "f:readinessProbe", "f:resources", "f:limits",
                    "f:requests", "f:volumeMounts", "f:dnsPolicy", "f:restartPolicy", "f:schedulerName",
                    "f:securityContext", "f:terminationGracePeriodSeconds", "f:volumes",
                ]),
                cluster::managed("kubelet", &[
                    "f:status", "f:conditions", "k:{\"type\":\"ContainersReady\"}", "k:{\"type\":\"Initialized\"}",
                    "k:{\"type\":\"PodReadyToStartContainers\"}", "k:{\"type\":\"Ready\"}", "f:lastProbeTime",
                    "f:lastTransitionTime", "f:containerStatuses", "f:hostIP", "f:hostIPs", "f:phase", "f:podIP",
                    "f:podIPs", "k:{\"ip\":\"…\"}", "f:startTime",
                ]),
            ],
        },
        "spec": {
            "nodeName": cluster::node_name(node),
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "env": env,
                "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
                ],
                "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
                "livenessProbe": probe("/livez"), "readinessProbe": probe("/readyz"),
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": true, "runAsNonRoot": true},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/checkout", "readOnly": true},
                    {"name": "kube-api-access-x7k2p", "readOnly": true,
                        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
                ],
            }],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0, "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}, "serviceAccount": app,
            "serviceAccountName": app, "terminationGracePeriodSeconds": 30,
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 300},
            ],
            "volumes": [
                {"name": "config", "configMap": {"name": app, "defaultMode": 420}},
                {"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [field("metadata.namespace")]}},
                ]}},
            ],
        },
        "status": {
            "phase": "Running", "hostIP": cluster::node_address(node),
            "hostIPs": [{"ip": cluster::node_address(node)}], "observedGeneration": 1, "podIP": ip,
            "podIPs": [{"ip": ip}], "qosClass": "Burstable", "startTime": time,
            "conditions": conditions,
            "containerStatuses": [{
                "name": "main", "image": image, "ready": true, "started": true, "restartCount": restarts,
                "imageID": format!("registry.example.com/shop/checkout@sha256:{:064x}", number % APPS),
                "containerID": format!("containerd://{:064x}", number * 7 + restarts), "lastState": {},
                "state": {"running": {"startedAt": time}},
                "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_as_large_as_real_ones() {
        let bytes = pod(7, 0).to_string().len();
        assert!((5_000..10_000).contains(&bytes), "{bytes} bytes");
    }
}
