//! What the server knows: its objects, the log of their changes, and how it is to behave.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

/// Behaviour of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Normal.
    #[default]
    Well,
    /// Answers every request with this HTTP status.
    Refusing(u16),
    /// Closes connections without a response.
    HangingUp,
}

/// Support of streaming lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// Supported.
    Served,
    /// Requests are rejected.
    Refused,
    /// Requests are accepted, and then fail, as with an etcd that is too old.
    Broken,
}

/// Features of the server.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Streaming lists (Kubernetes 1.32 and later).
    pub streaming_lists: Streaming,
    /// ServiceCIDRs (1.33 and later).
    pub service_cidrs: bool,
    /// ClusterNetworkPolicies. If they are served from the start, their definition exists.
    pub cluster_policies: bool,
    /// Clients may read network policies.
    pub policies: bool,
    /// Every event is sent twice, as after a restart of a proxy.
    pub stutter: bool,
    /// Clients may write Events.
    pub events: bool,
    /// Objects per page of a list, whatever the client requests.
    pub page: usize,
}

impl Default for Abilities {
    fn default() -> Self {
        // Small pages, so that lists have several.
        Self {
            streaming_lists: Streaming::Served,
            service_cidrs: true,
            cluster_policies: true,
            policies: true,
            stutter: false,
            events: true,
            page: 3,
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) abilities: Abilities,
    pub(super) mood: Mood,
    pub(super) version: u64,
    /// Changes up to this version have been compacted.
    pub(super) forgotten: u64,
    /// By resource, namespace and name.
    pub(super) objects: BTreeMap<(String, String, String), Arc<Stored>>,
    /// Changes by resource, in the order of their versions.
    pub(super) log: BTreeMap<String, Vec<Entry>>,
    /// Connections with a lower number are closed.
    pub(super) connection: u64,
    /// Paths with queries, in the order of arrival.
    pub(super) requests: Vec<String>,
    /// Writes of clients: method, path, body.
    pub(super) writes: Vec<(String, String, Value)>,
    /// Number of next events that are sent without their object.
    pub(super) garbled: usize,
    /// Objects applied together, by file name.
    pub(super) files: BTreeMap<String, Vec<Value>>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) version: u64,
    pub(super) event: &'static str,
    pub(super) object: Arc<Stored>,
}

/// An object as it is sent.
#[derive(Debug)]
pub(super) struct Stored {
    /// apiVersion and kind as members of an object; elements of lists lack them.
    head: String,
    /// The rest of the object.
    pub(super) body: String,
    /// `metadata.name`.
    name: String,
    /// `spec.nodeName`.
    node: String,
}

impl Stored {
    pub(super) fn new(mut object: Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, node) = (text(&object["metadata"]["name"]), text(&object["spec"]["nodeName"]));
        let mut head = String::new();
        for name in ["kind", "apiVersion"] {
            let member = object.as_object_mut().and_then(|members| members.remove(name));
            head.extend(member.map(|value| format!("\"{name}\":{value},")));
        }
        Self { head, body: object.to_string(), name, node }
    }

    pub(super) fn value(&self) -> Value {
        serde_json::from_str(&format!("{{{}{}", self.head, &self.body[1..])).expect("it was JSON")
    }

    /// The line of a watch event. The type comes first, as in a real server.
    pub(super) fn line(&self, event: &str) -> String {
        format!("{{\"type\":\"{event}\",\"object\":{{{}{}}}\n", self.head, &self.body[1..])
    }
}

/// A field selector of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    name: Option<String>,
    node: Option<String>,
}

impl Fields {
    /// Reads a selector as it is in a URL: `field=value`, or nothing. `None` if the server can't select by the field.
    pub(super) fn parse(encoded: &str) -> Option<Self> {
        let mut fields = Self::default();
        match encoded.split_once("%3D") {
            Some(("metadata.name", value)) => fields.name = Some(value.into()),
            Some(("spec.nodeName", value)) => fields.node = Some(value.into()),
            None if encoded.is_empty() => {}
            _ => return None,
        }
        Some(fields)
    }

    fn select(&self, object: &Stored) -> bool {
        let is = |wanted: &Option<String>, value: &String| wanted.as_ref().is_none_or(|wanted| wanted == value);
        is(&self.name, &object.name) && is(&self.node, &object.node)
    }
}

impl State {
    pub(super) fn note(&mut self, resource: String, event: &'static str, object: Arc<Stored>) {
        let version = self.version;
        self.log.entry(resource).or_default().push(Entry { version, event, object });
    }

    pub(super) fn list(&self, resource: &str, fields: &Fields) -> Vec<Arc<Stored>> {
        let wanted = self.objects.iter().filter(|((of, ..), object)| of == resource && fields.select(object));
        wanted.map(|(_, object)| object.clone()).collect()
    }

    /// Changes since a version.
    pub(super) fn since(&self, resource: &str, fields: &Fields, version: u64) -> Vec<Entry> {
        let log = self.log.get(resource).map(Vec::as_slice).unwrap_or_default();
        let news = &log[log.partition_point(|entry| entry.version <= version)..];
        news.iter().filter(|entry| fields.select(&entry.object)).cloned().collect()
    }
}

/// Resource, namespace and name of an object.
pub(super) fn key(object: &Value) -> (String, String, String) {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    (plural, text("namespace"), text("name"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_selected_by_name_or_node() {
        let pod = Stored::new(json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}}));
        let selects = |encoded: &str| Fields::parse(encoded).map(|fields| fields.select(&pod));
        assert_eq!((selects(""), selects("metadata.name%3Da")), (Some(true), Some(true)));
        assert_eq!((selects("metadata.name%3Db"), selects("spec.nodeName%3Dn1")), (Some(false), Some(true)));
        assert_eq!((selects("spec.nodeName%3Dn2"), selects("status.phase%3DRunning")), (Some(false), None));
    }
}
