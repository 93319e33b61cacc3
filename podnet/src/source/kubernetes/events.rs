//! Kubernetes Events, which operators see with `kubectl describe` and `kubectl get events`.
//!
//! Callers decide which notes matter; a task of its own writes them. So that callers never wait, notes go through a
//! short queue; those for which it has no room are lost, and so are those that can't be written.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use podnet_cni::text::on_one_line;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::failure::in_words;
use crate::model::ObjectKey;

/// Length of the queue.
pub(super) const QUEUE: usize = 32;
/// Timeout for writing an Event.
const PATIENCE: Duration = Duration::from_secs(10);
/// Limit of the API for a message and for a reporter's name, in bytes.
const TEXT_MAX: usize = 1024;
const NAME_MAX: usize = 128;

/// The content of an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Its subject.
    pub about: About,
    /// Whether it is a Warning; else Normal.
    pub warning: bool,
    /// A word in PascalCase.
    pub reason: &'static str,
    /// A sentence.
    pub text: String,
}

/// Subject of a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// This node.
    Node,
    /// An object, with its `metadata.uid`.
    Object(ObjectKey, String),
}

/// Writes notes until the queue is closed.
pub(super) async fn write(client: Client, node: String, mut notes: Receiver<Note>) {
    let reporter = Reporter { controller: "podnet".into(), instance: Some(cut(&node, NAME_MAX).into()) };
    let mut failing = false;
    while let Some(note) = notes.recv().await {
        let reference = reference(&note.about, &node);
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.into(),
            note: Some(cut(&on_one_line(&note.text, 4 * TEXT_MAX), TEXT_MAX).into()),
            action: "Report".into(),
            secondary: None,
        };
        // A new recorder each time: a single one would merge all problems of a node with the first.
        let recorder = Recorder::new(client.clone(), reporter.clone());
        let mut advice = "";
        let failure = match timeout(PATIENCE, recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) if is_for_the_gone(&error) => {
                debug!("an Event is not written: {}", in_words(&error));
                continue;
            }
            Ok(Err(error)) => {
                if matches!(&error, kube::Error::Api(status) if status.code == 403) {
                    advice = "; apply the ClusterRole in deploy/podnet.yaml";
                }
                Some(in_words(&error))
            }
            Err(_) => Some(format!("no answer in {} s", PATIENCE.as_secs())),
        };
        match &failure {
            Some(reason) if !failing => {
                warn!("cannot write Events: {reason}{advice}. Further failures are not logged");
            }
            None if failing => info!("Events are being written again"),
            _ => {}
        }
        failing = failure.is_some();
    }
}

/// Whether an Event is refused because its object's namespace is being deleted, or has been.
fn is_for_the_gone(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 404 || status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

fn reference(about: &About, node: &str) -> ObjectReference {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match about {
        // The kubelet's own Events have the node's name as uid, and `kubectl describe node` looks for these too.
        About::Node => ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.into()),
            uid: Some(node.into()),
            ..ObjectReference::default()
        },
        About::Object(key, uid) => ObjectReference {
            api_version: Some(key.kind.api_version().into()),
            kind: Some(key.kind.name().into()),
            namespace: text(&key.name.namespace),
            name: Some(key.name.name.clone()),
            uid: text(uid),
            ..ObjectReference::default()
        },
    }
}

/// The longest part of a text that fits.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_going_is_no_failure() {
        let refused = |code: u16, cause: &str| {
            let status = serde_json::json!({"code": code, "reason": "Forbidden", "message": "forbidden",
                "details": {"causes": [{"reason": cause, "field": "metadata.namespace"}]}});
            is_for_the_gone(&kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())))
        };
        assert!(refused(403, "NamespaceTerminating") && refused(404, ""));
        assert!(!refused(403, "") && !refused(500, "NamespaceTerminating"));
    }
}
