//! What the manifests ask for, read anew by the command: why a service's tables are as they are, and whether they are as
//! they should be.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use thiserror::Error;

use crate::config::Config;
use crate::control::State;
use crate::frontend::FrontendKind;
use crate::model::ObjectName;
use crate::select::{self, Explained, Settings};
use crate::source::manifest::{ManifestError, ManifestSource};

/// Why the manifests aren't known.
#[derive(Debug, Error)]
pub(super) enum WantedError {
    /// Nobody says where they are.
    #[error("no daemon has said where its manifests are: name its configuration with --config")]
    NoConfiguration,
    /// The configuration can't be used.
    #[error("the configuration can't be used: {0}")]
    Configuration(String),
    /// They can't be read.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
}

/// All objects in the manifest directory.
#[derive(Debug)]
pub(super) struct Wanted {
    state: State,
    settings: Settings,
    /// Files that can't be used as they are.
    broken: Vec<String>,
}

impl Wanted {
    /// Reads the directory that a configuration names.
    pub(super) fn read(config: &Config) -> Result<Self, WantedError> {
        let mut source = ManifestSource::open(&config.manifests)?;
        let mut state = State::default();
        for change in source.poll(Instant::now()).changes {
            state.apply(change, &mut BTreeSet::new());
        }
        let settings = Settings::new(config.source_ip, &config.node, state.nodes().get(&config.node).map(|n| &**n));
        let broken = source.status().broken.into_iter().map(|file| file.name).collect();
        Ok(Self { state, settings, broken })
    }

    /// Files that can't be used as they are, so that what the daemon has read before holds.
    pub(super) fn broken(&self) -> &[String] {
        &self.broken
    }

    /// What becomes of a service here; none if there is no such service.
    pub(super) fn explain(&self, name: &ObjectName) -> Option<Explained> {
        let (service, slices) = self.state.service(name)?;
        Some(select::explain(name, service, slices, &self.settings))
    }

    /// What kind of address a service's address is, of those that the tables don't tell apart.
    pub(super) fn kind(&self, name: &ObjectName, ip: IpAddr) -> Option<FrontendKind> {
        let (service, _) = self.state.service(name)?;
        if service.load_balancer_ips.contains(&ip) {
            Some(FrontendKind::LoadBalancer)
        } else {
            service.external_ips.contains(&ip).then_some(FrontendKind::ExternalIp)
        }
    }
}
