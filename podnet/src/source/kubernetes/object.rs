//! Objects as the API server sends them.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicResourceScope;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::value::RawValue;

use crate::model::{Kind, Object, ObjectKey, raw};

/// An object of any kind that podnet reads, or why it can't be read: one strange object must not end a whole list.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// Name, namespace and version only.
    metadata: ObjectMeta,
    body: Result<Box<raw::Manifest>, String>,
}

impl Sent {
    /// Which object it is, and the object, or what is wrong with it.
    pub(super) fn check(self, kind: Kind) -> (ObjectKey, Result<Object, String>) {
        let key = self.key(kind);
        let object = self.body.and_then(|body| match Object::new(kind, *body) {
            Ok((_, object)) => Ok(object),
            Err(invalid) => Err(format!("{}: {}", invalid.field, invalid.reason)),
        });
        (key, object)
    }

    /// Which object it is.
    pub(super) fn key(&self, kind: Kind) -> ObjectKey {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        ObjectKey::new(kind, &text(&self.metadata.namespace), &text(&self.metadata.name))
    }
}

impl<'de> Deserialize<'de> for Sent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Header {
            metadata: Metadata,
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            name: String,
            namespace: Option<String>,
            resource_version: Option<String>,
        }
        let text = <&RawValue>::deserialize(deserializer)?.get();
        let Header { metadata } = serde_json::from_str(text).map_err(D::Error::custom)?;
        let body = serde_json::from_str(text).map_err(|error| error.to_string());
        let metadata = ObjectMeta {
            name: Some(metadata.name),
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, body })
    }
}

impl kube::Resource for Sent {
    type DynamicType = Kind;
    type Scope = DynamicResourceScope;

    fn kind(kind: &Kind) -> Cow<'_, str> {
        kind.name().into()
    }

    fn group(kind: &Kind) -> Cow<'_, str> {
        match kind {
            Kind::Service | Kind::Node => "",
            Kind::EndpointSlice => "discovery.k8s.io",
            Kind::ServiceCidr => "networking.k8s.io",
        }
        .into()
    }

    fn version(_: &Kind) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(kind: &Kind) -> Cow<'_, str> {
        match kind {
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
            Kind::Node => "nodes",
            Kind::ServiceCidr => "servicecidrs",
        }
        .into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    #[test]
    fn what_cannot_be_read_is_a_mistake_of_that_object_only() {
        let list = r#"{"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "7"}, "items": [
            {"metadata": {"name": "n1", "resourceVersion": "3", "labels": {"x": "y"}}, "spec": {"podCIDRs": ["10.0.0.0/24"]}},
            {"metadata": {"name": "n2", "resourceVersion": "4"}, "spec": {"podCIDRs": 5}},
            {"metadata": {"name": "n3", "resourceVersion": "5"}, "spec": {"podCIDRs": ["10.0.0.0"]}}]}"#;
        let list: ObjectList<Sent> = serde_json::from_str(list).unwrap();
        let objects: Vec<_> = list.items.into_iter().map(|sent| sent.check(Kind::Node)).collect();
        assert_eq!(objects.iter().map(|(key, _)| key.name.name.as_str()).collect::<Vec<_>>(), ["n1", "n2", "n3"]);
        assert!(matches!(&objects[0].1, Ok(Object::Node(node)) if node.pod_cidrs.len() == 1));
        assert!(objects[1].1.as_ref().unwrap_err().contains("invalid type"));
        assert!(objects[2].1.as_ref().unwrap_err().starts_with("spec.podCIDRs[0]: "));
    }

    #[test]
    fn an_event_has_the_objects_version() {
        let event = r#"{"type":"MODIFIED","object":{"kind":"Service","metadata":{"name":"a","namespace":"x","resourceVersion":"9"}}}"#;
        let WatchEvent::Modified(sent) = serde_json::from_str::<WatchEvent<Sent>>(event).unwrap() else { panic!() };
        assert_eq!(kube::ResourceExt::resource_version(&sent).as_deref(), Some("9"));
        assert_eq!(sent.key(Kind::Service).to_string(), "Service x/a");
        assert!(serde_json::from_str::<WatchEvent<Sent>>(r#"{"type":"ADDED","object":{"metadata":{}}}"#).is_err());
    }
}
