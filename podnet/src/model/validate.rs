//! Validation of objects. The rules are those of the Kubernetes API server (pkg/apis/core/validation,
//! pkg/apis/discovery/validation), since files don't pass through one.
//!
//! An invalid element of a list is left out and named, and the rest of the object is in effect: API servers have
//! admitted objects that later ones refuse, and such objects live on. Single fields, such as the type, must be valid,
//! and so must a Service's ClusterIPs and at least one of its ports, since otherwise the meaning of the object is
//! unknown.

mod cluster_policy;
mod endpoints;
mod field;
mod namespace;
mod node;
mod pod;
mod policy;
mod policy_parts;
mod service;
mod service_cidr;

pub use field::service_range;

use super::{Invalid, Kind, Object, ObjectKey, ObjectName, raw};
use field::{Checked, Wrong, refuse};

/// Maximum length of an object's name (RFC 1123 subdomain).
const NAME_MAX: usize = 253;

impl Kind {
    /// The kind for a group, version and kind; `None` if podnet doesn't read it.
    ///
    /// # Errors
    /// The reason, for an object without a kind or an EndpointSlice of a version that is no longer served.
    pub fn of(api_version: &str, kind: &str) -> Result<Option<Self>, String> {
        let known = Self::ALL.into_iter().find(|known| known.api_version() == api_version && known.name() == kind);
        match (api_version, kind) {
            (_, "") => Err("has no kind: this is not a Kubernetes object".into()),
            ("", _) => Err("has no apiVersion: this is not a Kubernetes object".into()),
            _ if known.is_some() => Ok(known),
            (other, "EndpointSlice") if other.starts_with("discovery.k8s.io/") => {
                Err(format!("is {other}, which podnet does not support: use discovery.k8s.io/v1"))
            }
            _ => Ok(None),
        }
    }
}

impl ObjectKey {
    /// Kind and name. A namespaced object without a namespace is in `default`.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = match namespace {
            _ if !kind.is_namespaced() => "",
            "" => "default",
            given => given,
        };
        Self { kind, name: ObjectName { namespace: namespace.into(), name: name.into() } }
    }
}

impl Object {
    /// Validates an object of a known kind.
    ///
    /// # Errors
    /// The first problem found.
    pub fn new(kind: Kind, raw: raw::Manifest) -> Result<(ObjectKey, Self), Invalid> {
        let key = ObjectKey::new(kind, &raw.metadata.namespace, &raw.metadata.name);
        let object = check_name(&key.name).and_then(|()| match kind {
            Kind::Service => service::check(raw).map(Self::from),
            Kind::EndpointSlice => endpoints::check(raw).map(Self::from),
            Kind::Node => node::check(raw).map(Self::from),
            Kind::ServiceCidr => service_cidr::check(raw).map(Self::from),
            Kind::NetworkPolicy => policy::check(raw).map(Self::from),
            Kind::ClusterNetworkPolicy => cluster_policy::check(raw).map(Self::from),
            Kind::Namespace => namespace::check(raw).map(Self::from),
            Kind::Pod => pod::check(raw).map(Self::from),
        });
        match object {
            Ok(object) => Ok((key, object)),
            Err(Wrong { field, reason }) => Err(Invalid { object: key.to_string(), field, reason }),
        }
    }
}

fn check_name(name: &ObjectName) -> Checked<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    for (field, text) in [("metadata.name", &name.name), ("metadata.namespace", &name.namespace)] {
        if text.len() > NAME_MAX || !text.chars().all(allowed) {
            return refuse(field, format!("`{text}` is not a valid name: use up to {NAME_MAX} of a-z, 0-9, - and ."));
        }
    }
    if name.name.is_empty() { refuse("metadata.name", "is missing") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object of any kind, from YAML.
    pub(super) fn parse(yaml: &str) -> Result<(ObjectKey, Object), Invalid> {
        let raw: raw::Manifest = serde_saphyr::from_str(yaml).unwrap();
        let kind = Kind::of(&raw.api_version, &raw.kind).unwrap().unwrap();
        Object::new(kind, raw)
    }

    #[test]
    fn kinds() {
        assert_eq!(Kind::of("v1", "Service"), Ok(Some(Kind::Service)));
        assert_eq!(Kind::of("serving.knative.dev/v1", "Service"), Ok(None));
        assert_eq!(Kind::of("apps/v1", "Deployment"), Ok(None));
        assert!(Kind::of("discovery.k8s.io/v1beta1", "EndpointSlice").unwrap_err().contains("v1"));
        assert!(Kind::of("", "Service").is_err() && Kind::of("v1", "").is_err());
    }

    #[test]
    fn names_are_checked() {
        let error = parse("{apiVersion: v1, kind: Node, metadata: {name: a/b}}").unwrap_err();
        assert_eq!(error.field, "metadata.name");
        let error = parse("{apiVersion: v1, kind: Node}").unwrap_err();
        assert_eq!(error.reason, "is missing");
    }
}
