//! The demands of manifests or the Kubernetes API, read afresh by the command: why a service's tables are as they are,
//! and whether they are as they should be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use podnet_cni::text::chain;
use thiserror::Error;

use super::runtime::block_on;
use crate::config::Config;
use crate::control::{self, Index};
use crate::frontend::FrontendKind;
use crate::guard::Guard;
use crate::model::{Batch, ObjectName};
use crate::room::{Room, Share};
use crate::select::{self, Explained, Settings};
use crate::source::Source;
use crate::status::DaemonStatus;

/// How long the Kubernetes API may take to list everything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the demands are unknown.
#[derive(Debug, Error)]
pub(super) enum WantedError {
    /// No source is configured.
    #[error("no daemon has published the source of its objects: pass its configuration with --config")]
    NoConfiguration,
    /// The configuration can't be used.
    #[error("invalid configuration: {0}")]
    Configuration(String),
    /// The source can't be read.
    #[error("{}", chain(.0.as_ref()))]
    Source(anyhow::Error),
}

/// All objects of the source.
#[derive(Debug)]
pub(super) struct Wanted {
    index: Index,
    settings: Settings,
    guard: Guard,
    /// Limit of each service, by namespace, according to the daemon.
    shares: BTreeMap<String, Room>,
    /// Invalid files and objects.
    broken: Vec<String>,
}

impl Wanted {
    /// Reads the source in a configuration.
    pub(super) fn read(config: &Config) -> Result<Self, WantedError> {
        let (batch, broken) = block_on(objects(config)).and_then(|read| read).map_err(WantedError::Source)?;
        let mut index = Index::default();
        batch.changes.into_iter().for_each(|change| index.apply(change));
        let DaemonStatus { host, shares, .. } = DaemonStatus::read(&config.run_dir).ok().flatten().unwrap_or_default();
        let (settings, guard) = control::as_read(config, &index, &host);
        Ok(Self { index, settings, guard, shares, broken })
    }

    /// Invalid files and objects, for which the daemon keeps the last valid version in effect.
    pub(super) fn broken(&self) -> &[String] {
        &self.broken
    }

    /// The outcome for a service on this node, with tables of this size; `None` if the service doesn't exist.
    pub(super) fn explain(&self, name: &ObjectName, tables: Room) -> Option<Explained> {
        let (service, _) = self.index.service(name)?;
        let slices = self.index.slices(name);
        let share = Share::new(tables.of_service()).within(self.shares.get(&name.namespace).copied());
        Some(select::explain(name, service, slices, &self.settings, &self.guard, share))
    }

    /// Kind of a service's address, for the kinds that the tables don't distinguish.
    pub(super) fn kind(&self, name: &ObjectName, ip: IpAddr) -> Option<FrontendKind> {
        let (service, _) = self.index.service(name)?;
        if service.load_balancer_ips.contains(&ip) {
            Some(FrontendKind::LoadBalancer)
        } else {
            service.external_ips.contains(&ip).then_some(FrontendKind::ExternalIp)
        }
    }
}

/// All objects of a source, and the invalid ones.
async fn objects(config: &Config) -> anyhow::Result<(Batch, Vec<String>)> {
    let mut source = Source::open(config)?;
    let mut batch = source.first();
    let listed = async {
        while !batch.synced && matches!(source, Source::Kubernetes(_)) {
            batch = source.next().await?;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(PATIENCE, listed).await {
        Ok(listed) => listed?,
        Err(_) => {
            let status = source.status();
            let reason = status.error.or_else(|| status.remarks.into_iter().next()).unwrap_or_default();
            anyhow::bail!("no answer from the Kubernetes API within {} s: {reason}", PATIENCE.as_secs());
        }
    }
    let broken = source.status().mistakes.into_iter().map(|mistake| mistake.place.to_string()).collect();
    Ok((batch, broken))
}
