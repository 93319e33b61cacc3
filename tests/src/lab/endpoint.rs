//! An endpoint of a Service: the contents of an EndpointSlice about one pod.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::traffic::Family;

/// A pod, or a process in a host network, behind a Service. Ready by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    ips: Vec<IpAddr>,
    node: Option<String>,
    zone: Option<String>,
    ready: bool,
    serving: bool,
    terminating: bool,
    zone_hints: Vec<String>,
    node_hints: Vec<String>,
    target: Option<u16>,
}

impl Endpoint {
    /// Addresses without a node.
    pub fn at(ips: &[IpAddr]) -> Self {
        let (node, zone, target) = (None, None, None);
        let (zone_hints, node_hints) = (Vec::new(), Vec::new());
        let (ready, serving, terminating) = (true, true, false);
        Self { ips: ips.to_vec(), node, zone, ready, serving, terminating, zone_hints, node_hints, target }
    }

    /// Addresses on a node.
    pub(super) fn on(node: &str, ips: &[IpAddr]) -> Self {
        Self { node: Some(node.to_owned()), ..Self::at(ips) }
    }

    /// Accepts no connections (yet).
    pub fn not_ready(self) -> Self {
        Self { ready: false, serving: false, ..self }
    }

    /// Terminating, but still serving.
    pub fn terminating(self) -> Self {
        Self { ready: false, serving: true, terminating: true, ..self }
    }

    /// Terminating, and no longer serving.
    pub fn ending(self) -> Self {
        Self { ready: false, serving: false, terminating: true, ..self }
    }

    /// Sets its zone.
    pub fn zone(self, zone: &str) -> Self {
        Self { zone: Some(zone.to_owned()), ..self }
    }

    /// Sets hints for clients in these zones.
    pub fn for_zones(self, zones: &[&str]) -> Self {
        Self { zone_hints: zones.iter().map(|&name| name.to_owned()).collect(), ..self }
    }

    /// Sets hints for clients on these nodes.
    pub fn for_nodes(self, nodes: &[&str]) -> Self {
        Self { node_hints: nodes.iter().map(|&name| name.to_owned()).collect(), ..self }
    }

    /// Sets its port if it differs from the Service's `targetPort`.
    pub fn target(self, port: u16) -> Self {
        Self { target: Some(port), ..self }
    }

    pub(super) fn own_target(&self) -> Option<u16> {
        self.target
    }

    /// Elements of `endpoints` in a slice of this family: one per address.
    pub(super) fn objects(&self, family: Family) -> impl Iterator<Item = Value> {
        let names = |list: &[String]| list.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
        self.ips.iter().filter(move |ip| Family::of(**ip) == family).map(move |ip| {
            let Self { ready, serving, terminating, .. } = self;
            let mut object = json!({
                "addresses": [ip],
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            });
            for (key, value) in [("nodeName", &self.node), ("zone", &self.zone)] {
                if let Some(value) = value {
                    object[key] = json!(value);
                }
            }
            for (key, list) in [("forZones", &self.zone_hints), ("forNodes", &self.node_hints)] {
                if !list.is_empty() {
                    object["hints"][key] = json!(names(list));
                }
            }
            object
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_fields_are_omitted() {
        let endpoint = Endpoint::at(&["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        let objects: Vec<_> = endpoint.objects(Family::V4).collect();
        let conditions = json!({"ready": true, "serving": true, "terminating": false});
        assert_eq!(objects, [json!({"addresses": ["10.0.0.1"], "conditions": conditions})]);
    }

    #[test]
    fn hints_zones_and_nodes_are_written() {
        let endpoint = Endpoint::at(&["10.0.0.1".parse().unwrap()]);
        let endpoint = endpoint.zone("a").for_zones(&["a", "b"]).for_nodes(&["node1"]).terminating();
        let object = endpoint.objects(Family::V4).next().unwrap();
        assert_eq!(object["zone"], "a");
        let hints = json!({"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "node1"}]});
        assert_eq!(object["hints"], hints);
        assert_eq!(object["conditions"], json!({"ready": false, "serving": true, "terminating": true}));
    }
}
