//! Facts about the host that restrict objects: its own addresses, gateways, DNS servers, and the API server that it
//! uses.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use podnet_cni::files;
use tokio::{net::lookup_host, sync::watch, time::timeout};
use tracing::warn;

use crate::{
    guard::{HostFacts, resolvers},
    host::{snapshot::Snapshot, uplinks},
};

/// Where DNS servers are configured: those that programs use, and the upstream servers of systemd-resolved, if it runs.
/// In a pod with `dnsPolicy: Default` the first file is the kubelet's copy of the host's, made when the pod was
/// started.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Interval of lookups of the API server's name.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(30);
/// How long the daemon waits for the first lookup before it writes the tables. Later lookups delay nothing.
const PATIENCE: Duration = Duration::from_secs(3);

/// Gathers the facts.
pub(super) fn gather(snapshot: &Snapshot, api_servers: BTreeSet<SocketAddr>) -> HostFacts {
    let texts = RESOLV_CONF.iter().filter_map(|path| files::read_text(Path::new(path), files::OWN_MAX).ok());
    HostFacts {
        addresses: uplinks::own_addresses(snapshot),
        gateways: uplinks::gateways(snapshot, false),
        default_gateways: uplinks::gateways(snapshot, true),
        resolvers: texts.flat_map(|text| resolvers(&text)).collect(),
        api_servers,
    }
}

/// Addresses of the API server.
#[derive(Debug)]
pub(super) struct ApiServers(watch::Receiver<BTreeSet<SocketAddr>>);

impl ApiServers {
    /// Starts to look up the host of a server, if there is one. Must be called within a tokio runtime.
    pub(super) async fn watch(server: Option<(String, u16)>) -> Self {
        let literal = server.as_ref().and_then(|(host, port)| {
            let ip: IpAddr = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
            Some(SocketAddr::new(ip, *port))
        });
        let (sender, mut receiver) = watch::channel(literal.into_iter().collect());
        if let Some(server) = server.filter(|_| literal.is_none()) {
            tokio::spawn(look_up(server, sender));
            if timeout(PATIENCE, receiver.changed()).await.is_err() {
                warn!("the API server's host name is not resolved yet: its address is not protected until then");
            }
        }
        Self(receiver)
    }

    /// The known addresses.
    pub(super) fn known(&mut self) -> BTreeSet<SocketAddr> {
        self.0.borrow_and_update().clone()
    }

    /// Waits until the addresses change.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Looks a name up periodically. A failed lookup keeps the previous addresses.
async fn look_up((host, port): (String, u16), found: watch::Sender<BTreeSet<SocketAddr>>) {
    while !found.is_closed() {
        if let Ok(addresses) = lookup_host((host.as_str(), port)).await {
            let addresses: BTreeSet<_> = addresses.collect();
            found.send_if_modified(|known| {
                let differs = !addresses.is_empty() && *known != addresses;
                if differs {
                    *known = addresses;
                }
                differs
            });
        }
        tokio::time::sleep(LOOKUP_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_api_servers_addresses() {
        for (host, first) in [("192.0.2.1", "192.0.2.1:6443"), ("[2001:db8::1]", "[2001:db8::1]:6443")] {
            let mut servers = ApiServers::watch(Some((host.to_owned(), 6443))).await;
            assert_eq!(servers.known().iter().map(ToString::to_string).collect::<Vec<_>>(), [first]);
        }
        assert!(ApiServers::watch(None).await.known().is_empty());
        let mut local = ApiServers::watch(Some(("localhost".to_owned(), 6443))).await;
        assert!(local.known().iter().all(|at| at.ip().is_loopback() && at.port() == 6443));
    }
}
