//! Address of the API server, and the credentials.
//!
//! In a pod, the environment names the server by the address of the Service `kubernetes`, which leads nowhere until
//! podnet itself knows that Service. So the address comes from the configuration, or from the kubelet of this node,
//! which must also reach the server without services.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use podnet_cni::files;
use thiserror::Error;
use tracing::{info, warn};

use super::failure::in_words;
use crate::config::Kubernetes;

/// Timeout for connection set-up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum silence of a server: on most watches it sends a bookmark every minute. After that the watch is resumed where
/// it was.
const READ_TIMEOUT: Duration = Duration::from_secs(100);

/// Why the API can't be used.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The process isn't in a pod with a service account.
    #[error(
        "no service account for the Kubernetes API ({}): set `kubernetes.kubeconfig`, or use deploy/podnet.yaml",
        in_words(.0)
    )]
    NoAccount(kube::config::InClusterError),
    /// The kubeconfig is unusable.
    #[error("cannot use the kubeconfig {}: {}", path.display(), in_words(&**.source))]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<KubeconfigError>,
    },
    /// The server's address is unusable.
    #[error("invalid API server address `{0}`: {1}")]
    Address(String, String),
    /// The client can't be created.
    #[error("cannot create a client for the Kubernetes API: {}", in_words(&**.0))]
    Client(Box<kube::Error>),
    /// The thread for the client can't be created.
    #[error("cannot start the thread that watches the Kubernetes API: {0}")]
    Thread(io::Error),
}

/// A client, and its server.
pub(super) struct Connected {
    pub client: Client,
    pub server: String,
}

/// Creates a client, without sending a request yet.
pub(super) fn client(settings: &Kubernetes) -> Result<Connected, ConnectError> {
    let mut config = match &settings.kubeconfig {
        Some(path) => from_file(path)?,
        None => kube::Config::incluster().map_err(ConnectError::NoAccount)?,
    };
    let told = settings.server.clone().or_else(|| settings.kubelet_config.as_deref().and_then(server_of_kubelet));
    if let Some(server) = told {
        let address = server.parse::<hyper::Uri>().map_err(|error| error.to_string());
        config.cluster_url = address.map_err(|reason| ConnectError::Address(server, reason))?;
    } else if settings.kubeconfig.is_none() {
        warn!(
            "using the API server's Service address {}, which must be reachable without podnet: set \
             `kubernetes.server`",
            config.cluster_url
        );
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // The client's own retries take minutes and would hide that the server is unreachable.
    config.default_retry = false;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    info!(server, "using the Kubernetes API");
    let client = Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))?;
    Ok(Connected { client, server })
}

fn from_file(path: &Path) -> Result<kube::Config, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    // This only checks that it is a regular file. kube reads it by its name, since it refers to files by relative
    // paths.
    files::open(path, OpenOptions::new().read(true))
        .map_err(|e| failed(KubeconfigError::ReadConfig(e, path.to_owned())))?;
    let file = Kubeconfig::read_from(path).map_err(failed)?;
    // The future never waits.
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options);
    futures::executor::block_on(config).map_err(failed)
}

/// The API server of the kubelet, from its kubeconfig.
fn server_of_kubelet(path: &Path) -> Option<String> {
    let text = match files::read_text(path, files::OWN_MAX) {
        Ok(text) => text,
        Err(error) => {
            warn!("cannot read the kubelet's {}: {error}; set `kubernetes.server`", path.display());
            return None;
        }
    };
    let server = server_in(&text);
    if server.is_none() {
        warn!("no server in the kubelet's {}; set `kubernetes.server`", path.display());
    }
    server
}

/// The server of a kubeconfig's current context, or of its only cluster.
fn server_in(text: &str) -> Option<String> {
    let file: Kubeconfig = serde_saphyr::from_str(text).ok()?;
    let context = file.contexts.iter().find(|context| Some(&context.name) == file.current_context.as_ref());
    let cluster = context.and_then(|context| context.context.as_ref()).map(|context| &context.cluster);
    let cluster = match cluster {
        Some(name) => file.clusters.iter().find(|cluster| cluster.name == *name),
        None => file.clusters.first(),
    };
    cluster?.cluster.as_ref()?.server.clone()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_kubelets_server() {
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: b\nclusters:\n\
                    - {name: one, cluster: {server: 'https://192.0.2.1:6443', certificate-authority-data: eA==}}\n\
                    - {name: two, cluster: {server: 'https://cp:6443'}}\n\
                    contexts:\n- {name: b, context: {cluster: two, user: u}}\n\
                    users:\n- {name: u, user: {client-certificate: /var/lib/kubelet/pki/x.pem}}\n";
        assert_eq!(server_in(text).as_deref(), Some("https://cp:6443"));
        let without = text.replace("current-context: b\n", "");
        assert_eq!(server_in(&without).as_deref(), Some("https://192.0.2.1:6443"));
        assert_eq!(server_in("kind: Config\n"), None);
        assert_eq!(server_in("]"), None);
        assert_eq!(server_of_kubelet(Path::new("/nonexistent/kubelet.conf")), None);
    }

    #[test]
    fn errors_say_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        let settings = |server: Option<&str>| Kubernetes {
            server: server.map(Into::into),
            kubeconfig: Some(path.clone()),
            ..Kubernetes::default()
        };
        let error = |settings: &Kubernetes| client(settings).map(|_| ()).unwrap_err().to_string();
        assert!(error(&settings(None)).starts_with("cannot use the kubeconfig"));
        fs::write(
            &path,
            "clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]\ncurrent-context: a\n\
                          contexts: [{name: a, context: {cluster: a}}]\n",
        )
        .unwrap();
        assert!(error(&settings(Some("https://a b"))).contains("`https://a b`"));
        assert!(error(&Kubernetes::default()).contains("kubernetes.kubeconfig"), "this is no pod");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        assert_eq!(client(&settings(None)).unwrap().server, "http://127.0.0.1:1");
        assert_eq!(client(&settings(Some("https://[2001:db8::1]:6443"))).unwrap().server, "https://[2001:db8::1]:6443");
    }
}
