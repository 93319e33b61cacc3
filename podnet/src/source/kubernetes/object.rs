//! Objects as the API server sends them.

use std::borrow::Cow;
use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::core::DynamicResourceScope;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::value::RawValue;

use crate::model::{Kind, Object, ObjectKey, raw};

/// An object of any kind that podnet reads, or why it can't be decoded: one undecodable object must not invalidate a
/// whole list. Fields that podnet doesn't use are skipped without decoding.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// Name, namespace, version and uid only.
    metadata: ObjectMeta,
    body: Result<Box<raw::Manifest>, String>,
}

impl Sent {
    /// When the cause of the object's state occurred, if the object records that.
    pub(super) fn trigger(&self) -> Option<SystemTime> {
        let noted = self.body.as_ref().ok()?.metadata.annotations.last_change_trigger_time.as_ref()?;
        Some(noted.parse::<Timestamp>().ok()?.into())
    }

    /// Its `metadata.uid`.
    pub(super) fn uid(&self) -> String {
        self.metadata.uid.clone().unwrap_or_default()
    }

    /// Validates the object. Returns its key, and the object or the reason why it is invalid.
    pub(super) fn check(self, kind: Kind) -> (ObjectKey, Result<Object, String>) {
        let key = self.key(kind);
        let object = self.body.and_then(|body| match Object::new(kind, *body) {
            Ok((_, object)) => Ok(object),
            Err(invalid) => Err(format!("{}: {}", invalid.field, invalid.reason)),
        });
        (key, object)
    }

    /// Key of the object.
    pub(super) fn key(&self, kind: Kind) -> ObjectKey {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        ObjectKey::new(kind, &text(&self.metadata.namespace), &text(&self.metadata.name))
    }
}

impl<'de> Deserialize<'de> for Sent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        let body = serde_json::from_str::<Box<raw::Manifest>>(text).map_err(|error| error.to_string());
        let (name, namespace, version, uid) = match &body {
            Ok(body) => {
                let metadata = &body.metadata;
                let (name, namespace) = (metadata.name.clone(), metadata.namespace.clone());
                (name, namespace, metadata.resource_version.clone(), metadata.uid.clone())
            }
            // The rest of it may still be decodable.
            Err(_) => {
                let raw::Header { metadata, .. } = serde_json::from_str(text).map_err(D::Error::custom)?;
                (metadata.name, metadata.namespace, metadata.resource_version, metadata.uid)
            }
        };
        if name.is_empty() {
            return Err(D::Error::custom("the object has no name"));
        }
        let metadata = ObjectMeta {
            name: Some(name),
            namespace: (!namespace.is_empty()).then_some(namespace),
            resource_version: version,
            uid,
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
        kind.group().into()
    }

    fn version(kind: &Kind) -> Cow<'_, str> {
        kind.api_version().rsplit('/').next().unwrap_or_default().into()
    }

    fn plural(kind: &Kind) -> Cow<'_, str> {
        kind.plural().into()
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
    fn an_undecodable_object_invalidates_only_itself() {
        let list = r#"{"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "7"}, "items": [
            {"metadata": {"name": "n1", "resourceVersion": "3", "labels": {"x": "y"}}, "spec": {"podCIDRs": ["10.0.0.0/24"]}},
            {"metadata": {"name": "n2", "resourceVersion": "4"}, "spec": {"podCIDRs": 5}},
            {"metadata": {"name": "n3", "resourceVersion": "5"}, "spec": {"podCIDRs": ["10.0.0.0", "10.0.0.0/24"]}}]}"#;
        let list: ObjectList<Sent> = serde_json::from_str(list).unwrap();
        let objects: Vec<_> = list.items.into_iter().map(|sent| sent.check(Kind::Node)).collect();
        assert_eq!(objects.iter().map(|(key, _)| key.name.name.as_str()).collect::<Vec<_>>(), ["n1", "n2", "n3"]);
        assert!(matches!(&objects[0].1, Ok(Object::Node(node)) if node.pod_cidrs.len() == 1));
        assert!(objects[1].1.as_ref().unwrap_err().contains("invalid type"));
        let left_out = |node: &Object| matches!(node, Object::Node(node) if !node.left_out.is_empty() && node.pod_cidrs.len() == 1);
        assert!(objects[2].1.as_ref().is_ok_and(left_out));
    }

    #[test]
    fn the_trigger_time_is_reported_if_it_can_be_parsed() {
        let trigger = |annotation: &str| {
            let text = format!(r#"{{"metadata":{{"name":"a","annotations":{{{annotation}}}}}}}"#);
            serde_json::from_str::<Sent>(&text).unwrap().trigger()
        };
        let annotated = |time| trigger(&format!(r#""endpoints.kubernetes.io/last-change-trigger-time":"{time}""#));
        let expected = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_250);
        assert_eq!(annotated("2023-11-14T22:13:20.25Z"), Some(expected));
        assert_eq!(annotated("2023-11-14T23:13:20.25+01:00"), Some(expected));
        assert_eq!((annotated("yesterday"), trigger(""), trigger(r#""x":"y""#)), (None, None, None));
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
