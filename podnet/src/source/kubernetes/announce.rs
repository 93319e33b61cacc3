//! Announces to the cluster that the node has a network. Some cloud providers mark new nodes as having none, which
//! keeps pods away until the network plugin clears the mark.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch::Receiver;
use tokio::time::sleep;
use tracing::{info, warn};

use super::failure::in_words;

/// Interval between attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Sets the condition `NetworkUnavailable` of the Node with this name to false, whenever `ready` changes.
pub(super) async fn network(client: Client, node: String, mut ready: Receiver<u64>) {
    let nodes: Api<Node> = Api::all(client);
    while ready.changed().await.is_ok() {
        let mut told = None;
        while let Err(error) = tell(&nodes, &node).await {
            let reason = in_words(&error);
            if told.as_ref() != Some(&reason) {
                warn!("cannot set the NetworkUnavailable condition of Node {node}, retrying: {reason}");
                told = Some(reason);
            }
            sleep(RETRY_INTERVAL).await;
        }
        info!("cleared the Node's NetworkUnavailable condition");
    }
}

async fn tell(nodes: &Api<Node>, node: &str) -> kube::Result<()> {
    let now = Timestamp::now().to_string();
    let condition = json!({
        "type": "NetworkUnavailable", "status": "False", "reason": "PodnetIsUp",
        "message": "podnet's datapath is ready", "lastHeartbeatTime": now, "lastTransitionTime": now,
    });
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    nodes.patch_status(node, &PatchParams::default(), &patch).await.map(drop)
}
