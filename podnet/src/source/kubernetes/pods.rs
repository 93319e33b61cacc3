//! Uids of this node's pods, to know which attachments are still needed.
//!
//! Only metadata is requested. While the server is unreachable the last answer remains, so callers need a second source
//! before they act on it.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch::Sender;
use tokio::time::sleep;
use tracing::warn;

use super::failure::{explain, forgets, silent};
use super::pause::Pause;

/// Uid that the kubelet assigned to a static pod; the mirror object in the API has another one.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// Watches the pods of the node with this name, until the receiver is dropped. Sends nothing before all have been
/// listed.
pub(super) async fn watch(client: Client, node: String, uids: Sender<Option<BTreeSet<String>>>) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let api = Api::<PartialObjectMeta<Pod>>::all(client);
    // Begins with a list.
    let begin = || watcher(api.clone(), config.clone()).boxed();
    let mut events = begin();
    let (mut pods, mut listed) = (BTreeMap::new(), None);
    let (mut pause, mut told) = (Pause::default(), None);
    while let Some(event) = events.next().await {
        if event.is_ok() {
            told = None;
        }
        match event {
            Ok(Event::Init) => listed = Some(BTreeMap::new()),
            Ok(Event::InitApply(pod)) => {
                listed.get_or_insert_default().extend([entry(&pod)]);
                continue;
            }
            Ok(Event::InitDone) => pods = listed.take().unwrap_or_default(),
            Ok(Event::Apply(pod)) => pods.extend([entry(&pod)]),
            Ok(Event::Delete(pod)) => drop(pods.remove(&entry(&pod).0)),
            // The watch is resumed where it was.
            Err(error) if listed.is_none() && silent(&error) => continue,
            Err(error) => {
                let reason = Some(explain(&error));
                if told != reason {
                    warn!("cannot watch the node's pods: {}", reason.as_deref().unwrap_or_default());
                    told = reason;
                }
                sleep(pause.next()).await;
                if forgets(&error) {
                    events = begin();
                }
            }
        }
        if listed.is_none() && uids.send(Some(pods.values().flatten().cloned().collect())).is_err() {
            return;
        }
    }
}

/// Namespace and name of a pod, and the uids by which runtimes may know it.
fn entry(pod: &PartialObjectMeta<Pod>) -> ((String, String), Vec<String>) {
    let static_uid = pod.annotations().get(STATIC_UID).cloned();
    let uids = pod.uid().into_iter().chain(static_uid).collect();
    ((pod.namespace().unwrap_or_default(), pod.name_any()), uids)
}
