//! Network policies in the large cluster: 1,000 of them, and 10,000 pods in 200 namespaces, 30 of them on this node.

use std::{
    net::{IpAddr, Ipv4Addr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::subject::Subject;
use crate::bench::stats::percentile;

const NAMESPACES: usize = 200;
const POLICIES_EACH: usize = 5;
const PODS_EACH: usize = 50;
/// Pods of this node, each in another namespace.
const LOCAL: usize = 30;
const ELSEWHERE: &str = "another-node";

/// 99th percentiles in milliseconds, from the moment when the API server has a change until the tables reflect it.
pub struct Lags {
    /// A policy for a pod of this node is created, changed or deleted.
    pub policy: f64,
    /// A pod of another node, which such policies select, starts or ends.
    pub peer: f64,
    /// A pod of this node starts, gets another label, or ends.
    pub local: f64,
}

/// Fills the cluster, and times changes one after the other, with pauses of `gently`; `look`: how often to look for the
/// effect of each. A round changes as many namespaces as have a pod on this node.
pub fn lags(subject: &Subject, rounds: usize, look: Duration, gently: Duration) -> Result<Lags> {
    let (api, here) = (subject.api(), subject.node_name());
    // Those with pods of this node come last, so that their peers show when the daemon has read everything.
    for i in (0..NAMESPACES).rev() {
        api.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(i)}}));
        for j in 0..PODS_EACH {
            let local = j == 0 && i < LOCAL;
            let (node, ip) =
                if local { (here, local_ip(i)) } else { (ELSEWHERE, Ipv4Addr::new(10, 200, i as u8, j as u8)) };
            api.apply(pod(i, &format!("pod-{j}"), node, j % POLICIES_EACH, ip));
        }
        for j in 0..POLICIES_EACH {
            api.apply(policy(i, &format!("policy-{j}"), j, (j + 1) % POLICIES_EACH));
        }
    }
    let tables = subject.policy_tables()?;
    for i in 0..LOCAL {
        subject
            .wait("the pods of this node are isolated", gently, || Ok(tables.subject(local_ip(i).into())?.is_some()))?;
    }
    let last = Ipv4Addr::new(10, 200, 0, (PODS_EACH - POLICIES_EACH + 1) as u8);
    subject.wait("the last peer is known", gently, || Ok(tables.peer(last.into())?.is_some()))?;

    let timed = |change: &dyn Fn(), what: &str, done: &dyn Fn() -> Result<bool>| -> Result<Duration> {
        thread::sleep(gently);
        ensure!(!done()?, "{what} before its cause");
        let start = Instant::now();
        change();
        subject.wait(what, look, done)?;
        Ok(start.elapsed())
    };
    let (mut policies, mut peers, mut locals) = (Vec::new(), Vec::new(), Vec::new());
    for i in (0..rounds).flat_map(|_| 0..LOCAL) {
        let ip = IpAddr::from(local_ip(i));
        for peer in [Some(2), Some(3), None] {
            let before = tables.subject(ip)?;
            let change = || match peer {
                Some(peer) => api.apply(policy(i, "new", 0, peer)),
                None => api.delete(&policy(i, "new", 0, 0)),
            };
            policies.push(timed(&change, "a changed policy has taken effect", &|| Ok(tables.subject(ip)? != before))?);
        }
        // The policies for the pod of this node select the app 1.
        let far = Ipv4Addr::new(10, 201, 0, i as u8);
        for starts in [true, false] {
            let object = pod(i, "far", ELSEWHERE, 1, far);
            let change = || if starts { api.apply(object.clone()) } else { api.delete(&object) };
            peers.push(timed(&change, "a peer is known", &|| Ok(tables.peer(far.into())?.is_some() == starts))?);
        }
        let own = Ipv4Addr::new(10, 244, 1, 100 + i as u8);
        for app in [Some(3), Some(4), None] {
            let before = tables.subject(own.into())?;
            let change = || match app {
                Some(app) => api.apply(pod(i, "own", here, app, own)),
                None => api.delete(&pod(i, "own", here, 0, own)),
            };
            let done = || Ok(tables.subject(own.into())? != before);
            locals.push(timed(&change, "a pod of this node has its policies", &done)?);
        }
    }
    let p99 = |times: &[Duration]| {
        let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        percentile(&times, 99.0).unwrap_or_default()
    };
    Ok(Lags { policy: p99(&policies), peer: p99(&peers), local: p99(&locals) })
}

fn namespace(i: usize) -> String {
    format!("namespace-{i:03}")
}

fn local_ip(i: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, 10 + i as u8)
}

fn pod(i: usize, name: &str, node: &str, app: usize, ip: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace(i),
            "uid": format!("{i:08x}-0000-4000-8000-{:012x}", u32::from(ip)),
            "creationTimestamp": "2026-05-04T08:15:30Z",
            "labels": {"app": format!("app-{app}"), "pod-template-hash": "5d4f8c7b9d"},
        },
        "spec": {"nodeName": node, "containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

/// A policy for the pods of an app, which may communicate with those of another one.
fn policy(i: usize, name: &str, of: usize, peers: usize) -> Value {
    let app = |app: usize| json!({"matchLabels": {"app": format!("app-{app}")}});
    let (peers, ports) = (json!([{"podSelector": app(peers)}]), json!([{"protocol": "TCP", "port": 80}]));
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace(i)},
        "spec": {
            "podSelector": app(of),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}],
            "egress": [{"to": peers, "ports": ports}],
        },
    })
}
