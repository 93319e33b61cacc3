//! Pods for tests of network policy, their objects, and policies for them. All are in the namespace `default`.

use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Builder, Lab, Node, Pod, manifest};
use crate::traffic::{Outcome, Transport};

/// Port of the servers.
pub const PORT: u16 = 8080;
/// Port of the pods `web` at the addresses of their nodes.
pub const HOST_PORT: u16 = 9000;

/// Pods on both nodes, with servers: on each a `web` and its peers, one that policies name and one that they don't.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Site {
    pub web: Pod,
    pub far_web: Pod,
    pub friend: Pod,
    pub far_friend: Pod,
    pub stranger: Pod,
    pub far_stranger: Pod,
    pub lab: Lab,
}

impl Site {
    /// Builds the lab and starts the pods.
    pub fn new(lab: Builder) -> Result<Self> {
        let lab = lab.build()?;
        let [near, far] = [lab.node(0), lab.node(1)];
        let mapping = |protocol| json!({"hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol});
        let web = |node: &Arc<Node>, name| -> Result<Pod> {
            let mappings = ["tcp", "udp"].map(mapping);
            let mut pod = node.add_pod_with(name, json!({ "portMappings": mappings }))?;
            pod.serve(PORT)?;
            Ok(pod)
        };
        let site = Self {
            web: web(near, "web")?,
            far_web: web(far, "far-web")?,
            friend: near.add_server("friend", PORT)?,
            far_friend: far.add_server("far-friend", PORT)?,
            stranger: near.add_server("stranger", PORT)?,
            far_stranger: far.add_server("far-stranger", PORT)?,
            lab,
        };
        Ok(site)
    }

    /// The Pod objects, with the label `app`, and the Namespace.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": {"team": "blue"}},
        })];
        for (pods, app) in [
            ([&self.web, &self.far_web], "web"),
            ([&self.friend, &self.far_friend], "friend"),
            ([&self.stranger, &self.far_stranger], "stranger"),
        ] {
            objects.extend(pods.map(|pod| object(pod, app)));
        }
        objects
    }

    /// Applies [`Site::objects`] and these policies, instead of those before.
    pub fn apply(&self, policies: &[Value]) -> Result<()> {
        self.lab.apply("pods", &manifest::yaml(&self.objects()))?;
        self.lab.apply("network-policies", &manifest::yaml(policies))
    }
}

/// The Pod object of a pod before it starts: without addresses.
pub fn announced(name: &str, node: &Node, app: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
        "spec": {
            "nodeName": node.name(),
            "containers": [{"name": "main", "ports": [
                {"name": "http", "containerPort": PORT, "protocol": "TCP"},
                {"name": "dns", "containerPort": PORT, "protocol": "UDP"},
            ]}],
        },
    })
}

/// The Pod object of a running pod.
pub fn object(pod: &Pod, app: &str) -> Value {
    let mut object = announced(pod.name(), pod.node(), app);
    let ips: Vec<_> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
    object["status"] = json!({"phase": "Running", "podIPs": ips});
    object
}

/// A policy for the pods with this label `app`.
pub fn policy(name: &str, app: &str, spec: Value) -> Value {
    let mut policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    });
    policy["spec"]["podSelector"] = json!({"matchLabels": {"app": app}});
    policy
}

/// The peers with this label `app`.
pub fn app(app: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"app": app}}})
}

/// A pod reaches a destination, over TCP and UDP, and IPv4 and IPv6.
pub fn reaches(from: &Pod, to: &Pod) -> Result<()> {
    for (family, transport) in Transport::over_all() {
        from.place.reaches(transport, to.addr(family, PORT), &[to.name()])?;
    }
    Ok(())
}

/// A pod gets no answer from another one.
pub fn is_denied(from: &Pod, to: &Pod) -> Result<()> {
    for (family, transport) in Transport::over_all() {
        from.place.expect(transport, to.addr(family, PORT), &Outcome::Silence)?;
    }
    Ok(())
}
