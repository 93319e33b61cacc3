//! Network policies: isolation, an allowed client, the reason of drops, egress to a block, and what it costs.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cluster::{Cluster, SERVER_PORT};
use super::throughput;
use crate::lab::{Pod, manifest};
use crate::traffic::{Outcome, Transport};

/// A policy without ingress rules for all pods: only their nodes reach them.
pub(super) fn deny(cluster: &Cluster) -> Result<String> {
    apply(cluster, &[default_deny()])?;
    let web = cluster.pod("web-0")?;
    for client in ["client-1", "client-2"] {
        is_denied(cluster.pod(client)?, web)?;
    }
    for (family, transport) in Transport::over_all() {
        cluster.lab.node(0).place.reaches(transport, web.addr(family, SERVER_PORT), &[web.name()])?;
    }
    Ok("no pod reaches web-0, its node does".to_owned())
}

/// One more policy allows one client.
pub(super) fn allow(cluster: &Cluster) -> Result<String> {
    let ports = json!([{"protocol": "TCP", "port": SERVER_PORT}, {"protocol": "UDP", "port": SERVER_PORT}]);
    let ingress = json!([{"from": [{"podSelector": app("client-1")}], "ports": ports}]);
    let spec = json!({"podSelector": app("web-0"), "ingress": ingress});
    apply(cluster, &[default_deny(), policy("allow-client-1", &spec)])?;
    let web = cluster.pod("web-0")?;
    reaches(cluster.pod("client-1")?, web)?;
    is_denied(cluster.pod("client-2")?, web)?;
    Ok("client-1 reaches web-0, client-2 on the other node does not".to_owned())
}

/// Drops are counted by reason, and each is reported with the policies.
pub(super) fn reason(cluster: &Cluster) -> Result<String> {
    let node = cluster.lab.node(0);
    let denied = || is_denied(cluster.pod("client-2")?, cluster.pod("web-0")?);
    let drop = node.first_drop("policy_ingress", denied)?;
    let policies: Vec<_> = drop["policies"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    ensure!(policies == ["default/allow-client-1", "default/default-deny"], "{drop}");
    let drops = node.podnet_json(&["drops"])?;
    let row = drops.as_array().into_iter().flatten().find(|row| row["reason"] == "policy_ingress");
    let packets = row.and_then(|row| row["packets"].as_u64()).context("no such reason")?;
    Ok(format!("policy_ingress on node1, {packets} packets, by {}", policies.join(", ")))
}

/// A client may send to the addresses of one pod only, given as a block.
pub(super) fn egress(cluster: &Cluster) -> Result<String> {
    let (client, web) = (cluster.pod("client-1")?, cluster.pod("web-1")?);
    let block =
        |ip: &std::net::IpAddr| json!({"ipBlock": {"cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}});
    let to: Vec<_> = web.ips.iter().map(block).collect();
    let spec = json!({"podSelector": app("client-1"), "policyTypes": ["Egress"], "egress": [{"to": to}]});
    apply(cluster, &[policy("client-1-to-web-1", &spec)])?;
    reaches(client, web)?;
    is_denied(client, cluster.pod("web-2")?)?;
    Ok("client-1 reaches web-1, but not web-2 on its own node".to_owned())
}

/// Throughput of one stream to a pod with a policy, relative to one without.
pub(super) fn cost(cluster: &Cluster) -> Result<String> {
    let spec = json!({"podSelector": app("web-0"), "ingress": [{"from": [{"podSelector": app("client-2")}]}]});
    let ratio = throughput::compare(cluster, |with| {
        if with { apply(cluster, &[policy("allow-client-2", &spec)]) } else { apply(cluster, &[]) }
    })?;
    Ok(format!("{ratio:.2} of the throughput without a policy"))
}

/// Removes all policies.
pub(super) fn clear(cluster: &Cluster) -> Result<()> {
    apply(cluster, &[])
}

/// Applies the Pods, each with its name as the label `app`, and policies.
fn apply(cluster: &Cluster, policies: &[Value]) -> Result<()> {
    let pod = |pod: &Pod| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod.name(), "namespace": "default", "labels": {"app": pod.name()}},
            "spec": {"nodeName": pod.node().name()},
            "status": {"phase": "Running", "podIPs": pod.ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()},
        })
    };
    let pods: Vec<_> = cluster.pods.values().map(pod).collect();
    cluster.lab.apply("pods", &manifest::yaml(&pods))?;
    cluster.lab.apply("network-policies", &manifest::yaml(policies))
}

fn default_deny() -> Value {
    policy("default-deny", &json!({"podSelector": {}, "policyTypes": ["Ingress"]}))
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    })
}

/// Selects a pod.
fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

fn reaches(from: &Pod, to: &Pod) -> Result<()> {
    for (family, transport) in Transport::over_all() {
        from.place.reaches(transport, to.addr(family, SERVER_PORT), &[to.name()])?;
    }
    Ok(())
}

fn is_denied(from: &Pod, to: &Pod) -> Result<()> {
    for (family, transport) in Transport::over_all() {
        from.place.expect(transport, to.addr(family, SERVER_PORT), &Outcome::Silence)?;
    }
    Ok(())
}
