//! Selection from manifests to frontends. Each row names its source: a KEP, a unit test of kube-proxy (in pkg/proxy) or
//! an end-to-end test of Kubernetes (in test/e2e/network).

mod categorize;
mod explained;
mod golden;
mod policies;
mod ports;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::entry_counts::EntryCounts;
use crate::frontend::{Backends, IfNone};
use crate::model::{Kind, Node, Object, SourceIp, TrafficPolicy, raw};
use crate::yaml;

/// The Service of a YAML stream, the slices that belong to it, and the Node named `n1` if there is one.
struct Manifests {
    name: ObjectName,
    service: Arc<Service>,
    slices: Vec<Arc<EndpointSlice>>,
    node: Option<Arc<Node>>,
}

impl Manifests {
    fn parse(stream: &str) -> Self {
        let (mut service, mut slices, mut node) = (None, Vec::new(), None);
        for document in yaml::documents(stream) {
            let manifest: raw::Manifest = yaml::parse(document).unwrap();
            let kind = Kind::of(&manifest.api_version, &manifest.kind).unwrap().unwrap();
            match Object::new(kind, manifest).unwrap() {
                (key, Object::Service(object)) => assert!(service.replace((key.name, object)).is_none()),
                (_, Object::EndpointSlice(slice)) => slices.push(slice),
                (key, Object::Node(object)) if key.name.name == "n1" => node = Some(object),
                _ => {}
            }
        }
        let (name, service) = service.unwrap();
        slices.retain(|slice| slice.service.as_ref() == Some(&name.name));
        Self { name, service, slices, node }
    }

    /// Settings for node `n1`, in the zone of its object.
    fn settings(&self, source_ip: SourceIp) -> Settings {
        Settings::new(source_ip, "n1", self.node.as_deref())
    }

    fn slices(&self) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices.iter().map(|slice| &**slice)
    }

    fn frontends(&self, settings: &Settings) -> Vec<Frontend> {
        select_within(self, settings, EntryCounts::MAX).frontends
    }
}

fn select_within(manifests: &Manifests, settings: &Settings, limit: EntryCounts) -> Selection {
    let (guard, share) = (Guard::default(), Share::new(limit));
    super::select(&manifests.name, &manifests.service, manifests.slices(), settings, &guard, share)
}

/// Frontends of a YAML stream on node `n1`, each as a line.
fn select(stream: &str, source_ip: SourceIp) -> Vec<String> {
    let manifests = Manifests::parse(stream);
    manifests.frontends(&manifests.settings(source_ip)).iter().map(line).collect()
}

/// A frontend as text: kind, address, non-default properties, then the backends, `reject` or `drop` if there are none.
fn line(frontend: &Frontend) -> String {
    let mut line = format!("{:?} {}", frontend.kind, frontend.key);
    if frontend.source != SourceMode::Auto {
        write!(line, " {:?}", frontend.source).unwrap();
    }
    if frontend.affinity != 0 {
        write!(line, " affinity {}s", frontend.affinity).unwrap();
    }
    if let Some(ranges) = &frontend.source_ranges {
        let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        write!(line, " from [{}]", ranges.join(" ")).unwrap();
    }
    let join = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let show = |backends: &Backends| match (&backends.list[..], backends.if_none) {
        ([], IfNone::Reject) => "reject".to_owned(),
        ([], IfNone::Drop) => "drop".to_owned(),
        (_, IfNone::Drop) => panic!("{backends:?} says what becomes of connections without backends, but has some"),
        (list, IfNone::Reject) => join(list),
    };
    write!(line, ": {}", show(&frontend.backends)).unwrap();
    if let Some(outside) = &frontend.outside {
        write!(line, "; outside: {}", show(outside)).unwrap();
    }
    if let Some(here) = &frontend.here {
        write!(line, "; here: {}", join(here)).unwrap();
    }
    line
}

/// A Service named `web`.
fn service(spec: &str) -> String {
    service_with("{name: web}", spec)
}

fn service_with(metadata: &str, spec: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Service, metadata: {metadata}, spec: {spec}}}\n")
}

/// A Service of type LoadBalancer named `web`, with an ingress address.
fn load_balancer(spec: &str, ingress: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{type: LoadBalancer, {spec}}}, \
         status: {{loadBalancer: {{ingress: [{ingress}]}}}}}}\n"
    )
}

/// A slice of the service `web`; see [`endpoint`].
fn slice(name: &str, family: &str, ports: &str, endpoints: &[&str]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {family}, ports: {ports}, \
         metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}, endpoints: [{}]}}\n",
        endpoints.join(", ")
    )
}

/// An endpoint from words: its address; `@n1`: its node; `zone:a` and `node:n1`: hints; and if it isn't ready, `down`,
/// `draining` (terminating, but serving) or `gone` (terminating).
fn endpoint(text: &str) -> String {
    let mut words = text.split(' ');
    let address = words.next().unwrap();
    let (mut node, mut conditions) = (String::new(), "ready: true, serving: true, terminating: false");
    let (mut zones, mut nodes) = (Vec::new(), Vec::new());
    for word in words {
        match word.split_once(':') {
            Some(("zone", name)) => zones.push(format!("{{name: {name}}}")),
            Some(("node", name)) => nodes.push(format!("{{name: {name}}}")),
            Some(_) => panic!("{word}"),
            None => match word {
                "down" => conditions = "ready: false, serving: false, terminating: false",
                "draining" => conditions = "ready: false, serving: true, terminating: true",
                "gone" => conditions = "ready: false, serving: false, terminating: true",
                name => node = format!(", nodeName: {}", name.strip_prefix('@').unwrap()),
            },
        }
    }
    format!(
        "{{addresses: ['{address}'], conditions: {{{conditions}}}{node}, hints: {{forZones: [{}], forNodes: [{}]}}}}",
        zones.join(", "),
        nodes.join(", ")
    )
}
