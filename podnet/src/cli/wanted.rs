//! `--offline`: reads the objects without the daemon and compares them with the tables.

use std::collections::BTreeMap;
use std::time::Duration;

use podnet_cni::text::chain;
use thiserror::Error;

use super::runtime::block_on;
use crate::config::Config;
use crate::control::{self, Index};
use crate::entry_counts::{EntryCounts, Share};
use crate::guard::Guard;
use crate::model::{Batch, ObjectName};
use crate::select::{self, Settings};
use crate::socket::{Explanation, ExternalAddresses};
use crate::source::Source;
use crate::status::DaemonStatus;

/// How long the Kubernetes API may take to list everything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the demands are unknown.
#[derive(Debug, Error)]
pub(super) enum WantedError {
    /// No source is configured.
    #[error("no daemon has published its configuration on this node: pass the file with --config")]
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
    shares: BTreeMap<String, EntryCounts>,
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

    /// The outcome for a service on this node, with tables of this size.
    pub(super) fn explain(&self, name: &ObjectName, tables: EntryCounts) -> Explanation {
        let explained = self.index.service(name).map(|(service, slices)| {
            let share = Share::new(tables.of_service()).within(self.shares.get(&name.namespace).copied());
            select::explain(name, service, slices.named(), &self.settings, &self.guard, share)
        });
        Explanation { service: explained, invalid: self.broken.clone() }
    }

    /// External addresses of all services.
    pub(super) fn addresses(&self) -> impl Iterator<Item = ExternalAddresses> {
        self.index.services_after(None).filter_map(|(name, service)| ExternalAddresses::of(name, service?))
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
