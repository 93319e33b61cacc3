//! Kinds that a CustomResourceDefinition defines: when the server may begin to serve them.

use std::future;
use std::pin::pin;

use futures::StreamExt as _;
use kube::api::{DynamicObject, WatchEvent, WatchParams};
use kube::core::ApiResource;
use kube::{Api, Client, Error};
use tracing::debug;

use crate::model::Kind;

/// Waits until the definition of a kind exists or changes. Never returns if the kind needs none, or if the server
/// doesn't tell, for example since the role of an earlier version doesn't permit the watch.
pub(super) async fn installed(client: Client, kind: Kind) {
    if kind.is_custom() {
        match seen(client, kind).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => debug!(kind = kind.name(), "cannot watch the definition of this kind: {error}"),
        }
    }
    future::pending().await
}

/// Whether the watch reports the definition before it ends.
async fn seen(client: Client, kind: Kind) -> Result<bool, Error> {
    let resource = ApiResource {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        api_version: "apiextensions.k8s.io/v1".into(),
        kind: "CustomResourceDefinition".into(),
        plural: "customresourcedefinitions".into(),
    };
    let api = Api::<DynamicObject>::all_with(client, &resource);
    let params = WatchParams::default().fields(&format!("metadata.name={}.{}", kind.plural(), kind.group()));
    // From version 0, a watch begins with the objects that exist.
    let mut events = pin!(api.watch_metadata(&params, "0").await?);
    while let Some(event) = events.next().await {
        if matches!(event?, WatchEvent::Added(_) | WatchEvent::Modified(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}
