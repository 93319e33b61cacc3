//! Kinds that a CustomResourceDefinition defines: when the server may begin to serve them, and when it has stopped.

use std::future;
use std::pin::pin;

use futures::StreamExt as _;
use kube::api::{DynamicObject, ListParams, WatchEvent, WatchParams};
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

/// Whether the definition of a kind has been removed, and with it all objects of the kind. False if the kind needs
/// none, or if the server doesn't tell.
pub(super) async fn uninstalled(client: Client, kind: Kind) -> bool {
    let params = ListParams::default().fields(&selector(kind));
    kind.is_custom()
        && match definitions(client).list_metadata(&params).await {
            Ok(found) => found.items.is_empty(),
            Err(error) => {
                debug!(kind = kind.name(), "cannot list the definition of this kind: {error}");
                false
            }
        }
}

/// Whether the watch reports the definition before it ends.
async fn seen(client: Client, kind: Kind) -> Result<bool, Error> {
    let params = WatchParams::default().fields(&selector(kind));
    // From version 0, a watch begins with the objects that exist.
    let mut events = pin!(definitions(client).watch_metadata(&params, "0").await?);
    while let Some(event) = events.next().await {
        if matches!(event?, WatchEvent::Added(_) | WatchEvent::Modified(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Field selector of a kind's definition.
fn selector(kind: Kind) -> String {
    format!("metadata.name={}.{}", kind.plural(), kind.group())
}

fn definitions(client: Client) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        api_version: "apiextensions.k8s.io/v1".into(),
        kind: "CustomResourceDefinition".into(),
        plural: "customresourcedefinitions".into(),
    };
    Api::all_with(client, &resource)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    const NAME: &str = "clusternetworkpolicies.policy.networking.k8s.io";

    /// A server that answers one request, and a client of it.
    async fn answering(answer: String) -> (Client, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = kube::Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        config.default_retry = false;
        let served = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (Client::try_from(config).unwrap(), served)
    }

    fn event(kind: &str) -> String {
        let line = format!(
            r#"{{"type":"{kind}","object":{{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{{"name":"{NAME}","resourceVersion":"7"}}}}}}"#
        );
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}\n", line.len() + 1)
    }

    #[tokio::test]
    async fn only_an_installed_definition_ends_the_wait() {
        for (answer, ends) in [
            (event("ADDED"), true),
            (event("MODIFIED"), true),
            (event("DELETED"), false),
            ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned(), false),
        ] {
            let (client, served) = answering(answer.clone()).await;
            let seen = seen(client, Kind::ClusterNetworkPolicy).await;
            assert_eq!(seen.is_ok_and(|seen| seen), ends, "{answer}");
            let request = served.await.unwrap();
            assert!(request.contains(&format!("fieldSelector=metadata.name%3D{NAME}")), "{request}");
        }
        let (client, _) = answering(event("ADDED")).await;
        installed(client.clone(), Kind::ClusterNetworkPolicy).await;
        assert!(timeout(Duration::from_millis(10), installed(client, Kind::ServiceCidr)).await.is_err());
    }
}
